"""Bases that see: loaded whole, tuned part by part as the recipe says, and read back by plain PEFT to the last bit."""

from __future__ import annotations

import warnings
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from luthier.errors import RequestError
from luthier.models import adapters
from luthier.models.chat import load_tokenizer
from luthier.models.families import text_family_of
from luthier.models.parts import ENCODER, LANGUAGE, PROJECTOR, Parts, freeze_unseen, modules_of, told, tuned
from luthier.models.senses.base import SENSES
from luthier.models.text_base import load_text_base, weightless_base
from luthier.models.toys import TOYS, build_toy
from luthier.recipe_model import LoraSettings, ModelConfig
from support.sightings import Sight, our_logits, picture

SEEING = sorted(name for name in TOYS if "large" not in name and build_toy(name)[0].config.model_type in SENSES)
SLOW = pytest.mark.slow
WITHOUT_LINEAR = {"toy:gemma3-vision": [PROJECTOR]}
"""Parts that have no linear layer: a projector that is one matrix."""
TUNINGS: dict[str, dict[str, Any]] = {
    "language": {},
    "projector": {"lora": [LANGUAGE, PROJECTOR]},
    "encoder": {"lora": [LANGUAGE, ENCODER]},
    "encoder alone": {"lora": [ENCODER]},
    "whole projector": {"train_projector": True},
    "whole sight": {"train_projector": True, "train_encoder": True},
    "full": {"tuning": "full"},
    "full with projector": {"tuning": "full", "train_projector": True},
    "full with all": {"tuning": "full", "train_projector": True, "train_encoder": True},
}


SOME = [
    one if one in ("projector", "encoder", "whole projector", "full with all") else pytest.param(one, marks=SLOW)
    for one in TUNINGS
]


def config(name: str, lora: list[str] | None = None, **changes: Any) -> ModelConfig:
    return ModelConfig(base=name, lora=LoraSettings(r=2, alpha=4, dropout=0.0, parts=lora or [LANGUAGE]), **changes)


def attached(name: str, seed: int = 0, **changes: Any) -> tuple[Any, Any]:
    """(base, model) with all that is tuned moved away from its beginning."""
    settings = config(name, **changes)
    base = load_text_base(settings)
    model = adapters.attach(base, settings, {}, seed)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return base, model


@cache
def seen(name: str) -> Sight:
    return Sight.of(name)


def logits(name: str, model: Any) -> torch.Tensor:
    """Of a row with a picture, through encoder, projector and decoder."""
    here = seen(name)
    text = f"{here.senses.mark('image', 1)}what is shown?"
    with torch.no_grad():
        return our_logits(Sight(adapters.bare(model).eval(), here.tokenizer, here.senses), [(text, [picture(61, 47)])])


def assert_equal_weights(one: Any, other: Any) -> None:
    """Every weight of two models of one make, to the last bit."""
    wanted = dict(other.named_parameters())
    here = dict(one.named_parameters())
    assert set(here) == set(wanted)
    assert [n for n in wanted if not torch.equal(here[n], wanted[n])] == []


def skip_without_linear(name: str, how: dict[str, Any]) -> None:
    if set(how.get("lora", [])) & set(WITHOUT_LINEAR.get(name, [])):
        with pytest.raises(RequestError, match="has no linear layer"):
            attached(name, **how)
        pytest.skip("there is nothing for LoRA in it, which is refused")


@pytest.mark.parametrize("name", SEEING)
@pytest.mark.parametrize("tuning", SOME)
def test_plain_peft_reads_what_was_tuned_back_bit_for_bit(name: str, tuning: str, tmp_path: Path) -> None:
    skip_without_linear(name, TUNINGS[tuning])
    base, model = attached(name, **TUNINGS[tuning])
    adapters.save(model, tmp_path, name, base.facts())
    plain = build_toy(name)[0]
    before = logits(name, plain)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = PeftModel.from_pretrained(plain, str(tmp_path))
    if hasattr(model, "peft_config"):
        assert_equal_weights(again, model)
    # Sums may differ in the last bit by where in memory the same weights lie.
    torch.testing.assert_close(logits(name, again), logits(name, model), rtol=0, atol=5e-6)
    assert not torch.allclose(logits(name, again), before, atol=1e-3)
    other = attached(name, seed=5, **TUNINGS[tuning])[1]
    assert not torch.equal(logits(name, other), logits(name, model))
    adapters.restore(other, tmp_path)
    assert_equal_weights(other, model)
    torch.testing.assert_close(logits(name, other), logits(name, model), rtol=0, atol=5e-6)


