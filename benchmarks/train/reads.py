"""Counts reads of tensors on the host: the moments at which a GPU would have to finish before Python goes on.

On a processor every tensor counts, also those that a careful loop keeps on the host on purpose; `where` tells them
apart. Two kinds: values (item, bool, float, tolist, numpy, cpu) and shapes that depend on values (nonzero and what is
made of it: boolean indices, masked_select, unique).
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_VALUES = {"_local_scalar_dense", "equal"}
_SHAPES = {"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive"}
_SILENT = ("tolist", "numpy", "cpu", "__array__")
"""Methods that read without a call that a dispatch mode sees."""


class HostReads(TorchDispatchMode):
    """Counts between `start` and `stop`, by kind and by the line that asked."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, Counter[str]] = {"values": Counter(), "shapes": Counter()}
        self._kept: dict[str, Any] = {}

    def start(self) -> None:
        for name in _SILENT:
            self._kept[name] = getattr(torch.Tensor, name)
            setattr(torch.Tensor, name, self._watched(self._kept[name]))
        self.__enter__()

    def stop(self) -> None:
        self.__exit__(None, None, None)
        for name, method in self._kept.items():
            setattr(torch.Tensor, name, method)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in _VALUES:
            self._note("values")
        elif name in _SHAPES or (name == "index" and any(_boolean(index) for index in args[1])):
            self._note("shapes")
        return func(*args, **(kwargs or {}))

    def _watched(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def watched(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            self._note("values")
            return method(tensor, *args, **kwargs)

        return watched

    def _note(self, kind: str) -> None:
        frame = sys._getframe(2)
        while frame.f_back and ("/torch/" in frame.f_code.co_filename or frame.f_code.co_filename == __file__):
            frame = frame.f_back
        place = frame.f_code.co_filename.split("site-packages/")[-1].split("/src/")[-1]
        self.found[kind][f"{place}:{frame.f_code.co_name}"] += 1

    def per_step(self, steps: int) -> dict[str, Any]:
        """Reads for each optimizer step by kind, and where they come from."""
        where = {f"{kind} in {place}": n / steps for kind in self.found for place, n in self.found[kind].most_common()}
        return {**{kind: found.total() / steps for kind, found in self.found.items()}, "where": where}


def _boolean(index: Any) -> bool:
    return isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8)
