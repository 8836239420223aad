"""The only importer of accelerate: which device, which precision, one process."""

from __future__ import annotations

import os
from typing import Any

import torch
from accelerate import Accelerator

from luthier.errors import RequestError


class Devices:
    """A thin face of accelerate's Accelerator. Normalisation over accumulation is ours, so its own is 1."""

    def __init__(self, dtype: str) -> None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise RequestError("WORLD_SIZE is above 1: a run uses one process today", "start luthier without torchrun")
        if dtype == "bfloat16" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
            raise RequestError("model.dtype: this GPU has no bfloat16", "set model.dtype to float32")
        # Without CUDA accelerate would take Apple's MPS, which has no float64.
        self._accelerator = Accelerator(cpu=not torch.cuda.is_available(), gradient_accumulation_steps=1)
        self._half = dtype == "bfloat16"

    @property
    def device(self) -> torch.device:
        return self._accelerator.device

    def place(self, module: torch.nn.Module) -> None:
        """Move a module to the device, in place."""
        module.to(self.device)

    def precision(self) -> Any:
        """The context that forward passes run in."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self._half)

    def backward(self, loss: torch.Tensor) -> None:
        self._accelerator.backward(loss)


def describe() -> dict[str, Any]:
    """The machine, for run.json: processor count, devices, threads."""
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"processors": os.cpu_count(), "threads": torch.get_num_threads(), "gpus": devices}
