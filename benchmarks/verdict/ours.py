"""The same job through Luthier's own parts: soft targets at one position, cached sound where it is frozen.

Also reads the recordings for both sides, so that rows, order and log-mel are the same. Knows the users' table of
answers and nothing else of their script.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from users_manner import ANSWERS

from luthier.assess.targets import make_target
from luthier.data.building.context import Context
from luthier.data.media import load_audio
from luthier.data.readers import Broken, columns_seen, open_source, peek
from luthier.data.shapes import graded
from luthier.evaluate.verdicts import Judge
from luthier.models import adapters
from luthier.models.adapters import bare
from luthier.models.batches import VerdictFeed, collate
from luthier.models.encode import Example, PromptEncoder, encode_rows
from luthier.models.features import FeatureStore
from luthier.models.load import Base
from luthier.models.verdict import VerdictModel
from luthier.recipe import Recipe
from luthier.recipe_data import Limits, Source
from luthier.runtime.checkpoints import Checkpoints
from luthier.runtime.devices import Devices
from luthier.schema import Draft, Row, content_id
from luthier.stages.prepare import build_model
from luthier.train.loop import Job, train
from luthier.train.optim import make_optimizer
from luthier.train.plan import make_plan

NEVER = 10**9


def recipe(base: str, tuning: str, epochs: float, learning_rate: float, seed: int) -> Recipe:
    """The recipe of the job; `tuning` is lora (decoder only) or full. One forward pass a step, as the users' script."""
    made = Recipe(name="bench-verdict", seed=seed)
    made.model.base, made.model.tuning = base, tuning
    made.task.target.method = "table"
    made.task.target.table = {grade: [int(text[0]), float(text[2:])] for grade, text in ANSWERS.items()}
    made.train.epochs, made.train.learning_rate = epochs, learning_rate
    made.train.batch_size = made.train.micro_batch_size = 16
    made.train.save_every = NEVER
    return made


@dataclass
class Recordings:
    """Rows of several tables, and the bytes of their recordings by `sha256:` reference."""

    rows: dict[str, list[Row]]
    audio: dict[str, bytes]
    limits: Limits

    @classmethod
    def read(cls, paths: dict[str, Path], settings: Recipe) -> Recordings:
        """Read every usable row; what a table's checks drop is left out on both sides alike."""
        rows: dict[str, list[Row]] = {}
        audio: dict[str, bytes] = {}
        for name, path in paths.items():
            rows[name] = []
            source = Source(name=name, path=str(path))
            reading, data = open_source(source, settings.data.columns.id), settings.data
            about = Context(source, name, reading.folder, reading.trusted, columns_seen(peek(reading)), data.columns)
            convert = graded.adapter(replace(about, scale=settings.task.scale, limits=data.limits))
            for origin, record in reading:
                found = record if isinstance(record, Broken) else convert(origin, record)
                if isinstance(found, Draft):
                    row = found.row
                    identity = content_id(row.messages, row.target)
                    rows[name].append(replace(row, id=identity, group=row.group or identity))
                    audio |= found.blobs
        return cls(rows, audio, settings.data.limits)

    def waveform(self, reference: str) -> np.ndarray:
        """Samples at 16 kHz, decoded now."""
        return load_audio(self.audio[reference], self.limits)


