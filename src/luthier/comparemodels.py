"""What a comparison asks of models: the loss of the probe's rows, and answers to prompts, by each run's final adapter.

A base is loaded once for all runs that hold it in the same way. Losses are kept in a folder of their own by what they
depend on, so that the next comparison need not load anything; a run's folder is never written to.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from luthier.console import say
from luthier.data.building.rows import TableRow
from luthier.data.mediasource import MediaSource
from luthier.data.table import media_bytes
from luthier.evaluate.answers import answer_losses
from luthier.files import read_jsonl, sha256_bytes, sha256_file, write_jsonl
from luthier.models import adapters
from luthier.models.chat import ChatTemplate
from luthier.models.chat_batches import Layout
from luthier.models.lessons import Encoder, Encoding, Lessons
from luthier.models.senses.spelling import Speller
from luthier.models.senses.supply import Supply
from luthier.outcome.comparing.runrecords import Json, RunStage
from luthier.predict_chat import answer_chats
from luthier.runtime.devices import Devices
from luthier.schema import Row, canonical
from luthier.stages.chat_judge import weighed_bytes
from luthier.stages.chat_prepare import build_chat_model, supply_of

_TOKENS = 8192
"""Tokens of a forward pass that scores, where train.micro_batch_tokens does not say."""


@dataclass(frozen=True)
class Wanted:
    """Rows whose answers are scored, and chats to answer, by name."""

    rows: Sequence[TableRow]
    chats: Sequence[tuple[str, Row]]
    media: MediaSource
    """Of the chats."""
    cache: Path


@dataclass
class Said:
    """What one run makes of it: a line (id, group, nll, target_bytes) a row that its model can read, and answers."""

    losses: list[Json] = field(default_factory=list)
    answers: list[Json] = field(default_factory=list)


@dataclass
class _Loaded:
    """The base that is in memory, with the adapter that came last."""

    recipe: Any
    devices: Devices
    base: Any
    model: Any


def ask(runs: Sequence[RunStage], wanted: Wanted) -> list[Said]:
    """Each run's answers, in order. Raises CheckpointError for an adapter that is not of its recipe's base."""
    found, loaded = list[Said](), None
    for run in runs:
        kept = wanted.cache / f"{_key(run, wanted.rows)}.jsonl"
        said = Said(read_jsonl(kept) if wanted.rows and kept.is_file() else [])
        missing = bool(wanted.rows) and not kept.is_file()
        if missing or wanted.chats:
            loaded = _load(run, loaded)
            if missing:
                said.losses = _losses(loaded, run, wanted.rows, [one.run.data for one in runs])
                write_jsonl(kept, said.losses)
            template = ChatTemplate.of(loaded.base.tokenizer)
            language_model, chats = loaded.model.language_model, iter(wanted.chats)
            senses = loaded.base.senses
            supply = None if senses is None else Supply(senses, wanted.media)
            said.answers = list(answer_chats(language_model, template, loaded.devices, chats, supply))
        found.append(said)
    return found


def _key(run: RunStage, rows: Sequence[TableRow]) -> str:
    """What a run's losses of these rows depend on."""
    model = run.recipe.model
    parts = [
        sha256_file(run.stage.adapter / adapters.WEIGHTS),
        run.about.get("base_sha256"),
        [model.dtype, model.quantization, model.max_tokens],
        [[item.row.id, item.row.group] for item in rows],
    ]
    return sha256_bytes(canonical(parts).encode())[:24]


def _load(run: RunStage, before: _Loaded | None) -> _Loaded:
    """The run's adapter on its base; the base that is there is used again where it is the same."""
    model = run.recipe.model
    if before is None or before.recipe != model:
        if before is not None:
            before.base = before.model = None  # two bases need not fit at once
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        say(f"{run.label}: loading {model.base}")
        train = replace(run.recipe.train, gradient_checkpointing=False, torch_compile=False)
        devices = Devices(model.dtype)
        base, tuned = build_chat_model(replace(run.recipe, train=train), devices, run.recipe.seed)
        before = _Loaded(model, devices, base, tuned)
    before.model.load(run.stage.adapter)
    before.model.eval()
    return before


def _anywhere(tables: Sequence[Path], reference: str) -> bytes:
    """A medium's bytes, from whichever run's table holds it: the rows of a probe are of all of them."""
    name = reference.removeprefix("sha256:")
    return media_bytes(next((one for one in tables if (one / "media" / name).is_file()), tables[0]), reference)


def _losses(loaded: _Loaded, run: RunStage, rows: Sequence[TableRow], tables: Sequence[Path]) -> list[Json]:
    """A line for every row that is not too long for the run, and whose turns its template can write."""
    tokenizer, senses = loaded.base.tokenizer, loaded.model.senses
    supply = supply_of(run.recipe, run.run.data, loaded.model)
    if supply is not None:
        supply.source = replace(supply.source, data=partial(_anywhere, tables))
    speller = None if supply is None else Speller(supply.senses, supply.source)
    encoder = Encoder(ChatTemplate.of(tokenizer), run.recipe.model.max_tokens, speller=speller)
    # How a table balances its classes is no matter of another's probe.
    plain = [replace(item, weight=1.0) for item in rows]
    kept = [(item, lesson) for item, lesson in encoder.encode(plain, Encoding()) if lesson is not None]
    if not kept:
        return []
    lessons = Lessons.of([lesson for _, lesson in kept])
    train = run.recipe.train
    layout = Layout(
        train.batch_size,
        run.recipe.evaluate.batch_size,
        train.micro_batch_tokens or _TOKENS,
        train.packing and loaded.model.keeps_rows and (senses is None or senses.keeps_causal),
        tokenizer.pad_token_id or 0,
    )
    found = answer_losses(loaded.model, lessons, layout, loaded.devices, f"{run.label}: scoring the probe", supply)
    sizes = weighed_bytes(lessons, tokenizer)
    return [
        {"id": item.row.id, "group": item.row.group, "nll": float(nll), "target_bytes": float(size)}
        for (item, _), nll, size in zip(kept, found.sum_R, sizes, strict=True)
    ]
