"""A disk that breaks on order.

`Disk` stands before every call by which Python changes a folder (open to write, write, fsync, rename, mkdir, unlink,
rmdir, truncate; safetensors' own writer as an open and a write), counts those below one folder, and breaks one of
them. Its log is what `support.powercut` replays.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import safetensors
import safetensors.torch

TAKES_ROOM = ("open", "write", "mkdir")


@dataclass
class Operation:
    """One change: what was done to which path; a rename's other path, or a write's bytes."""

    kind: str
    path: Path
    more: Any = None


@dataclass
class Disk:
    """The operations below `root`; number `at` breaks as `how` says: kill, short, ENOSPC or EIO."""

    root: Path
    at: int = -1
    how: str = ""
    log: list[Operation] = field(default_factory=list)

    def touch(self, kind: str, path: Any, more: Any = None) -> None:
        """Count one operation, and break it when it is its turn. A full disk stays full."""
        path = Path(path).absolute()
        if not path.is_relative_to(self.root):
            return
        number = len(self.log)
        self.log.append(Operation(kind, path, more))
        if number == self.at and self.how in ("kill", "short"):
            os.kill(os.getpid(), signal.SIGKILL)
        full = self.how == "ENOSPC" and 0 <= self.at < number and kind in TAKES_ROOM
        if number == self.at or full:
            code = getattr(errno, self.how)
            raise OSError(code, os.strerror(code), str(path))

    def torn(self) -> bool:
        """Whether the next write is to be cut short."""
        return self.how == "short" and len(self.log) == self.at

    @contextmanager
    def watched(self) -> Iterator[Disk]:
        """Stand before the calls while the block runs."""
        real = {name: getattr(os, name) for name in ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir")}

        def where(path: Any, dir_fd: int | None) -> Path:
            return Path(path) if dir_fd is None else Path(os.readlink(f"/proc/self/fd/{dir_fd}")) / path

        def fsync(descriptor: int) -> None:
            self.touch("fsync", os.readlink(f"/proc/self/fd/{descriptor}"))
            real["fsync"](descriptor)

        def rename(path: Any, to: Any, **more: Any) -> None:
            self.touch("rename", path, Path(to).absolute())
            real["rename"](path, to, **more)

        def named(kind: str) -> Callable[..., None]:
            def call(path: Any, *rest: Any, dir_fd: int | None = None, **more: Any) -> None:
                self.touch(kind, where(path, dir_fd))
                real[kind](path, *rest, **({} if dir_fd is None else {"dir_fd": dir_fd}), **more)

            return call

        writers = {kind: named(kind) for kind in ("mkdir", "unlink", "rmdir")}
        with (
            mock.patch.multiple(os, fsync=fsync, rename=rename, replace=rename, **writers),
            mock.patch.object(io, "open", self._open(io.open)),
            mock.patch.object(builtins, "open", self._open(io.open)),
            mock.patch.object(safetensors.torch, "serialize_file", self._serialize_file),
        ):
            yield self

    def _open(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **more: Any) -> Any:
            if not set(mode) & set("wax+") or not isinstance(file, str | Path):
                return real(file, mode, buffering, *rest, **more)
            self.touch("open", file, "".join(sorted(set(mode) & set("wax"))))
            raw = _Raw(self, file, mode.replace("b", "").replace("t", ""))
            if buffering == 0:
                return raw
            stream = io.BufferedWriter(raw)
            return stream if "b" in mode else io.TextIOWrapper(stream, *rest, **more)

        return call

    def _serialize_file(self, tensors: Any, name: str, metadata: Any = None) -> None:
        """What safetensors does in Rust, where a test cannot stand between; it hides the system's error likewise."""
        data = bytes(safetensors.serialize(tensors, metadata=metadata))
        try:
            with open(name, "wb") as stream:
                stream.write(data)
        except OSError as error:
            raise safetensors.SafetensorError(f"I/O error: {error.strerror} (os error {error.errno})") from error


class _Raw(io.FileIO):
    """A file whose writes are counted."""

    def __init__(self, disk: Disk, path: Any, mode: str) -> None:
        super().__init__(path, mode)
        self.disk, self.path = disk, path

    def write(self, data: Any) -> int:
        data = bytes(data)
        if self.disk.torn():
            super().write(data[: len(data) // 2])
        self.disk.touch("write", self.path, data)
        return super().write(data) or 0

    def truncate(self, size: int | None = None) -> int:
        self.disk.touch("truncate", self.path, size)
        return super().truncate(size)


def in_child(work: Callable[[], int]) -> int | None:
    """Do work in a forked process. Returns what it returned, 1 where it raised, None where it was killed."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            code = work()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return None if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)
