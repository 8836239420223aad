"""How a row's media are written into its text: each mark of the template makes way for the spelling of one medium.

This happens between the template's text and the tokenizer, as in the processors of transformers, so the ids are
theirs. Marks and media must go together one by one and in order, before tokenising and again in the ids; a mark or slot
token that someone typed is refused, for the text that the base would read is then not the row's. Knows headers of media
and never their content; refuses to know masks, weights and lengths.
"""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luthier.data.mediasource import Facts, MediaSource
from luthier.errors import ChatError, MediaError
from luthier.models.chat import ChatTemplate
from luthier.models.senses.base import Placed, Senses
from luthier.models.senses.supply import Medium
from luthier.models.senses.unfold import unfold
from luthier.schema import Message, Part, PartType, canonical

_KNOWN = 2**14
"""Headers that are remembered: one picture may stand in many rows."""


@dataclass(frozen=True, slots=True)
class Told:
    """A conversation as a base is told it: videos unfolded where it must be, its media with their marks in order."""

    messages: tuple[Message, ...]
    media: tuple[Medium, ...] = ()
    marks: tuple[str, ...] = ()
    spellings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Spelled:
    """A text whose marks were replaced. `ends` are where the marks ended, `growth` how much longer it is by then."""

    text: str
    growth: tuple[int, ...]
    """Before the first mark, and behind each."""
    ends: tuple[int, ...] = ()

    def place(self, character: int) -> int:
        """Where a character of the template's text is now; none lies within a mark."""
        return character + self.growth[bisect_right(self.ends, character)]


