"""The pictures, sound and videos of an exam's record: which cells hold them, and their bytes, checked within bounds.

Knows columns (`image`, `images`, `image_1`, `image_path`, `audio`, parts under `media`) and base64; refuses to know
questions and options.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, cast

from luthier.data.building.context import Context
from luthier.data.media import load_audio
from luthier.data.pictures import check_picture
from luthier.data.reading.lines import Record
from luthier.data.reading.places import media_bytes
from luthier.data.shapes.asked import written_list
from luthier.data.video import check_video
from luthier.schema import PartType

_COLUMN = re.compile(r"(image|audio|video)s?(?:_?\d+)?")
_BESIDE = re.compile(r"(image|audio|video)_path")
_LEAST_BASE64 = 64


def media_cells(record: Record) -> list[tuple[PartType, Any]]:
    """(kind, cell) for every medium of a record: pictures, then sound, then video, each in the columns' order."""
    found = _under(record, _COLUMN) or _under(record, _BESIDE)
    parts = record.get("media")
    for part in parts if isinstance(parts, list) else []:
        if isinstance(part, Mapping) and part.get("type") in ("image", "audio", "video"):
            found.append((part["type"], part.get("media")))
    order = ("image", "audio", "video")
    return sorted(found, key=lambda one: order.index(one[0]))


def media_data(cell: Any, context: Context) -> bytes:
    """A cell's bytes: bytes, a `{bytes, path}` struct, base64, a `data:` address, or a name in the exam's folder.

    Raises MediaError (missing_media, path_outside_folder, remote_media, too_large).
    """
    if isinstance(cell, Mapping) and cell.get("bytes") is not None:
        cell = cell["bytes"]
    if isinstance(cell, str) and cell.startswith("sha256:"):
        cell = f"media/{cell[7:]}"
    if isinstance(cell, str) and len(cell) >= _LEAST_BASE64 and "." not in cell and cell[:5].lower() != "data:":
        with suppress(binascii.Error, ValueError):  # then it is the name of a file
            cell = base64.b64decode("".join(cell.split()), validate=True)
    return media_bytes(cell, context)


def check_medium(kind: PartType, data: bytes, context: Context) -> None:
    """Decode a medium once, within `context.limits`. Raises MediaError."""
    if kind == "image":
        check_picture(data, context.limits)
    elif kind == "audio":
        load_audio(data, context.limits)
    else:
        check_video(data, context.limits)


def _under(record: Record, names: re.Pattern[str]) -> list[tuple[PartType, Any]]:
    found: list[tuple[PartType, Any]] = []
    for name, value in record.items():
        match = names.fullmatch(str(name))
        if match is None:
            continue
        if isinstance(value, str):
            value = written_list(value)
        for cell in value if isinstance(value, list | tuple) else [value]:
            if not _is_empty(cell):
                found.append((cast(PartType, match[1]), cell))
    return found


def _is_empty(cell: Any) -> bool:
    if isinstance(cell, Mapping):
        return not any(cell.get(key) for key in ("bytes", "path", "url"))
    return cell is None or cell in ("", b"")
