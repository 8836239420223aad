"""The only importer of accelerate: which device, which precision, and the processes that share a step."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import distributed

from luthier.runtime.precision import Precision, resolve_precision
from luthier.runtime.products import quick_products, use_quick_products

Item = TypeVar("Item")


class Devices:
    """A thin face of accelerate's Accelerator. Normalisation over accumulation is ours, so its own is 1.

    Several processes (torchrun) share the forward passes of a step and add up their gradients; every one of them knows
    the weight of the whole step, so the sum of their shares is the step's loss, however many they are.
    """

    def __init__(self, dtype: str) -> None:
        # Without CUDA accelerate would take Apple's MPS, which has no float64.
        self._accelerator = Accelerator(cpu=not torch.cuda.is_available(), gradient_accumulation_steps=1)
        self.precision: Precision = resolve_precision(dtype, self.device)
        if self.device.type == "cpu":
            # MKL chooses its threads itself until somebody sets them, and then never again: set from the first step on,
            # or a run that examines small models (`threads.one_thread`) would go on in other bits when it is resumed.
            torch.set_num_threads(torch.get_num_threads())
            if self.precision.dtype == torch.float32:
                use_quick_products()

    @property
    def device(self) -> torch.device:
        return self._accelerator.device

    @property
    def rank(self) -> int:
        return int(self._accelerator.process_index)

    @property
    def world(self) -> int:
        return int(self._accelerator.num_processes)

    @property
    def leads(self) -> bool:
        """Whether this process writes what all of them share."""
        return self.rank == 0

    def place(self, module: torch.nn.Module) -> None:
        """Move a module to the device, in place."""
        module.to(self.device)

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's part of a step's forward passes."""
        return items[self.rank :: self.world]

    def add_up(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replace each tensor by its sum over all processes; one call for all of them."""
        found = list(tensors)
        if self.world > 1 and found:
            # In the widest of their formats: sums of 16-bit gradients and of float64 losses lose nothing.
            dtype = functools.reduce(torch.promote_types, (tensor.dtype for tensor in found), torch.float32)
            flat = torch.cat([tensor.detach().reshape(-1).to(dtype) for tensor in found])
            distributed.all_reduce(flat)
            at = 0
            for tensor in found:
                tensor.detach().copy_(flat[at : at + tensor.numel()].view_as(tensor))
                at += tensor.numel()

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if self.world == 1:
            return flag
        found = torch.tensor(float(flag), device=self.device)
        distributed.all_reduce(found, op=distributed.ReduceOp.MAX)
        return bool(found.item())

    def leader_first(self) -> AbstractContextManager[Any]:
        """A block that the other processes enter when the leading one has left it."""
        return self._accelerator.main_process_first()


def describe() -> dict[str, Any]:
    """The machine, for run.json: processor count, devices, threads."""
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    products = "oneDNN" if quick_products() else "torch's own"
    found = {"processors": os.cpu_count(), "threads": torch.get_num_threads(), "gpus": devices}
    return found if devices else {**found, "float32 products": products}
