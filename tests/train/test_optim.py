"""Groups, every optimizer beside a reference, clipping, and the guard: NaN never reaches a weight, nothing is read."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from luthier.errors import RequestError
from luthier.models.learner import Learner
from luthier.recipe_train import OPTIMIZERS, TrainConfig
from luthier.runtime.precision import LossScale, Precision
from luthier.train.optim import Guard, MuonAdamW, clip, make_optimizer, set_rates
from luthier.train.plan import make_plan

CPU = torch.device("cpu")
FLOAT32 = Precision(torch.float32, CPU)
HERE = [name for name in OPTIMIZERS if not name.startswith("paged")]
BITSANDBYTES = ("adamw_8bit", "lion")


class Wrapped(Learner):
    """A module, and where asked a head of its own."""

    def __init__(self, model: torch.nn.Module, own_head: bool = False) -> None:
        super().__init__()
        self.language_model = model
        self.head = torch.nn.Linear(32, 1) if own_head else None

    def step_weights(self, group): ...
    def loss(self, batch, weights): ...
    def save(self, folder): ...
    def load(self, folder): ...


def llama(tied: bool = True) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "attention_bias": True}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, tie_word_embeddings=tied))


def linear(rows: int = 64, columns: int = 128) -> Wrapped:
    torch.manual_seed(0)
    return Wrapped(torch.nn.Linear(columns, rows))


def made(name: str, learner: Learner, **settings) -> torch.optim.Optimizer:
    if name in BITSANDBYTES:
        pytest.importorskip("bitsandbytes", reason="the extra qlora is not installed")
    return make_optimizer(learner, TrainConfig(optimizer=name, **settings), token_learning_rate=0.5)


def gradients(learner: Learner, seed: int) -> None:
    torch.manual_seed(seed)
    for _, parameter in learner.tuned():
        parameter.grad = torch.randn_like(parameter)


def run(learner: Learner, optimizer: torch.optim.Optimizer, steps: int = 10) -> dict[str, torch.Tensor]:
    """How far each weight went."""
    before = {name: parameter.detach().clone() for name, parameter in learner.tuned()}
    for step in range(steps):
        gradients(learner, step)
        optimizer.step()
    return {name: parameter.detach() - before[name] for name, parameter in learner.tuned()}


def settings_by_name(learner: Learner, optimizer: torch.optim.Optimizer) -> dict[str, tuple[float, float]]:
    names = {id(parameter): name for name, parameter in learner.tuned()}
    return {
        names[id(p)]: (group["base_rate"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }


# ---- groups


def lora(**settings) -> Wrapped:
    model = get_peft_model(llama(tied=False), LoraConfig(r=2, **settings))
    return Wrapped(model, own_head=True)


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit", "lion", "adafactor"])
def test_learned_tokens_and_an_own_head_have_their_own_rate_and_no_decay(name):
    learner = lora(target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [3, 5]})
    found = settings_by_name(learner, made(name, learner, learning_rate=0.1, weight_decay=0.01))
    own = {key: value for key, value in found.items() if key.startswith("head.") or "trainable_tokens" in key}
    assert len(own) == 3
    assert set(own.values()) == {(0.5, 0.0)}
    assert {found[key] for key in found if "lora_" in key} == {(0.1, 0.01)}


@pytest.mark.parametrize("name", HERE)
def test_biases_and_norms_do_not_decay_and_every_tuned_weight_is_held_once(name):
    learner = Wrapped(llama())
    optimizer = made(name, learner, learning_rate=0.1, weight_decay=0.01)
    found = settings_by_name(learner, optimizer)
    assert set(found) == {key for key, _ in learner.tuned()}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(found)
    for key, (rate, decay) in found.items():
        assert (rate, decay) == (0.1, 0.0 if "norm" in key or key.endswith("bias") else 0.01), key


def test_lora_plus_gives_only_the_second_matrix_a_higher_rate():
    learner = lora(target_modules=["q_proj", "embed_tokens"])
    found = settings_by_name(learner, made("adamw", learner, learning_rate=0.1, loraplus_ratio=16.0))
    second = {key: rate for key, (rate, _) in found.items() if ".lora_B." in key or ".lora_embedding_B." in key}
    first = {key: rate for key, (rate, _) in found.items() if ".lora_A." in key or ".lora_embedding_A." in key}
    assert (len(first), len(second)) == (3, 3)
    assert set(second.values()) == {16.0 * 0.1}
    assert set(first.values()) == {0.1}


@pytest.mark.parametrize("name", HERE)
def test_the_schedules_factor_reaches_every_group(name):
    learner = Wrapped(llama())
    optimizer = made(name, learner, learning_rate=0.1)
    set_rates(optimizer, 0.25)
    assert {group["lr"] for group in optimizer.param_groups} == {0.025}
    set_rates(optimizer, 0.0)
    assert all(not moved.any() for moved in run(learner, optimizer, 2).values())


# ---- each optimizer beside a reference


def test_adamw_is_torchs_own_step_by_step():
    ours, theirs = linear(), linear()
    betas = {"adam_beta1": 0.8, "adam_beta2": 0.9, "adam_epsilon": 1e-6}
    moved = run(ours, made("adamw", ours, learning_rate=0.01, weight_decay=0.1, **betas))
    decays = [{"params": [p], "weight_decay": 0.1 * (p.ndim > 1)} for _, p in theirs.tuned()]
    reference = torch.optim.AdamW(decays, lr=0.01, betas=(0.8, 0.9), eps=1e-6, foreach=False, fused=False)
    for name, value in run(theirs, reference).items():
        torch.testing.assert_close(moved[name], value, rtol=1e-5, atol=1e-7)


def test_eight_bit_states_follow_adamw():
    ours, theirs = linear(), linear()
    same = {"learning_rate": 0.01, "weight_decay": 0.1}
    moved, reference = run(ours, made("adamw_8bit", ours, **same)), run(theirs, made("adamw", theirs, **same))
    near = torch.nn.functional.cosine_similarity
    assert near(moved["language_model.weight"].flatten(), reference["language_model.weight"].flatten(), 0) > 0.99
    # Fewer than 4096 numbers keep states of 32 bits.
    torch.testing.assert_close(moved["language_model.bias"], reference["language_model.bias"], rtol=1e-4, atol=1e-6)


def test_lion_is_the_papers_algorithm():
    ours, theirs = linear(), linear()
    moved = run(ours, made("lion", ours, learning_rate=0.01, weight_decay=0.1, adam_beta1=0.9, adam_beta2=0.99))
    moments = {name: torch.zeros_like(p) for name, p in theirs.tuned()}
    before = {name: p.detach().clone() for name, p in theirs.tuned()}
    for step in range(10):  # Chen et al. 2023, algorithm 2
        gradients(theirs, step)
        for name, p in theirs.tuned():
            update = (0.9 * moments[name] + 0.1 * p.grad).sign()
            p.data -= 0.01 * (update + 0.1 * (p.ndim > 1) * p.data)
            moments[name] = 0.99 * moments[name] + 0.01 * p.grad
    for name, p in theirs.tuned():
        torch.testing.assert_close(moved[name], p.detach() - before[name], rtol=1e-4, atol=1e-6)


def test_adafactor_moves_zeros_by_about_the_rate_where_torchs_own_hardly_moves():
    """lora_B begins at zero: a step relative to its size is no step."""
    ours, theirs = linear(), linear()
    for learner in (ours, theirs):
        torch.nn.init.zeros_(learner.language_model.weight)
    moved = run(ours, made("adafactor", ours, learning_rate=0.01), 1)["language_model.weight"]
    reference = torch.optim.Adafactor([theirs.language_model.weight], lr=0.01)
    hardly = run(theirs, reference, 1)["language_model.weight"]
    assert moved.square().mean().sqrt().item() == pytest.approx(0.01, rel=0.1)
    assert hardly.square().mean().sqrt().item() < 0.01 * 0.002


@pytest.mark.parametrize("tied", [True, False])
def test_muon_has_the_hidden_matrices_and_adamw_the_ends_and_vectors(tied):
    learner = Wrapped(llama(tied))
    optimizer = made("muon", learner)
    names = {id(parameter): name for name, parameter in learner.tuned()}
    by_muon = {names[id(p)] for group in optimizer.param_groups if group["muon"] for p in group["params"]}
    assert by_muon == {name for name, p in learner.tuned() if p.ndim == 2 and "_proj" in name}
    assert len(by_muon) == 14
    rest = {name for name in names.values() if name not in by_muon}
    assert sum("embed_tokens" in name or "lm_head" in name for name in rest) == (1 if tied else 2)


def test_muon_and_adamw_behind_one_face_are_the_two_apart():
    ours, theirs = Wrapped(llama(False)), Wrapped(llama(False))
    optimizer = made("muon", ours, learning_rate=0.01, weight_decay=0.1)
    moved = run(ours, optimizer, 3)
    hidden = [p for name, p in theirs.tuned() if "_proj.weight" in name]
    others = [
        {"params": [p], "weight_decay": 0.1 * (p.ndim > 1)} for name, p in theirs.tuned() if "_proj.weight" not in name
    ]
    muon = torch.optim.Muon(hidden, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(others, lr=0.01, betas=(0.9, 0.95), fused=True)
    muon.register_step_post_hook(lambda *_: adamw.step())
    for name, value in run(theirs, muon, 3).items():
        assert torch.equal(moved[name], value), name
    assert len(optimizer.state) == len(list(ours.tuned()))


def test_muons_step_is_near_orthogonal_and_of_adamws_size():
    learner = linear(64, 64)
    moved = run(learner, made("muon", learner, learning_rate=0.01, weight_decay=0.0), 1)["language_model.weight"]
    values = torch.linalg.svdvals(moved)
    assert values.max() / values.median() < 1.5
    assert moved.square().mean().sqrt().item() == pytest.approx(0.2 * 0.01, rel=0.2)


def test_loading_torchs_own_state_dict_keeps_muon_and_adamw_together():
    ours, theirs = Wrapped(llama()), Wrapped(llama())
    first, second = made("muon", ours), made("muon", theirs)
    run(ours, first, 2)
    theirs.load_state_dict(ours.state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    set_rates(first, 0.5)
    set_rates(second, 0.5)
    moved, again = run(ours, first, 2), run(theirs, second, 2)
    assert isinstance(second, MuonAdamW)
    assert all(torch.equal(moved[name], again[name]) for name in moved)


@pytest.mark.parametrize("name", ["paged_adamw", "paged_adamw_8bit"])
def test_a_paged_optimizer_without_a_gpu_is_refused_and_names_the_other(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RequestError, match=rf"{name}.*no GPU") as error:
        made(name, linear())
    assert error.value.mend == f"set train.optimizer to {name.removeprefix('paged_')}"


@pytest.mark.parametrize("name", ["adamw_8bit", "lion"])
def test_without_bitsandbytes_the_install_line_is_said(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(RequestError, match="not installed") as error:
        make_optimizer(linear(), TrainConfig(optimizer=name), 0.5)
    assert error.value.mend == "pip install 'luthier[qlora]'"


# ---- clipping and the guard


@pytest.mark.parametrize("limit", [0.5, 1e4, 0.0])
def test_clipping_is_that_of_torch(limit):
    ours, theirs = linear(), linear()
    gradients(ours, 0)
    gradients(theirs, 0)
    norm = clip([p for _, p in ours.tuned()], limit)
    reference = torch.nn.utils.clip_grad_norm_([p for _, p in theirs.tuned()], limit or float("inf"))
    assert torch.equal(norm, reference)
    for (_, here), (_, there) in zip(ours.tuned(), theirs.tuned(), strict=True):
        assert torch.equal(here.grad, there.grad)


class _Reads(TorchDispatchMode):
    """Counts reads of a tensor's value on the host, below Python."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default:
            self.names.append("_local_scalar_dense")
        return function(*args, **(kwargs or {}))


