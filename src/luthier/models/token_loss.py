"""Cross-entropy of a language-model head at the positions that carry a target, a chunk of positions at a time.

The logits of all positions never exist together, and are computed once: each chunk's gradients are taken while its
logits are there, in the forward pass, and backward only multiplies. (The idea is that of Liger Kernel, Hsu et al. 2024,
arXiv 2410.10989.) Products run in the type of the hidden states or of autocast; everything else in float32 or wider.
This module knows nothing of models or batches, and never reads a tensor on the host.

Shapes: N positions, n of them in a chunk, D model width, V vocabulary, K candidate tokens, R rows of the head's weight
that are trained alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from luthier.models.head import Head
from luthier.models.losses import Loss

CHUNK_ELEMENTS = 2**25
"""Logits that exist at a time, 128 MiB of float32. Half as many is a tenth slower at V = 128k."""


@dataclass(frozen=True, eq=False)
class TokenTargets:
    """What each position should predict: a token, or K candidates with probabilities, which may sum to less than 1."""

    ids_N: torch.Tensor
    weight_N: torch.Tensor
    total: float
    """The sum of weight_N, computed on the host."""
    soft_ids_NK: torch.Tensor | None = None
    """Take the place of ids_N, together with soft_p_NK; an id that comes twice counts twice."""
    soft_p_NK: torch.Tensor | None = None

    def candidates(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and probabilities, both (N, K); K is 1 for hard targets."""
        if self.soft_ids_NK is None or self.soft_p_NK is None:
            return self.ids_N[:, None], torch.ones_like(self.weight_N)[:, None]
        return self.soft_ids_NK, self.soft_p_NK


def token_cross_entropy(
    hidden_ND: torch.Tensor,
    head: Head,
    targets: TokenTargets,
    label_smoothing: float = 0.0,
    chunk_rows: int | None = None,
) -> Loss:
    """Sum over positions of weight * -sum_k p_k log softmax(logits)[id_k], and the total weight.

    With label smoothing e, p becomes (1 - e) p + e / V over the whole vocabulary, as in torch's own cross-entropy.
    No positions give 0, with a graph. NaN and infinity go through to the loss and the gradients.
    """
    job = _Job(head, targets, label_smoothing, chunk_rows, torch.is_grad_enabled())
    if head.weight_VD is None:
        return Loss(_by_autograd(hidden_ND, job), targets.total)
    return Loss(_GradientsInForward.apply(hidden_ND, head.weight_VD, head.bias_V, head.patch_RD, job), targets.total)


