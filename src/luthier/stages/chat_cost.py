"""What a chat stage will cost on this machine: memory by part before anything is loaded, time from three steps.

Media are taken as if each pass encoded its own: what a store of their vectors saves is not foretold.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from luthier.data.building.rows import TableRow
from luthier.data.mediasource import MediaSource
from luthier.data.table import media_bytes
from luthier.models.chat import ChatTemplate
from luthier.models.chat_batches import ChatFeed, Layout, collate
from luthier.models.lessons import Encoder, Encoding, Lessons
from luthier.models.senses.base import Senses
from luthier.models.senses.spelling import Speller
from luthier.models.senses.supply import Supply
from luthier.models.text_base import senses_without_weights, weightless_base
from luthier.models.tree_reading import stretches_beyond
from luthier.recipe import Recipe
from luthier.runtime.devices import Devices
from luthier.runtime.memory_estimate import MemoryEstimate
from luthier.runtime.precision import Precision
from luthier.stages.chat_prepare import build_chat_model
from luthier.train.memory_walk import estimate_memory
from luthier.train.optim import clip, make_optimizer
from luthier.train.plan import Load, load_of
from luthier.train.probe import TimeEstimate, probe, time_estimate


def supply_of_table(recipe: Recipe, tokenizer: Any, table: Path) -> Supply | None:
    """Where the media of a built table come from, without weights; None for a base that reads text alone."""
    senses: Senses | None = senses_without_weights(recipe.model, tokenizer)
    if senses is None:
        return None
    return Supply(senses, MediaSource(partial(media_bytes, table), recipe.data.limits, recipe.data.frames))


def sample_feed(
    recipe: Recipe, tokenizer: Any, rows: Iterable[TableRow], supply: Supply | None = None
) -> ChatFeed | None:
    """Some rows of a stage, encoded and laid out as it would train on them; None where none can be learned from."""
    train = recipe.train
    speller = Speller(supply.senses, supply.source) if supply else None
    encoder = Encoder(ChatTemplate.of(tokenizer), recipe.model.max_tokens, train.truncation, speller)
    lessons = Lessons.of([lesson for _, lesson in encoder.encode(rows, Encoding()) if lesson is not None])
    if not len(lessons):
        return None
    config = weightless_base(recipe.model, tokenizer).model.config
    layout = Layout(
        train.batch_size,
        train.micro_batch_size,
        train.micro_batch_tokens,
        train.packing,
        tokenizer.pad_token_id or 0,
        stretches_beyond(config.get_text_config()) or 0,
    ).suited(lessons, supply)

    def order(epoch: int) -> Any:
        return np.random.default_rng([recipe.seed, epoch]).permutation(len(lessons))

    return ChatFeed(lessons, order, layout, recipe.seed, supply=supply)


def feed_load(feed: ChatFeed, steps: int) -> Load:
    """What the first steps of a feed hold."""
    lessons = feed.lessons
    targets = np.add.reduceat(lessons.weight_T != 0, lessons.starts[:-1], dtype=np.int64)
    passes = [feed.layout_of(feed.rows(step)) for step in range(1, steps + 1)]
    return load_of(passes, lessons.lengths.tolist(), targets.tolist(), feed.layout.packed)


def memory_of(recipe: Recipe, tokenizer: Any, feed: ChatFeed, load: Load, precision: Precision) -> MemoryEstimate:
    """The memory that the largest forward pass of a load decides. No weight is loaded; errors as of loading."""
    rows = [feed.lessons[row] for row in load.largest]
    largest = collate(rows, feed.layout.packed, feed.layout.pad_id, feed.supply)
    return estimate_memory(
        weightless_base(recipe.model, tokenizer), recipe, precision, largest, passes=load.most_passes
    )


def time_of(recipe: Recipe, feed: ChatFeed, load: Load, tokens: int, devices: Devices) -> TimeEstimate:
    """How long `tokens` take: the base is loaded, three steps are taken on passes of a load, and all is dropped.

    Each step is one forward and backward pass and the optimizer's, which a run with accumulation takes less often.
    """
    _, learner = build_chat_model(recipe, devices, recipe.seed)
    optimizer = make_optimizer(learner, recipe.train, recipe.model.learned_tokens.learning_rate)
    parameters = [parameter for _, parameter in learner.tuned()]
    learner.train()

    def step(number: int) -> int:
        rows = [feed.lessons[row] for row in load.passes[number]]
        batch = collate(rows, feed.layout.packed, feed.layout.pad_id, feed.supply).to(devices.device)
        with devices.precision.autocast():
            share = learner.loss(batch, learner.step_weights([batch]))[0]
        share.backward()
        norm = clip(parameters, recipe.train.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        float(norm)  # waits for the device
        return batch.tokens

    return time_estimate(probe(step, len(load.passes)), tokens)