@contextmanager
def counted_reads(monkeypatch) -> Iterator[list[str]]:
    """Every read of a tensor on the host, by name."""
    reads = _Reads()

    def spy(name: str):
        real = getattr(torch.Tensor, name)

        def call(self, *args, **kwargs):
            reads.names.append(name)
            return real(self, *args, **kwargs)

        return call

    with monkeypatch.context() as patch, reads:
        for name in "item tolist cpu numpy __bool__ __float__ __int__ __index__ __array__".split():
            patch.setattr(torch.Tensor, name, spy(name))
        yield reads.names


def guarded_step(learner: Learner, optimizer: torch.optim.Optimizer, guard: Guard, loss: float, seed: int):
    gradients(learner, seed)
    return guard.step(optimizer, torch.tensor(loss), clip([p for _, p in learner.tuned()], 1.0), FLOAT32)


@pytest.mark.parametrize(("name", "expected"), [("adamw", 0), ("adafactor", 1), ("muon", 1)])
def test_nothing_is_read_on_the_host_with_adamw_and_one_flag_with_the_others(name, expected, monkeypatch):
    learner = Wrapped(llama())
    optimizer, guard = made(name, learner), Guard(CPU)
    guarded_step(learner, optimizer, guard, 1.0, 0)
    with counted_reads(monkeypatch) as reads:
        for step in range(4):
            set_rates(optimizer, 0.5)
            guarded_step(learner, optimizer, guard, 1.0, step)
    assert reads.count("item") == 4 * expected
    assert expected or not reads


