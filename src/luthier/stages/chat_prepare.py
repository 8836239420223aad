"""A chat stage's model and rows, ready to train; everything that can be refused is refused here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from luthier.console import say
from luthier.errors import LuthierError
from luthier.evaluate.answers import answer_losses
from luthier.models import adapters
from luthier.models.attention import use_packed_attention
from luthier.models.chat import ChatTemplate
from luthier.models.chat_batches import ChatFeed, Layout
from luthier.models.chat_model import ChatModel, compile_layers
from luthier.models.effect import adapter_effect, delta_norms, summary
from luthier.models.lessons import Encoder, Lessons
from luthier.models.text_base import TextBase, load_text_base
from luthier.models.tokens import add_text_tokens
from luthier.recipe import Recipe
from luthier.rundir import RunDir
from luthier.runtime.devices import Devices
from luthier.stages.chat_rows import ChatRows
from luthier.stages.fit import Fit

_EFFECT_TOKENS = 256
"""Tokens on which the trained adapter is held against the base."""


@dataclass
class PreparedChat:
    """A chat stage's model and rows. `validation` and `held_out` are None where the table has no such rows."""

    base: TextBase
    model: ChatModel
    devices: Devices
    layout: Layout
    lessons: Lessons
    feed: ChatFeed
    validation: Lessons | None
    held_out: Lessons | None

    def fit(self) -> Fit:
        """This stage as something to be trained."""

        def seal(folder: Path) -> dict[str, Any]:
            self.model.save(folder)
            self.base.tokenizer.save_pretrained(str(folder))
            return self._effect()

        validate = None
        if self.validation is not None:
            score = partial(answer_losses, self.model, self.validation, self.layout, self.devices, "validating")
            validate = lambda: score().mean
        rows = self.feed.steps_per_epoch * self.layout.batch_size
        return Fit(self.model, self.feed, min(rows, len(self.lessons)), self.devices, seal, validate)

    def _effect(self) -> dict[str, Any]:
        """What the trained adapter does. Raises LuthierError for one that changes nothing."""
        model = self.model.language_model
        if not hasattr(model, "disable_adapter"):
            return {}
        longest = int(self.lessons.lengths.argmax())
        ids = torch.from_numpy(self.lessons[longest].ids_L[:_EFFECT_TOKENS].astype("int64"))
        with self.devices.precision.autocast():
            effect = adapter_effect(model, ids.to(self.devices.device))
        if effect == 0.0:
            raise LuthierError(
                "the trained adapter changes no log-likelihood at all: the model is the base",
                "look at model.lora.target_modules and train.learning_rate",
            )
        return {"effect": effect, "delta_norms": summary(delta_norms(model))}


def prepare_chat(run: RunDir, name: str, recipe: Recipe) -> PreparedChat:
    """Load, encode and check everything of a stage."""
    devices = Devices(recipe.model.dtype)
    if devices.precision.note:
        say(devices.precision.note)
    base, model = build_chat_model(recipe, devices, recipe.seed + sum(name.encode()))
    if recipe.start_from:
        model.load(run.stage(recipe.start_from).adapter)
    train = recipe.train
    layout = Layout(
        train.batch_size,
        train.micro_batch_size,
        train.micro_batch_tokens,
        train.packing,
        base.tokenizer.pad_token_id or 0,
    )
    encoder = Encoder(ChatTemplate.of(base.tokenizer), recipe.model.max_tokens, train.truncation)
    rows = ChatRows(run.data, run.tokens, recipe, encoder, base.tokenizer_digest)
    lessons, feed = rows.feed(layout)
    validation = _lessons(rows, "validation", recipe.data.train, recipe.evaluate.validation_rows)
    held_out = _lessons(rows, "test", recipe.data.test, 0) or _lessons(rows, "validation", recipe.data.train, 0)
    _tell(lessons)
    return PreparedChat(base, model, devices, layout, lessons, feed, validation, held_out)


def build_chat_model(recipe: Recipe, devices: Devices, seed: int) -> tuple[TextBase, ChatModel]:
    """The base with its adapter, not yet trained, in the number format that this machine computes in."""
    dtype = str(devices.precision.dtype).removeprefix("torch.")
    settings = replace(recipe.model, dtype=dtype)
    base = load_text_base(settings, devices.device)
    tokens = add_text_tokens(base, recipe.model.added_tokens, seed)
    tuned = adapters.attach(base, settings, tokens, seed)
    if recipe.train.packing:
        use_packed_attention(adapters.bare(tuned))
    if recipe.train.gradient_checkpointing:
        adapters.checkpoint_activations(base.model)
    model = ChatModel(tuned, base.facts(), recipe.train.label_smoothing)
    if recipe.train.torch_compile:
        compile_layers(base.model)
    return base, model


def _lessons(rows: ChatRows, split: str, sources: Sequence[str], most: int) -> Lessons | None:
    """The first rows of a split, which is shuffled (0: all); None where there are none."""
    numbers = rows.numbers(split, sources)
    return rows.lessons(split, numbers[: most or None]) if len(numbers) else None


def _tell(lessons: Lessons) -> None:
    tokens, targets = len(lessons.ids_T), lessons.target_tokens
    say(f"{len(lessons):,} rows, {tokens:,} tokens, {targets:,} of them learned ({targets / tokens:.0%})")
    for reason, count in sorted(lessons.about.get("dropped", {}).items()):
        say(f"  {count:,} rows left out: {reason} (the first: {lessons.about['first'][reason]})")
    if lessons.about.get("shortened"):
        say(f"  {lessons.about['shortened']:,} rows keep only the turns that fit model.max_tokens")