@dataclass(frozen=True, eq=False)
class _Job:
    """What one loss is made of, beside the tensors that may need a gradient."""

    head: Head
    targets: TokenTargets
    smoothing: float
    chunk_rows: int | None
    grad_enabled: bool

    def parts(self, vocabulary: int) -> list[slice]:
        """The positions of each chunk."""
        rows, count = self.chunk_rows or max(1, CHUNK_ELEMENTS // vocabulary), len(self.targets.ids_N)
        return [slice(begin, min(begin + rows, count)) for begin in range(0, count, rows)]


class _GradientsInForward(torch.autograd.Function):
    """The loss and, chunk by chunk beside it, its gradients by hidden states, weight, bias and patched rows."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Any, weight_VD: Any, bias_V: Any, patch_RD: Any, job: _Job) -> torch.Tensor:
        tensors, device = (hidden_ND, weight_VD, bias_V, patch_RD), hidden_ND.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_ND.dtype
        with torch.autocast(device, enabled=False):
            work = _Chunks(job, dtype, tensors)
            loss = work.run(hidden_ND)
        ctx.save_for_backward(*work.grads)
        ctx.dtypes = [None if x is None else x.dtype for x in tensors]
        return loss

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        scaled = [
            None if x is None else torch.mul(x, grad, out=torch.empty_like(x, dtype=dtype))
            for x, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return (*scaled, None)


class _Chunks:
    """The work on one chunk after another, in buffers that all of them share."""

    def __init__(self, job: _Job, dtype: torch.dtype, tensors: tuple[torch.Tensor | None, ...]) -> None:
        self.job, self.dtype = job, dtype
        self.wide = torch.promote_types(dtype, torch.float32)
        weight_VD, bias_V, patch_RD = tensors[1:]
        self.weight_VD = cast(torch.Tensor, weight_VD).to(dtype)
        self.bias_V = None if bias_V is None else bias_V.to(dtype)
        self.patch = None
        if patch_RD is not None and job.head.rows_R is not None:
            self.patch = (job.head.rows_R.to(patch_RD.device), patch_RD.to(dtype))
        self.grads = [
            torch.zeros_like(x, dtype=self.wide) if x is not None and x.requires_grad and job.grad_enabled else None
            for x in tensors
        ]

    def run(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        """The loss, a scalar; the gradients are in `grads`."""
        targets, parts = self.job.targets, self.job.parts(len(self.weight_VD))
        ids_NK, p_NK = targets.candidates()
        p_NK, weight_N = p_NK.to(self.wide), targets.weight_N.to(self.wide)
        loss = torch.zeros((), dtype=self.wide, device=hidden_ND.device)
        longest = parts[0].stop if parts else 0
        product = torch.empty((longest, len(self.weight_VD)), dtype=self.dtype, device=hidden_ND.device)
        logits = product if self.dtype == self.wide else torch.empty_like(product, dtype=self.wide)
        for part in parts:
            hidden_nD = hidden_ND[part].to(self.dtype)
            product_nV, logits_nV = product[: len(hidden_nD)], logits[: len(hidden_nD)]
            slope_nV = self._fill(hidden_nD, product_nV, logits_nV)
            loss_n = self._to_gradient(logits_nV, ids_NK[part], p_NK[part])
            loss += (loss_n * weight_N[part]).sum()
            if any(grad is not None for grad in self.grads):
                if slope_nV is not None:
                    logits_nV.mul_(slope_nV)
                if product_nV.dtype != logits_nV.dtype:
                    product_nV.copy_(logits_nV)
                self._accumulate(part, hidden_nD, product_nV, weight_N[part] * self.job.head.scale)
        return loss

    def _fill(self, hidden_nD: torch.Tensor, product_nV: torch.Tensor, logits_nV: torch.Tensor) -> torch.Tensor | None:
        """Put the logits into logits_nV. Returns their slope under the soft cap, where there is one."""
        scale, cap = self.job.head.scale, self.job.head.softcap
        addend, beta = (hidden_nD.new_zeros(1), 0.0) if self.bias_V is None else (self.bias_V, scale)
        torch.addmm(addend, hidden_nD, self.weight_VD.t(), beta=beta, alpha=scale, out=product_nV)
        if self.patch is not None:
            rows_R, patch_RD = self.patch
            product_nV.index_copy_(1, rows_R, torch.mm(hidden_nD, patch_RD.t()).mul_(scale))
        if product_nV.dtype != logits_nV.dtype:
            logits_nV.copy_(product_nV)
        if not cap:
            return None
        tanh_nV = logits_nV.div_(cap).tanh_()
        slope_nV = torch.mul(tanh_nV, tanh_nV).neg_().add_(1.0)
        logits_nV.mul_(cap)
        return slope_nV

    def _to_gradient(self, logits_nV: torch.Tensor, ids_nK: torch.Tensor, p_nK: torch.Tensor) -> torch.Tensor:
        """The loss of each position. Leaves its gradient by the logits where the logits were."""
        smoothing, vocabulary = self.job.smoothing, logits_nV.shape[1]
        p_nK = p_nK * (1.0 - smoothing)
        mass_n = p_nK.sum(1) + smoothing
        logits_nV.sub_(logits_nV.amax(1, keepdim=True))
        expected_n = (p_nK * logits_nV.gather(1, ids_nK)).sum(1)
        if smoothing:
            expected_n += smoothing * logits_nV.mean(1)
        norm_n = logits_nV.exp_().sum(1)
        logits_nV.mul_((mass_n / norm_n)[:, None]).scatter_add_(1, ids_nK, -p_nK)
        if smoothing:
            logits_nV.sub_(smoothing / vocabulary)
        return mass_n * norm_n.log() - expected_n

    def _accumulate(self, part: slice, hidden_nD: Any, grad_nV: torch.Tensor, factor_n: torch.Tensor) -> None:
        """Add a chunk's gradients to `grads`. Overwrites the patched columns of grad_nV."""
        of_hidden, of_weight, of_bias, of_patch = self.grads
        hidden_nD = hidden_nD * factor_n[:, None].to(self.dtype)
        if of_bias is not None:
            of_bias.add_(torch.mv(grad_nV.t(), factor_n.to(self.dtype)))
        by_patch_nD = None
        if self.patch is not None:
            rows_R, patch_RD = self.patch
            patched_nR = grad_nV.index_select(1, rows_R)
            grad_nV.index_fill_(1, rows_R, 0.0)
            by_patch_nD = torch.mm(patched_nR, patch_RD)
            if of_patch is not None:
                of_patch.add_(torch.mm(patched_nR.t(), hidden_nD))
        if of_weight is not None and self.dtype == self.wide:
            of_weight.addmm_(grad_nV.t(), hidden_nD)
        elif of_weight is not None:
            of_weight.add_(torch.mm(grad_nV.t(), hidden_nD))
        if of_hidden is not None:
            by_hidden_nD = torch.mm(grad_nV, self.weight_VD)
            if by_patch_nD is not None:
                by_hidden_nD += by_patch_nD
            of_hidden[part] = by_hidden_nD * factor_n[:, None]


def _by_autograd(hidden_ND: torch.Tensor, job: _Job) -> torch.Tensor:
    """The same for a head that can only be called: a chunk's logits are computed again in the backward pass."""
    ids_NK, p_NK = job.targets.candidates()
    wide = torch.promote_types(hidden_ND.dtype, torch.float32)
    loss = hidden_ND[:0].sum(dtype=wide)
    for part in job.parts(job.head.vocabulary):
        inputs = (hidden_ND[part], ids_NK[part], p_NK[part], job.targets.weight_N[part], job)
        loss = loss + checkpoint(_plain_loss, *inputs, use_reentrant=False)
    return loss


def _plain_loss(hidden_nD: Any, ids_nK: Any, p_nK: Any, weight_n: Any, job: _Job) -> torch.Tensor:
    """The loss of a chunk as it is defined."""
    log_p_nV = torch.log_softmax(job.head.logits(hidden_nD), 1)
    p_nK = p_nK.to(log_p_nV.dtype) * (1.0 - job.smoothing)
    loss_n = -(p_nK * log_p_nV.gather(1, ids_nK)).sum(1)
    if job.smoothing:
        loss_n = loss_n - job.smoothing * log_p_nV.mean(1)
    return (loss_n * weight_n.to(log_p_nV.dtype)).sum()
