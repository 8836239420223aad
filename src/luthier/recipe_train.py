"""What a recipe says of training: optimizer and schedule, the size of a step, checkpoints, what stops a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

OPTIMIZERS = ("adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit", "adafactor", "lion", "muon")
SCHEDULES = ("linear", "cosine", "cosine_with_restarts", "constant", "warmup_stable_decay")
TRUNCATIONS = ("reject", "whole_turns")


@dataclass
class TrainConfig:
    """The arithmetic of a run."""

    epochs: float = 5
    max_steps: int = 0
    """Stop after so many optimizer steps; 0: as the epochs say."""
    learning_rate: float = 5.0e-5
    batch_size: int = 16
    """Rows in one optimizer step, over all devices and accumulation."""
    micro_batch_size: int = 8
    """Rows in one forward pass; accumulation follows from batch_size."""
    micro_batch_tokens: int = 0
    """Chat: at most so many tokens in one forward pass (0: no limit but micro_batch_size)."""
    packing: bool = True
    """Chat: rows of a forward pass lie end to end without padding, and no row sees another; false pads them."""
    truncation: str = "reject"
    """Chat, for rows longer than model.max_tokens: reject drops them, whole_turns keeps the turns that fit, up to the
    end of an answer; both are counted, nothing is cut inside a turn."""
    optimizer: str = "adamw"
    """adamw, adamw_8bit, paged_adamw, paged_adamw_8bit, adafactor, lion, or muon (with model.tuning: full)."""
    schedule: str = "linear"
    """linear, cosine, cosine_with_restarts, constant or warmup_stable_decay."""
    schedule_cycles: int = 2
    """Cycles of cosine_with_restarts."""
    decay_ratio: float = 0.2
    """Share of the steps in which warmup_stable_decay falls, at the end."""
    minimum_rate_ratio: float = 0.0
    """Where a schedule ends, as a share of learning_rate (not constant)."""
    warmup_ratio: float = 0.05
    warmup_steps: int = 0
    """Wins over warmup_ratio when above 0."""
    weight_decay: float = 0.01
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    adam_epsilon: float = 1.0e-8
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm; 0: never."""
    loraplus_ratio: float = 0.0
    """LoRA+ (Hayou et al. 2024, arXiv 2402.12354): the rate of lora_B as a multiple of learning_rate; 0: the same."""
    label_smoothing: float = 0.0
    """Chat: share of each target spread over the whole vocabulary."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    save_every: int = 50
    """Steps between checkpoints."""
    save_minutes: float = 0.0
    """Also save when so many minutes have gone since the last checkpoint; 0: never."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints stay (at least 2, the best one beside them); 0: all of them."""
    feature_store: Literal["auto", "on", "off"] = "auto"
    """Vectors of media whose encoder and projector are frozen: auto keeps them where the first rows show that this is
    faster, on always, off never. Media that are augmented are always encoded anew."""
    workers: int = 0
    """Processes that prepare batches."""
    validate_every: int = 0
    """Steps between looks at the validation loss; 0: at the end of every epoch."""
    early_stopping_patience: int = 0
    """Stop after so many looks at the validation loss without a new lowest one; 0: never. With select: exam the
    looks are examined checkpoints, and their log loss counts."""
    select: str = "last"
    """What becomes the final adapter: last; best, the look with the lowest validation loss; or exam, the earliest
    checkpoint that cannot be told from the best one in evaluate.choose_by."""
    gradient_checkpointing: bool = False
    """Keep no activations inside layers and compute them again: less memory, about a third more time."""
    torch_compile: bool = False
    """Compile the decoder's layers with torch.compile (slow first steps; for GPUs)."""


def train_problems(train: TrainConfig) -> list[str]:
    """Everything wrong with these keys, as `key: reason (mend)` lines."""
    found = []
    for name in ("learning_rate", "batch_size", "micro_batch_size", "log_every", "save_every", "schedule_cycles"):
        if not getattr(train, name) > 0:
            found.append(f"train.{name}: must be above 0")
    if train.epochs <= 0 and train.max_steps <= 0:
        found.append("train.epochs: must be above 0 (or give train.max_steps)")
    for name, known in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES), ("truncation", TRUNCATIONS)):
        if getattr(train, name) not in known:
            found.append(f"train.{name}: {getattr(train, name)!r} is not one of {', '.join(known)}")
    if train.select not in ("last", "best", "exam"):
        found.append(f"train.select: {train.select!r} is not last, best or exam")
    if train.keep_checkpoints < 0 or train.keep_checkpoints == 1:
        found.append("train.keep_checkpoints: at least 2, or a kill while saving leaves none (0 keeps all)")
    for name in (
        "max_steps warmup_steps weight_decay max_grad_norm workers micro_batch_tokens loraplus_ratio save_minutes "
        "validate_every early_stopping_patience"
    ).split():
        if not getattr(train, name) >= 0:
            found.append(f"train.{name}: must not be below 0")
    for name in ("warmup_ratio", "label_smoothing", "minimum_rate_ratio", "adam_beta1", "adam_beta2"):
        if not 0 <= getattr(train, name) < 1:
            found.append(f"train.{name}: {getattr(train, name)} is outside 0..1")
    if not 0 < train.decay_ratio <= 1:
        found.append(f"train.decay_ratio: {train.decay_ratio} is outside 0..1")
    return found
