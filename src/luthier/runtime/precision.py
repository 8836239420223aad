"""In which number format passes are computed, and the scaling that keeps float16 gradients alive. Knows no model.

What is trained is float32 always; frozen weights are held in `Precision.dtype`, and passes run under its autocast.
How scaling and the guard against NaN (train/optim.py) share the work with float16:

* a gradient that overflows while the scale can still fall is the scaling's affair: that one step is left out, the
  scale is halved, training goes on;
* a loss that is not finite is an error at once: the forward pass is not scaled, so no scale would mend it;
* a gradient that is not finite at the lowest scale is an error as well: the model does not fit into float16.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from luthier.errors import CheckpointError, RequestError

FIRST_SCALE = 2.0**16
LOWEST_SCALE = 1.0
"""Gradients are not scaled then; what still overflows is beyond float16 (65504)."""


class LossScale:
    """Dynamic loss scaling (Micikevicius et al. 2018, arXiv 1710.03740) by torch's GradScaler. Reads no device."""

    def __init__(self, device: torch.device) -> None:
        self._scaler = torch.amp.GradScaler(device.type, init_scale=FIRST_SCALE)
        self._one = torch.ones((), device=device)
        self.handled = torch.zeros((), dtype=torch.bool, device=device)
        """() bool: the last `unscale` found an overflow that a lower scale may mend."""

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss to call backward on."""
        scaled: torch.Tensor = self._scaler.scale(loss)
        return scaled

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the gradients by the scale in place, and set the next scale: once a step, before clipping."""
        before = self._scaler.scale(self._one)
        self._scaler.unscale_(optimizer)
        self._scaler.update()
        self.handled = (self._scaler.scale(self._one) < before) & (before > LOWEST_SCALE)

    def state(self) -> dict[str, Any]:
        """Scale and growth counter as JSON. Reads two scalars."""
        found: dict[str, Any] = self._scaler.state_dict()
        return found

    def load(self, state: dict[str, Any]) -> None:
        """Put `state()` back."""
        self._scaler.load_state_dict(state)


@dataclass(frozen=True)
class Precision:
    """The number format in force on one device."""

    dtype: torch.dtype
    """Of frozen weights and of autocast."""
    device: torch.device
    note: str = ""
    """What to tell the user once, where this is not what the recipe asks for."""
    scaler: LossScale | None = None

    def autocast(self) -> AbstractContextManager[Any]:
        """The context that forward passes run in."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss to call backward on."""
        return loss if self.scaler is None else self.scaler.scale(loss)

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Give the gradients their true size: once a step, after all backward passes and before clipping."""
        if self.scaler is not None:
            self.scaler.unscale(optimizer)

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to keep, as JSON; empty without scaling."""
        return {} if self.scaler is None else self.scaler.state()

    def load(self, state: dict[str, Any]) -> None:
        """Put `state()` back. Raises CheckpointError where one of the two has a loss scale and the other has none."""
        if bool(state) != (self.scaler is not None):
            raise CheckpointError(
                f"the checkpoint {'has' if state else 'lacks'} the loss scale of float16, and this run computes in "
                f"{str(self.dtype).removeprefix('torch.')}",
                "resume with the model.dtype and kind of device that it was trained with",
            )
        if self.scaler is not None:
            self.scaler.load(state)


def resolve_precision(dtype: str, device: torch.device | str) -> Precision:
    """The precision in force for `model.dtype` on a device.

    Raises RequestError for bfloat16 on a GPU that only emulates it. float16 on a processor becomes float32, with a
    note: it is slower there than float32, and activations above 65504 overflow.
    """
    device = torch.device(device)
    if dtype == "float16" and device.type == "cpu":
        return Precision(torch.float32, device, "model.dtype: float16 becomes float32, as this run has no GPU")
    if dtype == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise RequestError(
            f"model.dtype: {torch.cuda.get_device_name(device)} has no bfloat16",
            "set model.dtype to float16 or float32",
        )
    scaler = LossScale(device) if dtype == "float16" else None
    return Precision(getattr(torch, dtype), device, scaler=scaler)