@pytest.mark.parametrize("name", SEEING)
@pytest.mark.parametrize("tuning", SOME)
def test_what_the_recipe_does_not_name_stays_frozen(name: str, tuning: str) -> None:
    how = TUNINGS[tuning]
    skip_without_linear(name, how)
    base, model = attached(name, **how)
    parts = Parts(base.family, base.senses)
    named = {"whole projector": {LANGUAGE, PROJECTOR}, "full": {LANGUAGE}, "full with projector": {LANGUAGE, PROJECTOR}}
    expected = named.get(tuning, set(how.get("lora", [])) or {LANGUAGE})
    if how.get("train_encoder"):
        expected = {LANGUAGE, PROJECTOR, ENCODER}
    assert {parts.of(n) for n, p in model.named_parameters() if p.requires_grad} == expected
    frozen = {part for part, one in tuned(model, parts).items() if one.how() == "frozen"}
    assert not {part.partition(" of ")[0] for part in frozen} & expected
    table = told(model, parts)
    assert all(part in table for part in (LANGUAGE, PROJECTOR, ENCODER))


@pytest.mark.parametrize("name", SEEING)
def test_every_weight_is_in_one_part_and_the_facts_of_the_family_agree(name: str) -> None:
    base = load_text_base(config(name))
    parts = Parts(base.family, base.senses)
    for parameter, _ in base.model.named_parameters():
        before_the_decoder = parameter.startswith(base.family.frozen)
        assert (parts.of(parameter) == LANGUAGE) == (not before_the_decoder), parameter
    assert parts.parameters(base.model, [PROJECTOR])
    assert parts.parameters(base.model, [ENCODER])
    decoder = set(map(id, base.senses.decoder(base.model).layers.parameters()))
    inside = {n for n, p in base.model.named_parameters() if id(p) in decoder}
    assert inside <= parts.parameters(base.model, [LANGUAGE])


@pytest.mark.parametrize("name", SEEING)
def test_every_tuned_weight_of_the_projector_gets_a_gradient(name: str) -> None:
    base, model = attached(name, train_projector=True)
    parts = Parts(base.family, base.senses)
    here = Sight(base.model, seen(name).tokenizer, base.senses)
    text = f"{base.senses.mark('image', 1)}what is shown?"
    our_logits(here, [(text, [picture(61, 47)])]).square().mean().backward()
    still = [n for n, p in model.named_parameters() if p.requires_grad and not (p.grad is not None and p.grad.any())]
    # Projectors of other media than pictures are spared.
    spared = [n for n in still if parts.of(n) == PROJECTOR and "image" not in parts.place(n)[1]]
    assert [n for n in still if n not in spared and "lora_" not in n] == []


@pytest.mark.parametrize("name", SEEING)
def test_a_folder_loads_as_the_toy_and_its_weightless_twin_has_its_names(name: str, tmp_path: Path) -> None:
    toy, tokenizer, _ = build_toy(name)
    toy.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = load_text_base(config(str(tmp_path)))
    assert loaded.digest == load_text_base(config(name)).digest
    assert type(loaded.model) is type(toy)
    shapes = weightless_base(config(str(tmp_path)), load_tokenizer(str(tmp_path)))
    assert {n: p.shape for n, p in shapes.model.named_parameters()} == {n: p.shape for n, p in toy.named_parameters()}
    assert all(p.is_meta for p in shapes.model.parameters())
    assert text_family_of(loaded.model).decoder_pattern


@pytest.mark.parametrize("name", SEEING)
def test_a_changed_encoder_is_another_base(name: str) -> None:
    base = load_text_base(config(name))
    parts = Parts(base.family, base.senses)
    weight = base.model.get_parameter(sorted(parts.parameters(base.model, [ENCODER]))[0])
    with torch.no_grad():
        weight.add_(1e-3)
    assert adapters.state(base.model) == {}
    assert load_text_base(config(name)).digest != _digest(base.model)


