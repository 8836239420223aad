"""An exam is sat: every item's options scored, or its answer written, by a model in one state of its weights.

An `Examiner` is made once for an exam and a tokenizer, and then examines any number of adapters of that base. This
module knows nothing of folders, runs and statistics.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from typing import Any

import numpy as np
import torch

from luthier.console import progress
from luthier.data.exams.exam import Exam, ExamItem
from luthier.errors import LuthierError, RequestError
from luthier.evaluate.exam_encoded import Encoded, encode_exam
from luthier.evaluate.exam_media import MediaReader
from luthier.evaluate.exam_prompts import Asker
from luthier.evaluate.generate import Decoding, Generator
from luthier.evaluate.loglikelihood import Scored, scoring
from luthier.evaluate.marking import Marker
from luthier.evaluate.seeing import Prompt
from luthier.evaluate.written import parse_choice
from luthier.exam_records import ExamAsked, ExamPrediction
from luthier.models import adapters
from luthier.models.chat import ChatTemplate
from luthier.recipe_exam import ExamSettings
from luthier.runtime.devices import Devices
from luthier.schema import canonical

LINE = {"cpu": 4096, "cuda": 16384}
"""Tokens read in one pass, where memory allows it: enough to keep a device busy."""
WRITTEN = 64
"""Items whose answers are written before they are kept."""

Keep = Callable[[ExamPrediction], None]
Finish = Callable[[int, Sequence[ExamAsked]], None]


@dataclass(frozen=True)
class Sitting:
    """What a model answered, in the file's order, and what that took."""

    predictions: list[ExamPrediction]
    prompt_tokens: int
    """Tokens of all that was asked, each as often as it was asked."""
    read_tokens: int
    """Tokens that the model read, a shared beginning once."""
    seconds: float


