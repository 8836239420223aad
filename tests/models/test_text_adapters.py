"""Adapters of chat bases: what one process saves, another one has to the last bit. Numbers are those of the bugs in
the list of silent ones that a test is for."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from luthier.errors import CheckpointError, RequestError
from luthier.models import adapters
from luthier.models.text_base import load_text_base
from luthier.models.tokens import add_text_tokens
from luthier.recipe_model import LoraSettings, ModelConfig
from support import chats
from support.children import ROOT, environment
from support.text_cases import CASES, MANY, TOKENS, attached, config_of, logits, read_ids, train, train_all, write_base

pytest.importorskip("bitsandbytes")
MERGED = [case for case in CASES if not case.startswith(("nf4", "int8", "full"))]


class Saved:
    """All kinds of adapters, saved by this process and loaded by a new one."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.here = train_all(root)
        subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "support.text_cases", str(root)],
            check=True,
            cwd=ROOT / "tests",
            env=environment(),
            timeout=240,
        )
        self.there = load_file(root / "reloaded.safetensors")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return Saved(tmp_path_factory.mktemp("adapters"))


@pytest.fixture
def folder(saved: Saved, tmp_path: Path) -> Path:
    """The plain LoRA of a tied base, to be damaged."""
    return Path(shutil.copytree(saved.root / "lora", tmp_path / "adapter"))


@pytest.mark.parametrize("case", CASES)
def test_28_a_new_process_gives_the_same_logits_bit_for_bit(saved, case):
    assert float((saved.here[case] - saved.here[f"{case} fresh"]).abs().max()) > 0.1
    assert torch.equal(saved.there[case], saved.here[case])


@pytest.mark.parametrize("case", CASES)
def test_plain_peft_in_a_new_process_gives_the_same_logits_bit_for_bit(saved, case):
    assert torch.equal(saved.there[f"{case} plain"], saved.here[case])


@pytest.mark.parametrize("case", ["tokens, tied", "tokens, untied", "nf4, tokens", "grown, tied", "grown, untied"])
def test_28_the_rows_of_added_tokens_are_in_the_adapter(saved, case):
    base, _ = attached(config_of(saved.root, case))
    tensors = load_file(saved.root / case / adapters.WEIGHTS)
    rows = {name: len(value) for name, value in tensors.items() if "trainable_tokens_delta" in name}
    assert set(rows.values()) == {len(set(base.added_tokens.values()) | set(base.grown))}
    assert [any(part in name for name in rows) for part in ("embed_tokens", "lm_head")] == [True, "untied" in case]


@pytest.mark.parametrize("case", MERGED)
def test_30_adapter_and_merged_and_reloaded_agree(saved, tmp_path, case):
    config = config_of(saved.root, case)
    base, model = attached(config)
    tied = not CASES[case].get("untied", False)
    adapters.restore(model, saved.root / case, base.facts())
    merged = model.merge_and_unload()
    head, embeddings = merged.get_output_embeddings().weight, merged.get_input_embeddings().weight
    assert (head is embeddings) is tied
    tolerance = 0.06 if config.dtype == "bfloat16" else 1e-5
    torch.testing.assert_close(logits(merged, base), saved.here[case], rtol=0, atol=tolerance)
    merged.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert torch.equal(logits(again, base), logits(merged, base))


def test_30_control_lora_on_a_tied_head_would_change_when_merged(saved):
    """What is refused: PEFT merges the update into the one matrix, and the embedding changes with the head."""
    from peft import LoraConfig, get_peft_model

    base = load_text_base(ModelConfig(base=str(saved.root / "tied")))
    model = get_peft_model(base.model, LoraConfig(r=4, target_modules="lm_head"))
    train(model, base)
    before = logits(model, base)
    assert float((logits(model.merge_and_unload(), base) - before).abs().max()) > 0.1


def test_a_whole_tied_head_is_one_trained_matrix(saved):
    base, model = attached(config_of(saved.root, "whole head, tied"))
    train(model, base)
    inner = adapters.bare(model)
    head, embeddings = inner.lm_head.modules_to_save["default"], inner.get_input_embeddings().modules_to_save["default"]
    assert head.weight is embeddings.weight
    assert sum(p.requires_grad and p.shape[0] == 768 for p in model.parameters()) == 1


def small_steps(model: Any, base: Any) -> float:
    """The share of lora_A's elements that 60 steps of AdamW at 2e-5 change."""
    train(model, base, steps=1, learning_rate=1e-3)  # lora_B leaves 0, so that lora_A has a gradient
    names = [name for name, _ in model.named_parameters() if "lora_A" in name]
    before = {name: model.get_parameter(name).detach().clone() for name in names}
    train(model, base, steps=60, learning_rate=2e-5)
    changed = torch.cat([(before[name] != model.get_parameter(name)).reshape(-1) for name in names])
    assert len(changed) > 900
    return float(changed.float().mean())


