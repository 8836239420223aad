"""Chats as lessons: token ids, and what each token's prediction weighs. Kept flat on disk, read through memory maps.

A row is rendered and masked by `supervise`; here it is weighed, and measured against the longest that is allowed.
Rows that are too long leave whole, or keep the turns that fit up to the end of an answer, with exactly the media of
these turns; never is a turn, a stop token or a medium cut. Every row that leaves is counted by its reason. Knows
nothing of batches and steps.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luthier.data.building.rows import TableRow
from luthier.errors import ChatError, DataError
from luthier.files import atomic_folder, read_json, verify_folder, write_json
from luthier.models.chat import ChatTemplate
from luthier.models.senses.spelling import Speller
from luthier.models.senses.supply import Medium
from luthier.models.supervise import Rendered, render_rows
from luthier.schema import PartType

_TOGETHER = 256
"""Rows that are tokenised in one call."""
_NAMES = "rows.json"
_LONGEST = 96
"""Characters of a reference: 71 for the medium, the rest for what of it is meant."""
_ARRAYS = ("ids", "weight", "starts", "numbers", "media_starts", "media")
_KINDS: tuple[PartType, ...] = ("image", "audio", "video")
_MEDIUM = np.dtype(
    [
        ("kind", "u1"),
        ("slots", "<i4"),
        ("grid", "<i4", (3,)),
        ("pace", "<f8"),
        ("mode", "S16"),
        ("reference", f"S{_LONGEST}"),
    ]
)
"""A medium on disk; a grid of zeros is none."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """One encoded row. `weight_L[i]` is what predicting `ids_L[i]` from the tokens before it weighs; 0: not learned."""

    id: str
    ids_L: NDArray[np.int32]
    weight_L: NDArray[np.float32]
    media: tuple[Medium, ...] = ()
    """In the order of their slots."""


@dataclass
class Encoding:
    """What became of the rows that were encoded."""

    dropped: Counter[str] = field(default_factory=Counter)
    shortened: int = 0
    """Rows that kept only the turns that fit (train.truncation: whole_turns)."""
    unstopped: int = 0
    """Answers that the template ends with no stop token."""
    first: dict[str, str] = field(default_factory=dict)
    """The first row of each reason, and what was wrong with it."""


@dataclass(frozen=True)
class Encoder:
    """Turns rows into lessons. `truncation` is reject or whole_turns; without a speller, rows with media leave."""

    template: ChatTemplate
    max_tokens: int
    truncation: str = "reject"
    speller: Speller | None = None

    def encode(self, rows: Iterable[TableRow], found: Encoding) -> Iterator[tuple[TableRow, Lesson | None]]:
        """Rows in order, each with its lesson or None; what was lost is counted in `found`."""
        stream = iter(rows)
        while items := list(islice(stream, _TOGETHER)):
            rendered = render_rows(self.template, [item.row for item in items], self.speller)
            for item, one in zip(items, rendered, strict=True):
                try:
                    if isinstance(one, ChatError):
                        raise one
                    yield item, self._lesson(item, one, found)
                except ChatError as error:
                    found.dropped[error.reason] += 1
                    found.first.setdefault(error.reason, f"row {item.row.id}: {error.detail}")
                    yield item, None

    def _lesson(self, item: TableRow, rendered: Rendered, found: Encoding) -> Lesson:
        if item.row.media and self.speller is None:
            raise ChatError("media_in_text_chat", "the row holds pictures or sound, and this base reads text alone")
        answers, end = list(rendered.answers), len(rendered.ids)
        if end > self.max_tokens:
            fitting = [span for span in answers if span[1] <= self.max_tokens]
            if self.truncation == "reject" or not fitting:
                slots = sum(medium.slots for medium in rendered.media)
                whose = f" ({slots:,} of them of {len(rendered.media)} media)" if slots else ""
                raise ChatError(
                    "too_many_tokens", f"{end:,} tokens{whose}, and model.max_tokens is {self.max_tokens:,}"
                )
            answers, end = fitting, fitting[-1][1]
            found.shortened += 1
        weight_L = np.zeros(end, dtype=np.float32)
        for (first, last), weight in zip(answers, _turn_weights(item, rendered), strict=False):
            weight_L[first:last] = weight * item.weight
        weight_L[0] = 0.0  # nothing comes before the first token
        if not weight_L.any():
            raise ChatError("nothing_supervised", "no token of an answer is learned from")
        found.unstopped += rendered.unstopped
        ids_L = np.asarray(rendered.ids[:end], dtype=np.int32)
        return Lesson(item.row.id, ids_L, weight_L, self._media(rendered, ids_L))

    def _media(self, rendered: Rendered, ids_L: NDArray[np.int32]) -> tuple[Medium, ...]:
        """The media of the ids that were kept. Raises ChatError where the last of them would be cut."""
        if self.speller is None or not rendered.media:
            return ()
        ends = np.cumsum([medium.slots for medium in rendered.media])
        slots = int(self.speller.slots(ids_L).sum())
        kept = int(np.searchsorted(ends, slots, side="right"))
        if slots != (ends[kept - 1] if kept else 0):
            raise ChatError("too_many_tokens", f"model.max_tokens ({self.max_tokens:,}) would cut a medium")
        return self.speller.in_company(rendered.media[:kept])


def _turn_weights(item: TableRow, rendered: Rendered) -> list[float]:
    """What each answer weighs: the key `weight` of its turn, as OpenAI's format has it; 1 where there is none."""
    turns = [message for message in item.row.messages if message.role == "assistant"]
    weights = [json.loads(turn.more).get("weight") if turn.more else None for turn in turns]
    if all(weight is None for weight in weights):
        return [1.0] * len(rendered.answers)
    if len(weights) != len(rendered.answers):
        raise ChatError(
            "weights_unplaced", f"{len(weights)} answers have weights and the template writes {len(rendered.answers)}"
        )
    try:
        found = [1.0 if weight is None else float(weight) for weight in weights]
    except (TypeError, ValueError) as error:
        raise ChatError("bad_weight", f"a turn's weight is not a number: {error}") from error
    if not all(0.0 <= weight < float("inf") for weight in found):
        raise ChatError("bad_weight", f"a turn's weight is below 0 or not finite: {found}")
    return found


