"""What is tuned comes back bit for bit, and plain `peft` on the plain base gives the same logits."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from luthier.errors import CheckpointError, RequestError
from luthier.models import adapters
from luthier.models.load import load_base
from luthier.models.verdict import VerdictModel
from luthier.recipe_model import ModelConfig

MAKES: dict[str, dict[str, Any]] = {
    "lora": {},
    "lora with a soft prompt": {"model.learned_tokens.soft_prompt": 3},
    "lora and encoder": {"model.train_encoder": True, "model.train_projector": True},
    "lora on bfloat16": {"model.dtype": "bfloat16"},
    "full": {"model.tuning": "full", "model.learned_tokens.soft_prompt": 2},
}


def saved(one, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    adapters.save(one.model.language_model, folder, one.recipe.model.base)
    return folder


def own_forward(language_model: Any, one, row: int) -> torch.Tensor:
    """(V,) logits at the end of one row by the library's own forward from token ids and log-mel."""
    example = one.examples[row]
    mel_TF = one.base.family.mel(one.base.extractor, one.store.waveform(example.media))
    with torch.no_grad():
        return (
            language_model(
                input_ids=torch.tensor([example.ids]),
                audio_input_features=mel_TF[None],
                audio_embed_sizes=torch.tensor([example.media_length]),
            )
            .logits[0, -1]
            .float()
        )


