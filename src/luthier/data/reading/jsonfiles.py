"""Reads JSON lines and JSON lists; every line that is not one sound object is named with its reason.

Knows JSON and its traps (two objects on a line, keys given twice, NaN); refuses to know what the objects mean.
orjson reads a line; only one that it refuses, that may hold a key twice, or whose integers it may have made floats,
is read again with care.
"""

from __future__ import annotations

import codecs
import json
import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from luthier.data import exactjson
from luthier.data.reading.lines import Broken, Malformed, Record, numbered_lines, opened, text_of
from luthier.data.reading.sniff import Shape, wide_encoding

MAX_JSON = 2**30
MAX_PACKED = 2**28
"""The same for a packed list, unpacked: a few bytes may hold gigabytes."""
_DEPTH = 200
_TRIES = 16


def json_lines(path: Path, shape: Shape) -> Iterator[tuple[int, Record | Broken]]:
    """(line number, object) for every line that is not blank."""
    loads, dumps = orjson.loads, orjson.dumps
    misses = 0
    for number, line in numbered_lines(path, shape):
        if isinstance(line, Broken):
            yield number, Broken(line.reason, f"line {number}: {line.detail}")
            continue
        if line.isspace():
            continue
        try:
            row = loads(line)
        except orjson.JSONDecodeError as error:
            yield number, _careful(line, number, str(error))
            continue
        if type(row) is not dict:
            yield number, Broken("not_an_object", f"line {number}: {_kind(row)} in place of an object")
            continue
        # orjson keeps the last of two equal keys without a word. A line that is spelled as orjson would spell it
        # has none, and no integer that became a float. For any other the quotes are counted (there are two for each
        # key and each text), and large floats are looked for.
        try:
            if misses < _TRIES:
                if dumps(row) == line.rstrip():
                    misses = 0
                    yield number, row
                    continue
                misses += 1
            doubled = _doubled(line) if _quotes(row) != line.count(b'"') else None
            if exactjson.may_be_inexact(row):
                row = exactjson.again(line)
        except (orjson.JSONEncodeError, orjson.JSONDecodeError, RecursionError):
            yield number, Broken("too_deep", f"line {number}: nested more than {_DEPTH} levels deep")
            continue
        if doubled is not None:
            yield number, Broken("duplicate_key", f"line {number}: the key {doubled[:60]!r} is there twice")
        else:
            yield number, row


def json_list(path: Path, shape: Shape) -> Iterator[tuple[int, Record | Broken]]:
    """(element number from 1, object) of a list, or of the one list in an object; many a .json holds lines.

    Raises Malformed for what is neither, and for a file over `MAX_JSON`: a list is held in memory as a whole.
    """
    if _holds_lines(path, shape):
        yield from json_lines(path, shape)
        return
    value = _whole(path, shape)
    if isinstance(value, dict):
        lists = [item for item in value.values() if isinstance(item, list)]
        value = lists[0] if len(lists) == 1 else None
    if not isinstance(value, list):
        raise Malformed("neither a list of objects nor an object that holds one list")
    for number, row in enumerate(value, start=1):
        if not isinstance(row, dict):
            yield number, Broken("not_an_object", f"element {number}: {_kind(row)} in place of an object")
            continue
        trouble = _trouble(row) if isinstance(row, _Checked) else None
        if trouble is not None:
            yield number, Broken(trouble.reason, f"element {number}: {trouble.detail}")
        else:
            yield number, json.loads(json.dumps(row)) if isinstance(row, _Checked) else row


class _Checked(dict[str, Any]):
    """An object read with care; `doubled` is a key that it holds twice."""

    doubled: str | None = None

    @classmethod
    def of(cls, pairs: list[tuple[str, Any]]) -> _Checked:
        made = cls(pairs)
        if len(made) < len(pairs):
            seen: set[str] = set()
            made.doubled = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        return made


def _holds_lines(path: Path, shape: Shape) -> bool:
    """Whether a file holds one object per line: its first line is an object by itself and there are others.

    Where the first line is broken, most of the first hundred lines have to be objects.
    """
    lines = (item for _, item in numbered_lines(path, shape) if isinstance(item, Broken) or item.strip())
    head = list(islice(lines, 2))
    if len(head) < 2 or (isinstance(head[0], bytes) and head[0].lstrip()[:1] != b"{"):
        return False
    if _is_object(head[0]):
        return True
    if isinstance(head[0], bytes) and head[0].strip() == b"{":
        return False
    sample = [*head, *islice(lines, 98)]
    return 2 * sum(map(_is_object, sample)) >= len(sample)


def _is_object(line: bytes | Broken) -> bool:
    try:
        return isinstance(line, bytes) and isinstance(orjson.loads(line), dict)
    except orjson.JSONDecodeError:
        return False


