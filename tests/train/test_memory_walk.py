"""What a training is foretold to need of memory: beside what it takes, and part by part beside the real tensors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from luthier.errors import RequestError
from luthier.models.chat import load_tokenizer
from luthier.models.toy_tokenizer import load_tokenizer as toy_tokenizer
from luthier.recipe import Recipe
from luthier.recipe_model import LoraSettings
from luthier.runtime.devices import Devices
from luthier.runtime.live_bytes import LiveBytes
from luthier.runtime.memory_estimate import MemoryEstimate
from luthier.runtime.precision import resolve_precision
from luthier.stages.chat_cost import feed_load, memory_of
from luthier.stages.chat_prepare import build_chat_model
from luthier.train.optim import make_optimizer
from support.children import ROOT, environment
from support.memory_run import feed_of, recipe

CPU = torch.device("cpu")
RUNS: list[dict[str, Any]] = [{"vocabulary": 32_000, "tokens": 256, "gradient_checkpointing": True}]
LONG_RUNS: list[dict[str, Any]] = [
    {"vocabulary": 32_000, "tokens": 512},
    {"vocabulary": 32_000, "tokens": 512, "tuning": "full", "passes": 2, "gradient_checkpointing": True},
    {"vocabulary": 32_000, "tokens": 2048},
    {"vocabulary": 32_000, "tokens": 2048, "gradient_checkpointing": True},
    {"vocabulary": 32_000, "tokens": 512, "tuning": "full", "optimizer": "adafactor"},
    {"vocabulary": 32_000, "tokens": 512, "packing": False},
    {"vocabulary": 32_000, "tokens": 512, "dtype": "bfloat16"},
    {"vocabulary": 128_256, "tokens": 512},
    {"vocabulary": 128_256, "tokens": 2048, "gradient_checkpointing": True},
    {"vocabulary": 128_256, "tokens": 512, "tuning": "full"},
    {"vocabulary": 128_256, "tokens": 512, "tuning": "full", "gradient_checkpointing": True},
    {"vocabulary": 128_256, "tokens": 512, "tuning": "full", "passes": 2},
]


def llama(folder: Path, vocabulary: int) -> Path:
    """A Llama-shaped base with 20 million weights beside its vocabulary."""
    tokenizer = toy_tokenizer()
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=7,
        num_attention_heads=8,
        num_key_value_heads=4,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "settings", [*RUNS, *(pytest.param(run, marks=pytest.mark.slow) for run in LONG_RUNS)], ids=lambda run: str(run)
)
def test_the_peak_of_a_training_is_foretold_within_15_percent(settings: dict[str, Any], tmp_path: Path) -> None:
    keys = dict(settings)
    base = llama(tmp_path / "base", keys.pop("vocabulary"))
    done = subprocess.run(
        [sys.executable, "-m", "support.memory_run", str(base), json.dumps(keys)],
        env=environment(PYTHONPATH=f"{ROOT / 'src'}:{ROOT / 'tests'}"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for expected, measured in (found["needed"], found["total"]):
        assert expected == pytest.approx(measured, rel=0.15), found


def estimate(made: Recipe, tokens: int = 256) -> MemoryEstimate:
    feed = feed_of(made, tokens, 600)
    precision = resolve_precision(made.model.dtype, CPU)
    return memory_of(made, load_tokenizer(made.model.base, ""), feed, feed_load(feed, 2), precision)


def bytes_of(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize(
    ("keys", "bitsandbytes"),
    [
        ({}, False),
        ({"dtype": "bfloat16"}, False),
        ({"added_tokens": ["<|note|>"]}, False),
        ({"tuning": "full"}, False),
        ({"tuning": "full", "optimizer": "adafactor"}, False),
        ({"tuning": "full", "optimizer": "muon"}, False),
        ({"tuning": "full", "optimizer": "adamw_8bit"}, True),
        ({"tuning": "full", "optimizer": "lion"}, True),
    ],
)
def test_weights_and_optimizer_are_those_of_the_real_training(keys: dict[str, Any], bitsandbytes: bool) -> None:
    if bitsandbytes:
        pytest.importorskip("bitsandbytes", reason="luthier[qlora] is not installed")
    made = recipe("toy:llama", 1, **keys)
    found = estimate(made)
    _, learner = build_chat_model(made, Devices(made.model.dtype), made.seed)
    trained = [parameter for _, parameter in learner.tuned()]
    assert found.of("base weights") == bytes_of(p for p in learner.parameters() if not p.requires_grad)
    assert found.of("trained weights") == bytes_of(trained)
    optimizer = make_optimizer(learner, made.train, 1e-3)
    for parameter in trained:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    states = {
        value.untyped_storage().data_ptr(): value
        for state in optimizer.state.values()
        for value in state.values()
        if torch.is_tensor(value)
    }
    assert found.of("optimizer") == bytes_of(states.values())


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_packed_weights_are_counted_as_they_are_held(kind: str) -> None:
    pytest.importorskip("bitsandbytes", reason="luthier[qlora] is not installed")
    made = recipe("toy:llama", 1, quantization=kind)
    found = estimate(made)
    _, learner = build_chat_model(made, Devices("float32"), made.seed)
    frozen = [p for p in learner.parameters() if not p.requires_grad]
    scales = [value for p in frozen for value in (getattr(p, "SCB", None),) if value is not None]
    for p in frozen:
        state = getattr(p, "quant_state", None)
        scales += [state.absmax, state.state2.absmax] if state is not None else []
    # Beside these, each four-bit layer has two tables of levels, which a real layer would not feel.
    assert found.of("base weights") == pytest.approx(bytes_of([*frozen, *scales]), rel=0.01)


@pytest.mark.parametrize("base", ["toy:llama", "toy:qwen3", "toy:gemma2", "toy:gemma3", "toy:phi3", "toy:mistral"])
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"packing": False},
        {"gradient_checkpointing": True},
        {"dtype": "bfloat16", "label_smoothing": 0.1},
        {"tuning": "full", "dtype": "bfloat16"},
        {"lora": LoraSettings(r=4, use_dora=True), "added_tokens": ["<|note|>"]},
    ],
    ids=str,
)
def test_a_forward_pass_leaves_the_bytes_that_the_real_one_leaves(base: str, keys: dict[str, Any]) -> None:
    made = recipe(base, 1, **keys)
    feed = feed_of(made, 256, 600)
    devices = Devices(made.model.dtype)
    _, learner = build_chat_model(made, devices, made.seed)
    learner.train()
    (batch,) = feed.batches(1)
    with LiveBytes() as live, devices.precision.autocast():
        before = live.now
        _share, _main = learner.loss(batch, learner.step_weights([batch]))
        real = live.now - before
    assert estimate(made).of("activations") == pytest.approx(real, rel=0.02)


def test_activations_grow_with_tokens_and_checkpointing_keeps_few_of_them() -> None:
    few, many = (estimate(recipe("toy:llama", 1), tokens).of("activations") for tokens in (1024, 2048))
    assert many >= 2 * few
    kept = estimate(recipe("toy:llama", 1, gradient_checkpointing=True), 2048).of("activations")
    assert kept < many / 2


def test_gradients_are_there_in_the_forward_pass_only_where_passes_add_up() -> None:
    once, twice = (estimate(recipe("toy:llama", passes, tuning="full")) for passes in (1, 2))
    assert twice.of("gradients") == twice.of("trained weights") > once.of("gradients")
    assert twice.total > once.total


def test_an_adapter_that_reaches_nothing_is_refused_before_a_weight_is_loaded() -> None:
    made = recipe("toy:llama", 1)
    made.model.lora.target_modules = "model.nothing"
    with pytest.raises(RequestError, match="matches no module"):
        estimate(made)


def test_the_table_names_every_part_in_a_hundred_columns() -> None:
    found = estimate(recipe("toy:llama", 2, dtype="bfloat16"))
    lines = found.table().splitlines()
    assert max(len(line) for line in lines) <= 100
    for part in found.parts:
        assert any(line.startswith(part.name) for line in lines)
    assert found.total == sum(found.to_json().values()) - found.to_json()["total"]
