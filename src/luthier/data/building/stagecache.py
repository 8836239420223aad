"""Keeps finished stages of a build, each under the hash of everything that it was made from.

Knows folders, keys and when a kept stage may be used again; refuses to know what a stage holds. A key covers the
settings, the bytes of the source's files and the code that made the stage, so a changed file, parameter or function
makes another key, and nothing stale is ever used.
"""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from luthier import files, schema
from luthier.errors import DiskError, ExistsError

_ABANDONED = 24 * 3600.0
"""Unfinished work that nobody has touched for so long was left by a killed process."""
Touched = list[tuple[str, int, int]]
"""(path, size, mtime in ns) of media files that were read one by one."""
TOUCHED = "touched.json"


def default_cache() -> Path:
    """`$LUTHIER_CACHE/stages`, or stages under the user's cache folder."""
    named = os.environ.get("LUTHIER_CACHE")
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(named) / "stages" if named else Path(home) / "luthier" / "stages"


@functools.cache
def code_digest() -> str:
    """sha256 over the source of this package's data floor: any edit of it makes kept stages stale."""
    own = [*sorted(Path(__file__).parents[1].rglob("*.py")), Path(schema.__file__)]
    return files.sha256_bytes(b"".join(path.name.encode() + b"\0" + path.read_bytes() for path in own))


def stage_key(made_from: dict[str, Any]) -> str:
    """The name of a stage: sha256 of what it is made from, the code included."""
    return files.sha256_bytes(files.json_text({**made_from, "luthier": code_digest()}).encode())[:32]


def touch(paths: Iterable[Path]) -> Touched:
    """Size and time of files as they are now; a file that is gone has size -1."""
    found: Touched = []
    for path in sorted(set(paths)):
        try:
            about = path.stat()
            found.append((str(path), about.st_size, about.st_mtime_ns))
        except OSError:
            found.append((str(path), -1, 0))
    return found


def untouched(folder: Path) -> bool:
    """Whether the media files that the stage or table in `folder` was read from are as they were."""
    listing = folder / TOUCHED
    if not listing.is_file():
        return True
    before = [(path, size, time) for path, size, time in files.read_json(listing)]
    return touch(Path(path) for path, _, _ in before) == before


class StageCache:
    """Stages in a folder; without one, in a temporary folder beside the table, which `close` removes."""

    def __init__(self, root: Path | None, beside: Path) -> None:
        self._temporary = root is None
        if root is not None and root.is_dir():
            files.remove_leftovers(root, seconds=_ABANDONED)
        if root is None:
            beside.mkdir(parents=True, exist_ok=True)
            root = Path(tempfile.mkdtemp(prefix=".tmp-stages-", dir=beside))
        self.root = root

    def find(self, key: str) -> Path | None:
        """A kept stage that is whole and whose media have not changed; one that is not is removed."""
        folder = self.root / key
        if not folder.is_dir():
            return None
        if untouched(folder) and files.verify_folder(folder) is None:
            return folder
        shutil.rmtree(folder, ignore_errors=True)
        return None

    @contextmanager
    def make(self, key: str, about: dict[str, Any]) -> Iterator[Path]:
        """Fill the yielded folder; it is kept under `key` when the block ends well."""
        begun = False
        try:
            with files.atomic_folder(self.root / key, about, durable=False) as place:
                begun = True
                yield place
        except (ExistsError, DiskError):
            # Another build may have made the same stage meanwhile, equal by its key: renaming onto it is refused.
            if self.find(key) is None:
                raise
            if not begun:  # it came between the caller's look and now; what the caller fills is thrown away
                with tempfile.TemporaryDirectory(prefix=".tmp-spare-", dir=self.root) as spare:
                    yield Path(spare)

    def close(self) -> None:
        """Remove stages that nobody asked to keep."""
        if self._temporary:
            shutil.rmtree(self.root, ignore_errors=True)