@dataclass(frozen=True)
class Lessons:
    """Encoded rows. The arrays are memory maps; `numbers` are the rows' places in the table they came from."""

    ids_T: NDArray[np.int32]
    weight_T: NDArray[np.float32]
    starts: NDArray[np.int64]
    numbers: NDArray[np.int64]
    names: list[str]
    about: dict[str, Any]
    media_starts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """Where each row's media begin in `media_M`; not asked where there are none."""
    media_M: NDArray[np.void] = field(default_factory=lambda: np.zeros(0, _MEDIUM))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Lesson:
        begin, end = int(self.starts[index]), int(self.starts[index + 1])
        lesson = Lesson(self.names[index], self.ids_T[begin:end], self.weight_T[begin:end])
        if not len(self.media_M):
            return lesson
        first, last = int(self.media_starts[index]), int(self.media_starts[index + 1])
        return replace(lesson, media=tuple(map(_medium, self.media_M[first:last].tolist())))

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row."""
        found: NDArray[np.int64] = np.diff(self.starts)
        return found

    def digest(self) -> str:
        """sha256 of what is learned, ids, weights and media of every row, in whatever order the rows lie."""
        rows = (self[place] for place in range(len(self)))
        digests = sorted(
            hashlib.sha256(row.ids_L.tobytes() + row.weight_L.tobytes() + _records(row.media).tobytes()).digest()
            for row in rows
        )
        return hashlib.sha256(b"".join(digests)).hexdigest()

    @property
    def target_tokens(self) -> int:
        """Tokens that are learned."""
        return int(np.count_nonzero(self.weight_T))

    @property
    def media_count(self) -> int:
        """Media of all rows."""
        return len(self.media_M)

    def media(self) -> Iterator[Medium]:
        """The media of all rows, in order; one that stands in several rows comes as often."""
        return map(_medium, (record.tolist() for record in self.media_M))

    @classmethod
    def read(cls, folder: Path) -> Lessons | None:
        """What `write` left in a folder; None where it is not there or not whole."""
        if not folder.is_dir() or verify_folder(folder) is not None:
            return None
        about = read_json(folder / _NAMES)
        ids, weight, starts, numbers, media_starts, media = (
            np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS
        )
        return cls(ids, weight, starts, numbers, about.pop("names"), about, media_starts, media)

    @classmethod
    def of(cls, lessons: Sequence[Lesson], numbers: Sequence[int] | None = None) -> Lessons:
        """Lessons that are in memory already."""
        starts = np.cumsum([0, *(len(lesson.ids_L) for lesson in lessons)])
        ids = np.concatenate([lesson.ids_L for lesson in lessons]) if lessons else np.zeros(0, np.int32)
        weights = np.concatenate([lesson.weight_L for lesson in lessons]) if lessons else np.zeros(0, np.float32)
        places = np.asarray(range(len(lessons)) if numbers is None else numbers, dtype=np.int64)
        media = _records([medium for lesson in lessons for medium in lesson.media])
        media_starts = np.cumsum([0, *(len(lesson.media) for lesson in lessons)])
        return cls(ids, weights, starts, places, [lesson.id for lesson in lessons], {}, media_starts, media)


def _records(media: Sequence[Medium]) -> NDArray[np.void]:
    """Media as they lie on disk. Raises DataError for a reference that is too long."""
    for medium in media:
        if len(medium.reference) > _LONGEST:
            raise DataError(f"{medium.reference[:100]!r} is no reference to a medium", "build the table again")
    return np.array(
        [
            (_KINDS.index(m.kind), m.slots, m.grid or (0, 0, 0), m.pace, m.mode.encode(), m.reference.encode())
            for m in media
        ],
        _MEDIUM,
    )


def _medium(record: tuple[Any, ...]) -> Medium:
    kind, slots, grid, pace, mode, reference = record
    its = tuple(grid) if any(grid) else None
    return Medium(_KINDS[kind], reference.decode(), slots, its, pace, mode.decode())


def write_lessons(
    folder: Path,
    rows: Callable[[], Iterable[tuple[int, TableRow]]],
    encoder: Encoder,
    found: Encoding,
) -> Lessons:
    """Encode (number, row) pairs into a folder that is a cache: sealed, but not pushed to the disk."""
    numbers: list[int] = []
    kept: list[int] = []
    names: list[str] = []
    lengths, media_counts = [0], [0]

    def items() -> Iterator[TableRow]:
        for number, item in rows():
            numbers.append(number)
            yield item

    with atomic_folder(folder, {}, durable=False) as place:
        raws = [(place / f"{name}.raw").open("wb") for name in ("ids", "weight", "media")]
        with raws[0] as ids, raws[1] as weights, raws[2] as media:
            for at, (item, lesson) in enumerate(encoder.encode(items(), found)):
                if lesson is not None:
                    ids.write(lesson.ids_L.tobytes())
                    weights.write(lesson.weight_L.tobytes())
                    media.write(_records(lesson.media).tobytes())
                    lengths.append(len(lesson.ids_L))
                    media_counts.append(len(lesson.media))
                    names.append(item.row.id)
                    kept.append(numbers[at])
        if not names:
            why = "; ".join(found.first.values()) or "there were none"
            raise DataError(f"no row of {folder.name} is left: {why}", "look at these rows, or raise model.max_tokens")
        for name, kind in (("ids", np.dtype(np.int32)), ("weight", np.dtype(np.float32)), ("media", _MEDIUM)):
            _to_npy(place / f"{name}.raw", place / f"{name}.npy", kind)
        np.save(place / "starts.npy", np.cumsum(lengths, dtype=np.int64))
        np.save(place / "media_starts.npy", np.cumsum(media_counts, dtype=np.int64))
        np.save(place / "numbers.npy", np.asarray(kept, dtype=np.int64))
        about = {"dropped": dict(found.dropped), "shortened": found.shortened, "unstopped": found.unstopped}
        write_json(place / _NAMES, {"names": names, **about, "first": found.first})
    lessons = Lessons.read(folder)
    if lessons is None:
        raise DataError(f"{folder}: the tokens are not what was written", "look at the disk, and run again")
    return lessons


def _to_npy(raw: Path, target: Path, kind: np.dtype[Any]) -> None:
    """Give a file of numbers the header that lets it be memory-mapped, without holding it in memory."""
    with raw.open("rb") as stream, target.open("wb") as out:
        header = {
            "descr": np.lib.format.dtype_to_descr(kind),
            "fortran_order": False,
            "shape": (raw.stat().st_size // kind.itemsize,),
        }
        np.lib.format.write_array_header_1_0(out, header)
        while block := stream.read(2**22):
            out.write(block)
    raw.unlink()