@dataclass(frozen=True)
class Examiner:
    """An exam, encoded for one tokenizer. Made by `Examiner.of`."""

    exam: Exam
    settings: ExamSettings
    template: ChatTemplate
    asked: list[list[Encoded]]
    """Of each item, each wording and order: the first of them gives the choice."""
    digest: str
    """sha256 of the exam's content with its items' names and groups, the settings, and all encoded ids."""
    media: MediaReader | None = None

    @classmethod
    def of(
        cls,
        exam: Exam,
        settings: ExamSettings,
        template: ChatTemplate,
        pool: Exam | None = None,
        media: MediaReader | None = None,
    ) -> Examiner:
        """Put all questions into words and ids. `media` turns sound, pictures and videos into vectors.

        Raises RequestError where the settings cannot be met: no chat template, too few shots, more options than
        letters, options that are the same ids, media that this base does not read.
        """
        asker = Asker.of(exam, settings, template, pool, None if media is None else media.speller)
        asked = encode_exam(exam, asker, media)
        # What sources are called, and how answers were found in them, is in the content already.
        put = asdict(replace(settings, labels="", answers="", pool=""))
        # Records name items and their groups; ids number the media of solved questions, and do not say which they are.
        named = [[item.id, item.group] for item in exam.items]
        shown = [part.media for shot in asker.shots for part in shot.media]
        stops = [template.stop, template.tokenizer.eos_token_id]
        digest = sha256(canonical([exam.digest, put, named, shown, stops]).encode())
        for text in (text for ways in asked for one in ways for text in one.texts):
            ids, its = (text.ids, ()) if media is None else media.read(text.ids)
            digest.update(canonical([text.start, len(ids)]).encode() + ids.tobytes())
            if its and media is not None:
                digest.update(media.speller.digest().encode())
        return cls(exam, settings, template, asked, digest.hexdigest(), media)

    def examine(
        self, model: Any, devices: Devices, done: Mapping[str, ExamPrediction] | None = None, keep: Keep | None = None
    ) -> Sitting:
        """Examine a causal model of transformers, bare or under PEFT, with whatever adapter is active.

        `keep` is told each item when it is finished (in the leading process, where there are several). What is read
        together is so whatever is `done`: lines without an open item are left out, the others are read whole, and going
        on gives the same bits as never having stopped. Raises RequestError for a question that is longer than the model
        reads.
        """
        begin = time.monotonic()
        found = dict(done or {})
        left = {at for at, item in enumerate(self.exam.items) if item.id not in found}

        def finish(at: int, ways: Sequence[ExamAsked]) -> None:
            prediction = _prediction(self.exam.items[at], ways)
            found[prediction.id] = prediction
            if keep is not None and devices.leads:
                keep(prediction)

        read = 0
        if left:
            self._check_lengths(model)
            examined = self._write if self.settings.method == "generate" else self._score
            with nullcontext() if self.media is None else self.media.sitting(model, devices):
                read = examined(model, devices, left, finish)
        texts = (text for ways in self.asked for one in ways for text in one.texts)
        predictions = [found[item.id] for item in self.exam.items]
        return Sitting(predictions, sum(len(text.ids) for text in texts), read, time.monotonic() - begin)

    def _score(self, model: Any, devices: Devices, left: Set[int], finish: Finish) -> int:
        """Score the options of the items left, a line of items at a time. Returns the tokens read."""
        with scoring(model, devices, self.media) as scorer:
            marker = Marker(self.asked, scorer)
            lines = [line for line in marker.lines(LINE[devices.device.type]) if not left.isdisjoint(line)]
            rounds = [lines[at : at + devices.world] for at in range(0, len(lines), devices.world)]
            for together in progress(rounds, f"exam {self.exam.name}", len(rounds)):
                # Each process scores a line of its own; then all know the sums of all.
                sums = [np.zeros(sum(map(marker.options, line))) for line in together]
                if devices.rank < len(together):
                    sums[devices.rank] = marker.score(together[devices.rank])
                shared = torch.from_numpy(np.concatenate(sums)).to(devices.device)
                devices.add_up([shared])
                values = iter(shared.tolist())
                for at in (at for line in together for at in line):
                    ways = [self._scored(at, one, [next(values) for _ in one.texts]) for one in self.asked[at]]
                    if at in left:
                        finish(at, ways)
            return scorer.read

    def _write(self, model: Any, devices: Devices, left: Set[int], finish: Finish) -> int:
        """Have the model write its answers. Returns the tokens read, its own included."""
        supply = None if self.media is None else self.media.supply
        generator = Generator(model, self.template, devices, supply=supply)
        decoding = Decoding(self.settings.max_new_tokens)
        parts = [range(begin, min(begin + WRITTEN, len(self.asked))) for begin in range(0, len(self.asked), WRITTEN)]
        read = 0
        for part in (part for part in parts if not left.isdisjoint(part)):
            texts = [one.texts[0] for at in part for one in self.asked[at]]
            answers = generator([self._prompt(text) for text in texts], decoding, self.exam.name)
            read += sum(text.start + len(answer.ids) for text, answer in zip(texts, answers, strict=True))
            queue = iter(answers)
            for at in part:
                ways = [self._read(one, self.exam.items[at], next(queue).text) for one in self.asked[at]]
                if at in left:
                    finish(at, ways)
        return read

    def _prompt(self, text: Scored) -> list[int] | Prompt:
        """What comes before the scored part, as a `Generator` takes it."""
        if self.media is None:
            return text.ids[: text.start].tolist()
        ids, media = self.media.read(text.ids[: text.start])
        return Prompt(ids.tolist(), media)

    def _scored(self, at: int, one: Encoded, sums: Sequence[float]) -> ExamAsked:
        """What is no number chooses nothing: with one NaN among them, the largest would depend on their order."""
        if not all(map(math.isfinite, sums)):
            raise LuthierError(
                f"exam {self.exam.name}: item {self.exam.items[at].id}: a log-likelihood is not finite ({list(sums)})",
                "the weights are broken, or overflow in this number format: set model.dtype (--dtype) to float32",
            )
        logprobs = [value / divisor for value, divisor in zip(sums, one.divisors, strict=True)]
        return ExamAsked(one.prompt, one.reversed, logprobs, logprobs.index(max(logprobs)))

    def _read(self, one: Encoded, item: ExamItem, text: str) -> ExamAsked:
        """A base without turns goes on with the next question: its first line is its answer."""
        said = text if self.settings.chat_template else text.strip().partition("\n")[0]
        shown = item.options[::-1] if one.reversed else item.options
        choice = parse_choice(said, shown)
        if one.reversed and choice >= 0:
            choice = len(shown) - 1 - choice
        return ExamAsked(one.prompt, one.reversed, [], choice, text)

    def _check_lengths(self, model: Any) -> None:
        most = getattr(adapters.bare(model).config.get_text_config(), "max_position_embeddings", None)
        for item, ways in zip(self.exam.items, self.asked, strict=True):
            longest = max(map(self._length, ways))
            if most is not None and longest > most:
                raise RequestError(
                    f"exam {self.exam.name}: item {item.id} has {longest} tokens, and the base reads {most}",
                    "lower shots, shorten the passage, or take a base that reads more",
                )

    def _length(self, one: Encoded) -> int:
        """Tokens of the longest option's text, or of the prompt with the longest answer that may be written."""
        if self.settings.method == "generate":
            return one.texts[0].start + self.settings.max_new_tokens
        return max(len(text.ids) for text in one.texts)


def _prediction(item: ExamItem, ways: Sequence[ExamAsked]) -> ExamPrediction:
    first, *more = ways
    correct = first.choice == item.answer
    return ExamPrediction(item.id, item.answer, first.choice, first.logprobs, correct, item.group, first.text, more)
