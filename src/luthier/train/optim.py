"""Optimizers and their groups, clipping, and the guard that keeps what is not finite out of the weights.

Every optimizer comes from a library and is made here under the name that `train.optimizer` has. Knows no task and no
schedule: each group keeps its `base_rate`, and the loop puts the step's factor on it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from luthier.errors import RequestError
from luthier.models.learner import Learner
from luthier.recipe_train import TrainConfig
from luthier.runtime.precision import Precision

_BITSANDBYTES = {
    "adamw_8bit": "AdamW8bit",
    "paged_adamw": "PagedAdamW",
    "paged_adamw_8bit": "PagedAdamW8bit",
    "lion": "Lion",
}
_LORA_B = re.compile(r"\.lora_(embedding_)?B\.")


def make_optimizer(learner: Learner, train: TrainConfig, token_learning_rate: float) -> torch.optim.Optimizer:
    """The optimizer of `train.optimizer` over what the learner tunes.

    Biases and norms do not decay; learned tokens and the learner's own head have a rate of their own and no decay;
    lora_B has `loraplus_ratio` times the rate (Hayou et al. 2024, arXiv 2402.12354).

    * adamw (Loshchilov & Hutter 2019, arXiv 1711.05101), in one fused kernel that can skip a step on the device.
    * adamw_8bit, paged_adamw, paged_adamw_8bit (Dettmers et al. 2022, arXiv 2110.02861) and lion (Chen et al. 2023,
      arXiv 2302.06675; its rate is 3 to 10 times smaller than AdamW's, its betas are adam_beta1 and 2) through
      bitsandbytes.
    * adafactor (Shazeer & Stern 2018, arXiv 1804.04235): transformers', whose rate can be absolute. torch's is
      always relative to a weight's size, which makes the first steps of lora_B, all zeros, a thousand times smaller.
    * muon (Jordan et al. 2024) for hidden matrices, AdamW for all else.

    Raises RequestError where bitsandbytes is not installed, and for a paged optimizer without a GPU.
    """
    groups = _groups(learner, train, token_learning_rate)
    betas = (train.adam_beta1, train.adam_beta2)
    if train.optimizer == "adamw":
        return torch.optim.AdamW(groups, betas=betas, eps=train.adam_epsilon, fused=True)
    if train.optimizer == "muon":
        return MuonAdamW(groups, betas, train.adam_epsilon)
    if train.optimizer == "adafactor":
        from transformers.optimization import Adafactor

        made: torch.optim.Optimizer = Adafactor(groups, scale_parameter=False, relative_step=False)
        return made
    return _bitsandbytes(groups, train, betas)


def check_optimizer(train: TrainConfig) -> None:
    """Raise RequestError where this machine lacks what the optimizer needs: bitsandbytes, or a GPU to page from."""
    name = train.optimizer
    if name.startswith("paged") and not torch.cuda.is_available():
        raise RequestError(
            f"train.optimizer: {name} pages its state out of a GPU's memory, and there is no GPU",
            f"set train.optimizer to {name.removeprefix('paged_')}",
        )
    if name in _BITSANDBYTES and find_spec("bitsandbytes") is None:
        raise RequestError(
            f"train.optimizer: {name} needs bitsandbytes, which is not installed", "pip install 'luthier[qlora]'"
        )


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Put the schedule's factor on every group."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_rate"] * factor


def clip(parameters: Sequence[nn.Parameter], max_norm: float) -> torch.Tensor:
    """Scale the gradients down to `max_norm` (0: leave them) and return their norm before it, () on the device."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if max_norm:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


class Guard:
    """Stops the optimizer, on the device, from the first step on whose loss or gradient is not finite.

    Fused AdamW is told by a flag on the device: weights, moments and counters stay as they were, bit for bit, and
    nothing is read. The other optimizers know no such flag, so they cost one read a step.
    """

    def __init__(self, device: torch.device) -> None:
        self._tripped = torch.zeros((), device=device)

    def step(
        self, optimizer: torch.optim.Optimizer, loss_sum: torch.Tensor, norm: torch.Tensor, precision: Precision
    ) -> torch.Tensor:
        """Step, unless this or an earlier step is not finite. Returns this step's loss, NaN where it is at fault.

        A gradient that overflowed while float16's loss scale can still fall is no fault: the step is left out, and
        the next one taken (see runtime/precision.py). All are () tensors on the device.
        """
        scaler = precision.scaler
        overflow = ~torch.isfinite(norm) if scaler is None else ~torch.isfinite(norm) & ~scaler.handled
        at_fault = overflow | ~torch.isfinite(loss_sum)
        self._tripped = torch.maximum(self._tripped, at_fault.float())
        skip = self._tripped if scaler is None else torch.maximum(self._tripped, scaler.handled.float())
        if getattr(optimizer, "_step_supports_amp_scaling", False):
            optimizer.found_inf = skip  # type: ignore[attr-defined]
            optimizer.step()
        elif not skip.item():
            optimizer.step()
        return torch.where(at_fault, torch.nan, loss_sum)

    def tripped(self) -> bool:
        """Whether the optimizer has stopped. Reads the device."""
        return bool(self._tripped.item())


class MuonAdamW(torch.optim.Optimizer):
    """Muon for the groups that say so, AdamW for the others, behind one face.

    Muon's updates are scaled to AdamW's size (Liu et al. 2025, arXiv 2502.16982), so both take the same rate.
    """

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float], eps: float) -> None:
        self._parts: dict[bool, torch.optim.Optimizer] = {}
        matrices = [group for group in groups if group["muon"]]
        others = [group for group in groups if not group["muon"]]
        if matrices:
            self._parts[True] = torch.optim.Muon(matrices, adjust_lr_fn="match_rms_adamw")
        if others:
            self._parts[False] = torch.optim.AdamW(others, betas=betas, eps=eps, fused=True)
        super().__init__(groups, {})

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step of both. Takes no closure: each part would call it."""
        for muon, part in self._parts.items():
            # Handed over at every step: loading a state puts new objects in the place of these.
            part.state = self.state
            part.param_groups = [group for group in self.param_groups if group["muon"] == muon]
            part.step()


def _groups(learner: Learner, train: TrainConfig, token_learning_rate: float) -> list[dict[str, Any]]:
    """Parameter groups, each with its own `base_rate` and decay, and whether Muon has it."""
    ends = _ends(learner) if train.optimizer == "muon" else set()
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for name, parameter in learner.tuned():
        own = name.startswith("head.") or "trainable_tokens" in name
        rate = token_learning_rate if own else train.learning_rate
        if train.loraplus_ratio and _LORA_B.search(name):
            rate *= train.loraplus_ratio
        decay = 0.0 if own or parameter.ndim < 2 else train.weight_decay
        muon = train.optimizer == "muon" and parameter.ndim == 2 and not own and parameter not in ends
        groups.setdefault((rate, decay, muon), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "base_rate": rate, "weight_decay": decay, "muon": muon}
        for (rate, decay, muon), parameters in groups.items()
    ]


def _ends(learner: Learner) -> set[nn.Parameter]:
    """The embeddings and heads of the learner's models: their rows are tokens, and Muon is for hidden layers."""
    from transformers import PreTrainedModel

    ends: list[nn.Module] = []
    for module in learner.modules():
        if isinstance(module, nn.Embedding):
            ends.append(module)
        elif isinstance(module, PreTrainedModel) and module.get_output_embeddings() is not None:
            ends.append(module.get_output_embeddings())
    return {parameter for module in ends for parameter in module.parameters()}


def _bitsandbytes(
    groups: list[dict[str, Any]], train: TrainConfig, betas: tuple[float, float]
) -> torch.optim.Optimizer:
    check_optimizer(train)
    from bitsandbytes import optim

    more = {} if train.optimizer == "lion" else {"eps": train.adam_epsilon}
    made: torch.optim.Optimizer = getattr(optim, _BITSANDBYTES[train.optimizer])(groups, betas=betas, **more)
    return made
