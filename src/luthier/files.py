"""The only module that writes durably: whole files and whole folders, or nothing.

A file is written beside its place, flushed to the disk and renamed; a folder is filled under a temporary
name, given a manifest with the sha256 of every file (written last), and renamed. A reader therefore sees
the old thing or the new thing, never half of one, after a kill and after a power cut alike: whatever a rename
makes visible was pushed to the disk before it, and the rename itself after it.
"""

from __future__ import annotations

import errno
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
        _make_folder(path.parent, durable)
        with temporary.open("wb") as stream:
            yield stream
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        temporary.replace(path)
        if durable:
            _sync(path.parent)
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
    """Append one line and push it to the disk, or leave the file as it was.

    A kill may still tear the last line; `read_jsonl` forgives that.
    """
    append_bytes(path, (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode())


def append_bytes(path: Path, data: bytes, keep: int | None = None) -> None:
    """Append bytes and push them to the disk, or leave the file as it was; a kill may leave some of them.

    keep: bytes of the file that stay, where what follows them was torn by a kill.
    """
    try:
        _make_folder(path.parent)
        fresh = not path.exists()
        with path.open("ab", buffering=0) as stream:  # a buffer would be written again on closing
            if keep is not None:
                os.ftruncate(stream.fileno(), keep)
            before = stream.seek(0, os.SEEK_END)
            rest = memoryview(data)
            try:
                while rest:  # a write is of 2 GB at most, and of less on a disk that is almost full
                    rest = rest[stream.write(rest) :]
                os.fsync(stream.fileno())
            except OSError:
                os.ftruncate(stream.fileno(), before)
                raise
        if fresh:
            _sync(path.parent)
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
        _make_folder(path.parent, durable)
        temporary.mkdir()
        yield temporary
        _seal(temporary, about, manifest, durable)
        temporary.rename(path)
        if durable:
            _sync(path.parent)
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


def _seal(folder: Path, about: dict[str, Any], name: str, durable: bool) -> None:
    """Digests of what was written, the files pushed to the disk, and only then the manifest, which is the seal."""
    found = sorted(folder.rglob("*"))
    files = [item for item in found if item.is_file()]
    kind = "sha256" if durable else "xxh3"
    digests = {
        str(item.relative_to(folder)): {kind: _DIGESTS[kind](item), "size": item.stat().st_size} for item in files
    }
    inner = [item for item in reversed(found) if item.is_dir()]
    for item in (*files, *inner) if durable else ():
        _sync(item)
    with (folder / name).open("wb") as stream:
        stream.write(json_text({**about, "files": digests}).encode())
        if durable:
            stream.flush()
            os.fsync(stream.fileno())
    if durable:
        _sync(folder)


def verify_folder(path: Path, name: str = MANIFEST, from_disk: bool = False) -> str | None:
    """Compare a sealed folder with its manifest. None when every byte is there, else what is wrong.

    `from_disk` asks the system to drop its copy in memory first, so that the disk itself is read (Linux). A disk
    that cannot read a file back is an answer too; any other trouble with reading raises DiskError.
    """
    manifest = path / name
    try:
        if not manifest.is_file():
            return f"{name} is missing"
        files = {
            str(file): (about.pop("size"), *about.popitem()) for file, about in read_json(manifest)["files"].items()
        }
        digests = {file: (size, _DIGESTS[kind], digest) for file, (size, kind, digest) in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{name} cannot be read"
    except OSError as error:
        return _unreadable(manifest, error)
    for file, (size, digest_of, digest) in digests.items():
        item = path / file
        try:
            if not item.is_file():
                return f"{file} is missing"
            if from_disk:
                _forget(item)
            if item.stat().st_size != size or digest_of(item) != digest:
                return f"{file} is not what was written"
        except OSError as error:
            return _unreadable(item, error)
    return None


def remove_folder(path: Path) -> None:
    """Remove a sealed folder so that nobody meets half of it: it loses its name first, then its files.

    What a kill leaves of it bears a temporary name, for `remove_leftovers`.
    """
    doomed = path.with_name(f"{_TEMPORARY}{path.name}-{uuid.uuid4().hex[:8]}")
    try:
        path.rename(doomed)
        _sync(path.parent)
    except OSError as error:
        raise _disk_error(path, error, "removed") from error
    shutil.rmtree(doomed, ignore_errors=True)


def move_folder(path: Path, place: Path) -> None:
    """Move a folder durably; what was at `place` is removed."""
    try:
        _make_folder(place.parent)
        if place.exists():
            remove_folder(place)
        path.rename(place)
        _sync(place.parent)
        _sync(path.parent)
    except OSError as error:
        raise _disk_error(path, error, "moved") from error


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
            with suppress(OSError):
                item.unlink()


def free_bytes(folder: Path) -> int:
    """Bytes that can still be written where `folder` is or will be made."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
    return shutil.disk_usage(there).free


def _make_folder(folder: Path, durable: bool = True) -> None:
    """Make a folder and the missing ones above it, each pushed to the disk as an entry of the one above."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    for place in reversed(missing):
        place.mkdir(exist_ok=True)
        if durable:
            _sync(place.parent)
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))


def _sync(path: Path) -> None:
    """Push a file's bytes, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _forget(path: Path) -> None:
    """Drop the system's copy of a file that is on the disk already."""
    if hasattr(os, "posix_fadvise"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _unreadable(path: Path, error: OSError) -> str:
    """The reason where it is the disk that cannot; anything else (rights, too many open files) is raised."""
    if error.errno == errno.EIO:
        return f"{path.name} cannot be read back: {error.strerror}"
    raise DiskError(f"{path}: could not be read: {error.strerror}", "look at who may read it") from error


def _disk_error(path: Path, error: OSError, done: str = "written") -> DiskError:
    return DiskError(
        f"{path}: could not be {done}: {error.strerror or error}",
        "free some space or choose a folder that can be written; nothing half-written is left",
    )
