"""What rows become in a model's chat template, found before training: lost words, refusals, lengths, loss masks.

Every row it is given is rendered as training would render it; nothing is cut and nothing is mended. It reports; what
to do about it is the caller's business. It loads no weights, and of media it reads the headers alone.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from statistics import median
from typing import Any

from luthier.errors import ChatError
from luthier.models.chat import MEDIA, ChatTemplate, tools_of
from luthier.models.senses.spelling import Speller
from luthier.models.supervise import Rendered, render_rows
from luthier.schema import Message, Row

REASONS = (
    "template_refuses",
    "mask_unproved",
    "double_bos",
    "text_lost",
    "tools_lost",
    "media_placeholders",
    "reserved_token",
    "nothing_supervised",
)
"""What can be wrong with a row. A row counts once for each."""

BATCH_ROWS = 256
SHOWN_ROWS = 3
_GREEN, _DIM, _PLAIN = "\x1b[32m", "\x1b[2m", "\x1b[0m"


@dataclass(slots=True)
class Trouble:
    """One kind of trouble: in how many rows, and the first of them in words."""

    rows: int = 0
    first: str = ""


@dataclass(slots=True)
class Diagnosis:
    """What `examine` found. Lengths are in tokens, of the rows that could be rendered."""

    template: str
    maximum_tokens: int
    rows: int = 0
    rendered: int = 0
    lengths: list[int] = field(default_factory=list)
    supervised_tokens: int = 0
    media: list[int] = field(default_factory=list)
    """Tokens that media take, of each row that holds any."""
    over_maximum: int = 0
    unstopped: int = 0
    """Rows with an assistant turn that no stop token ends."""
    unwritten_bos: bool = False
    """The tokenizer begins texts with a token that the template does not write: chats are then without it."""
    proofs: Counter[str] = field(default_factory=Counter)
    troubles: dict[str, Trouble] = field(default_factory=dict)
    shown: list[Rendered] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def sound(self) -> bool:
        """No row of which words, media or the whole lesson are lost."""
        return not self.troubles

    @property
    def figures(self) -> dict[str, float]:
        """Rows, tokens (min, median, p95, max, total, supervised), rows over the maximum, and the speed."""
        ordered = sorted(self.lengths) or [0]
        spent = max(self.seconds, 1e-9)
        return {
            "rows": self.rows,
            "rendered": self.rendered,
            "tokens_min": ordered[0],
            "tokens_median": median(ordered),
            "tokens_p95": ordered[max(0, -(-len(ordered) * 95 // 100) - 1)],
            "tokens_max": ordered[-1],
            "tokens_total": sum(ordered),
            "tokens_supervised": self.supervised_tokens,
            **({"rows_with_media": len(self.media), "tokens_of_media": sum(self.media)} if self.media else {}),
            "rows_over_maximum": self.over_maximum,
            "rows_per_second": self.rows / spent,
            "tokens_per_second": sum(ordered) / spent,
        }

    def lines(self) -> list[str]:
        """The report in plain words, without the painted rows."""
        it = self.figures
        share = 100 * self.supervised_tokens / max(1, it["tokens_total"])
        found = [
            f"template of {self.template}: {self.rendered:,} of {self.rows:,} rows rendered, "
            f"{it['rows_per_second']:,.0f} rows/s, {it['tokens_per_second']:,.0f} tokens/s",
            f"tokens: min {it['tokens_min']:,}  median {it['tokens_median']:,.0f}  p95 {it['tokens_p95']:,}  "
            f"max {it['tokens_max']:,}  total {it['tokens_total']:,}, of which {share:.1f}% are learned",
            f"over {self.maximum_tokens:,} tokens: {self.over_maximum:,} rows",
        ]
        if self.media:
            found.append(
                f"media: in {len(self.media):,} rows, where they take {sum(self.media) // len(self.media):,} tokens a "
                f"row, {max(self.media):,} at most"
            )
        if self.unstopped:
            found.append(f"{self.unstopped:,} rows have an answer without a stop token: it will not be learned")
        if self.proofs["characters"]:
            found.append(f"{self.proofs['characters']:,} rows are tokenised otherwise than when the model is asked")
        if self.unwritten_bos:
            found.append(
                "the template does not write the first token (BOS) that the tokenizer would add; none is added"
            )
        for reason in REASONS:
            if reason in self.troubles:
                found.append(f"{reason}: {self.troubles[reason].rows:,} rows; first: {self.troubles[reason].first}")
        return found


def examine(
    rows: Iterable[Row],
    tokenizer: Any,
    maximum_tokens: int,
    sample: int = 0,
    shown: int = SHOWN_ROWS,
    speller: Speller | None = None,
) -> Diagnosis:
    """Render rows (the first `sample` of them; 0 for all) and look at each.

    `shown` rows are kept for `paint`; a `speller` writes their media, for bases that see or hear. Memory does not
    grow with the rows beyond a few numbers each. Raises RequestError where the tokenizer has no template that can be
    used.
    """
    began = time.perf_counter()
    template = ChatTemplate.of(tokenizer)
    found = Diagnosis(template.name, maximum_tokens)
    reserved = _reserved(tokenizer)
    places = {} if speller else _places(template)  # a speller holds marks against media itself
    stream = iter(islice(rows, sample) if sample else rows)
    while batch := list(islice(stream, BATCH_ROWS)):
        for row, rendered in zip(batch, render_rows(template, batch, speller), strict=True):
            found.rows += 1
            if isinstance(rendered, ChatError):
                _note(found, row, rendered.reason, rendered.detail)
                continue
            _measure(found, rendered)
            if len(found.shown) < shown:
                found.shown.append(rendered)
            for reason, detail in _troubles(row, rendered, places, reserved):
                _note(found, row, reason, detail)
    bos = template.begins
    found.unwritten_bos = bos is not None and any(one.ids[:1] != (bos,) for one in found.shown if one.ids)
    found.seconds = time.perf_counter() - began
    return found


def paint(rendered: Rendered, colour: bool | None = None, width: int = 160) -> str:
    """The text with its learned places in green and the rest dim; ⟦ ⟧ around them where colour is not wanted.

    `colour` None asks standard output and NO_COLOR. Stretches of over `width` characters lose their middle;
    control characters are written as their numbers, for rows are other people's texts.
    """
    if colour is None:
        colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    pieces, at = [], 0
    for start, end in (*rendered.learned, (len(rendered.text), len(rendered.text))):
        for learned, text in ((False, rendered.text[at:start]), (True, rendered.text[start:end])):
            if not text:
                continue
            short = _harmless(text if len(text) <= width else f"{text[: width // 2]} … {text[-width // 3 :]}")
            if colour:
                pieces.append(f"{_GREEN if learned else _DIM}{short}{_PLAIN}")
            else:
                pieces.append(f"⟦{short}⟧" if learned else short)
        at = end
    return "".join(pieces)


def _harmless(text: str) -> str:
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", lambda m: f"\\x{ord(m[0]):02x}", text)


def _note(found: Diagnosis, row: Row, reason: str, detail: str) -> None:
    trouble = found.troubles.setdefault(reason, Trouble())
    trouble.rows += 1
    where = row.id or f"{row.provenance.source}:{row.provenance.origin}"
    trouble.first = trouble.first or f"row {where}: {detail}"


def _measure(found: Diagnosis, rendered: Rendered) -> None:
    found.rendered += 1
    found.lengths.append(len(rendered.ids))
    found.supervised_tokens += sum(rendered.mask)
    if rendered.media:
        found.media.append(sum(medium.slots for medium in rendered.media))
    found.over_maximum += len(rendered.ids) > found.maximum_tokens
    found.unstopped += rendered.unstopped > 0
    found.proofs[rendered.proof] += 1


def _troubles(
    row: Row,
    rendered: Rendered,
    places: dict[tuple[str, ...], re.Pattern[str] | None],
    reserved: re.Pattern[str] | None,
) -> Iterator[tuple[str, str]]:
    """(reason, detail), at most one of each reason."""
    lost = _lost_text(row, rendered.text)
    if lost:
        yield "text_lost", lost
    names = [name for name in _tool_names(row) if name not in rendered.text]
    if names:
        yield "tools_lost", f"the tool {names[0]!r} is not in what the template writes"
    media = _misplaced(row, rendered.text, places)
    if media:
        yield "media_placeholders", media
    special = next((hit for text in _texts(row) if reserved and (hit := reserved.search(text))), None)
    if special:
        yield "reserved_token", f"the text holds {special[0]!r}, which the tokenizer reads as a control token"
    if not any(rendered.mask):
        answers = sum(message.role == "assistant" for message in row.messages)
        yield "nothing_supervised", f"{answers} assistant turns, and no token is learned"


def _places(template: ChatTemplate) -> dict[tuple[str, ...], re.Pattern[str] | None]:
    """What stands for media in a text; kinds that share one mark stand together, None where nothing is written."""
    found: dict[tuple[str, ...], re.Pattern[str] | None] = {}
    for mark in {template.placeholders.get(kind, "") for kind in MEDIA}:
        kinds = tuple(kind for kind in MEDIA if template.placeholders.get(kind, "") == mark)
        # Some templates number their pictures.
        found[kinds] = re.compile(re.sub(r"\d+", r"\\d+", re.escape(mark))) if mark else None
    return found


def _misplaced(row: Row, text: str, places: dict[tuple[str, ...], re.Pattern[str] | None]) -> str:
    """How the media of a row and their places in the text differ, or ""."""
    for kinds, mark in places.items():
        asked = sum(part.type in kinds for message in row.messages for part in message.content)
        written = len(mark.findall(text)) if mark else 0
        if asked != written:
            return f"{asked} parts of {' or '.join(kinds)}, and {written} places for them in the text"
    return ""


def _lost_text(row: Row, text: str) -> str:
    """The first turn whose words are not in the text, or "".

    In order if they can be found so; a template may move turns (a system turn into a later question), then each
    text must have a place of its own, the longest first.
    """
    wanted = [
        (number, message, words)
        for number, message in enumerate(row.messages, 1)
        for part in message.content
        if part.type == "text" and (words := (part.text or "").strip())
    ]
    at = 0
    for _, _, words in wanted:
        place = text.find(words, at)
        if place < 0:
            break
        at = place + len(words)
    else:
        return ""
    left = text
    for number, message, words in sorted(wanted, key=lambda item: -len(item[2])):
        place = left.find(words)
        if place < 0:
            return f"message {number} ({message.role}): {words[:60]!r} is not in what the template writes"
        left = f"{left[:place]}\x00{left[place + len(words) :]}"
    return ""


def _texts(row: Row) -> Iterator[str]:
    return (part.text for message in row.messages for part in message.content if part.text)


def _tool_names(row: Row) -> list[str]:
    """Names of the tools that a row offers and of those that are called in it."""
    found = [*(tools_of(row) or ()), *(call for message in row.messages for call in _calls(message))]
    functions = [item.get("function", item) for item in found if isinstance(item, dict)]
    return [str(item["name"]) for item in functions if isinstance(item, dict) and item.get("name")]


def _calls(message: Message) -> list[Any]:
    calls = message.to_json().get("tool_calls") if "tool_calls" in message.more else None
    return calls if isinstance(calls, list) else []


def _reserved(tokenizer: Any) -> re.Pattern[str] | None:
    """The tokenizer's control tokens. Ordinary words that were merely added to its vocabulary are no matter."""
    tokens = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    return re.compile("|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True))) if tokens else None