@pytest.mark.parametrize("case", ["lora", "lora, bfloat16", "dora, bfloat16", "nf4", "int8"])
def test_32_small_steps_move_an_adapter(saved, case):
    base, model = attached(config_of(saved.root, case))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert small_steps(model, base) >= 0.99


def test_32_control_small_steps_leave_a_bfloat16_adapter_where_it_was(saved):
    base, model = attached(config_of(saved.root, "lora, bfloat16"))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    assert small_steps(model, base) < 0.5


@pytest.mark.parametrize("case", CASES)
def test_33_resuming_keeps_what_was_trained(saved, case):
    config = config_of(saved.root, case)
    base, model = attached(config, seed=8)
    adapters.restore(model, saved.root / case, base.facts())
    tensors = load_file(saved.root / case / adapters.WEIGHTS)
    for _ in range(2):  # as restored, and after a step that changes nothing
        here = adapters.state(model)
        assert here.keys() == tensors.keys()
        assert all(torch.equal(here[name], tensors[name]) for name in here)
        train(model, base, steps=1, learning_rate=0.0)


@pytest.mark.parametrize("case", ["lora", "tokens, untied", "whole head, tied", "full"])
@pytest.mark.parametrize("damage", ["renamed", "missing", "unknown", "shape"])
def test_34_keys_that_do_not_fit_are_named_and_nothing_is_loaded(saved, tmp_path, case, damage):
    folder = Path(shutil.copytree(saved.root / case, tmp_path / "adapter"))
    tensors = load_file(folder / adapters.WEIGHTS)
    key = next(name for name in sorted(tensors) if "embed_tokens" in name or "q_proj" in name)
    value = tensors.pop(key)
    if damage == "renamed":
        tensors[key.replace("model.model", "model.modal")] = value
    elif damage == "shape":
        tensors[key] = value[:-1].clone()
    elif damage == "unknown":
        tensors[key], key = value, "base_model.model.zebra.weight"
        tensors[key] = value.clone()
    save_file(tensors, folder / adapters.WEIGHTS)
    base, model = attached(config_of(saved.root, case))
    before = adapters.state(model)
    with pytest.raises(CheckpointError, match="do not fit") as refusal:
        adapters.restore(model, folder, base.facts())
    assert re.search(re.escape(key.removeprefix("base_model.model.").replace("model.", "", 1)), str(refusal.value))
    assert all(torch.equal(value, before[name]) for name, value in adapters.state(model).items())


def test_34_control_plain_peft_loads_a_renamed_key_as_if_untrained(saved, folder):
    tensors = load_file(folder / adapters.WEIGHTS)
    renamed = {name.replace("q_proj", "z_proj"): value for name, value in tensors.items()}
    save_file(renamed, folder / adapters.WEIGHTS)
    base = load_text_base(config_of(saved.root, "lora"))
    with pytest.warns(UserWarning, match="missing adapter keys"):
        loaded = PeftModel.from_pretrained(base.model, str(folder))
    assert not torch.equal(logits(loaded, base), saved.here["lora"])


@pytest.mark.parametrize("name", [adapters.WEIGHTS, adapters.CONFIG, adapters.FACTS])
@pytest.mark.parametrize("damage", ["is missing", "cannot be read"])
def test_a_file_that_is_missing_or_torn_is_named(saved, folder, name, damage):
    if damage == "is missing":
        (folder / name).unlink()
    else:
        (folder / name).write_bytes((folder / name).read_bytes()[:20])
    base, model = attached(config_of(saved.root, "lora"))
    with pytest.raises(CheckpointError, match=f"{name}: {damage}"):
        adapters.restore(model, folder, base.facts())


@pytest.mark.parametrize(
    "change", [{"alpha": 16}, {"use_rslora": True}, {"use_dora": True}, {"r": 8}], ids=lambda change: next(iter(change))
)
def test_an_adapter_with_another_scale_is_refused(saved, folder, change):
    config = config_of(saved.root, "lora")
    for name, value in change.items():
        setattr(config.lora, name, value)
    base, model = attached(config)
    (name,) = change
    with pytest.raises(CheckpointError, match={"alpha": "lora_alpha"}.get(name, name)):
        adapters.restore(model, folder, base.facts())


def test_35_an_adapter_is_refused_on_other_weights(saved, folder, tmp_path):
    other = write_base(tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    tensors["model.norm.weight"][0] += 1e-3
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    config = config_of(saved.root, "lora")
    config.base = str(other)
    base, model = attached(config)
    with pytest.raises(CheckpointError, match="on other weights") as refusal:
        adapters.restore(model, folder, base.facts())
    assert str(saved.root / "tied") in refusal.value.mend


def test_35_the_same_base_in_another_place_is_the_same(saved, folder, tmp_path):
    config = config_of(saved.root, "lora")
    config.base = str(shutil.copytree(config.base, tmp_path / "moved"))
    base, model = attached(config)
    adapters.restore(model, folder, base.facts())
    assert torch.equal(logits(model, base), saved.here["lora"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"quantization": "nf4"}, "a base held in another way"),
        ({"added_tokens": TOKENS}, r"other model\.added_tokens"),
    ],
    ids=["quantised", "with tokens"],
)
def test_35_an_adapter_is_refused_on_its_base_held_otherwise(saved, folder, change, words):
    config = config_of(saved.root, "lora")
    for name, value in change.items():
        setattr(config, name, value)
    base, model = attached(config)
    with pytest.raises(CheckpointError, match=words):
        adapters.restore(model, folder, base.facts())


