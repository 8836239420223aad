"""What a chat training will need of memory, by part, before a weight is loaded.

The estimate is one optimizer step of the recipe's own model, adapter, loss and optimizer, gone through without values
(runtime/live_bytes.py). What that cannot see is added by formula: four- and eight-bit weights, and on a processor the
process itself. It holds where freed memory is given back: on a processor with glibc after `return_freed_memory`. On a
GPU it is what torch allocates, not what its cache reserves. Compiled layers need less than is said here. A base that is
packed while it is loaded on a processor leaves pages of its file mapped, which the system drops when it needs room:
they are not counted.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from luthier.errors import RequestError
from luthier.models import adapters, quantized
from luthier.models.attention import use_packed_attention
from luthier.models.chat_batches import ChatBatch
from luthier.models.chat_model import ChatModel
from luthier.models.families import text_family_of
from luthier.models.senses.supply import MediaBatch
from luthier.models.text_base import TextBase
from luthier.models.tokens import add_text_tokens
from luthier.recipe import Recipe
from luthier.runtime.live_bytes import LiveBytes, place_without_values, without_values
from luthier.runtime.memory import used_memory
from luthier.runtime.memory_estimate import MemoryEstimate, Part
from luthier.runtime.precision import Precision
from luthier.train.media_walk import MediaWalk, walk_media
from luthier.train.optim import clip, make_optimizer

_SCRATCH = {"adamw_8bit": 5, "lion": 3}
"""Float32 copies of a tensor that bitsandbytes makes on a processor while it steps; on a GPU its kernels make none."""
_KERNELS = {"cpu": 48 * 2**20, "cuda": 32 * 2**20}
"""What the libraries' own kernels take: code and scratch on a processor (24 to 70 MiB measured), cuBLAS's workspace."""


def estimate_memory(
    base: TextBase, recipe: Recipe, precision: Precision, batch: ChatBatch, passes: int
) -> MemoryEstimate:
    """The memory of a training, from a base of `text_base.weightless_base`, which is used up.

    `batch` is its largest forward pass, `passes` how many a step has: from the second on, gradients are there in the
    forward pass. Raises RequestError where adapter or optimizer cannot be made, as the training would.
    """
    device = precision.device
    kind = quantized.published(base.model.config) or recipe.model.quantization
    if quantized.loading_options(recipe.model.quantization, base.model.config, precision.dtype, device):
        importlib.import_module("bitsandbytes")  # what it takes for itself belongs to the process
    senses = base.senses
    base.model.to(precision.dtype)
    base.added_tokens = add_text_tokens(base, recipe.model.added_tokens, recipe.seed)
    tuned = adapters.attach(base, replace(recipe.model, quantization=""), base.added_tokens, recipe.seed)
    try:
        use_packed_attention(adapters.bare(tuned))
    except RequestError:
        if recipe.train.packing:
            raise
    if recipe.train.gradient_checkpointing:
        adapters.checkpoint_activations(base.model)
    seen = MediaWalk(0, 0, MediaBatch())
    if senses is not None and batch.media is not None:
        seen = walk_media(senses, adapters.bare(tuned), batch.media)
        batch = replace(batch, media=seen.vectors)
    with without_values() as live:
        place_without_values(tuned, device)
        learner = ChatModel(tuned, base.facts(), recipe.train.label_smoothing, senses)
        if kind == "int8":
            _keep_inputs(learner)
        held = _Held(_size(p for p in learner.parameters() if not p.requires_grad), [p for _, p in learner.tuned()])
        _step(learner, recipe, precision, batch.to(device), passes > 1, live, held)
    packed, unpacked = _packed(learner, kind) if kind else (0, 0)
    already = used_memory(device) if device.type == "cpu" else 0
    dtype = f"{kind}, head and embeddings as published" if kind else str(precision.dtype).removeprefix("torch.")
    parts = (
        Part("base weights", held.frozen - packed, dtype),
        Part("trained weights", _size(held.trained), f"{sum(p.numel() for p in held.trained):,}, float32"),
        Part("optimizer", held.optimizer, recipe.train.optimizer),
        Part("gradients", held.gradients, "float32" if passes > 1 else "those there at the peak"),
        Part("activations", held.activations, f"{batch.tokens:,} tokens in the largest of the forward passes"),
        Part("media", _beyond(seen, held), f"encoding {len(seen.vectors.slots)} media of that pass"),
        Part("buffers", held.buffers + unpacked, "logits by the chunk, a layer computed again or unpacked"),
        Part("process", already + _KERNELS.get(device.type, 0), "the interpreter and its libraries"),
    )
    return MemoryEstimate(tuple(part for part in parts if part.bytes), already)


def _beyond(seen: MediaWalk, held: _Held) -> int:
    """What encoding media adds to the peak: a frozen encoder's work is over when the decoder's activations begin."""
    return max(seen.held, seen.peak - held.activations - held.buffers)


@dataclass
class _Held:
    """Bytes that the walk through a step found."""

    frozen: int
    trained: list[nn.Parameter]
    optimizer: int = 0
    gradients: int = 0
    activations: int = 0
    buffers: int = 0


def _step(
    learner: ChatModel,
    recipe: Recipe,
    precision: Precision,
    batch: ChatBatch,
    accumulates: bool,
    live: LiveBytes,
    held: _Held,
) -> None:
    """One optimizer step, and one forward and backward pass after it: what is held, and the higher of both peaks."""
    learner.train()
    weights = live.now
    optimizer = make_optimizer(learner, recipe.train, recipe.model.learned_tokens.learning_rate)
    for parameter in held.trained:
        parameter.grad = torch.zeros_like(parameter)
    live.forget_peak()
    clip(held.trained, recipe.train.max_grad_norm)
    _fill_state(optimizer)
    full, at_step = _size(held.trained), live.peak
    if precision.device.type == "cpu":
        largest = max(parameter.numel() for parameter in held.trained)
        at_step = max(at_step, live.now + _SCRATCH.get(recipe.train.optimizer, 0) * 4 * largest)
    held.optimizer = live.now - weights - full
    if accumulates:
        live.gradients = full
    else:
        optimizer.zero_grad(set_to_none=True)
        live.follow(held.trained)
    live.forget_peak()
    before = live.now
    with precision.autocast():
        share = learner.loss(batch, learner.step_weights([batch]))[0]
    held.activations = live.now - before
    share.backward()
    if at_step > live.peak:
        held.gradients, rest = full, at_step - weights - held.optimizer - full
        held.activations = 0
    else:
        held.gradients, rest = live.gradients_at_peak, live.peak - weights - held.optimizer - live.gradients_at_peak
        held.activations = min(held.activations, rest)
    held.buffers = rest - held.activations
    if recipe.train.optimizer.startswith("paged"):
        held.optimizer = 0  # it moves out of the GPU when memory is short


def _fill_state(optimizer: torch.optim.Optimizer) -> None:
    """Have the optimizer make its state. Those of bitsandbytes compute through pointers, and nothing is there."""
    if not hasattr(optimizer, "init_state"):
        optimizer.step()
        return
    for place, group in enumerate(optimizer.param_groups):
        for index, parameter in enumerate(group["params"]):
            optimizer.init_state(group, parameter, place, index)


def _packable(learner: ChatModel) -> list[nn.Linear]:
    bare = adapters.bare(learner.language_model)
    head, whole = bare.get_output_embeddings(), text_family_of(bare).closed
    return [
        module
        for name, module in bare.named_modules()
        if isinstance(module, nn.Linear)
        and module is not head
        and not (whole and name.startswith(whole))
        and not module.weight.requires_grad
    ]


class _Kept(torch.autograd.Function):
    """A tensor as it is, which stays until backward has come by: past activation checkpointing too."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        ctx.value = value
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad


def _keep_inputs(learner: ChatModel) -> None:
    """Have frozen layers hold on to their inputs, as the eight-bit layers of bitsandbytes do."""
    for module in _packable(learner):
        module.register_forward_pre_hook(lambda _module, given: (_Kept.apply(given[0]), *given[1:]))


def _packed(learner: ChatModel, kind: str) -> tuple[int, int]:
    """(bytes that frozen layers lose when they are packed, those of the largest one unpacked for its pass).

    nf4 has half a byte a weight and, quantised twice, a byte a block of 64 and four bytes 256 blocks; int8 has a byte a
    weight and four a row. bitsandbytes leaves the head as it is.
    """
    layers = [module.weight for module in _packable(learner)]
    lost = 0
    for weight in layers:
        count = weight.numel()
        held = count + 4 * len(weight) if kind == "int8" else count // 2 + count // 64 + count // 4096
        lost += _size([weight]) - held
    return lost, max((_size([weight]) for weight in layers), default=0)


def _size(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
