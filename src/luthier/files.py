"""The only module that writes durably: whole files and whole folders, or nothing.

A file is written beside its place, flushed to the disk and renamed; a folder is filled under a temporary
name, given a manifest with the sha256 of every file (written last), and renamed. A reader therefore sees
the old thing or the new thing, never half of one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from luthier.errors import DiskError, ExistsError, LuthierError

MANIFEST = "MANIFEST.json"
_TEMPORARY = ".tmp-"
_OS_ERROR = re.compile(r"\(os error (\d+)\)")


def sha256_bytes(data: bytes) -> str:
    """Hex digest of some bytes."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex digest of a file, read in blocks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _xxh3_file(path: Path) -> str:
    import xxhash

    digest = xxhash.xxh3_128()
    with path.open("rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()


_DIGESTS = {"sha256": sha256_file, "xxh3": _xxh3_file}


def json_text(value: Any) -> str:
    """JSON with sorted keys; NaN and infinity are refused, as JSON has no word for them."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, indent=1) + "\n"


@contextmanager
def write_atomically(path: Path, durable: bool = True) -> Iterator[IO[bytes]]:
    """A stream whose bytes become `path` when the block ends well, and leave nothing behind when it does not."""
    temporary = path.with_name(f"{_TEMPORARY}{path.name}-{uuid.uuid4().hex[:8]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            yield stream
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        temporary.replace(path)
        if durable:
            _sync_folder(path.parent)
    except OSError as error:
        raise _disk_error(path, error) from error
    finally:
        with suppress(OSError):  # where the folder itself is the trouble there is nothing to remove
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes, durable: bool = True) -> None:
    """Write a whole file: temporary name, fsync, rename, fsync of the folder.

    Without `durable` nothing is pushed to the disk: for caches, which a power cut may tear.
    """
    with write_atomically(path, durable) as stream:
        stream.write(data)


def write_text(path: Path, text: str) -> None:
    """Write a whole UTF-8 file durably."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write one JSON document durably."""
    write_text(path, json_text(value))


def read_json(path: Path) -> Any:
    """Read one JSON document."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write JSON lines durably, all or nothing."""
    lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows]
    write_text(path, "".join(line + "\n" for line in lines))


def append_jsonl(path: Path, row: dict[str, Any]) -> None:
    """Append one line and push it to the disk; a torn last line is what `read_jsonl` forgives."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
    except OSError as error:
        raise _disk_error(path, error) from error


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines; a last line torn by a crash is left out, any other broken line raises."""
    lines = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line.decode()))
        except ValueError:  # not JSON, or a character cut in two
            if number < len(lines) - 1:
                raise
    return rows


@contextmanager
def atomic_folder(path: Path, about: dict[str, Any], manifest: str = MANIFEST, durable: bool = True) -> Iterator[Path]:
    """Fill the yielded temporary folder; on leaving it becomes `path`, sealed by a manifest.

    `about`, as it is on leaving, is kept in the manifest beside the digests. Without `durable` nothing is pushed to
    the disk and the digests are XXH3's: for caches, which are made again when they are torn. Raises ExistsError when
    `path` is there already and DiskError when a write fails; then, and on any other exception, nothing is left behind.
    """
    if path.exists():
        raise ExistsError(f"{path} exists already", "name another folder")
    temporary = path.with_name(f"{_TEMPORARY}{path.name}-{uuid.uuid4().hex[:8]}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        files = sorted(item for item in temporary.rglob("*") if item.is_file())
        kind = "sha256" if durable else "xxh3"
        for item in files if durable else ():
            with item.open("rb") as stream:
                os.fsync(stream.fileno())
        digests = {
            str(item.relative_to(temporary)): {kind: _DIGESTS[kind](item), "size": item.stat().st_size}
            for item in files
        }
        write_json(temporary / manifest, {**about, "files": digests})
        temporary.rename(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise _disk_error(path, error) from error
    except Exception as error:
        # Libraries that write by themselves (safetensors) wrap the system's error in one of their own.
        code = _OS_ERROR.search(str(error))
        if code is None or isinstance(error, LuthierError):
            raise
        raise _disk_error(path, OSError(int(code[1]), os.strerror(int(code[1])))) from error
    finally:
        if temporary.exists():
            shutil.rmtree(temporary, ignore_errors=True)


def verify_folder(path: Path, name: str = MANIFEST) -> str | None:
    """Compare a sealed folder with its manifest. None when every byte is there, else what is wrong."""
    manifest = path / name
    if not manifest.is_file():
        return f"{name} is missing"
    try:
        files = {
            str(file): (about.pop("size"), *about.popitem()) for file, about in read_json(manifest)["files"].items()
        }
        digests = {file: (size, _DIGESTS[kind], digest) for file, (size, kind, digest) in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{name} cannot be read"
    for file, (size, digest_of, digest) in digests.items():
        item = path / file
        if not item.is_file():
            return f"{file} is missing"
        if item.stat().st_size != size or digest_of(item) != digest:
            return f"{file} is not what was written"
    return None


def remove_leftovers(folder: Path, name: str = "", seconds: float = 0.0) -> None:
    """Remove temporary files and folders that a killed process left in `folder`: for `name`, and unchanged so long.

    Where others may be at work in the same folder, `seconds` keeps their unfinished work.
    """
    for item in folder.glob(f"{_TEMPORARY}{name}*"):
        with suppress(OSError):  # gone meanwhile
            if time.time() - item.stat().st_mtime < seconds:
                continue
        if item.is_dir():
            shutil.rmtree(item, ignore_errors=True)
        else:
            item.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _disk_error(path: Path, error: OSError) -> DiskError:
    return DiskError(
        f"{path}: could not be written: {error.strerror or error}",
        "free some space or choose a folder that can be written; nothing half-written is left",
    )
