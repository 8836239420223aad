"""What an adapter does: the size of its update to every matrix, and how far it moves what the model says.

A training that left its adapter as it was, or whose adapter is not in the way of the inputs, looks like success
otherwise. Shapes: r rank, A (r, in), B (out, r), T tokens.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch

from luthier.models.adapters import bare


@torch.no_grad()
def delta_norms(model: Any) -> dict[str, float]:
    """The Frobenius norm of scale * B @ A by module; empty for a model without LoRA. No product (out, in) is made."""
    found: dict[str, float] = {}
    for name, module in bare(model).named_modules():
        if hasattr(module, "lora_A") and "default" in getattr(module, "lora_A", {}):
            a, b = module.lora_A["default"].weight.double(), module.lora_B["default"].weight.double()
            # |BA|^2 = tr(A A^T B^T B), both r x r
            square = torch.sum((a @ a.T) * (b.T @ b))
            found[name] = float(square.clamp(min=0).sqrt()) * float(module.scaling["default"])
    return found


@torch.no_grad()
def adapter_effect(model: Any, ids_T: torch.Tensor) -> float:
    """Mean absolute change of the log-probabilities of some tokens when the adapter is switched off.

    Raises TypeError for a model without an adapter.
    """
    return effect_on(model, lambda: _log_likelihoods(model, ids_T))


@torch.no_grad()
def effect_on(model: Any, log_likelihoods: Callable[[], torch.Tensor]) -> float:
    """The same for whatever the model is asked for the log-probabilities of."""
    if not hasattr(model, "disable_adapter"):
        raise TypeError("this model has no adapter")
    training = model.training
    model.eval()
    with_adapter = log_likelihoods()
    with model.disable_adapter():
        without = log_likelihoods()
    model.train(training)
    return float((with_adapter - without).abs().mean())


def summary(norms: dict[str, float]) -> dict[str, Any]:
    """What a record keeps of many norms: how many, the smallest, the middle, the largest and where they are."""
    if not norms:
        return {}
    least, most = min(norms, key=lambda name: norms[name]), max(norms, key=lambda name: norms[name])
    return {
        "modules": len(norms),
        "median": statistics.median(norms.values()),
        "smallest": {"module": least, "norm": norms[least]},
        "largest": {"module": most, "norm": norms[most]},
    }


def _log_likelihoods(model: Any, ids_T: torch.Tensor) -> torch.Tensor:
    logits_TV = model(input_ids=ids_T[None], use_cache=False).logits[0, :-1].float()
    return torch.log_softmax(logits_TV, -1).gather(1, ids_T[1:, None])[:, 0]
