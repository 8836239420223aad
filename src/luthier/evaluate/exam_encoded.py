"""An exam's questions as token ids: each item in each wording and order, all of them in one call of the tokenizer.

This module knows no model. Media become ids beyond the vocabulary, which their reader gives out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from luthier.data.exams.exam import Exam, ExamItem
from luthier.errors import ChatError, RequestError
from luthier.evaluate.exam_media import MediaReader
from luthier.evaluate.exam_prompts import Asked, Asker
from luthier.evaluate.loglikelihood import Request, Scored, encode, encode_answers
from luthier.models.senses.base import Medium


@dataclass(frozen=True, eq=False)
class Encoded:
    """One item in one wording and order: each option's ids in the file's order, and what its sum is divided by.

    Where the answer is written, `texts` is one: what comes before the scored part is the prompt.
    """

    prompt: str
    reversed: bool
    texts: tuple[Scored, ...]
    divisors: tuple[float, ...]


def encode_exam(exam: Exam, asker: Asker, media: MediaReader | None) -> list[list[Encoded]]:
    """Of each item, each wording and order. Raises RequestError where options are the same ids, or media unreadable."""
    _check_media(exam, asker, media)
    asked = [_asked(exam, asker, item) for item in exam.items]
    written = asker.settings.method == "generate"
    pairs = [pair for ways in asked for one in ways for pair in list(_pairs(one))[: 1 if written else None]]
    tokenizer = asker.template.tokenizer
    if asker.settings.chat_template:
        texts = encode_answers([Request(*pair) for pair in pairs], tokenizer)
    else:
        texts = encode([Request(*pair) for pair in pairs], tokenizer)
    queue = iter(texts)
    found = []
    for item, ways in zip(exam.items, asked, strict=True):
        encoded = []
        for one in ways:
            mine = [next(queue) for _ in range(1 if written else len(item.options))]
            if media is not None and one.media:
                mine = [_numbered(exam, item, text, media, one.media) for text in mine]
            _check_apart(exam, item, mine)
            divisors = [_divisor(asker.settings.normalization, *pair) for pair in zip(one.answers, mine, strict=False)]
            encoded.append(Encoded(one.prompt, one.reversed, tuple(mine), tuple(divisors)))
        found.append(encoded)
    return found


def _asked(exam: Exam, asker: Asker, item: ExamItem) -> list[Asked]:
    try:
        return list(asker.ask(item))
    except ChatError as error:
        raise RequestError(f"exam {exam.name}: item {item.id}: {error.detail}", error.mend) from error


def _check_media(exam: Exam, asker: Asker, media: MediaReader | None) -> None:
    for item in (*asker.shots, *exam.items):
        if item.media:
            reason, mend = "", ""
            if media is None:
                reason, mend = "which this base does not read", "take a base that sees and hears"
            elif not asker.settings.chat_template:
                reason, mend = "which stands only in a chat", "set chat_template: true for this exam"
            if reason:
                raise RequestError(f"exam {exam.name}: item {item.id} has {item.media[0].type}, {reason}", mend)


def _pairs(asked: Asked) -> Iterator[tuple[str, str]]:
    return zip(asked.contexts, asked.answers, strict=True)


def _numbered(exam: Exam, item: ExamItem, text: Scored, media: MediaReader, shown: Sequence[Medium]) -> Scored:
    try:
        media.speller.check(text.ids.tolist(), shown)
    except ChatError as error:
        raise RequestError(f"exam {exam.name}: item {item.id}: {error.detail}", error.mend) from error
    return Scored(media.write(text.ids.tolist(), shown), text.start)


def _divisor(normalization: str, answer: str, text: Scored) -> float:
    if normalization == "bytes":
        return float(len(answer.strip().encode()))
    return float(text.count) if normalization == "tokens" else 1.0


def _check_apart(exam: Exam, item: ExamItem, texts: Sequence[Scored]) -> None:
    """All ids of an answer are scored, so letters may begin with one token, but not be the same ids, nor none."""
    if min(text.count for text in texts) < 1:
        raise RequestError(
            f"exam {exam.name}: an option of item {item.id} melts into the question in this tokenizer: it has no token",
            "take another method or wording for this exam",
        )
    if len({text.ids.tobytes() for text in texts}) < len(texts):
        raise RequestError(
            f"exam {exam.name}: two options of item {item.id} are the same ids in this tokenizer, so no model can tell "
            "them apart",
            "mend the options, or take another method for this exam",
        )
