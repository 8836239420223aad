"""Room on the disk for checkpoints, counted before training and before each save. It writes nothing.

What a quota or another process takes meanwhile it cannot know: a save that fails all the same is the business of
`checkpoints`.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import torch

from luthier.errors import DiskError, RequestError
from luthier.files import free_bytes
from luthier.models.learner import Learner

_BESIDE = 2**20
"""Bytes set aside for what lies beside the tensors: settings, state, manifest, headers."""
STATE_BYTES = {
    "adamw": 8,
    "paged_adamw": 8,
    "adamw_8bit": 2,
    "paged_adamw_8bit": 2,
    "lion": 4,
    "muon": 4,
    "adafactor": 1,
}
"""Bytes of state for each parameter. Adafactor keeps two edges of a matrix: a byte at rank 4, less above."""


def most_checkpoints(keep: int, keep_best: bool, planned: int = 0) -> int:
    """How many lie on the disk at most: the newest `keep` (two at least), the best one and the one being written.

    With `keep` 0, which keeps all, they are the `planned` ones.
    """
    return max(2, keep) + keep_best + 1 if keep else max(2, planned)


def checkpoint_bytes(learner: Learner, optimizer: torch.optim.Optimizer) -> int:
    """About the bytes of one checkpoint: the tuned weights, and the optimizer's tensors or what they will become.

    Before the first step an optimizer has no tensors yet: two moments in float32 are counted, as AdamW keeps.
    """
    tuned = [parameter for _, parameter in learner.tuned()]
    weights = sum(p.numel() * p.element_size() for p in tuned)
    states = itertools.chain.from_iterable(values.values() for values in optimizer.state.values())
    moments = sum(value.numel() * value.element_size() for value in states if isinstance(value, torch.Tensor))
    return weights + (moments or sum(p.numel() * 8 for p in tuned)) + _BESIDE


def planned_bytes(trainable_bytes: int, optimizer: str) -> int:
    """About the bytes of one checkpoint before anything is loaded, and a tenth more.

    `trainable_bytes` are those of the tuned weights in float32, `optimizer` a name that `train.optimizer` has.
    """
    return int((trainable_bytes + trainable_bytes // 4 * STATE_BYTES[optimizer]) * 1.1) + _BESIDE


def check_room(folder: Path, one: int, count: int = 2) -> None:
    """Refuse to begin where `folder` has no room for `count` checkpoints of `one` bytes. Raises RequestError."""
    free = free_bytes(folder)
    if free < one * count:
        raise RequestError(
            f"{folder}: room for {count} checkpoints is needed, {_size(one * count)}; {_size(free)} are free",
            "free some space, give another --out, lower train.keep_checkpoints or model.lora.r",
        )


def check_room_to_save(folder: Path, one: int) -> None:
    """Refuse to begin a save that cannot end. Raises DiskError."""
    free = free_bytes(folder)
    if free < one:
        raise DiskError(f"{folder}: a checkpoint needs {_size(one)}; {_size(free)} are free", "free some space")


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
