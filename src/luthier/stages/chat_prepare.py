"""A chat stage's model and rows, ready to train; everything that can be refused is refused here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from luthier.console import say
from luthier.data.mediasource import MediaSource
from luthier.data.table import media_bytes
from luthier.errors import DataError, LuthierError, RequestError
from luthier.evaluate.answers import answer_losses
from luthier.models import adapters
from luthier.models.attention import use_packed_attention
from luthier.models.chat import ChatTemplate
from luthier.models.chat_batches import ChatFeed, Layout, collate
from luthier.models.chat_model import ChatModel, compile_layers
from luthier.models.effect import adapter_effect, delta_norms, effect_on, summary
from luthier.models.lessons import Encoder, Lessons
from luthier.models.parts import Parts, freeze_unseen, told
from luthier.models.senses.spelling import Speller
from luthier.models.senses.supply import Supply
from luthier.models.text_base import TextBase, load_text_base, tokenizer_digest
from luthier.models.tokens import add_text_tokens
from luthier.recipe import Recipe
from luthier.rundir import RunDir
from luthier.runtime.devices import Devices
from luthier.runtime.memory import return_freed_memory
from luthier.stages.chat_rows import ChatRows, Numbers
from luthier.stages.examination import StageExams
from luthier.stages.fit import Fit

_SCORED_TOKENS = 8192
"""Tokens of a forward pass that scores, where train.micro_batch_tokens does not say."""
_EFFECT_TOKENS = 256
"""Tokens on which the trained adapter is held against the base."""


@dataclass
class PreparedChat:
    """A chat stage's model and rows. `validation` and `held_out` are None where the table has no such rows."""

    base: TextBase
    model: ChatModel
    devices: Devices
    layout: Layout
    """How rows lie when they are scored; the feed has its own."""
    lessons: Lessons
    feed: ChatFeed
    validation: Lessons | None
    held_out: Lessons | None
    exams: StageExams | None
    supply: Supply | None = None
    """Where the table's media come from, for a base that sees or hears."""
    speller: Speller | None = None
    """How its media are written into prompts; there where `supply` is."""

    def fit(self) -> Fit:
        """This stage as something to be trained."""

        def seal(folder: Path) -> dict[str, Any]:
            self.model.save(folder)
            self.base.tokenizer.save_pretrained(str(folder))
            return self._effect()

        validate = None
        if self.validation is not None:
            score = partial(
                answer_losses, self.model, self.validation, self.layout, self.devices, "validating", self.supply
            )
            validate = lambda: score().mean
        rows = self.feed.rows_per_epoch
        return Fit(self.model, self.feed, rows, self.devices, seal, validate, examination=self.exams)

    def _effect(self) -> dict[str, Any]:
        """What the trained adapter does. Raises LuthierError for one that changes nothing."""
        model = self.model.language_model
        if not hasattr(model, "disable_adapter"):
            return {}
        with self.devices.precision.autocast():
            if self.supply is None:
                longest = int(self.lessons.lengths.argmax())
                ids = torch.from_numpy(self.lessons[longest].ids_L[:_EFFECT_TOKENS].astype("int64"))
                effect = adapter_effect(model, ids.to(self.devices.device))
            else:
                batch = collate([self.lessons[self._shortest()]], False, self.layout.pad_id, self.supply)
                batch = batch.to(self.devices.device)
                effect = effect_on(model, lambda: self.model.log_likelihoods(batch))
        if effect == 0.0:
            raise LuthierError(
                "the trained adapter changes no log-likelihood at all: the model is the base",
                "look at model.lora.target_modules and train.learning_rate",
            )
        return {"effect": effect, "delta_norms": summary(delta_norms(model))}

    def _shortest(self) -> int:
        """The shortest row, of those with media where there are any: an adapter may sit in the encoder alone."""
        rows = np.arange(len(self.lessons))
        seeing = np.flatnonzero(np.diff(self.lessons.media_starts))
        rows = seeing if len(seeing) else rows
        return int(rows[self.lessons.lengths[rows].argmin()])


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
        model.alone_beyond,
    )
    supply = supply_of(recipe, run.data, model)
    speller = None if supply is None else Speller(supply.senses, supply.source)
    encoder = Encoder(ChatTemplate.of(base.tokenizer), recipe.model.max_tokens, train.truncation, speller)
    # Of the tokenizer as it is now: stages that add other tokens read the same words as other ids.
    rows = ChatRows(run.data, run.tokens, recipe, encoder, tokenizer_digest(base.tokenizer), supply)
    lessons, feed = rows.feed(layout)
    validation, held_out = _looked_at(rows, recipe)
    _tell(lessons)
    if model.senses is not None:
        parts = Parts(base.family, model.senses)
        freeze_unseen(model.language_model, parts, {medium.kind for medium in lessons.media()})
        say(told(model.language_model, parts))
    scoring = replace(
        feed.layout, micro_rows=recipe.evaluate.batch_size, micro_tokens=train.micro_batch_tokens or _SCORED_TOKENS
    )
    exams = StageExams.of(recipe, run, run.stage(name), model, base, devices) if recipe.evaluate.exams else None
    return PreparedChat(base, model, devices, scoring, lessons, feed, validation, held_out, exams, supply, speller)


