"""A training step gone through without values: every tensor has its shape, type and device, and no memory.

The model's own code runs, operation by operation, and the bytes of all tensors alive are added up; what a kernel takes
for itself inside is not seen. Knows no recipe, and needs the weights' shapes alone.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors made under it, from their making to the end of their last reference."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self.gradients = 0
        """Of `now`, those in gradients; `follow` keeps it."""
        self.gradients_at_peak = 0
        self._alive: dict[int, weakref.ref[Any]] = {}

    def follow(self, parameters: list[torch.nn.Parameter]) -> None:
        """Count the gradients of these as gradients, from the moment that backward leaves them."""
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(self._left)

    def forget_peak(self) -> None:
        """Begin a new peak at what is alive now."""
        self.peak, self.gradients_at_peak = self.now, self.gradients

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and _has_no_values(args[0]):
            return 0.0  # what a tensor without values holds, where the code reads it on the host
        if func is torch.ops.aten.add.Tensor and _adds_gradients(*args):
            func = torch.ops.aten.add_.Tensor
        found = func(*args, **(kwargs or {}))
        for storage in _storages(found):
            if storage._cdata not in self._alive and all(storage._cdata != given._cdata for given in _storages(args)):
                self._note(storage)
        return found

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()

        def gone(_reference: Any) -> None:
            del self._alive[key]
            self.now -= size

        self._alive[key] = weakref.ref(storage, gone)
        self.now += size
        if self.now > self.peak:
            self.peak, self.gradients_at_peak = self.now, self.gradients

    def _left(self, parameter: torch.Tensor) -> None:
        self.gradients += parameter.numel() * parameter.element_size()


def _storages(values: Any) -> Iterator[torch.UntypedStorage]:
    return (value.untyped_storage() for value in tree_leaves(values) if isinstance(value, torch.Tensor))


def _has_no_values(tensor: torch.Tensor) -> bool:
    return tensor.is_meta or isinstance(tensor, FakeTensor)


def _adds_gradients(first: Any, second: Any) -> bool:
    """Whether autograd adds up two gradients of one tensor, such as a matrix that is both head and embedding.

    Without a dispatch mode it does that in place; under one it makes a third tensor, which no real step has.
    """
    in_backward = torch._C._current_graph_task_id() != -1 and not torch.is_grad_enabled()
    return in_backward and isinstance(second, FakeTensor) and first.shape == second.shape


@contextmanager
def without_values() -> Iterator[LiveBytes]:
    """Tensors made in this block have no values and no memory; what is alive of them is counted."""
    with FakeTensorMode(allow_non_fake_inputs=True), LiveBytes() as live:
        yield live


def place_without_values(model: torch.nn.Module, device: torch.device) -> None:
    """Give a model on torch's meta device tensors of `device`, inside `without_values`. Tied ones stay tied."""
    made: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, value in tensors.items():
                if value is None:
                    continue
                if id(value) not in made:
                    fresh = torch.empty_like(value, device=device)
                    weight = isinstance(value, torch.nn.Parameter)
                    made[id(value)] = torch.nn.Parameter(fresh, value.requires_grad) if weight else fresh
                tensors[name] = made[id(value)]  # type: ignore[assignment]