def _digest(model: Any) -> str:
    from luthier.models.families import parameters_digest

    return parameters_digest(model)


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
@pytest.mark.parametrize("name", SEEING)
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_quantised_base_sees_as_a_whole_one_does(name: str, kind: str) -> None:
    base = load_text_base(config(name, quantization=kind))
    parts = Parts(base.family, base.senses)
    packed = {parts.of(n) for n, m in base.model.named_modules() if type(m).__name__ in ("Linear4bit", "Linear8bitLt")}
    assert packed == {LANGUAGE}
    assert type(base.model.get_output_embeddings()) is torch.nn.Linear
    whole = load_text_base(config(name))
    for n in sorted(parts.parameters(whole.model, [ENCODER, PROJECTOR])):
        assert torch.equal(base.model.get_parameter(n).float(), whole.model.get_parameter(n)), n


def test_phi4s_ears_stay_frozen_where_only_pictures_come_in_and_are_saved_nevertheless(tmp_path: Path) -> None:
    if "toy:phi4-multimodal" not in SEEING:
        pytest.skip("not there")
    how = TUNINGS["whole sight"]
    base, model = attached("toy:phi4-multimodal", **how)
    parts = Parts(base.family, base.senses)
    kept = set(adapters.state(model))
    frozen = freeze_unseen(model, parts, ["image"])
    assert frozen
    assert all(parts.place(n)[1] == {"audio"} for n in frozen)
    assert any(p.requires_grad and parts.of(n) == ENCODER for n, p in model.named_parameters())
    assert set(adapters.state(model)) == kept
    assert "encoder of audio" in told(model, parts)


def test_a_part_that_is_not_there_or_is_tuned_twice_is_refused() -> None:
    with pytest.raises(RequestError, match="toy:llama reads text alone"):
        attached("toy:llama", lora=[LANGUAGE, ENCODER])
    with pytest.raises(RequestError, match=r"encoder is in model\.lora\.parts too"):
        attached("toy:qwen3-vl", lora=[LANGUAGE, ENCODER], train_encoder=True, train_projector=True)


def test_a_pattern_reaches_the_parts_that_are_named_and_no_others() -> None:
    name, pattern = "toy:qwen3-vl", r"model\.visual\.blocks\.\d+\.attn\.(qkv|proj)"
    for parts, reach in (([LANGUAGE], pattern), ([ENCODER, LANGUAGE], pattern), ([ENCODER], r".*proj")):
        settings = config(name, lora=parts)
        settings.lora.target_modules = reach
        with pytest.raises(RequestError, match=r"model\.lora\.(target_modules|parts)"):
            adapters.attach(load_text_base(settings), settings, {}, 0)
    settings = config(name, lora=[ENCODER])
    settings.lora.target_modules = pattern
    model = adapters.attach(load_text_base(settings), settings, {}, 0)
    assert {n.partition(".lora_")[0].rpartition(".")[2] for n, p in model.named_parameters() if p.requires_grad} == {
        "qkv",
        "proj",
    }


def test_modules_are_the_fewest_that_own_some_weights_and_no_list_of_modules() -> None:
    model = torch.nn.Module()
    model.a = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    model.b = torch.nn.ModuleList([torch.nn.Linear(2, 2)])
    model.c = torch.nn.Parameter(torch.zeros(2))
    names = [n for n, _ in model.named_parameters()]
    assert modules_of(model, names) == ["a", "b.0"]
    assert modules_of(model, [n for n in names if n != "a.1.bias"]) == ["a.0", "b.0"]
    assert modules_of(model, names, ["a.1"]) == ["a.1"]


def test_auto_classes_of_the_library_are_told_apart() -> None:
    from luthier.models.load import auto_class

    assert auto_class(build_toy("toy:qwen2-vl")[0].config) is AutoModelForImageTextToText
    assert auto_class(build_toy("toy:gemma3-vision")[0].config) is AutoModelForCausalLM
    assert auto_class(build_toy("toy:llama")[0].config) is AutoModelForCausalLM