def test_35_an_adapter_is_refused_with_another_chat_template(saved, folder, tmp_path):
    config = config_of(saved.root, "lora")
    config.base = str(shutil.copytree(config.base, tmp_path / "other"))
    template = Path(config.base) / "chat_template.jinja"
    template.write_text(template.read_text() + "{# changed #}")
    base, model = attached(config)
    with pytest.raises(CheckpointError, match="another tokenizer or chat template"):
        adapters.restore(model, folder, base.facts())


def test_the_folder_says_what_it_belongs_to_and_is_ready_for_inference(saved):
    said = json.loads((saved.root / "tokens, tied" / adapters.FACTS).read_text())
    base = load_text_base(config_of(saved.root, "tokens, tied"))
    assert said["name"] == base.name
    assert said["weights_sha256"] == base.digest
    assert list(said["added_tokens"]) == sorted(TOKENS)
    settings = json.loads((saved.root / "tokens, tied" / adapters.CONFIG).read_text())
    assert settings["inference_mode"] is True
    assert settings["task_type"] == "CAUSAL_LM"
    assert settings["base_model_name_or_path"] == base.name


@pytest.mark.parametrize("case", CASES)
def test_a_fresh_adapter_depends_on_the_seed_alone_and_begins_as_the_base(saved, case):
    config = config_of(saved.root, case)
    states = []
    for seed in (3, 3, 4):
        torch.rand(7)
        base, model = attached(config, seed)
        states.append(adapters.state(model))
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    if "full" not in case:
        assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])
    plain = load_text_base(config)
    add_text_tokens(plain, config.added_tokens, 4)
    torch.testing.assert_close(logits(model, base), logits(plain.model, plain), rtol=0, atol=1e-5)


def test_a_pattern_of_its_own_is_trained_and_nothing_else(saved):
    config = config_of(saved.root, "lora")
    config.lora.target_modules = r".*\.(q|v)_proj"
    _, model = attached(config)
    tuned = {name.split(".lora_")[0].rpartition(".")[2] for name, p in model.named_parameters() if p.requires_grad}
    assert tuned == {"q_proj", "v_proj"}


@pytest.mark.parametrize("case", ["tokens, untied", "grown, tied", "whole head, tied", "whole norm", "dora", "full"])
def test_32_whatever_is_tuned_on_a_half_precision_base_is_held_in_float32(saved, case):
    config = config_of(saved.root, case)
    config.dtype = "bfloat16"
    _, model = attached(config)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


@pytest.mark.parametrize("untied", [False, True])
def test_added_tokens_learn_on_both_sides_and_other_rows_stay(saved, untied):
    base, model = attached(config_of(saved.root, "tokens, untied" if untied else "tokens, tied"))
    inner = adapters.bare(model)
    parts = (inner.get_input_embeddings(), inner.get_output_embeddings())
    matrices = [part.token_adapter.get_merged_weights(["default"]).detach() for part in parts]
    train(model, base)
    new = sorted(base.added_tokens.values())
    old = [row for row in range(768) if row not in new]
    for part, before in zip(parts, matrices, strict=True):
        after = part.token_adapter.get_merged_weights(["default"]).detach()
        assert torch.equal(after[old], before[old])
        assert bool((after[new] != before[new]).any(dim=1).all())
    assert set(new) <= set(read_ids(base))


def test_a_head_with_a_bias_takes_no_added_tokens():
    config = ModelConfig(base="toy:llama", added_tokens=TOKENS, lora=LoraSettings())
    base = load_text_base(config)
    base.model.lm_head = torch.nn.Linear(32, 768, bias=True)
    with pytest.raises(RequestError, match="has a bias"):
        adapters.attach(base, config, add_text_tokens(base, TOKENS, 0), 0)


def test_many_tokens_are_two_more_than_there_is_room_for():
    assert len(MANY) == 768 - 640 + 2


def test_an_adapter_trained_in_half_precision_fits_its_base_in_full_precision_and_no_other(tmp_path):
    def tuned(base, dtype):
        made = chats.recipe(base)
        made.model.dtype = dtype
        return chats.model_of(made)[1]

    tuned("toy:llama", "bfloat16").save(tmp_path)
    tuned("toy:llama", "float32").load(tmp_path)
    with pytest.raises(CheckpointError, match="on another base: name is 'toy:llama', and 'toy:qwen2'"):
        tuned("toy:qwen2", "float32").load(tmp_path)
