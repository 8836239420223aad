"""Words of a recipe become modules of a base, all of them, or are refused with the names there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from luthier.errors import RequestError
from luthier.models import adapters
from luthier.models.families import TEXT_FAMILIES, TextFamily
from luthier.models.targets import is_tied, lora_targets, whole_modules
from luthier.models.text_base import TextBase, load_text_base
from luthier.models.toys import TOYS
from luthier.recipe_model import LoraSettings, ModelConfig
from support.text_cases import write_base

HEARS = ("embed_tokens_extend", "vision", "visual", "audio", "projector", "connector")


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> TextBase:
    folder: Path = tmp_path_factory.mktemp("untied")
    return load_text_base(ModelConfig(base=str(write_base(folder, tied=False))))


@pytest.fixture(scope="module")
def tied() -> TextBase:
    return load_text_base(ModelConfig(base="toy:llama"))


def decoder_linears(model: torch.nn.Module) -> set[str]:
    return {
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head" and not any(word in name for word in HEARS)
    }


@pytest.mark.parametrize("name", sorted(TOYS))
def test_the_familys_pattern_is_every_projection_of_the_decoder_and_so_is_all_linear(name):
    base = load_text_base(ModelConfig(base=name))
    pattern = lora_targets(base.model, base.family, "")
    expected = decoder_linears(base.model)
    assert {n for n, _ in base.model.named_modules() if re.fullmatch(pattern, n)} == expected
    assert set(lora_targets(base.model, base.family, "all-linear")) == expected
    layers = base.model.config.get_text_config().num_hidden_layers
    assert len(expected) in {4 * layers, 7 * layers}


@pytest.mark.parametrize("name", sorted(TOYS))
@pytest.mark.parametrize("pattern", ["", "all-linear"])
def test_every_adapter_of_every_family_gets_a_gradient(name, pattern):
    config = ModelConfig(base=name, lora=LoraSettings(r=2, alpha=4, target_modules=pattern))
    base = load_text_base(config)
    model = adapters.attach(base, config, {}, 0)
    ids = torch.arange(20, 60)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    tuned = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert len(tuned) == 2 * len(decoder_linears(adapters.bare(load_text_base(config).model)))
    assert all(bool(p.grad.any()) for n, p in tuned.items() if "lora_B" in n)


def test_patterns_stay_out_of_what_sees_and_hears():
    for family in TEXT_FAMILIES.values():
        for part in ("model.vision_tower.encoder.layers.0", "model.embed_tokens_extend.audio_embed.encoder.layers.0"):
            for end in ("self_attn.q_proj", "mlp.down_proj", "self_attn.qkv_proj"):
                assert not re.fullmatch(family.decoder_pattern, f"{part}.{end}")
    assert re.fullmatch(TEXT_FAMILIES["gemma3"].decoder_pattern, "model.language_model.layers.11.mlp.up_proj")


@pytest.mark.parametrize("pattern", ["q_proj", "transformer.*", r"layers\.\d+\.mlp"])
def test_a_pattern_that_matches_nothing_lists_what_there_is(tied, pattern):
    with pytest.raises(RequestError, match="matches no module") as refusal:
        lora_targets(tied.model, tied.family, pattern)
    assert "model.layers.N.self_attn.q_proj" in refusal.value.mend
    assert "lm_head" in refusal.value.mend


def test_an_unknown_architecture_is_told_to_name_its_modules(tied):
    stranger = TextFamily(name="stranger", decoder_pattern="")
    with pytest.raises(RequestError, match="no pattern is known for architecture 'stranger'") as refusal:
        lora_targets(tied.model, stranger, "")
    assert "all-linear" in refusal.value.mend
    assert "model.layers.N.mlp.up_proj" in refusal.value.mend
    assert lora_targets(tied.model, stranger, "all-linear")


@pytest.mark.parametrize("pattern", ["lm_head", r".*embed_tokens", r"lm_head|.*_proj", r".*(lm_head|embed_tokens)"])
def test_30_lora_on_a_tied_matrix_is_refused(tied, pattern):
    with pytest.raises(RequestError, match="head and embedding in one matrix") as refusal:
        lora_targets(tied.model, tied.family, pattern)
    assert "modules_to_save" in refusal.value.mend


def test_an_untied_head_may_have_lora(untied):
    assert not is_tied(untied.model)
    assert lora_targets(untied.model, untied.family, r"lm_head|.*_proj") == r"lm_head|.*_proj"


@pytest.mark.parametrize("pattern", [".*", r"model\.layers\.\d+\..*", r"model\.norm", r".*embed_tokens"])
def test_what_is_no_linear_layer_is_refused(untied, pattern):
    with pytest.raises(RequestError, match="which is no linear layer"):
        lora_targets(untied.model, untied.family, pattern)


def test_modules_to_save_are_whole_names_so_that_norm_is_not_every_norm(tied):
    assert whole_modules(tied.model, ["norm", "lm_head"], ".*q_proj") == ["model.norm", "lm_head"]


def test_modules_to_save_that_are_not_there_are_refused_with_those_that_are(tied):
    with pytest.raises(RequestError, match="'score' is no module") as refusal:
        whole_modules(tied.model, ["score"], ".*q_proj")
    assert "model.layers.N.mlp.up_proj" in refusal.value.mend


@pytest.mark.parametrize("targets", [r"lm_head|.*q_proj", ["lm_head"]])
def test_a_module_is_trained_whole_or_by_lora_but_not_both(untied, targets):
    with pytest.raises(RequestError, match=r"lm_head is in model\.lora\.target_modules too"):
        whole_modules(untied.model, ["lm_head"], targets)


def test_a_module_with_lora_inside_cannot_be_trained_whole(tied):
    with pytest.raises(RequestError, match="mlp is in"):
        whole_modules(tied.model, ["mlp"], tied.family.decoder_pattern)
