"""The optimizer's groups, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math

import torch

from luthier.models.verdict import VerdictModel
from luthier.recipe_train import TrainConfig
from luthier.train.plan import Plan

_CYCLES = 2
"""Cycles of cosine_with_restarts."""


def schedule_factor(step: int, plan: Plan, schedule: str) -> float:
    """The factor on the learning rate of optimizer step `step` (from 1). Warm-up is linear and reaches 1."""
    if step <= plan.warmup_steps:
        return step / plan.warmup_steps
    if schedule == "constant":
        return 1.0
    progress = (step - 1 - plan.warmup_steps) / max(1, plan.steps - plan.warmup_steps)
    if schedule == "linear":
        return 1.0 - progress
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    return 0.5 * (1.0 + math.cos(math.pi * (progress * _CYCLES % 1.0)))


def make_optimizer(model: VerdictModel, train: TrainConfig, token_learning_rate: float) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019). Biases and norms do not decay; learned tokens and a head have a rate of
    their own."""
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            own = name.startswith("head.") or "trainable_tokens" in name
            rate = token_learning_rate if own else train.learning_rate
            decay = 0.0 if own or parameter.ndim < 2 else train.weight_decay
            groups.setdefault((rate, decay), []).append(parameter)
    found = [
        {"params": parameters, "lr": rate, "base_rate": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]
    return torch.optim.AdamW(found, betas=(train.adam_beta1, train.adam_beta2), eps=train.adam_epsilon)


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Put the schedule's factor on every group."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_rate"] * factor
