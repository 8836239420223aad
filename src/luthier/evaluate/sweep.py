"""Many candidates sit the same exams, with their base loaded once.

Every answer is on the disk as soon as it is given, so a sweep that was cut goes on at the item where it was. Records
are those of `luthier.exam_records`; what they bear is for `luthier.outcome` to say.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from luthier.console import say
from luthier.data.exams.exam import Exam, exam_record, write_items
from luthier.errors import RequestError
from luthier.evaluate.candidates import BASE, Candidate, admit
from luthier.evaluate.exam_media import MediaReader
from luthier.evaluate.exams import Examiner
from luthier.evaluate.journal import NO_CACHE, AnswerCache, Journal, read_predictions
from luthier.exam_records import ExamPrediction, SatRecord
from luthier.files import json_text, read_json, read_jsonl, sha256_bytes, write_json, write_jsonl
from luthier.models import adapters
from luthier.models.chat import ChatTemplate
from luthier.models.swap import Seat
from luthier.models.text_base import TextBase
from luthier.recipe_data import Limits
from luthier.recipe_exam import ExamSettings
from luthier.rundir import ExamDir, SatDir
from luthier.runtime.devices import Devices
from luthier.runtime.memory import measured_peak
from luthier.runtime.threads import suited_threads

__all__ = ["BASE", "Candidate", "Paper", "Sitter", "sweep"]

STILL = 1e-6
"""Nats: log-likelihoods that all differ by less were not moved by the adapter; so much is left to rounding."""

_NO_WORKINGS = ("transformers_version", "architectures", "dtype", "use_cache")
"""What a config says that no answer depends on, or that is known from elsewhere."""


@dataclass(frozen=True)
class Paper:
    """An exam, how it is put, and where the answers go. `overlap`: ids of items that a training table touches."""

    exam: Exam
    settings: ExamSettings
    place: ExamDir
    pool: Exam | None = None
    overlap: Sequence[str] = ()

    def lay_out(self) -> None:
        """Write exam.json and items.jsonl, or see that they are the same. Raises RequestError where they are not."""
        record = exam_record(self.exam, asdict(self.settings))
        record.overlap = list(self.overlap)
        if not self.place.exam.is_file():
            write_items(self.exam, self.place.items)
            write_json(self.place.exam, record.to_json())
            return
        there = read_json(self.place.exam)
        differing = [key for key in ("digest", "settings", "overlap") if there[key] != record.to_json()[key]]
        if not differing and read_jsonl(self.place.items) != [item.to_json() for item in self.exam.items]:
            differing = ["ids or groups"]
        if differing:
            raise RequestError(
                f"{self.place.exam}: examined before with another {' and '.join(differing)}", "give another --out"
            )

    @property
    def exams(self) -> list[Exam]:
        """The exam, and the pool of its solved questions where it has one."""
        return [self.exam] if self.pool is None else [self.exam, self.pool]

    def examiner(self, tokenizer: Any, media: MediaReader | None = None) -> Examiner:
        """The exam in the words and ids of one tokenizer; `media` reads its sound and pictures."""
        return Examiner.of(self.exam, self.settings, ChatTemplate.of(tokenizer), self.pool, media)


@dataclass(frozen=True)
class Sitter:
    """A model in memory that sits exams as it is: `base` says what is under it, `model` is asked."""

    base: TextBase
    model: Any
    devices: Devices
    cache: AnswerCache = NO_CACHE

    def key(self, adapter_sha256: str, examiner: Examiner) -> str:
        """Digest of all that decides the answers; equal keys, equal answers."""
        dtype = str(self.devices.precision.dtype)
        parts = [self.base.digest, _workings(self.base.model), adapter_sha256, examiner.digest, dtype]
        return sha256_bytes(json_text(parts).encode())

    def sit(self, candidate: Candidate, examiner: Examiner, place: ExamDir) -> None:
        """Sit one exam, or go on with it; one that is finished is left alone. candidate.json is written last.

        Raises RequestError where other weights or questions stand behind what is finished there.
        """
        # An adapter that is switched off, or not yet trained, is no part of the base's answers.
        adapter_sha256 = "" if candidate.name == BASE else adapters.digest(self.model)
        key, seat = self.key(adapter_sha256, examiner), place.candidate(candidate.name)
        if seat.finished:
            if read_json(seat.record)["key"] != key:
                raise RequestError(
                    f"{seat.path}: is finished, with other weights, questions or settings",
                    "give another --out, or remove that folder",
                )
            Journal.remove(seat)
            return
        # Rows that were added to the vocabulary and are not trained follow from a seed, which no digest knows.
        cache = self.cache if adapter_sha256 or not self.base.added_tokens else NO_CACHE
        known = cache.find(key)
        if known is not None:
            say(f"{candidate.name}: the same weights sat {place.path.name} before; those answers are taken")
            predictions, record = known
            record = replace(record, **self._who(candidate))
        else:
            predictions, record = self._examine(candidate, examiner, seat, (adapter_sha256, key))
        record.same_as_base = self._same_as_base(candidate, predictions, place)
        write_jsonl(seat.predictions, (prediction.to_json() for prediction in predictions))
        write_json(seat.record, record.to_json())
        Journal.remove(seat)
        if known is None:
            cache.keep(key, predictions, record)

    def _examine(
        self, candidate: Candidate, examiner: Examiner, seat: SatDir, digests: tuple[str, str]
    ) -> tuple[list[ExamPrediction], SatRecord]:
        adapter_sha256, key = digests
        journal = Journal(seat, key)
        if journal.done:
            say(f"{candidate.name}: {len(journal.done):,} items of {examiner.exam.name} are answered already")
        earlier = journal.seconds
        try:
            with suited_threads(self.base.model):
                found = examiner.examine(self.model, self.devices, dict(journal.done), journal.keep)
        finally:
            journal.close()
        seconds = earlier + found.seconds
        record = SatRecord(
            **self._who(candidate),
            base_sha256=self.base.digest,
            adapter_sha256=adapter_sha256,
            seconds=round(seconds, 3),
            items_per_second=round(len(found.predictions) / max(seconds, 1e-3), 3),
            peak_memory=measured_peak(self.devices.device),
            key=key,
            prompt_tokens=found.prompt_tokens,
            read_tokens=found.read_tokens,
        )
        return found.predictions, record

    def _who(self, candidate: Candidate) -> dict[str, Any]:
        adapter = "" if candidate.adapter is None else str(candidate.adapter)
        return {"name": candidate.name, "base": self.base.name, "adapter": adapter, "step": candidate.step}

    def _same_as_base(self, candidate: Candidate, answers: Sequence[ExamPrediction], place: ExamDir) -> bool:
        """Whether an adapter moves no log-likelihood of the base's, which is said loudly."""
        base = place.candidate(BASE)
        if candidate.name == BASE or not base.finished:
            return False
        here = [value for answer in answers for value in answer.logprobs]
        there = [value for answer in read_predictions(base) for value in answer.logprobs]
        same = bool(here) and all(abs(a - b) <= STILL for a, b in zip(here, there, strict=True))
        if same:
            say(
                f"ALARM: {candidate.name} answers {place.path.name} exactly as the base alone does, to the last "
                "log-likelihood: its adapter changes nothing (was it trained, and saved under the names of this base?)"
            )
        return same


