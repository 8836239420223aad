"""Finds and fetches the files of one split of a hub dataset.

Knows repository layouts and how a hub fails; refuses to know columns and rows. A hub that cannot be
reached is reported within seconds and by name; what it answered is shown without any token.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NoReturn

from luthier.data.reading.folders import PICTURES, SOUNDS, TABLES, VIDEOS, matches, shard_files, split_files
from luthier.data.reading.sniff import named_shape
from luthier.errors import SourceError

if TYPE_CHECKING:
    from luthier.recipe_data import Source

PATIENCE_SECONDS = 12.0
CONVERTED = "refs/convert/parquet"


@dataclass(frozen=True)
class Fetched:
    """Files of a dataset, in order, the folder that relative names begin from, and the commit that they are of."""

    paths: tuple[Path, ...]
    folder: Path
    revision: str


def fetch_split(source: Source) -> Fetched:
    """Download the files of `source.split`.

    Looks for parquet of the split, then for the hub's own parquet conversion (of no pinned revision), then for
    jsonl, csv or json of the split, packed or not, and last for the one table of a dataset that has no splits;
    these are fetched with the media beside them. Raises SourceError naming source, hub id, reason and mend.
    """
    names, commit = list_files(source, source.revision or None)
    found = split_files(names, source.split)
    if found:
        return _download(source, found, commit)
    if not source.revision:
        converted, _ = list_files(source, CONVERTED, optional=True)
        found = sorted(name for name in converted if matches(name, f"default/{source.split}/*.parquet"))
        if found:
            return _download(source, found, CONVERTED)
    for shape in TABLES:
        found = shard_files(names, source.split, shape)
        if found:
            return _download_with_media(source, found, commit)
    alone = [name for name in names if "/" not in name and named_shape(name) in TABLES and not _aside(name)]
    if source.split == "train" and len(alone) == 1:
        return _download_with_media(source, alone, commit)
    listed = ", ".join(sorted(names)[:8]) or "no files"
    fail(
        source,
        f"no parquet, jsonl, json or csv of the split {source.split!r} (it holds {listed})",
        f"set data.sources.{source.name}.split, or ",
    )


def fetch_file(source: Source, dataset: str, name: str, revision: str) -> Fetched:
    """Download one file of a dataset at a revision ("" is the newest)."""
    from huggingface_hub import hf_hub_download

    try:
        path = Path(hf_hub_download(dataset, name, repo_type="dataset", revision=revision or None, etag_timeout=5))
    except Exception as error:  # the client raises a dozen kinds; all of them mean the same to a user
        fail(replace(source, hub=dataset), f"{name}: {reason_of(error)}", cause=error)
    return Fetched((path,), path.parent, _commit(path))


def list_files(source: Source, revision: str | None, optional: bool = False) -> tuple[list[str], str]:
    """Names of all files at a revision, and its commit. A thread bounds the wait: the client times each read apart.

    Raises SourceError; a revision that is not there has no files where it is `optional`.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RevisionNotFoundError

    names: list[str] = []
    commits: list[str] = []
    trouble: list[Exception] = []

    def ask() -> None:
        try:
            # One request without retries: listing by folders retries for half a minute where nothing listens.
            info = HfApi().dataset_info(source.hub, revision=revision, timeout=PATIENCE_SECONDS - 4)
            names.extend(item.rfilename for item in info.siblings or [])
            commits.append(info.sha or revision or "main")
        except Exception as error:  # whatever the client raises becomes a SourceError below
            trouble.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE_SECONDS)
    if thread.is_alive():
        fail(source, f"the hub did not answer in {PATIENCE_SECONDS:g} s")
    if trouble and optional and isinstance(trouble[0], RevisionNotFoundError):
        return [], ""
    if trouble:
        fail(source, reason_of(trouble[0]), cause=trouble[0])
    return names, commits[0]


def _aside(name: str) -> bool:
    """Tables about a dataset, of which every other repository has one."""
    return PurePosixPath(name).name in ("dataset_info.json", "dataset_infos.json", "config.json", "state.json")


def _download(source: Source, names: Sequence[str], revision: str) -> Fetched:
    files = [fetch_file(source, source.hub, name, revision) for name in names]
    commits = {item.revision for item in files}
    if len(commits) > 1:
        fail(source, "it was changed while it was fetched", "run again, or ")
    paths = tuple(item.paths[0] for item in files)
    return Fetched(paths, paths[0].parents[len(PurePosixPath(names[0]).parts) - 1], commits.pop())


def _download_with_media(source: Source, tables: Sequence[str], revision: str) -> Fetched:
    from huggingface_hub import snapshot_download

    wanted = [*tables, *(f"*.{suffix}" for suffix in (*SOUNDS, *VIDEOS, *PICTURES))]
    try:
        root = Path(
            snapshot_download(
                source.hub, repo_type="dataset", revision=revision, allow_patterns=wanted, etag_timeout=5, max_workers=2
            )
        )
    except Exception as error:  # as above
        fail(source, reason_of(error), cause=error)
    paths = tuple(root / name for name in tables)
    return Fetched(paths, paths[0].parent, root.name)


def _commit(path: Path) -> str:
    """The commit in the name of the client's cache: .../snapshots/COMMIT/..."""
    parts = path.parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts else ""


def reason_of(error: Exception) -> str:
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


def fail(source: Source, reason: str, hint: str = "", cause: Exception | None = None) -> NoReturn:
    """Raise the SourceError of a hub dataset, with the mend that always works."""
    at = f" at {source.revision}" if source.revision else ""
    raise SourceError(
        f"source {source.name}: hub dataset {source.hub}{at}: {reason}",
        f"{hint}use a local copy: --set data.sources.{source.name}.path=FILE",
    ) from cause
