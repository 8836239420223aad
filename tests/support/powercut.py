"""What a power cut may leave on a disk: a recording of `support.faults.Disk`, replayed as file systems may.

Only what an fsync of the same file or folder followed is sure to be there; of all else any part may be there, in any
order, and a file's bytes may be cut short or NUL (ALICE, Pillai et al., OSDI 2014). Files and folders are inodes, as
in the system, so that a file's bytes follow it through a rename of the folder it is in.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from support.faults import Operation

Tree = dict[str, bytes | None]
"""Path below a root -> a file's bytes, None for a folder; folders come before what is in them."""


def snapshot(root: Path) -> Tree:
    """Everything below `root`."""
    return {
        str(item.relative_to(root)): item.read_bytes() if item.is_file() else None for item in sorted(root.rglob("*"))
    }


def lay_out(tree: Tree, root: Path) -> None:
    """Make a folder of a snapshot."""
    root.mkdir()
    for name, data in tree.items():
        if data is None:
            (root / name).mkdir()
        else:
            (root / name).write_bytes(data)


def after_power_cut(before: Tree, root: Path, log: list[Operation], tries: int) -> Iterator[Tree]:
    """The trees that a power cut at any moment of a recording may leave, each once.

    Of what is not sure to be there: everything, nothing, names without bytes, bytes without names, and `tries`
    random choices a moment.
    """
    volume, rng = _Volume(before, root, log), random.Random(0)
    whole, lost = (lambda _: "whole"), (lambda _: "lost")
    choices: list[Callable[[_Effect], str]] = [
        whole,
        lost,
        lambda effect: "lost" if effect.file else "whole",
        lambda effect: "whole" if effect.file else "lost",
        *[lambda _: rng.choice(("whole", "lost", "half", "nul"))] * tries,
    ]
    seen = set()
    for moment, choice in itertools.product(range(len(log) + 1), choices):
        tree = volume.cut(moment, choice)
        if (key := tuple(tree.items())) not in seen:
            seen.add(key)
            yield tree


@dataclass
class _Effect:
    """One change: names in folders, as (folder, name, inode or None), or a file's bytes after a write.

    Of the bytes, the first `kept` were there before it.
    """

    number: int
    names: list[tuple[int, str, int | None]] = field(default_factory=list)
    file: int = 0
    data: bytes = b""
    kept: int = 0
    durable_at: int = 1 << 60

    def touches(self, inode: int) -> bool:
        return inode == self.file or any(inode == folder for folder, _, _ in self.names)


class _Volume:
    """Inodes as a recording leaves them when every operation takes effect, and the effects one by one."""

    def __init__(self, before: Tree, root: Path, log: list[Operation]) -> None:
        self.root = root
        self.folders: dict[int, dict[str, int]] = {1: {}}
        self.contents: dict[int, bytes] = {}
        for name, data in before.items():
            folder, last = self._place(root / name)
            self.folders[folder][last] = self._make(data)
        self.start = self._copy()
        self.effects: list[_Effect] = []
        for number, operation in enumerate(log):
            self._do(number, operation)

    def cut(self, moment: int, choice: Callable[[_Effect], str]) -> Tree:
        """What is there when the first `moment` operations were done."""
        folders = {inode: dict(self.start[0].get(inode, {})) for inode in self.folders}
        contents = {inode: self.start[1].get(inode, b"") for inode in self.contents}
        for effect in self.effects:
            if effect.number < moment:
                _apply(effect, folders, contents, "whole" if effect.durable_at < moment else choice(effect))
        tree: Tree = {}
        _walk(1, "", folders, contents, tree)
        return tree

    def _copy(self) -> tuple[dict[int, dict[str, int]], dict[int, bytes]]:
        return {inode: dict(names) for inode, names in self.folders.items()}, dict(self.contents)

    def _make(self, data: bytes | None) -> int:
        inode = 1 + max((*self.folders, *self.contents))
        if data is None:
            self.folders[inode] = {}
        else:
            self.contents[inode] = data
        return inode

    def _find(self, path: Path) -> int:
        inode = 1
        for part in path.relative_to(self.root).parts:
            inode = self.folders[inode][part]
        return inode

    def _place(self, path: Path) -> tuple[int, str]:
        return self._find(path.parent), path.name

    def _do(self, number: int, operation: Operation) -> None:
        kind, path, effect = operation.kind, operation.path, _Effect(number)
        if kind == "fsync":
            inode = self._find(path)
            for earlier in self.effects:
                if earlier.touches(inode):
                    earlier.durable_at = min(earlier.durable_at, number)
            return
        folder, name = self._place(path)
        if kind == "rename":
            to = self._place(operation.more)
            effect.names = [(folder, name, None), (*to, self.folders[folder][name])]
        elif kind in ("unlink", "rmdir"):
            effect.names = [(folder, name, None)]
        elif kind == "mkdir":
            effect.names = [(folder, name, self._make(None))]
        elif kind == "open" and name not in self.folders[folder]:
            effect.names = [(folder, name, self._make(b""))]
        elif kind == "open" and operation.more == "w":
            effect.file = self._find(path)
        elif kind == "write":
            effect.file = self._find(path)
            effect.data = self.contents[effect.file] + operation.more
            effect.kept = len(self.contents[effect.file])
        else:
            return
        self.effects.append(effect)
        _apply(effect, self.folders, self.contents, "whole")


def _apply(effect: _Effect, folders: dict[int, dict[str, int]], contents: dict[int, bytes], how: str) -> None:
    if how == "lost":
        return
    if effect.file:
        old, new = effect.data[: effect.kept], effect.data[effect.kept :]
        contents[effect.file] = old + {"whole": new, "half": new[: len(new) // 2], "nul": bytes(len(new))}[how]
    for folder, name, inode in effect.names:
        if inode is None:
            folders[folder].pop(name, None)
        else:
            folders[folder][name] = inode


def _walk(inode: int, path: str, folders: dict[int, dict[str, int]], contents: dict[int, bytes], tree: Tree) -> None:
    for name, below in sorted(folders[inode].items()):
        place = f"{path}/{name}" if path else name
        tree[place] = contents.get(below)
        if below in folders:
            _walk(below, place, folders, contents, tree)
