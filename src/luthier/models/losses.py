"""Losses, always as `(sum, weight)`: the caller divides by the weight of the whole optimizer step.

A mean of means depends on how rows fall into batches; a sum over a sum does not. Shapes: B rows, V vocabulary,
K thresholds between K + 1 grade levels. Soft targets live here and in assess/targets.py and nowhere else.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional as F


class Loss(NamedTuple):
    """Sum over rows, and the weight that it is a sum over."""

    sum: torch.Tensor
    weight: float


def total_weight(rows: int, weight_B: torch.Tensor | None) -> float:
    """What a sum over rows is a sum over: their number, or their weights where they have any."""
    return float(rows) if weight_B is None else float(weight_B.sum())


def soft_binary_cross_entropy(
    logit_B: torch.Tensor, target_B: torch.Tensor, weight_B: torch.Tensor | None = None
) -> Loss:
    """-t log p - (1 - t) log(1 - p) with p = sigmoid(logit), summed; each row times its weight where it has one."""
    loss = F.binary_cross_entropy_with_logits(logit_B.float(), target_B.float(), weight_B, reduction="sum")
    return Loss(loss, total_weight(len(target_B), weight_B))


def answer_mass(logits_BV: torch.Tensor, answers: tuple[int, int], weight_B: torch.Tensor | None = None) -> Loss:
    """-log(p(pass) + p(fail)) over the whole vocabulary: keeps a legal answer the likely one to generate.

    Cross-entropy over the full vocabulary against (t, 1 - t) is the binary term plus exactly this one.
    """
    logits = logits_BV.float()
    mass = torch.logsumexp(logits, -1) - torch.logsumexp(logits[:, list(answers)], -1)
    return Loss((mass if weight_B is None else mass * weight_B).sum(), total_weight(len(mass), weight_B))


def ordinal_log_probabilities(score_B: torch.Tensor, thresholds_K: torch.Tensor) -> torch.Tensor:
    """(B, K + 1) log P(level) of a proportional-odds model: P(level > k) = sigmoid(score - threshold_k).

    McCullagh 1980. Computed from log-sigmoids, so that no difference of nearly equal numbers is taken.
    """
    above = score_B[:, None].float() - thresholds_K[None, :].float()
    log_above, log_below = F.logsigmoid(above), F.logsigmoid(-above)
    gap = (thresholds_K[1:] - thresholds_K[:-1]).float()
    # sigmoid(a) - sigmoid(a - gap) = sigmoid(a) * sigmoid(gap - a) * (1 - exp(-gap))
    middle = log_above[:, :-1] + log_below[:, 1:] + torch.log(-torch.expm1(-gap))[None, :]
    return torch.cat([log_below[:, :1], middle, log_above[:, -1:]], dim=1)


def ordinal_likelihood(
    score_B: torch.Tensor, thresholds_K: torch.Tensor, level_B: torch.Tensor, weight_B: torch.Tensor | None = None
) -> Loss:
    """-log P(the recorded level), summed; each row times its weight where it has one."""
    log_p = ordinal_log_probabilities(score_B, thresholds_K)
    if weight_B is None:
        return Loss(F.nll_loss(log_p, level_B, reduction="sum"), float(len(level_B)))
    return Loss((F.nll_loss(log_p, level_B, reduction="none") * weight_B).sum(), total_weight(len(level_B), weight_B))


def pairwise_ranking(score_B: torch.Tensor, pairs: list[tuple[int, int]]) -> Loss:
    """-log sigmoid(score_better - score_worse) over pairs of rows (RankNet, Burges et al. 2005), summed."""
    if not pairs:
        return Loss(score_B.sum() * 0.0, 0.0)
    better, worse = (torch.tensor(side, device=score_B.device) for side in zip(*pairs, strict=True))
    return Loss(-F.logsigmoid(score_B[better].float() - score_B[worse].float()).sum(), float(len(pairs)))
