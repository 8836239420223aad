"""Finds and fetches the files of one split of a hub dataset.

Knows repository layouts and how a hub fails; refuses to know columns and rows. A hub that cannot be
reached is reported within seconds and by name; what it answered is shown without any token.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NoReturn

from luthier.errors import SourceError

if TYPE_CHECKING:
    from luthier.recipe import Source

PATIENCE_SECONDS = 12.0
CONVERTED = "refs/convert/parquet"
SOUND_SUFFIXES = ("wav", "flac", "ogg", "opus", "mp3", "m4a", "webm", "aiff", "aac")


def split_files(names: Sequence[str], split: str) -> list[str]:
    """The parquet files of a split among a repository's file names, by the first layout that has any."""
    layouts = (
        f"data/{split}-*.parquet",
        f"{split}/*.parquet",
        f"{split}.parquet",
        f"{split}-*.parquet",
        f"{split}*.parquet",
    )
    for layout in layouts:
        found = sorted(name for name in names if _matches(name, layout))
        if found:
            return found
    return []


def fetch_split(source: Source) -> tuple[list[Path], Path]:
    """Download the files of `source.split`; returns them, in order, and the folder their paths start from.

    Looks for parquet of the split, then for the hub's own parquet conversion, then for a jsonl or csv of the
    split's name, which is fetched with the recordings beside it. Raises SourceError naming source, hub id,
    reason and mend.
    """
    revision = source.revision or None
    names = _list_files(source, revision)
    found = split_files(names, source.split)
    if found:
        return _download(source, found, revision)
    if revision is None:
        converted = _list_files(source, CONVERTED, optional=True)
        found = sorted(name for name in converted if _matches(name, f"default/{source.split}/*.parquet"))
        if found:
            return _download(source, found, CONVERTED)
    tables = [
        name
        for suffix in ("jsonl", "csv")
        for name in sorted(names)
        if name in (f"{source.split}.{suffix}", f"data/{source.split}.{suffix}")
    ]
    if tables:
        return _download_with_sound(source, tables[0], revision)
    listed = ", ".join(sorted(names)[:8]) or "no files"
    _fail(
        source,
        f"no parquet, jsonl or csv of the split {source.split!r} (it holds {listed})",
        f"set data.sources.{source.name}.split, or ",
    )


def _matches(name: str, layout: str) -> bool:
    # PurePath.match looks from the right: the depth has to agree too.
    path = PurePosixPath(name)
    return len(path.parts) == layout.count("/") + 1 and path.match(layout)


def _list_files(source: Source, revision: str | None, optional: bool = False) -> list[str]:
    """Names of all files at a revision. A thread bounds the wait: the client times each read apart."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RevisionNotFoundError

    names: list[str] = []
    trouble: list[Exception] = []

    def ask() -> None:
        try:
            # One request without retries: listing by folders retries for half a minute where nothing listens.
            info = HfApi().dataset_info(source.hub, revision=revision, timeout=PATIENCE_SECONDS - 4)
            names.extend(item.rfilename for item in info.siblings or [])
        except Exception as error:  # whatever the client raises becomes a SourceError below
            trouble.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE_SECONDS)
    if thread.is_alive():
        _fail(source, f"the hub did not answer in {PATIENCE_SECONDS:g} s")
    if trouble and optional and isinstance(trouble[0], RevisionNotFoundError):
        return []
    if trouble:
        _fail(source, _reason(trouble[0]), cause=trouble[0])
    return names


def _download(source: Source, names: Sequence[str], revision: str | None) -> tuple[list[Path], Path]:
    from huggingface_hub import hf_hub_download

    paths: list[Path] = []
    for name in names:
        try:
            paths.append(
                Path(hf_hub_download(source.hub, name, repo_type="dataset", revision=revision, etag_timeout=5))
            )
        except Exception as error:  # the client raises a dozen kinds; all of them mean the same to a user
            _fail(source, f"{name}: {_reason(error)}", cause=error)
    depth = len(PurePosixPath(names[0]).parts)
    return paths, paths[0].parents[depth - 1]


def _download_with_sound(source: Source, table: str, revision: str | None) -> tuple[list[Path], Path]:
    from huggingface_hub import snapshot_download

    wanted = [table, *(f"*.{suffix}" for suffix in SOUND_SUFFIXES)]
    try:
        root = Path(
            snapshot_download(
                source.hub, repo_type="dataset", revision=revision, allow_patterns=wanted, etag_timeout=5, max_workers=2
            )
        )
    except Exception as error:  # as above
        _fail(source, _reason(error), cause=error)
    return [root / table], (root / table).parent


def _reason(error: Exception) -> str:
    """What happened, in one line and without a token."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, GatedRepoError):
        return "access has to be asked for on the hub, and a token set (HF_TOKEN)"
    if isinstance(error, RepositoryNotFoundError):
        return "no such dataset, or a private one and no token for it (HF_TOKEN)"
    if isinstance(error, RevisionNotFoundError):
        return "no such revision"
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {re.sub(r'hf_[A-Za-z0-9]{4,}', 'hf_***', lines[0])[:200]}"


def _fail(source: Source, reason: str, hint: str = "", cause: Exception | None = None) -> NoReturn:
    at = f" at {source.revision}" if source.revision else ""
    raise SourceError(
        f"source {source.name}: hub dataset {source.hub}{at}: {reason}",
        f"{hint}use a local copy: --set data.sources.{source.name}.path=FILE",
    ) from cause