def test_the_counter_of_reads_can_count(monkeypatch):
    with counted_reads(monkeypatch) as reads:
        assert torch.ones(()) > 0
        float(torch.ones(()))
        torch.ones(2).tolist()
    assert {"__bool__", "__float__", "tolist"} <= set(reads)
    assert reads.count("_local_scalar_dense") >= 2


@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_never_reaches_weights_or_state_and_stops_the_optimizer(name, where, value):
    learner = Wrapped(llama(), own_head=True)
    optimizer, guard = made(name, learner, learning_rate=0.01), Guard(CPU)
    parameters = [p for _, p in learner.tuned()]
    for step in range(2):
        assert guarded_step(learner, optimizer, guard, 2.5, step).item() == 2.5
    assert not guard.tripped()
    weights = [p.detach().clone() for p in parameters]
    state = {
        p: {key: v.clone() if torch.is_tensor(v) else v for key, v in optimizer.state[p].items()} for p in parameters
    }
    gradients(learner, 2)
    if where == "gradient":
        parameters[1].grad.view(-1)[7] = value
    loss = torch.tensor(value if where == "loss" else 2.5)
    assert guard.step(optimizer, loss, clip(parameters, 1.0), FLOAT32).isnan()
    guarded_step(learner, optimizer, guard, 2.5, 3)  # the host has not looked yet
    assert guard.tripped()
    assert all(torch.equal(p, before) for p, before in zip(parameters, weights, strict=True))
    for p in parameters:
        for key, before in state[p].items():
            same = torch.equal(optimizer.state[p][key], before) if torch.is_tensor(before) else True
            assert same, key
            assert torch.is_tensor(before) or optimizer.state[p][key] == before


