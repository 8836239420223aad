"""A training in a process of its own, with its memory foretold and measured: memory_run.py BASE SETTINGS.

SETTINGS is JSON: `tokens` of a forward pass, `passes` of a step, and keys of model and train. Prints one line of JSON:
what must be free before anything is loaded, as foretold and as it was, and the whole process at its peak, both too.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from luthier.models.chat import load_tokenizer
from luthier.models.chat_batches import ChatFeed, Layout
from luthier.models.lessons import Lesson, Lessons
from luthier.recipe import Recipe
from luthier.runtime.checkpoints import Checkpoints
from luthier.runtime.devices import Devices
from luthier.runtime.memory import measured_peak, return_freed_memory, used_memory
from luthier.stages.chat_cost import feed_load, memory_of
from luthier.stages.chat_prepare import build_chat_model
from luthier.train.loop import Job, train
from luthier.train.optim import make_optimizer
from luthier.train.plan import make_plan

ROWS, STEPS = 4, 2


def recipe(base: str, passes: int, **keys: Any) -> Recipe:
    """Two steps of some forward passes of four rows."""
    made = Recipe(seed=3)
    made.model.base = base
    made.train.batch_size, made.train.micro_batch_size = ROWS * passes, ROWS
    made.train.max_steps, made.train.log_every = STEPS, 1
    for key, value in keys.items():
        setattr(made.model if hasattr(made.model, key) else made.train, key, value)
    return made


def feed_of(made: Recipe, tokens: int, vocabulary: int) -> ChatFeed:
    """Rows of one length, of which three quarters are learned, `tokens` in a forward pass."""
    length = tokens // ROWS
    rng = np.random.default_rng(0)
    weight_L = np.repeat(np.float32([0, 1]), [length // 4, length - length // 4])
    rows = [
        Lesson(str(i), rng.integers(10, vocabulary, length).astype(np.int32), weight_L)
        for i in range(made.train.batch_size * STEPS)
    ]
    layout = Layout(made.train.batch_size, made.train.micro_batch_size, packed=made.train.packing)
    return ChatFeed(Lessons.of(rows), lambda _epoch: np.arange(len(rows)), layout, made.seed)


def main() -> None:
    keys = json.loads(sys.argv[2])
    torch.set_num_threads(1)
    return_freed_memory()
    tokens = keys.pop("tokens")
    made = recipe(sys.argv[1], keys.pop("passes", 1), **keys)
    devices = Devices(made.model.dtype)
    tokenizer = load_tokenizer(made.model.base, "")
    feed = feed_of(made, tokens, 600)
    estimate = memory_of(made, tokenizer, feed, feed_load(feed, STEPS), devices.precision)
    before = used_memory(devices.device)
    _, learner = build_chat_model(made, devices, made.seed)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        optimizer = make_optimizer(learner, made.train, made.model.learned_tokens.learning_rate)
        plan = make_plan(len(feed.lessons), made.train)
        checkpoints = Checkpoints(place / "checkpoints", made.model.base, every=10**9)
        train(Job(learner, optimizer, plan, made.train, made.seed, feed, devices, checkpoints, place / "metrics.jsonl"))
    peak = measured_peak(devices.device)
    print(
        json.dumps(
            {"needed": [estimate.needed, peak - before], "total": [estimate.total, peak], "parts": estimate.to_json()}
        )
    )


if __name__ == "__main__":
    main()
