"""The formats of records by name: which one a table has, who reads it, and the way back.

Knows names and the columns that give a format away; refuses to know how a format is read or written. Adapters are
imported when they are used.
"""

from __future__ import annotations

import difflib
import importlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import orjson

from luthier import recipe_data
from luthier.data.building.context import Adapter, Context, Record
from luthier.data.shapes import described, pairs
from luthier.data.shapes.conversations import LISTS, TURNS
from luthier.data.shapes.exporting import WRITERS, export_rows
from luthier.errors import DataError, RequestError
from luthier.recipe_data import Columns
from luthier.schema import Row

FORMATS = tuple(name for name in recipe_data.FORMATS if name != "auto")
EXPORTS = tuple(WRITERS)
REASONS = tuple(dict.fromkeys((*pairs.REASONS, *described.REASONS)))
"""Why a record of any format but graded makes no row; pictures add their own words."""
_ADAPTERS = {
    "graded": "luthier.data.shapes.graded:adapter",
    **{name: f"luthier.data.shapes.conversations:{name}" for name in ("sharegpt", "messages", "ultrachat")},
    **{name: f"luthier.data.shapes.pairs:{name}" for name in ("alpaca", "prompt_completion", "text", "image_caption")},
    "described": "luthier.data.shapes.described:adapter",
}
_NEEDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "graded": (tuple(Columns().audio), tuple(Columns().grade)),
    "sharegpt": (TURNS[:3],),
    "messages": (("messages",),),
    "ultrachat": (LISTS,),
    "alpaca": (("instruction",), ("output",)),
    "prompt_completion": (pairs.PROMPTS, pairs.COMPLETIONS),
    "image_caption": ((*pairs.IMAGES, "audio", "audios", "video", "videos"), (*pairs.CAPTIONS, "label")),
    "text": (("text",),),
}
"""For each format that columns give away, the sets of columns of each of which it needs one; tried in this order."""
_ROLES = {
    "graded": ("audio", "grade"),
    "sharegpt": ("messages",),
    "messages": ("messages",),
    "ultrachat": ("messages",),
    "alpaca": ("instruction", "output"),
    "prompt_completion": ("prompt", "completion"),
    "image_caption": ("image", "text"),
    "text": ("text",),
}


def detect(records: Sequence[Record], mapped: Mapping[str, str] | None = None) -> str:
    """The format that most of the first records have; broken ones and null conversations do not vote.

    `mapped` gives names of columns by role, as `Source.columns` does. Raises DataError with the columns that were
    found and what each format misses.
    """
    mapped = mapped or {}
    votes = Counter(name for record in records if (name := _vote(record, mapped)))
    if votes:
        return votes.most_common(1)[0][0]
    columns = list(dict.fromkeys(name for record in records for name in record))
    by_name = [name for name in _NEEDS if not _missing(name, columns, mapped)]
    for name in ("sharegpt", "messages", "alpaca", "prompt_completion", "graded", "image_caption", "text"):
        if name in by_name:
            return name
    lines = [f"{name} needs {' and '.join(_missing(name, columns, mapped))}" for name in _NEEDS]
    raise DataError(
        f"no format fits the columns {', '.join(map(str, columns)) or '(none)'}: " + "; ".join(lines),
        "map the columns, such as `columns: {prompt: question, completion: reply}`, or name the `format`",
    )


def adapter(name: str, context: Context) -> Adapter:
    """Who reads records of the format `name`. Raises RequestError for a name that is not in `FORMATS`."""
    if name not in _ADAPTERS:
        raise _unknown(name, FORMATS)
    module, function = _ADAPTERS[name].split(":")
    return cast("Adapter", getattr(importlib.import_module(module), function)(context))


def export(rows: Iterable[Row], name: str, losses: Counter[str]) -> Iterator[Record]:
    """Rows as records of the format `name`; `losses` counts by name what it cannot hold.

    Raises RequestError, before any row is read, for a name that is not in `EXPORTS`.
    """
    if name not in WRITERS:
        raise _unknown(name, EXPORTS)
    return export_rows(rows, name, losses)


def _unknown(name: str, names: Sequence[str]) -> RequestError:
    near = difflib.get_close_matches(name, names, 1)
    guess = f"did you mean {near[0]}? " if near else ""
    return RequestError(f"{name!r} is not a format", f"{guess}there are {', '.join(names)}")


def _vote(record: Record, mapped: Mapping[str, str]) -> str:
    names = (mapped["messages"],) if "messages" in mapped else dict.fromkeys((*TURNS, *LISTS))
    for name in names:
        kind = _turn_kind(record.get(name))
        if kind == "texts" and (name in TURNS or name in LISTS or "messages" in mapped):
            return "ultrachat"
        if kind in ("from", "role"):
            if kind == "role" and isinstance(record.get("prompt"), str) and "prompt_id" in record:
                return "ultrachat"
            return "sharegpt" if kind == "from" or name in TURNS[:3] else "messages"
    for name in ("alpaca", "graded", "prompt_completion", "image_caption", "text"):
        present = [column for column, value in record.items() if value is not None]
        if not _missing(name, present, mapped):
            return name
    return ""


def _turn_kind(value: Any) -> str:
    """`from`, `role` or `texts` by the first turn, or "" for what is no list of turns."""
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        try:
            value = orjson.loads(value)
        except ValueError:
            return ""
    if not isinstance(value, list | tuple) or not value:
        return ""
    first = value[0]
    if isinstance(first, str):
        return "texts"
    if not isinstance(first, dict):
        return ""
    if first.get("role") is not None and first.get("from") is None:
        return "role"
    spelled = first.get("from") is not None or {"user", "text"} <= first.keys()
    return "from" if spelled else ""


def _missing(name: str, columns: Sequence[str], mapped: Mapping[str, str]) -> list[str]:
    found: list[str] = []
    for role, names in zip(_ROLES[name], _NEEDS[name], strict=True):
        wanted = (mapped[role],) if role in mapped else names
        if name == "image_caption":
            wanted = (*wanted, *(mapped[other] for other in ("audio", "video", "label") if other in mapped))
        if not any(column in columns for column in wanted):
            found.append(" or ".join(wanted))
    return found
