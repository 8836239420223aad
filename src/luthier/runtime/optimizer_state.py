"""The state of any optimizer as named tensors and a little JSON, and back, bit for bit. Knows no files.

A state goes by its parameter's name, never by its place in the optimizer: with another order of parameters, one more
or one fewer, indices would hand a moment to the wrong weight. Groups (rates, decay, betas) are not kept: they follow
from the recipe, and the rate from the step.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from luthier.errors import CheckpointError

_MEND = "use the recipe and base that it was trained with"


def pack(
    optimizer: torch.optim.Optimizer, named: Iterable[tuple[str, torch.nn.Parameter]]
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """(tensors by `parameter.key`, facts) of every parameter that the optimizer holds.

    `named` gives each of them its name (`Learner.tuned()`). The tensors are on the CPU and may share memory with the
    optimizer's: write them before its next step. The facts are JSON: the optimizer's class and, by parameter, its
    shape, the keys of its tensors, and its Python numbers.
    """
    tensors: dict[str, torch.Tensor] = {}
    parameters: dict[str, Any] = {}
    seen: set[int] = set()
    for name, parameter in sorted(_held(optimizer, named).items()):
        state = optimizer.state.get(parameter, {})
        keys = sorted(key for key, value in state.items() if torch.is_tensor(value))
        for key in keys:
            value = state[key].detach().cpu().contiguous()
            # 8-bit states share one table of levels, and safetensors refuses memory that is shared.
            tensors[f"{name}.{key}"] = value.clone() if value.data_ptr() in seen else value
            seen.add(value.data_ptr())
        numbers = {key: value for key, value in sorted(state.items()) if key not in keys}
        parameters[name] = {"shape": list(parameter.shape), "tensors": keys, "numbers": numbers}
    return tensors, {"optimizer": type(optimizer).__name__, "parameters": parameters}


def unpack(
    optimizer: torch.optim.Optimizer,
    named: Iterable[tuple[str, torch.nn.Parameter]],
    tensors: dict[str, torch.Tensor],
    facts: dict[str, Any],
) -> None:
    """Put back what `pack` gave; the optimizer is untouched unless all of it fits.

    Raises CheckpointError naming the first parameter or tensor that is missing, renamed, of another shape or left
    over, and where the state is that of another optimizer. A state that is absent is never a fresh start.
    """
    held = _held(optimizer, named)
    _check(optimizer, held, tensors, facts)
    optimizer.state.clear()
    for name, parameter in held.items():
        saved = facts["parameters"][name]
        state: dict[str, Any] = dict(saved["numbers"])
        for key in saved["tensors"]:
            state[key] = _placed(optimizer, parameter, tensors[f"{name}.{key}"])
        if state:
            optimizer.state[parameter] = state


def _held(
    optimizer: torch.optim.Optimizer, named: Iterable[tuple[str, torch.nn.Parameter]]
) -> dict[str, torch.nn.Parameter]:
    """The optimizer's parameters by name."""
    names = {parameter: name for name, parameter in named}
    return {names[parameter]: parameter for group in optimizer.param_groups for parameter in group["params"]}


def _check(
    optimizer: torch.optim.Optimizer,
    held: dict[str, torch.nn.Parameter],
    tensors: dict[str, torch.Tensor],
    facts: dict[str, Any],
) -> None:
    here = type(optimizer).__name__
    if facts.get("optimizer") != here:
        raise CheckpointError(
            f"the optimizer's state is that of {facts.get('optimizer')}, this run has {here}",
            "set train.optimizer to the one that it was trained with",
        )
    saved: dict[str, Any] = facts["parameters"]
    _same(saved, held, "the optimizer's state", "the model")
    for name, parameter in held.items():
        if saved[name]["shape"] != list(parameter.shape):
            raise CheckpointError(
                f"the optimizer's state of {name} is for shape {saved[name]['shape']}, the model has "
                f"{list(parameter.shape)}",
                _MEND,
            )
    wanted = [f"{name}.{key}" for name, entry in saved.items() for key in entry["tensors"]]
    _same(tensors, wanted, "the optimizer's tensors", "their list")


def _same(found: Iterable[str], wanted: Iterable[str], where: str, by: str) -> None:
    """Refuse names of which one side has more than the other."""
    missing, extra = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if missing:
        raise CheckpointError(f"{where}: {len(missing)} missing that {by} has, such as {missing[0]}", _MEND)
    if extra:
        raise CheckpointError(f"{where}: {len(extra)} too many for {by}, such as {extra[0]}", _MEND)


def _placed(optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter, value: torch.Tensor) -> torch.Tensor:
    """The tensor where the optimizer wants it: on the parameter's device, or in pages where bitsandbytes pages it."""
    if getattr(optimizer, "is_paged", False) and value.shape == parameter.shape:
        buffer: torch.Tensor = optimizer.get_state_buffer(parameter, dtype=value.dtype)  # type: ignore[attr-defined]
        return buffer.copy_(value)
    return value.to(parameter.device, copy=True)
