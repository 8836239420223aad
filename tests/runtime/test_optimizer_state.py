"""State of every optimizer by name: bit-exact there and back, and refused by name where it does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from luthier.errors import CheckpointError
from luthier.models.learner import Learner
from luthier.recipe_train import OPTIMIZERS, TrainConfig
from luthier.runtime.optimizer_state import pack, unpack
from luthier.train.optim import make_optimizer


class Net(Learner):
    """One weight that is large enough for 8-bit states, small ones, and one that never gets a gradient."""

    def __init__(self, seed: int = 0, wide: int = 64) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = torch.nn.Embedding(7, 128)
        self.up = torch.nn.Linear(128, wide)
        self.down = torch.nn.Linear(wide, 128)
        self.norm = torch.nn.LayerNorm(128)
        self.unused = torch.nn.Parameter(torch.ones(2))

    def step_weights(self, group): ...
    def loss(self, batch, weights): ...
    def save(self, folder): ...
    def load(self, folder): ...


def made(name: str, learner: Learner, monkeypatch) -> torch.optim.Optimizer:
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)  # paged optimizers fall back to plain memory here
        return make_optimizer(learner, TrainConfig(optimizer=name, learning_rate=1e-2), 1e-3)


def train(learner: Net, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)
        ids_N = torch.randint(0, 7, (5,))
        hidden_ND = learner.embed(ids_N)
        loss = (learner.norm(learner.down(torch.relu(learner.up(hidden_ND)))) * torch.randn(5, 128)).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def through_files(optimizer: torch.optim.Optimizer, learner: Learner, folder: Path) -> tuple[dict, dict]:
    tensors, facts = pack(optimizer, learner.tuned())
    save_file(tensors, folder / "o.safetensors")
    (folder / "o.json").write_text(json.dumps(facts, allow_nan=False))
    return load_file(folder / "o.safetensors"), json.loads((folder / "o.json").read_text())


@pytest.mark.filterwarnings("ignore:Paged optimizers")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_three_steps_saved_and_three_more_are_six_steps_bit_for_bit(name, tmp_path, monkeypatch):
    if name not in ("adamw", "adafactor", "muon"):
        pytest.importorskip("bitsandbytes", reason="the extra qlora is not installed")
    straight, first, second = Net(), Net(), Net(seed=1)
    uninterrupted, optimizer = made(name, straight, monkeypatch), made(name, first, monkeypatch)
    train(straight, uninterrupted, range(6))
    train(first, optimizer, range(3))
    tensors, facts = through_files(optimizer, first, tmp_path)
    if "8bit" in name:
        assert tensors["up.weight.state1"].dtype == torch.uint8
    second.load_state_dict(first.state_dict())
    resumed = made(name, second, monkeypatch)
    unpack(resumed, second.tuned(), tensors, facts)
    train(second, resumed, range(3, 6))
    for (key, here), (_, there) in zip(second.named_parameters(), straight.named_parameters(), strict=True):
        assert torch.equal(here, there), key
    (here, here_facts), (there, there_facts) = pack(resumed, second.tuned()), pack(uninterrupted, straight.tuned())
    assert here_facts == there_facts
    assert all(torch.equal(here[key], there[key]) for key in there)
    assert facts["parameters"]["unused"] == {"shape": [2], "tensors": [], "numbers": {}}


def test_a_fresh_optimizer_instead_of_the_state_would_be_seen(monkeypatch):
    """The control of the test above: without the state the sixth step differs."""
    straight, second = Net(), Net()
    train(straight, made("adamw", straight, monkeypatch), range(6))
    train(second, made("adamw", second, monkeypatch), range(3))
    train(second, made("adamw", second, monkeypatch), range(3, 6))
    assert not torch.equal(second.up.weight, straight.up.weight)


def test_states_follow_names_and_not_places(monkeypatch, tmp_path):
    learner = Net()
    optimizer = made("adamw", learner, monkeypatch)
    train(learner, optimizer, range(2))
    tensors, facts = through_files(optimizer, learner, tmp_path)
    reversed_order = torch.optim.AdamW([p for _, p in learner.tuned()][::-1], fused=True)
    unpack(reversed_order, learner.tuned(), tensors, facts)
    for name, parameter in learner.tuned():
        if name != "unused":
            assert torch.equal(reversed_order.state[parameter]["exp_avg"], optimizer.state[parameter]["exp_avg"]), name


@pytest.fixture
def saved(monkeypatch, tmp_path):
    learner = Net()
    optimizer = made("adamw", learner, monkeypatch)
    train(learner, optimizer, range(2))
    return (*through_files(optimizer, learner, tmp_path), learner, made("adamw", learner, monkeypatch))


def refused(saved, match: str) -> None:
    tensors, facts, learner, fresh = saved
    with pytest.raises(CheckpointError, match=match):
        unpack(fresh, learner.tuned(), tensors, facts)
    assert not fresh.state


def test_a_missing_tensor_is_refused_by_name(saved):
    del saved[0]["up.weight.exp_avg_sq"]
    refused(saved, r"1 missing .* such as up\.weight\.exp_avg_sq")


def test_a_whole_missing_state_is_never_a_fresh_adam(saved):
    saved[0].clear()
    refused(saved, "21 missing")


def test_a_renamed_parameter_is_refused_by_name(saved):
    saved[1]["parameters"]["up.old"] = saved[1]["parameters"].pop("up.weight")
    refused(saved, r"1 missing that the model has, such as up\.weight")


def test_a_parameter_that_the_model_no_longer_has_is_refused_by_name(saved):
    saved[1]["parameters"]["gone"] = {"shape": [1], "tensors": [], "numbers": {}}
    refused(saved, "1 too many for the model, such as gone")


def test_a_tensor_that_is_on_no_list_is_refused_by_name(saved):
    saved[0]["up.weight.more"] = torch.zeros(1)
    refused(saved, r"such as up\.weight\.more")


def test_another_shape_is_refused_by_name(saved):
    saved[1]["parameters"]["up.weight"]["shape"] = [64, 127]
    refused(saved, r"up\.weight is for shape \[64, 127\], the model has \[64, 128\]")


def test_the_state_of_another_optimizer_is_refused(saved, monkeypatch):
    tensors, facts, learner, _ = saved
    refused((tensors, facts, learner, made("muon", learner, monkeypatch)), "that of AdamW, this run has MuonAdamW")


def test_numbers_of_python_survive_exactly(monkeypatch, tmp_path):
    learner = Net()
    optimizer = made("adafactor", learner, monkeypatch)
    train(learner, optimizer, range(2))
    optimizer.state[learner.up.weight]["note"] = 0.1 + 0.2
    tensors, facts = through_files(optimizer, learner, tmp_path)
    fresh = made("adafactor", learner, monkeypatch)
    unpack(fresh, learner.tuned(), tensors, facts)
    state = fresh.state[learner.up.weight]
    assert (state["step"], state["note"]) == (2, 0.1 + 0.2)
    assert isinstance(state["step"], int)