@pytest.mark.parametrize("make", MAKES)
def test_saved_weights_come_back_bit_for_bit(bench, tmp_path, make):
    one = bench(MAKES[make], rows=4)
    one.train(3)
    trained = adapters.state(one.model.language_model)
    saved(one, tmp_path)
    other = bench(MAKES[make], rows=4, seed=8)
    differing = [k for k, v in adapters.state(other.model.language_model).items() if not torch.equal(v, trained[k])]
    assert differing
    adapters.restore(other.model.language_model, tmp_path)
    restored = adapters.state(other.model.language_model)
    assert restored.keys() == trained.keys()
    assert all(torch.equal(restored[key], trained[key]) for key in trained)
    assert load_file(tmp_path / adapters.WEIGHTS).keys() == trained.keys()
    with torch.no_grad():
        torch.testing.assert_close(other.model(other.batch())[1], one.model(one.batch())[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("make", MAKES)
def test_plain_peft_gives_equal_logits(bench, tmp_path, make):
    one = bench(MAKES[make], rows=4, frozen=False)
    untrained = own_forward(one.model.language_model, one, 1)
    one.train(3)
    plain = load_base(ModelConfig(base="toy:phi4-multimodal", dtype=one.recipe.model.dtype)).model
    loaded = PeftModel.from_pretrained(plain, str(saved(one, tmp_path))).eval()
    ours = own_forward(one.model.language_model, one, 1)
    assert float((ours - untrained).abs().max()) > 0.01
    torch.testing.assert_close(own_forward(loaded, one, 1), ours, rtol=0, atol=1e-6)
    answers = dict(zip(("pass", "fail"), one.model.answers, strict=True))
    theirs = VerdictModel(loaded, one.base.family, one.recipe.task, answers)
    with torch.no_grad():
        torch.testing.assert_close(theirs(one.batch())[1], one.model(one.batch())[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("make", ["lora", "full"])
def test_the_folder_names_its_base_and_is_ready_for_inference(bench, tmp_path, make):
    one = bench(MAKES[make], rows=2)
    settings = json.loads((saved(one, tmp_path) / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "toy:phi4-multimodal"
    assert settings["inference_mode"] is True
    assert any(p.requires_grad for p in one.model.parameters())


@pytest.mark.parametrize("make", ["lora", "full"])
@pytest.mark.parametrize("damage", ["missing", "renamed", "unknown", "shape"])
def test_keys_that_do_not_fit_are_named(bench, tmp_path, make, damage):
    one = bench(MAKES[make], rows=2)
    path = saved(one, tmp_path) / adapters.WEIGHTS
    tensors = load_file(path)
    key = next(name for name in sorted(tensors) if "qkv_proj" in name)
    if damage == "unknown":
        tensors["base_model.model.extra.weight"], key = torch.zeros(1), "base_model.model.extra.weight"
    elif damage == "shape":
        tensors[key] = tensors[key][:-1].clone()
    else:
        value = tensors.pop(key)
        if damage == "renamed":
            tensors[key.replace("qkv_proj", "zzz_proj")] = value
    save_file(tensors, path)
    before = adapters.state(one.model.language_model)
    with pytest.raises(CheckpointError, match=re.escape(key)):
        adapters.restore(one.model.language_model, tmp_path)
    after = adapters.state(one.model.language_model)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_lora_stays_out_of_the_encoders_and_the_projector(bench):
    one = bench(rows=2)
    names = [name for name, p in one.model.named_parameters() if p.requires_grad]
    tuned = [name for name in names if "lora_" in name]
    assert len(tuned) == 2 * 4 * one.base.model.config.num_hidden_layers
    assert all(".model.layers." in name for name in tuned)
    assert [name for name in names if name not in tuned] == [n for n in names if "trainable_tokens_delta" in n]


@pytest.mark.parametrize(
    "pattern",
    [
        r".*(qkv_proj|o_proj)",
        r".*\.(q_proj|v_proj)",
        r".*(gate_up_proj|down_proj)",
        ".*",
        r".*self_attn.*",
        r".*(up|down)_proj_for_speech",
    ],
)
def test_patterns_that_reach_what_hears_are_refused(recipe_of, pattern):
    recipe = recipe_of({"model.lora.target_modules": pattern})
    with pytest.raises(RequestError, match="reaches into"):
        adapters.attach(load_base(recipe.model), recipe.model, {"<|verdict|>": 640}, 0)


@pytest.mark.parametrize("pattern", ["(qkv_proj|o_proj)", "qkv_proj,o_proj", r"transformer\.h\.\d+\..*"])
def test_patterns_that_match_nothing_are_refused(recipe_of, pattern):
    recipe = recipe_of({"model.lora.target_modules": pattern})
    with pytest.raises(RequestError, match="matches no module"):
        adapters.attach(load_base(recipe.model), recipe.model, {"<|verdict|>": 640}, 0)


def test_an_own_pattern_of_the_decoder_is_taken(bench):
    one = bench({"model.lora.target_modules": r"model\.layers\.\d+\.self_attn\.qkv_proj"}, rows=2)
    assert sum("lora_A" in name for name, _ in one.model.named_parameters()) == 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_nearly_every_lora_element_moves_at_a_small_rate(bench, dtype):
    """Adapters are float32: in bfloat16, steps of this size are below half an ulp and are rounded away."""
    one = bench({"model.dtype": dtype})
    assert all(p.dtype is torch.float32 for p in one.model.parameters() if p.requires_grad)
    frozen = [p for name, p in one.model.named_parameters() if not p.requires_grad and "lora_" not in name]
    assert {p.dtype for p in frozen} == {getattr(torch, dtype)}
    one.train(1)
    before = adapters.state(one.model.language_model)
    one.train(20, learning_rate=2e-5)
    after = adapters.state(one.model.language_model)
    changed = torch.cat([(before[k] != after[k]).reshape(-1) for k in before if "lora_" in k])
    assert len(changed) > 3000
    assert float(changed.float().mean()) >= 0.99
    tokens = [k for k in before if "lora_" not in k]
    assert all(bool((before[k] != after[k]).all()) for k in tokens)


@pytest.mark.parametrize("make", ["lora", "lora and encoder", "full"])
def test_what_is_tuned_is_float32_on_a_bfloat16_base(bench, make):
    one = bench({**MAKES[make], "model.dtype": "bfloat16"}, rows=2)
    assert {p.dtype for p in one.model.parameters() if p.requires_grad} == {torch.float32}


@pytest.mark.parametrize("make", ["lora", "full"])
def test_every_tuned_tensor_gets_a_gradient(bench, make):
    one = bench({**MAKES[make], "task.readout": "tokens"}, frozen=False)
    before = adapters.state(one.model.language_model)
    one.train(3)
    after = adapters.state(one.model.language_model)
    # A key bias is added to every score of a softmax alike: its gradient is rounding, or nothing at all.
    still = [k for k in before if torch.equal(before[k], after[k]) and not k.endswith("k_proj.bias")]
    assert still == []


@pytest.mark.parametrize("make", ["lora", "full"])
def test_the_tied_head_stays_tied(bench, tmp_path, make):
    one = bench({**MAKES[make], "model.learned_tokens.soft_prompt": 2}, rows=4)
    one.train(3)
    plain = load_base(ModelConfig(base="toy:phi4-multimodal")).model
    loaded = PeftModel.from_pretrained(plain, str(saved(one, tmp_path)))
    tokens = torch.tensor([*sorted(one.about.learned_tokens.values()), 5, 70])
    state_BD = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))
    for model in (adapters.bare(one.model.language_model), loaded.get_base_model()):
        with torch.no_grad():
            rows = model.get_input_embeddings()(tokens)
            logits = model.get_output_embeddings()(state_BD)[:, tokens]
        torch.testing.assert_close(logits, state_BD @ rows.T, rtol=0, atol=1e-5)


@pytest.mark.parametrize("make", ["lora", "full"])
def test_reset_tokens_puts_the_rows_of_the_start_back(bench, make):
    one = bench({**MAKES[make], "model.learned_tokens.soft_prompt": 2}, rows=4)
    ids = torch.tensor(sorted(one.about.learned_tokens.values()))
    embeddings = adapters.bare(one.model.language_model).get_input_embeddings()
    assert torch.equal(embeddings(ids).detach(), one.fresh_tokens)
    one.train(3)
    assert not torch.equal(embeddings(ids).detach(), one.fresh_tokens)
    adapters.reset_tokens(one.model.language_model, one.base, one.about.learned_tokens, one.fresh_tokens)
    assert torch.equal(embeddings(ids).detach(), one.fresh_tokens)


def test_a_lora_begins_as_the_base_and_depends_on_the_seed(bench):
    first, again, other = (bench(rows=2, seed=seed) for seed in (3, 3, 4))
    states = [adapters.state(one.model.language_model) for one in (first, again, other)]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert any(not torch.equal(states[0][k], states[2][k]) for k in states[0] if "lora_A" in k)
    assert all(not bool(v.any()) for k, v in states[0].items() if "lora_B" in k)


def test_full_leaves_what_sound_never_passes_through(bench):
    one = bench(MAKES["full"], rows=2)
    frozen = [name for name, p in one.model.language_model.named_parameters() if not p.requires_grad]
    assert frozen
    assert all(name.startswith(one.base.family.frozen) for name in frozen)
    assert not any("image_embed" in key for key in adapters.state(one.model.language_model))