@dataclass
class Ours:
    """A model built as a recipe says, and its rows."""

    settings: Recipe
    base: Base
    model: VerdictModel
    devices: Devices
    recordings: Recordings
    features: Path

    @classmethod
    def build(cls, settings: Recipe, recordings: Recordings, features: Path) -> Ours:
        base, model, _, _ = build_model(settings, settings.seed)
        devices = Devices(settings.model.dtype)
        devices.place(model)
        return cls(settings, base, model, devices, recordings, features)

    def store(self, *, frozen: bool) -> FeatureStore:
        return FeatureStore(
            self.features,
            self.base.family,
            self.base.extractor,
            self.recordings.waveform,
            self.base.model,
            frozen=frozen,
        )

    def examples(self, rows: Sequence[Row], lengths: dict[str, int]) -> list[Example]:
        """Every row encoded, in order. Raises ValueError if one is dropped: both sides must see the same rows."""
        encoder = PromptEncoder(
            self.base.tokenizer,
            self.base.family.audio_token_id(self.base.model),
            self.settings.task.instruction,
            self.settings.model.learned_tokens,
            self.settings.model.max_tokens,
        )
        method, scale = make_target(self.settings.task.target, self.settings.task.scale), self.settings.task.scale
        found, dropped = encode_rows(
            rows,
            encoder,
            lengths,
            lambda row: (
                method(row.target.grade or 0.0, ()),
                round(((row.target.grade or 0.0) - scale.minimum) / scale.step),
            ),
        )
        if dropped:
            raise ValueError(f"rows were dropped at encoding: {dict(dropped)}")
        return found

    def lengths(self, rows: Sequence[Row]) -> dict[str, int]:
        """Sound tokens by recording; makes log-mel files where there are none."""
        return self.store(frozen=False).prepare(row.media[0] for row in rows)

    def feed(self, examples: Sequence[Example], store: FeatureStore) -> VerdictFeed:
        """The steps of the tuning, and the batches of a step."""
        pad_id = self.base.tokenizer.pad_token_id
        return VerdictFeed(examples, store, pad_id, self.settings.train, self.settings.seed)

    def order(self, examples: Sequence[Example]) -> list[int]:
        """The examples as the tuning reads them, epoch after epoch."""
        feed, plan = self.feed(examples, self.store(frozen=False)), make_plan(len(examples), self.settings.train)
        return [row for step in range(1, plan.steps + 1) for row in feed.rows(step)]

    def tune(self, rows: Sequence[Row], work: Path, examples: list[Example] | None = None) -> tuple[float, float]:
        """Tune in place. Returns (seconds in all, of which seconds for features and encoding of rows).

        Sound features that are not there, and `examples` that are not given, are made within the time.
        """
        settings = self.settings.train
        optimizer = make_optimizer(self.model, settings, self.settings.model.learned_tokens.learning_rate)
        plan = make_plan(len(rows), settings)
        shutil.rmtree(work, ignore_errors=True)
        begin = time.perf_counter()
        store, examples = self._ready(rows, examples)
        prepared = time.perf_counter() - begin
        train(
            Job(
                learner=self.model,
                optimizer=optimizer,
                plan=plan,
                settings=settings,
                seed=self.settings.seed,
                feed=self.feed(examples, store),
                devices=self.devices,
                checkpoints=Checkpoints(work / "checkpoints", self.settings.model.base, every=settings.save_every),
                metrics=work / "metrics.jsonl",
            )
        )
        return time.perf_counter() - begin, prepared

    def judge(
        self, rows: Sequence[Row], batch_size: int, examples: list[Example] | None = None
    ) -> tuple[np.ndarray, float]:
        """(P(pass) in the order of the rows, seconds); what is missing is made within the time, as in `tune`."""
        begin = time.perf_counter()
        store, examples = self._ready(rows, examples)
        judge = Judge(self.model, store, self.devices, self.base.tokenizer.pad_token_id, batch_size)
        return judge(examples).p_pass, time.perf_counter() - begin

    def _ready(self, rows: Sequence[Row], examples: list[Example] | None) -> tuple[FeatureStore, list[Example]]:
        store = self.store(frozen=adapters.sound_is_frozen(self.settings.model))
        if examples is None:
            examples = self.examples(rows, store.prepare(row.media[0] for row in rows))
        return store, examples

    def forget(self, *, mel: bool) -> None:
        """Throw cached encoder outputs away, and log-mel too where `mel`, so that the next run pays for them again."""
        for folder in [*self.features.glob("sound-*"), *(self.features.glob("mel-*") if mel else ())]:
            shutil.rmtree(folder)

    @torch.no_grad()
    def largest_difference(self, examples: Sequence[Example]) -> float:
        """Largest |logit difference| at the read-out between our path and transformers' own forward.

        One recording at a time, same ids, same log-mel; ours both with live sound and, where frozen, with cached.
        """
        self.model.eval()
        mels, worst = self.store(frozen=False), 0.0
        for example in examples:
            mel = mels.load(example.media)[None].to(self.devices.device)
            plain = self.model.language_model(
                input_ids=torch.tensor([example.ids], device=self.devices.device),
                audio_input_features=mel,
                audio_embed_sizes=torch.tensor([example.media_length]),
            ).logits[0, -1]
            for frozen in {False, adapters.sound_is_frozen(self.settings.model)}:
                batch = collate([example], self.store(frozen=frozen), self.base.tokenizer.pad_token_id)
                _, state = self.model(batch.to(self.devices.device))
                logits = bare(self.model.language_model).get_output_embeddings()(state)
                worst = max(worst, float((logits[0] - plain).abs().max()))
        return worst


def seeded_draw(rows: Sequence[Row], count: int, seed: int) -> list[Row]:
    """`count` rows without repetition, in the order drawn."""
    order: Any = np.random.default_rng(seed).permutation(len(rows))[:count]
    return [rows[i] for i in order]