def _whole(path: Path, shape: Shape) -> Any:
    """A whole file, parsed. Objects are `_Checked` where the fast reading would have lost something."""
    most = MAX_PACKED if shape.packing else MAX_JSON
    size = 0 if shape.packing else path.stat().st_size
    data = b""
    if size <= most:
        with opened(path, shape) as stream:
            data = stream.read(most + 1)
    if max(size, len(data)) > most:
        raise Malformed(f"larger than {most >> 20} MiB, and a list is read as a whole (write JSON lines, .jsonl)")
    if not data.strip():
        return []
    try:
        encoding = wide_encoding(data)
        data = data.decode(encoding).encode() if encoding else data.removeprefix(codecs.BOM_UTF8)
        value = orjson.loads(data)
        if not isinstance(value, dict | list) or _quotes(value) == data.count(b'"'):
            return exactjson.again(data) if exactjson.may_be_inexact(value) else value
    except orjson.JSONDecodeError:
        pass  # the careful reading below says why, or finds that only some elements are broken
    except UnicodeError as error:
        raise Malformed(f"not {encoding}: {error}") from error
    except RecursionError as error:
        raise Malformed(f"nested more than {_DEPTH} levels deep") from error
    try:
        return json.loads(data.decode(), object_pairs_hook=_Checked.of)
    except RecursionError as error:
        raise Malformed(f"nested more than {_DEPTH} levels deep") from error
    except UnicodeError as error:
        raise Malformed(f"not UTF-8: {error}") from error
    except ValueError as error:
        raise Malformed(str(error)) from error


def _careful(line: bytes, number: int, said: str) -> Broken:
    """Why a line is not one sound object, as exactly as can be told."""
    where = f"line {number}"
    text = text_of(line)
    torn = not line.endswith(b"\n")
    if isinstance(text, Broken):
        if torn and text.reason == "not_utf8":
            return Broken("truncated_line", f"{where}: the file ends within it")
        return Broken(text.reason, f"{where}: {text.detail}")
    try:
        value, end = json.JSONDecoder(object_pairs_hook=_Checked.of).raw_decode(text.lstrip())
    except RecursionError:
        return Broken("too_deep", f"{where}: nested more than {_DEPTH} levels deep")
    except ValueError as error:
        if torn:
            return Broken("truncated_line", f"{where}: the file ends within it ({error})")
        return Broken("broken_line", f"{where}: {error}")
    rest = text.lstrip()[end:].strip()
    if rest:
        two = rest.lstrip(", ").startswith("{") and isinstance(value, dict)
        return Broken("two_objects" if two else "broken_line", f"{where}: more after its end: {rest[:40]!r}")
    if "limit" in said or "recursion" in said:
        return Broken("too_deep", f"{where}: nested more than {_DEPTH} levels deep")
    trouble = _trouble(value) if isinstance(value, dict) else None
    return (
        Broken(trouble.reason, f"{where}: {trouble.detail}") if trouble else Broken("broken_line", f"{where}: {said}")
    )


def _trouble(row: Record) -> Broken | None:
    """A key given twice, a number that is none, or half a character, anywhere in an object."""
    waiting: list[Any] = [row]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if isinstance(value, _Checked) and value.doubled is not None:
                return Broken("duplicate_key", f"the key {value.doubled[:60]!r} is there twice")
            waiting += [*value, *value.values()]
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, float) and not math.isfinite(value):
            return Broken("not_finite", f"the number {value}")
        elif isinstance(value, str) and not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                return Broken("not_utf8", f"half a character (a lone surrogate): {error.reason}")
    return None


def _doubled(line: bytes) -> str | None:
    """A key that some object of the line holds twice."""
    waiting: list[Any] = [json.loads(line, object_pairs_hook=_Checked.of)]
    while waiting:
        value = waiting.pop()
        if isinstance(value, _Checked):
            if value.doubled is not None:
                return value.doubled
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return None


def _quotes(value: Record | list[Any], levels: int = _DEPTH) -> int:
    """Quotes that a value's JSON has: two for each key and text, and those within texts (keys' own are left out).

    Raises RecursionError for a value nested more deeply than `levels`.
    """
    if not levels:
        raise RecursionError
    if isinstance(value, dict):
        count, items = 2 * len(value), value.values()
    else:
        count, items = 0, value  # type: ignore[assignment]
    for item in items:
        kind = type(item)
        if kind is str:
            count += 2 + item.count('"')
        elif kind is dict or kind is list:
            count += _quotes(item, levels - 1)
    return count


def _kind(value: object) -> str:
    names = {list: "a list", str: "a text", int: "a number", float: "a number", bool: "true or false"}
    return names.get(type(value), "null")
