"""The loss on targets beside torch's own cross-entropy on whole logits: values, gradients, types, and its memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from luthier.models.head import Head
from luthier.models.token_loss import CHUNK_ELEMENTS, TokenTargets, token_cross_entropy

N, D, V, K = 23, 16, 97, 4
HEADS: dict[str, dict[str, float]] = {
    "plain": {},
    "scaled": {"scale": 0.25},
    "soft-capped": {"softcap": 3.0},
    "scaled and soft-capped": {"scale": 1.7, "softcap": 5.0},
}


class Made:
    """Hidden states, a head and targets, all from one seed."""

    def __init__(
        self, dtype: torch.dtype = torch.float32, *, soft: bool = False, bias: bool = False, size: float = 0.5
    ) -> None:
        g = torch.Generator().manual_seed(3)
        self.hidden = (torch.randn(N, D, generator=g, dtype=torch.float64) * size).to(dtype).requires_grad_()
        self.weight = torch.randn(V, D, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
        self.bias = torch.randn(V, generator=g, dtype=torch.float64).to(dtype).requires_grad_() if bias else None
        weight_N = torch.rand(N, generator=g) + 0.1
        weight_N[4] = 0.0
        soft_ids = torch.randint(0, V, (N, K), generator=g) if soft else None
        soft_p = torch.rand(N, K, generator=g) / K if soft else None
        ids_N = torch.randint(0, V, (N,), generator=g)
        self.targets = TokenTargets(ids_N, weight_N, float(weight_N.sum()), soft_ids, soft_p)

    @property
    def tensors(self) -> list[torch.Tensor]:
        return [x for x in (self.hidden, self.weight, self.bias) if x is not None]

    def head(self, **facts: Any) -> Head:
        return Head(self.weight, self.bias, **facts)

    def dense(self) -> torch.Tensor:
        """(N, V) the target probabilities written out."""
        ids_NK, p_NK = self.targets.candidates()
        return torch.zeros(N, V, dtype=torch.float64).scatter_add_(1, ids_NK, p_NK.double())

    def reference(self, scale: float = 1.0, softcap: float = 0.0, smoothing: float = 0.0) -> torch.Tensor:
        """The loss by torch's cross-entropy on whole logits."""
        logits = F.linear(self.hidden, self.weight, self.bias).to(torch.promote_types(self.hidden.dtype, torch.float32))
        logits = logits * scale
        if softcap:
            logits = softcap * torch.tanh(logits / softcap)
        hard = self.targets.soft_ids_NK is None
        target = self.targets.ids_N if hard else self.dense().to(logits.dtype)
        loss_N = F.cross_entropy(logits, target, reduction="none", label_smoothing=smoothing)
        return (loss_N * self.targets.weight_N.to(logits.dtype)).sum()


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest difference, as a share of the largest wanted entry."""
    found, wanted = found.detach().double(), wanted.detach().double()
    return float((found - wanted).abs().max() / wanted.abs().max())


def near(found: torch.Tensor, wanted: torch.Tensor, limit: float) -> None:
    """Equal to `limit` of the largest wanted entry."""
    assert found.dtype == wanted.dtype
    worst = error(found, wanted)
    assert worst <= limit, f"off by {worst:.1e}"


@pytest.mark.parametrize("rows", [1, 7, N, None], ids=lambda rows: f"{rows} rows")
@pytest.mark.parametrize("smoothing", [0.0, 0.1], ids=["exact", "smoothed"])
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("facts", HEADS.values(), ids=HEADS.keys())
def test_loss_and_gradients_are_those_of_torch(
    facts: dict[str, float], soft: bool, smoothing: float, rows: int | None
) -> None:
    made = Made(soft=soft, bias=True)
    loss = token_cross_entropy(made.hidden, made.head(**facts), made.targets, smoothing, rows)
    reference = made.reference(**facts, smoothing=smoothing)
    assert loss.weight == made.targets.total
    near(loss.sum, reference, 1e-6)
    found = torch.autograd.grad(loss.sum * 0.37, made.tensors)
    for ours, theirs in zip(found, torch.autograd.grad(reference * 0.37, made.tensors), strict=True):
        near(ours, theirs, 1e-6)


@pytest.mark.parametrize("rows", [1, 7, None], ids=lambda rows: f"{rows} rows")
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_large_logits_lose_no_more_than_torchs_own(soft: bool, rows: int | None) -> None:
    """Logits up to 30, whose rounding alone moves gradients by more than 1e-6: both are held against float64."""
    made, exact = Made(soft=soft, bias=True, size=2.0), Made(torch.float64, soft=soft, bias=True, size=2.0)
    with torch.no_grad():
        for double, single in zip(exact.tensors, made.tensors, strict=True):
            double.copy_(single)
    loss = token_cross_entropy(made.hidden, made.head(), made.targets, 0.1, rows).sum
    near(loss.double(), exact.reference(smoothing=0.1), 1e-6)
    truth = torch.autograd.grad(exact.reference(smoothing=0.1), exact.tensors)
    theirs = torch.autograd.grad(made.reference(smoothing=0.1), made.tensors)
    for our, their, true in zip(torch.autograd.grad(loss, made.tensors), theirs, truth, strict=True):
        assert error(our, true) <= 1.5 * error(their, true)


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("facts", HEADS.values(), ids=HEADS.keys())
def test_gradients_pass_gradcheck_in_float64(facts: dict[str, float], soft: bool) -> None:
    made = Made(torch.float64, soft=soft, bias=True)
    patch_RD, rows_R = torch.randn(3, D, dtype=torch.float64).requires_grad_(), torch.tensor([5, 0, 50])

    def plain(hidden: Any, weight: Any, bias: Any) -> torch.Tensor:
        return token_cross_entropy(hidden, Head(weight, bias, **facts), made.targets, 0.1, 7).sum

    def patched(hidden: Any, weight: Any, patch: Any) -> torch.Tensor:
        head = Head(weight, None, rows_R, patch, **facts)
        return token_cross_entropy(hidden, head, made.targets, 0.1, 7).sum

    assert gradcheck(plain, made.tensors, fast_mode=True)
    assert gradcheck(patched, (made.hidden, made.weight, patch_RD), fast_mode=True)


def test_patched_rows_stand_in_for_the_weights_own() -> None:
    made = Made()
    rows_R = torch.tensor([int(made.targets.ids_N[0]), 11])
    patch_RD = torch.randn(2, D).requires_grad_()
    frozen = made.weight.detach()
    loss = token_cross_entropy(made.hidden, Head(frozen, None, rows_R, patch_RD), made.targets, 0.1, 7).sum
    whole = Head(frozen.index_copy(0, rows_R, patch_RD))
    reference = token_cross_entropy(made.hidden, whole, made.targets, 0.1).sum
    near(loss, reference, 1e-6)
    wanted = torch.autograd.grad(reference, [made.hidden, patch_RD])
    for ours, theirs in zip(torch.autograd.grad(loss, [made.hidden, patch_RD]), wanted, strict=True):
        near(ours, theirs, 1e-6)


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_a_head_that_can_only_be_called_gives_the_same(soft: bool) -> None:
    made, smoothing = Made(soft=soft, bias=True), 0.1
    module = nn.Linear(D, V)
    module.weight, module.bias = nn.Parameter(made.weight.detach()), nn.Parameter(made.bias.detach())
    head = Head(module=module, scale=1.7, softcap=5.0)
    loss = token_cross_entropy(made.hidden, head, made.targets, smoothing, 7)
    reference = made.reference(1.7, 5.0, smoothing)
    near(loss.sum, reference, 1e-6)
    found = torch.autograd.grad(loss.sum, [made.hidden, *module.parameters()])
    for ours, theirs in zip(found, torch.autograd.grad(reference, made.tensors), strict=True):
        near(ours, theirs, 1e-6)


@pytest.mark.parametrize("autocast", [False, True], ids=["half weights", "autocast"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_half_precision_is_as_near_to_float64_as_torchs_own(dtype: torch.dtype, autocast: bool) -> None:
    made = Made(torch.float32 if autocast else dtype)
    with torch.autocast("cpu", dtype=dtype, enabled=autocast):
        loss = token_cross_entropy(made.hidden, made.head(), made.targets, chunk_rows=7).sum
        theirs = made.reference()
    exact = Made(torch.float64)
    with torch.no_grad():
        exact.hidden.copy_(made.hidden)
        exact.weight.copy_(made.weight)
    wanted = exact.reference()
    assert loss.dtype == torch.float32
    assert abs(loss.item() - wanted.item()) <= 2 * abs(theirs.item() - wanted.item()) + 2e-3 * wanted.item()
    grads = torch.autograd.grad(loss, made.tensors)
    for ours, tensor, truth in zip(grads, made.tensors, torch.autograd.grad(wanted, exact.tensors), strict=True):
        assert ours.dtype == tensor.dtype
        near(ours.double(), truth, 2e-2)


def test_autocast_multiplies_in_its_own_type() -> None:
    made = Made()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = token_cross_entropy(made.hidden, made.head(), made.targets).sum
    cast = [x.bfloat16() for x in made.tensors]
    wanted = token_cross_entropy(cast[0], Head(cast[1]), made.targets).sum
    assert loss.item() == wanted.item()
    for ours, theirs in zip(*(torch.autograd.grad(x, made.tensors) for x in (loss, wanted)), strict=True):
        near(ours, theirs, 2e-2)


@pytest.mark.parametrize("callable_only", [False, True], ids=["weight", "module"])
def test_no_positions_give_zero_with_a_graph(callable_only: bool) -> None:
    made = Made()
    targets = TokenTargets(made.targets.ids_N[:0], made.targets.weight_N[:0], 0.0)
    head = Head(module=nn.Linear(D, V)) if callable_only else made.head()
    loss = token_cross_entropy(made.hidden[:0], head, targets)
    assert (loss.sum.item(), loss.weight) == (0.0, 0.0)
    loss.sum.backward()
    assert made.hidden.grad is not None
    assert not made.hidden.grad.any()


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_what_is_not_finite_reaches_loss_and_gradients(poison: float) -> None:
    made = Made()
    with torch.no_grad():
        made.hidden[9, 2] = poison
    loss = token_cross_entropy(made.hidden, made.head(), made.targets, chunk_rows=5).sum
    assert not loss.isfinite()
    hidden_grad, weight_grad = torch.autograd.grad(loss, [made.hidden, made.weight])
    assert not hidden_grad[9].isfinite().all()
    assert hidden_grad[:9].isfinite().all()
    assert not weight_grad.isfinite().all()


class _Largest(TorchDispatchMode):
    """The most elements that any operation gave back, reads of a tensor on the host, and products of matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.most, self.reads, self.products = 0, [], 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.most = max(self.most, out.numel())
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.reads.append(str(func))
        self.products += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_)
        return out