def _workings(model: Any) -> list[Any]:
    """What a base does besides its weights: rotary positions, windows, caps, the tokens that end an answer."""
    config = json.loads(model.config.to_json_string(use_diff=False))
    kept = {key: value for key, value in config.items() if not key.startswith("_") and key not in _NO_WORKINGS}
    return [kept, model.generation_config.eos_token_id]


def sweep(
    load: Callable[[], TextBase],
    candidates: Sequence[Candidate],
    papers: Sequence[Paper],
    devices: Devices,
    cache: AnswerCache,
    features: Path,
    sat: Callable[[Candidate, Paper], None] = lambda candidate, paper: None,
) -> None:
    """Have every candidate sit every exam, the base alone first.

    `load` is called once, and again only where adapters add different tokens to the vocabulary; `features` is a folder
    for encoded sound and pictures, made once for all; `sat` is told each finished sitting. Raises RequestError before
    the first question where a candidate does not belong to this base.
    """
    seat = Seat(load)
    admitted = admit(candidates, seat.base)
    for note in dict.fromkeys(note for one in admitted for note in one.notes):
        say(note)
    for paper in papers:
        paper.lay_out()
    examiners: dict[str, list[Examiner]] = {}
    # The base alone first: rows that are added to a vocabulary take a share of every probability.
    ordered = sorted(admitted, key=lambda one: (one.candidate.adapter is not None, sorted(one.tokens.items())))
    for one in ordered:
        reads = one.reads
        if reads not in examiners:
            seat.clear(one.tokens)  # media are encoded by the base itself
            media = MediaReader.of(seat.base, [exam for paper in papers for exam in paper.exams], features, Limits())
            tokenizer = one.tokenizer or seat.base.tokenizer
            examiners[reads] = [paper.examiner(tokenizer, media) for paper in papers]
        if one.candidate.adapter is None:
            seat.clear()
        else:
            seat.put(one.candidate.adapter, one.tokens)
        sitter = Sitter(seat.base, seat.model, devices, cache)
        for paper, examiner in zip(papers, examiners[reads], strict=True):
            sitter.sit(one.candidate, examiner, paper.place)
            sat(one.candidate, paper)
    del seat, sitter  # the next base may need the room
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
