"""Fetches the file behind an address (`hf://`, `s3://`, anything fsspec opens) once, into a local cache.

Knows addresses and the cache; refuses to know what is in a file. Plain web addresses are refused: whoever writes a
recipe could have this machine ask hosts that only it can reach.
"""

from __future__ import annotations

import os
import re
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.data.reading.hubfiles import Fetched, fetch_file
from luthier.errors import SourceError
from luthier.files import sha256_bytes

if TYPE_CHECKING:
    from luthier.recipe_data import Source

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*(://|::)")
_HUB = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@([^/]+))?/(.+)")
_REFUSED = ("http", "https", "ftp", "webhdfs", "jupyter", "jlab", "reference", "dask", "dav", "webdav")


def is_address(path: str) -> bool:
    """Whether a source's path names a place that is not on this machine's disk."""
    return bool(_ADDRESS.match(path)) and not path.startswith("file://")


def fetch(source: Source) -> Fetched:
    """The local copy of the file at `source.path`, and for the hub its commit. Raises SourceError."""
    address, mend = source.path, f"fetch the file yourself and --set data.sources.{source.name}.path=FILE"
    shown = re.sub(r"//[^/@]*:[^/@]*@", "//***@", address)
    scheme = address.partition("://")[0].lower()
    if scheme in _REFUSED or "::" in address:
        raise SourceError(f"source {source.name}: {shown}: {scheme} addresses are not fetched", mend)
    if scheme == "hf":
        found = _HUB.fullmatch(address)
        if not found:
            raise SourceError(
                f"source {source.name}: {shown} names no file of a dataset",
                f"hf://datasets/ORG/NAME@REVISION/FILE, or data.sources.{source.name}.hub=ORG/NAME for a whole split",
            )
        dataset, revision, name = found.groups()
        return fetch_file(source, dataset, name, revision or source.revision)
    import fsspec

    try:
        system, name = fsspec.core.url_to_fs(address)
        info = system.info(name)
        if info.get("type") == "directory":
            raise IsADirectoryError("it is a folder; one file is needed")
        path = _cached(address, system.ukey(name), str(name))
        if not path.is_file():
            _get(system, name, path)
    except ImportError as error:
        raise SourceError(f"source {source.name}: {shown}: {error}", f"pip install what it names, or {mend}") from error
    except Exception as error:  # each file system raises what its client raises
        said = (str(error).splitlines() or [""])[0][:200].replace(address, shown)
        raise SourceError(f"source {source.name}: {shown}: {type(error).__name__}: {said}", mend) from error
    return Fetched((path,), path.parent, "")


def _cached(address: str, version: str, name: str) -> Path:
    """Where the copy lies: the folder is a hash of the address and of what the far side calls the file's version."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "luthier" / "fetched"
    return home / sha256_bytes(f"{address}\n{version}".encode())[:32] / (name.rstrip("/").rsplit("/", 1)[-1] or "file")


def _get(system: object, name: str, path: Path) -> None:
    """Fetch under a temporary name, so that a copy is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".part-{uuid.uuid4().hex[:8]}")
    try:
        system.get_file(name, str(part))  # type: ignore[attr-defined]
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