def test_whole_logits_never_exist_and_nothing_is_read_on_the_host() -> None:
    made = Made(soft=True, bias=True)
    with _Largest() as seen:
        loss = token_cross_entropy(made.hidden, made.head(softcap=3.0), made.targets, 0.1, 5)
        torch.autograd.grad(loss.sum, made.tensors)
    assert seen.most <= max(5 * V, V * D)
    assert not seen.reads
    with _Largest() as seen:
        made.reference()
    assert seen.most == N * V, "the watch sees nothing"


def test_the_default_chunk_holds_a_fixed_number_of_logits() -> None:
    wide = 20000
    hidden, rows = torch.randn(CHUNK_ELEMENTS // wide + 5, 1), CHUNK_ELEMENTS // wide
    count = len(hidden)
    targets = TokenTargets(torch.zeros(count, dtype=torch.long), torch.ones(count), float(count))
    with _Largest() as seen:
        token_cross_entropy(hidden, Head(torch.randn(wide, 1)), targets)
    assert seen.most == rows * wide


def test_only_gradients_that_are_needed_are_computed() -> None:
    made = Made()

    def products() -> int:
        with _Largest() as seen:
            token_cross_entropy(made.hidden, made.head(), made.targets, chunk_rows=N)
        return seen.products

    assert products() == 3
    made.weight.requires_grad_(False)
    assert products() == 2
    with torch.no_grad():
        assert products() == 1
        near(token_cross_entropy(made.hidden, made.head(), made.targets).sum, made.reference(), 1e-6)