class Speller:
    """Writes the media of a table for one base."""

    def __init__(self, senses: Senses, source: MediaSource) -> None:
        self.senses, self.source = senses, source
        self._facts = lru_cache(_KNOWN)(source.facts)
        marks = [re.escape(mark).replace(re.escape("{n}"), r"\d+") for mark in set(senses.marks.values())]
        tokens = [re.escape(senses.slot_token(kind)) for kind in senses.kinds]
        self._marks = re.compile("|".join(sorted(marks, key=len, reverse=True)))
        self._reserved = re.compile("|".join(sorted({*marks, *tokens}, key=len, reverse=True)))
        self._slots = np.unique([senses.slot_ids[kind] for kind in senses.kinds])

    def digest(self) -> str:
        """sha256 of what decides spellings beside the media: the senses, the bounds of media, the choice of frames."""
        settings = [self.senses.digest(), asdict(self.source.limits), asdict(self.source.frames)]
        return hashlib.sha256(canonical(settings).encode()).hexdigest()

    def told(self, messages: Sequence[Message], template: ChatTemplate) -> Told:
        """What the template is to write. Raises ChatError: of media that cannot be read, with their own reason."""
        found: list[Message] = []
        media: list[Medium] = []
        marks: list[str] = []
        spellings: list[str] = []
        numbers: Counter[PartType] = Counter()
        for place, message in enumerate(messages, 1):
            self._refuse_typed(message, place)
            if all(part.type == "text" for part in message.content):
                found.append(message)
                continue
            if message.role == "assistant":
                raise ChatError("media_placeholders", f"message {place} is the assistant's, and a base answers in text")
            parts: list[Part] = []
            for part, facts in self._parts(message):
                if facts is None:
                    parts.append(part)
                    continue
                numbers[part.type] += 1
                mark = self.senses.mark(part.type, numbers[part.type])
                medium, spelling = self._written(str(part.media), facts)
                media.append(medium)
                marks.append(mark)
                spellings.append(spelling)
                parts.append(part if template.takes_parts else Part(part.type, mark))
            content = tuple(parts) if template.takes_parts else (Part("text", _in_one_string(parts)),)
            found.append(Message(message.role, content, message.more))
        return Told(tuple(found), self.in_company(media), tuple(marks), tuple(spellings))

    def in_company(self, media: Sequence[Medium]) -> tuple[Medium, ...]:
        """The media of one row with how each is read beside the others."""
        modes = self.senses.modes([medium.kind for medium in media])
        alone = (self.senses.modes([medium.kind])[0] for medium in media)
        return tuple(
            replace(medium, mode="" if mode == its else mode)
            for medium, mode, its in zip(media, modes, alone, strict=True)
        )

    def spell(self, text: str, told: Told, whole: bool = True) -> Spelled:
        """The template's text with a spelling for each mark; `whole` asks for all of them, else the first will do.

        Raises ChatError where marks and media do not go together.
        """
        places = [match.span() for match in self._marks.finditer(text)]
        written = [text[begin:end] for begin, end in places]
        wanted = list(told.marks if whole else told.marks[: len(written)])
        if written != wanted:
            raise _apart(len(wanted), len(written))
        opening = "" if text.startswith(self.senses.opening) else self.senses.opening
        pieces, at = [opening], 0
        for (begin, end), spelling in zip(places, told.spellings, strict=False):
            pieces += [text[at:begin], spelling]
            at = end
        longer = (len(new) - (end - begin) for (begin, end), new in zip(places, told.spellings, strict=False))
        growth = tuple(accumulate(longer, initial=len(opening)))
        return Spelled("".join([*pieces, text[at:]]), growth, tuple(end for _, end in places))

    def slots(self, ids_L: NDArray[Any]) -> NDArray[np.bool_]:
        """(L,) true where a vector stands."""
        found: NDArray[np.bool_] = np.isin(ids_L, self._slots)
        return found

    def check(self, ids: Sequence[int], media: Sequence[Medium]) -> None:
        """Raise ChatError where the slots among a text's ids are not those of its media, in order."""
        ids_L = np.asarray(ids, dtype=np.int64)
        written = ids_L[self.slots(ids_L)]
        wanted = [self.senses.slot_ids[medium.kind] for medium in media for _ in range(medium.slots)]
        if written.tolist() != wanted:
            raise _apart(len(wanted), len(written), "slots of media")

    def prompt(
        self, template: ChatTemplate, messages: Sequence[Message], tools: list[Any] | None = None
    ) -> tuple[list[int], tuple[Medium, ...]]:
        """The ids that ask for the answer to these messages, as a lesson of that answer begins, and their media.

        Raises ChatError.
        """
        told = self.told(messages, template)
        written = template.write([template.turn(message) for message in told.messages], tools, prompt=True).text
        ids: list[int] = template.tokenizer(self.spell(written, told).text, add_special_tokens=False, verbose=False)[
            "input_ids"
        ]
        self.check(ids, told.media)
        return ids, told.media

    def _parts(self, message: Message) -> Iterator[tuple[Part, Facts | None]]:
        """A turn's parts, each medium with its facts; a video as its frames where the base reads no videos."""
        for part in message.content:
            if part.type == "text":
                yield part, None
                continue
            facts = self._look(part.type, str(part.media))
            if part.type != "video" or "video" in self.senses.kinds:
                yield part, self._known(part.type, facts)
                continue
            for piece, its in unfold(str(part.media), facts, self.senses.kinds):
                medium = None if piece.type == "text" else its or self._look(piece.type, str(piece.media))
                yield piece, medium and self._known(piece.type, medium)

    def _known(self, kind: PartType, facts: Facts) -> Facts:
        if kind not in self.senses.kinds:
            raise ChatError(
                "media_placeholders",
                f"the base reads {' and '.join(self.senses.kinds)}, and the row holds {kind}",
                "choose a base that does, or leave such rows out",
            )
        return facts

    def _look(self, kind: PartType, reference: str) -> Facts:
        with _as_of_chats(kind, reference):
            return self._facts(kind, reference)

    def _written(self, reference: str, facts: Facts) -> tuple[Medium, str]:
        senses = self.senses
        with _as_of_chats(facts.kind, reference):
            medium = Medium(facts.kind, reference, senses.slots(facts), senses.grid(facts), senses.pace(facts))
            return medium, senses.spell(facts)

    def _refuse_typed(self, message: Message, place: int) -> None:
        for part in message.content:
            typed = self._reserved.search(part.text or "") if part.type == "text" else None
            if typed:
                raise ChatError(
                    "media_placeholders",
                    f"message {place} ({message.role}) has {typed[0]!r} in its words, which stands for a medium",
                    "give media as parts of their own, and write the word otherwise",
                )


@contextmanager
def _as_of_chats(kind: PartType, reference: str) -> Iterator[None]:
    """A medium that cannot be used takes its row with it, for the medium's own reason."""
    try:
        yield
    except MediaError as error:
        raise ChatError(error.reason, f"{kind} {reference[:19]}: {error.detail}", error.mend) from error


def placed(media: Sequence[Medium]) -> Placed:
    """The media of one row as `Senses.positions` needs them."""
    return Placed(
        tuple(medium.kind for medium in media),
        tuple(medium.grid for medium in media),
        tuple(medium.pace for medium in media),
    )


def _in_one_string(parts: Sequence[Part]) -> str:
    """For templates that take no parts: a newline between texts, and nothing between a text and a mark."""
    found = ""
    for number, part in enumerate(parts):
        between = "\n" if number and part.type == parts[number - 1].type == "text" else ""
        found += between + (part.text or "")
    return found


def _apart(wanted: int, written: int, what: str = "media") -> ChatError:
    return ChatError(
        "media_placeholders",
        f"the row has {wanted} {what}, and its text {written} places for them, or in another order",
        "choose a base that takes these media, or leave the row out",
    )
