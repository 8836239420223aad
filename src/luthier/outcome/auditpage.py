"""The page of a leak audit: one HTML file that opens offline, with both texts of every hit that it shows.

Beside it `NAME.jsonl` has the whole result: all touched items, so that scores can be reported with and without them,
all kept hits, siblings and unreadable items. This module refuses to know how hits are found.
"""

from __future__ import annotations

import importlib.resources
import json
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, StrictUndefined

from luthier import files
from luthier.data.leaks.auditresult import KINDS, AuditResult, Hit
from luthier.data.leaks.stretches import Excerpt
from luthier.errors import RequestError

SHOWN = 100
"""Hits of one kind on the page; the file beside it has all that were kept."""
LONGEST = 1500
"""Characters of a piece of text on the page."""
UNREAD = 20
MEANINGS = {
    "exact": ("Exact", "the item, or its question, stands whole in a row"),
    "near": ("Near", "most of the three-word shingles of an item and of a row, or of one of its turns, are the same"),
    "ngram": ("Shared run", "a run of words of an item stands in a row"),
    "group": ("Group", "the row and the item come from the same speaker, page or document"),
    "media": ("Media", "the row and the item hold the same recording or picture, byte for byte"),
}


class Written(NamedTuple):
    """Where an audit went: the page, and the records beside it."""

    page: Path
    records: Path


class _Section(NamedTuple):
    kind: str
    title: str
    meaning: str
    pairs: int
    items: int
    hits: list[Hit]
    left_out: int


def write_audit(result: AuditResult, path: Path) -> Written:
    """Write the page and, beside it, its records as JSON lines; both durably.

    Raises RequestError where `path` is no name of a page and DiskError where a file cannot be written.
    """
    if path.suffix not in (".html", ".htm"):
        raise RequestError(f"--out {path} is not the name of a page", "give a name that ends in .html")
    records = path.with_suffix(".jsonl")
    with files.write_atomically(records) as stream:
        for record in result.records():
            stream.write(json.dumps(record, ensure_ascii=True, allow_nan=False).encode() + b"\n")
    files.write_text(path, render(result, records.name))
    return Written(path, records)


def render(result: AuditResult, beside: str) -> str:
    """The page as text; `beside` is the name of the file with all records."""
    template = importlib.resources.files("luthier").joinpath("outcome/templates/audit.html.j2").read_text("utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["pieces"] = _pieces
    page = environment.from_string(template).render(
        result=result,
        sections=[_section(result, kind) for kind in sorted(KINDS, key=list(MEANINGS).index)],
        headline=_headline(result),
        beside=beside,
        unread=result.unread[:UNREAD],
        shown=SHOWN,
    )
    # Half of a surrogate pair may stand in a text, and no UTF-8 file can hold it.
    return page.encode("utf-8", "replace").decode("utf-8")


def _section(result: AuditResult, kind: str) -> _Section:
    hits = [hit for hit in result.hits if hit.kind == kind]
    title, meaning = MEANINGS[kind]
    pairs = result.pairs.get(kind, 0)
    shown = hits[:SHOWN]
    return _Section(kind, title, meaning, pairs, result.items_by_kind[kind], shown, pairs - len(shown))


def _headline(result: AuditResult) -> str:
    if not result.touched:
        return f"None of the {result.items:,} items is touched by the {result.rows:,} rows that were looked at."
    be = "item is" if len(result.touched) == 1 else "items are"
    return (
        f"{len(result.touched):,} of {result.items:,} {be} touched ({result.share:.1%}) by the {result.rows:,} rows "
        "that were looked at. Read the pairs below: a touch is a reason to look, not a verdict."
    )


def _pieces(excerpt: Excerpt) -> list[tuple[str, bool]]:
    """An excerpt with each of its pieces cut to a length that a page bears; words there can be as long as a file."""
    return [(text if len(text) <= LONGEST else text[:LONGEST] + "…", shared) for text, shared in excerpt]