def supply_of(recipe: Recipe, table: Path, model: ChatModel) -> Supply | None:
    """Where the media of a table come from; None for a base that reads text alone."""
    if model.senses is None:
        return None
    source = MediaSource(partial(media_bytes, table), recipe.data.limits, recipe.data.frames)
    return Supply(model.senses, source, recipe.data.augment)


def build_chat_model(recipe: Recipe, devices: Devices, seed: int) -> tuple[TextBase, ChatModel]:
    """The base with its adapter, not yet trained, in the number format that this machine computes in."""
    if devices.device.type == "cpu":
        return_freed_memory()  # a tenth of a chat's speed for a third of its peak, which then is the one foreseen
    dtype = str(devices.precision.dtype).removeprefix("torch.")
    settings = replace(recipe.model, dtype=dtype)
    base = load_text_base(settings, devices.device)
    tokens = add_text_tokens(base, recipe.model.added_tokens, seed)
    if base.grown:
        say(
            f"model.added_tokens: the vocabulary grows from {base.grown.start} to {base.grown.stop} rows, all of them "
            f"saved with the adapter; elsewhere, call resize_token_embeddings({base.grown.stop}) on the base first"
        )
    tuned = adapters.attach(base, settings, tokens, seed)
    try:
        use_packed_attention(adapters.bare(tuned))
    except RequestError:
        if recipe.train.packing:
            raise  # padded rows do well without
    if recipe.train.gradient_checkpointing:
        adapters.checkpoint_activations(base.model)
    model = ChatModel(tuned, base.facts(), recipe.train.label_smoothing, base.senses)
    if recipe.train.torch_compile:
        compile_layers(base.model if base.senses is None else base.senses.decoder(base.model))
    return base, model


def _looked_at(rows: ChatRows, recipe: Recipe) -> tuple[Lessons | None, Lessons | None]:
    """Rows to validate on while training, and rows to score at the end: of data.test, else of the validation split.

    Rows that choose a checkpoint are not scored on as long as there are others.
    """
    most = recipe.evaluate.validation_rows
    numbers = rows.numbers("validation", recipe.data.train)
    validation = _lessons(rows, "validation", numbers[: most or None])
    held_out = _lessons(rows, "test", rows.numbers("test", recipe.data.test))
    if held_out is not None:
        return validation, held_out
    train = recipe.train
    chooses = train.select == "best" or (train.early_stopping_patience > 0 and train.select != "exam")
    if chooses and most and len(numbers) > most:
        return validation, _lessons(rows, "held-out", numbers[most:])
    if chooses and validation is not None:
        say(
            "the rows that choose the checkpoint are also those it is scored on: the scores flatter it (give data.test)"
        )
    return validation, _lessons(rows, "held-out", numbers)


def _lessons(rows: ChatRows, label: str, numbers: Numbers) -> Lessons | None:
    """Some rows encoded; None where there are none, or none that can be. What is left out is said."""
    try:
        found = rows.lessons(label, numbers) if len(numbers) else None
    except DataError as error:
        say(str(error))
        return None
    if found is not None:
        _tell_dropped(found, f"{label} rows")
    return found


def _tell(lessons: Lessons) -> None:
    tokens, targets = len(lessons.ids_T), lessons.target_tokens
    say(f"{len(lessons):,} rows, {tokens:,} tokens, {targets:,} of them learned ({targets / tokens:.0%})")
    if lessons.media_count:
        slots = int(lessons.media_M["slots"].sum())
        say(f"  {lessons.media_count:,} media in them take {slots:,} of the tokens ({slots / tokens:.0%})")
    _tell_dropped(lessons, "rows")
    if lessons.about.get("shortened"):
        say(f"  {lessons.about['shortened']:,} rows keep only the turns that fit model.max_tokens")


def _tell_dropped(lessons: Lessons, what: str) -> None:
    for reason, count in sorted(lessons.about.get("dropped", {}).items()):
        say(f"  {count:,} {what} left out: {reason} (the first: {lessons.about['first'][reason]})")