def test_without_the_guard_nan_does_reach_the_weights():
    """The control of the test above."""
    learner = linear()
    optimizer = made("adamw", learner)
    gradients(learner, 0)
    learner.language_model.weight.grad[0, 0] = float("nan")
    clip([p for _, p in learner.tuned()], 1.0)
    optimizer.step()
    assert learner.language_model.weight.isnan().any()


# ---- the guard with float16's loss scale


def scaled_step(learner: Wrapped, optimizer, guard: Guard, precision: Precision, gradient: float, loss: float = 1.0):
    """A step whose gradients pass through float16 as they would on a GPU. Returns what the guard says of the loss."""
    optimizer.zero_grad()
    precision.scale(sum(p.sum() for _, p in learner.tuned()) * gradient).backward()
    for _, p in learner.tuned():
        p.grad = p.grad.half().float()
    precision.unscale(optimizer)
    norm = clip([p for _, p in learner.tuned()], 1.0)
    return guard.step(optimizer, torch.tensor(loss), norm, precision).item()


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_an_overflow_that_the_scale_can_mend_leaves_out_one_step_and_is_no_fault(name):
    learner = linear()
    optimizer, guard, precision = made(name, learner), Guard(CPU), Precision(torch.float16, CPU, "", LossScale(CPU))
    moved = []
    for _ in range(4):
        before = learner.language_model.weight.detach().clone()
        assert scaled_step(learner, optimizer, guard, precision, 3.0) == 1.0
        moved.append(not torch.equal(before, learner.language_model.weight))
    assert moved == [False, False, True, True]  # 3 * 2^16 and 3 * 2^15 overflow, 3 * 2^14 fits
    assert not guard.tripped()
    assert learner.language_model.weight.isfinite().all()


def test_a_gradient_that_overflows_at_the_lowest_scale_is_a_fault():
    learner = linear()
    optimizer, guard, precision = made("adamw", learner), Guard(CPU), Precision(torch.float16, CPU, "", LossScale(CPU))
    before = learner.language_model.weight.detach().clone()
    for _ in range(16):
        assert scaled_step(learner, optimizer, guard, precision, float("inf")) == 1.0
    assert not guard.tripped()
    assert scaled_step(learner, optimizer, guard, precision, float("inf")) != 1.0
    assert guard.tripped()
    assert torch.equal(before, learner.language_model.weight)


def test_a_loss_that_is_nan_is_a_fault_at_any_scale():
    learner = linear()
    optimizer, guard, precision = made("adamw", learner), Guard(CPU), Precision(torch.float16, CPU, "", LossScale(CPU))
    scaled_step(learner, optimizer, guard, precision, float("nan"), loss=float("nan"))
    assert guard.tripped()


def test_scaling_reads_nothing_on_the_host_either(monkeypatch):
    learner = linear()
    optimizer, guard, precision = made("adamw", learner), Guard(CPU), Precision(torch.float16, CPU, "", LossScale(CPU))
    clipped = [p for _, p in learner.tuned()]
    one = torch.ones(())
    with counted_reads(monkeypatch) as reads:
        for _ in range(3):
            precision.scale(sum(p.sum() for p in clipped)).backward()
            precision.unscale(optimizer)
            guard.step(optimizer, one, clip(clipped, 1.0), precision)
    assert not reads


# ---- the arithmetic of a plan


@pytest.mark.parametrize(
    ("rows", "batch", "epochs", "most", "steps"), [(10, 4, 2, 0, 6), (10, 4, 0.5, 0, 2), (10, 4, 9, 5, 5)]
)
def test_the_arithmetic_of_a_plan(rows, batch, epochs, most, steps):
    plan = make_plan(rows, TrainConfig(epochs=epochs, batch_size=batch, max_steps=most, warmup_ratio=0.5))
    assert plan.steps == steps
    assert plan.epochs * plan.steps_per_epoch >= plan.steps
    assert plan.warmup_steps == round(0.5 * steps)
