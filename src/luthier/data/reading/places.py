"""Gives the bytes of a media cell: bytes, a `{bytes, path}` struct, a `data:` address, or a name in a folder.

Knows where media lie and guards the folder; refuses to fetch from the network and to know what the bytes hold.
"""

from __future__ import annotations

import base64
import binascii
import os
import stat
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from luthier.errors import MediaError

if TYPE_CHECKING:
    from luthier.data.building.context import Context

MAX_BYTES = 512 * 2**20
REASONS = ("missing_media", "path_outside_folder", "remote_media", "too_large")
NOTHING = "nothing in the cell"


def media_bytes(value: Any, context: Context) -> bytes:
    """The bytes that a cell holds or names. Raises MediaError with one of `REASONS`.

    A name is looked up in `context.folder` and may not leave it; an absolute one is used only where the user named
    that folder (`context.trusted`) and it is inside.
    """
    if isinstance(value, dict):
        held = value.get("bytes")
        value = held if held is not None else value.get("path") or value.get("url")
    if isinstance(value, bytes | bytearray | memoryview):
        data = bytes(value)
        if len(data) > MAX_BYTES:
            raise _too_large("the cell")
        return data
    if not isinstance(value, str) or not value.strip():
        raise MediaError("missing_media", NOTHING)
    if value[:5].lower() == "data:":
        return _inline(value)
    if "://" in value[:16] and not value.lower().startswith("file:"):
        raise MediaError("remote_media", f"{value[:200]} is not on this machine; media are not fetched")
    path = place_of(value, context)
    context.touched.append(path)
    return _read(path)


def place_of(name: str, context: Context) -> Path:
    """The file that a name means. Raises MediaError (missing_media, path_outside_folder)."""
    if "\0" in name:
        raise MediaError("missing_media", "a NUL character in the name")
    # Normalised by name alone: a hub's cache keeps its files as links that point elsewhere.
    root = os.path.abspath(context.folder)
    full = os.path.normpath(os.path.join(root, name))
    inside = PurePath(full).is_relative_to(root)
    steps_out = ".." in PurePath(name.replace("\\", "/")).parts or PurePath(name).is_absolute()
    if not inside or (steps_out and not context.trusted):
        raise MediaError("path_outside_folder", f"{name[:200]} is not inside {context.folder}; set audio_folder")
    return Path(full)


def _read(path: Path) -> bytes:
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):  # a pipe would be waited for without end
            raise MediaError("missing_media", f"{path}: not a file")
        if about.st_size > MAX_BYTES:
            raise _too_large(str(path))
        return path.read_bytes()
    except OSError as error:
        raise MediaError("missing_media", f"{path}: {error.strerror or error}") from error
    except UnicodeEncodeError as error:
        raise MediaError("missing_media", f"a name that is not valid Unicode: {error.reason}") from error


def _inline(value: str) -> bytes:
    """The bytes of a `data:` address (RFC 2397)."""
    head, comma, body = value.partition(",")
    if len(body) > MAX_BYTES * 4 // 3:
        raise _too_large("a data: address")
    if not comma:
        raise MediaError("missing_media", f"{head[:40]!r} is not a whole data: address")
    if not head.lower().endswith(";base64"):
        return unquote_to_bytes(body)
    try:
        return base64.b64decode("".join(body.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise MediaError("missing_media", f"the base64 of a data: address is broken: {error}") from error


def _too_large(what: str) -> MediaError:
    return MediaError("too_large", f"{what} is larger than {MAX_BYTES >> 20} MiB")
