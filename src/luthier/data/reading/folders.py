"""Says which files of a folder are a source's rows: a table with its media, shards, texts, or the media themselves.

Knows names and folders; refuses to open a file. Names that begin with a dot are passed over, as are files of
another split, so that a test set beside the training set is never read for it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from luthier.data.reading.sniff import named_shape, suffixes

SOUNDS = ("wav", "flac", "ogg", "opus", "mp3", "m4a", "webm", "aiff", "aac")
VIDEOS = ("mp4", "m4v", "mov", "mkv", "avi", "mpg", "mpeg", "ts", "flv", "ogv")
"""webm stands among the sounds, as it mostly is one here; a column named `video` says otherwise."""
PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
TABLES = ("parquet", "jsonl", "csv", "json")
_METADATA = re.compile(r"metadata\.(csv|jsonl|parquet)(\.gz|\.zst)?")
_SPLITS = ("train", "test", "validation", "valid", "val", "dev", "eval")
_ASIDE = re.compile(r"(readme|license|licence|notice|changelog|dataset_infos?|state|config)\b.*", re.IGNORECASE)


@dataclass(frozen=True)
class Found:
    """What a folder holds: `files` to read, or `media` names (relative, with "/") in their order.

    `labelled`: the folder that a medium lies in is its label. `root` is where relative names begin.
    """

    root: Path
    files: tuple[Path, ...] = ()
    media: tuple[str, ...] = ()
    labelled: bool = False
    about: str = ""


class Nothing(ValueError):
    """A folder in which the rows cannot be told; the text lists what is there."""


def find_rows(folder: Path, split: str, corpus: bool = False) -> Found:
    """What to read in a folder. Raises Nothing where there is no table, or where it is not clear which one.

    `corpus`: texts are looked for, which lie in text files and in JSON lines, at any depth and side by side.
    """
    names = _names(folder)
    top = [name for name in names if "/" not in name]
    metadata = [name for name in top if _METADATA.fullmatch(name)]
    if metadata:
        kinds = _media_kinds(names)
        return Found(folder, (folder / metadata[0],), about=f"folder of {kinds} with {metadata[0]}" if kinds else "")
    texts = [name for shape in ("jsonl", "text") for name in _unsplit(names, split, shape)] if corpus else []
    if texts:
        return Found(folder, tuple(folder / name for name in texts))
    shards = {shape: found for shape in TABLES if (found := shard_files(names, split, shape))}
    if not shards:
        shards = {shape: found for shape in TABLES if (found := _unsplit(top, split, shape))}
    if len(shards) == 1 or "parquet" in shards:  # what was converted lies beside it in other shapes
        return Found(folder, tuple(folder / name for name in next(iter(shards.values()))))
    if shards:
        raise Nothing(f"there are tables of {len(shards)} shapes: {_listed([n for f in shards.values() for n in f])}")
    media = [name for name in names if _is_media(name)]
    if media:
        return _media_folder(folder, media, split)
    texts = _unsplit(top, split, "text")
    if texts:
        return Found(folder, tuple(folder / name for name in texts))
    raise Nothing(f"there is no table, text or media of the split {split!r} (it holds {_listed(names)})")


def readable_files(folder: Path) -> list[Path]:
    """All tables and texts below a folder, of whatever split, less those that tell of the others (README and such)."""
    names = [name for name in _names(folder) if named_shape(name) and not _aside(name)]
    return [folder / name for name in names]


def split_files(names: Sequence[str], split: str, suffix: str = "parquet") -> list[str]:
    """The files of a split among a repository's file names, by the first layout that has any."""
    layouts = (
        f"data/{split}-*.{suffix}",
        f"{split}/*.{suffix}",
        f"{split}.{suffix}",
        f"data/{split}.{suffix}",
        f"{split}-*.{suffix}",
        f"{split}*.{suffix}",
    )
    for layout in layouts:
        found = sorted(name for name in names if matches(name, layout))
        if found:
            return found
    return []


def shard_files(names: Sequence[str], split: str, shape: str) -> list[str]:
    """The files of a split and a shape (parquet, jsonl, csv, json), packed or not, by the first suffix that has any."""
    for ending in _endings(shape):
        found = split_files(names, split, ending)
        if found:
            return found
    return []


def matches(name: str, layout: str) -> bool:
    """Whether a repository's file name has a layout, depth included (PurePath.match looks from the right)."""
    path = PurePosixPath(name)
    return len(path.parts) == layout.count("/") + 1 and path.match(layout)


def _endings(shape: str) -> list[str]:
    plain = {"parquet": ["parquet"], "jsonl": ["jsonl", "ndjson"], "csv": ["csv", "tsv"], "json": ["json"]}[shape]
    return plain if shape == "parquet" else [f"{one}{packing}" for one in plain for packing in ("", ".gz", ".zst")]


def _names(folder: Path) -> list[str]:
    """All file names below a folder, sorted; links to folders are not followed."""
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        start = Path(place).relative_to(folder)
        found += [(start / name).as_posix() for name in files if not name.startswith(".")]
    return sorted(found)


def _unsplit(names: Sequence[str], split: str, shape: str) -> list[str]:
    """Files of a shape whose names, and those of their folders, do not say that they are of another split."""
    return [
        name
        for name in names
        if named_shape(name) == shape
        and not _aside(name)
        and all(_split_of(part) in ("", split) for part in PurePosixPath(name).parts)
    ]


def _aside(name: str) -> bool:
    return _ASIDE.fullmatch(PurePosixPath(name).name) is not None


def _split_of(name: str) -> str:
    word = re.split(r"[^a-z]", name.lower(), maxsplit=1)[0]
    return word if word in _SPLITS else ""


def _is_media(name: str) -> bool:
    return suffixes(name)[0].removeprefix(".") in (*SOUNDS, *VIDEOS, *PICTURES)


def _media_kinds(names: Sequence[str]) -> str:
    ends = {suffixes(name)[0].removeprefix(".") for name in names}
    kinds = [word for word, known in (("audio", SOUNDS), ("videos", VIDEOS), ("images", PICTURES)) if ends & set(known)]
    return " and ".join(kinds)


def _media_folder(folder: Path, media: list[str], split: str) -> Found:
    inside = [name for name in media if name.startswith(f"{split}/")]
    if inside and all(_split_of(name.split("/")[0]) for name in media if "/" in name):
        return _media_folder(folder / split, [name.removeprefix(f"{split}/") for name in inside], split)
    flat = [name for name in media if "/" not in name]
    if flat and len(flat) < len(media):
        raise Nothing(f"media lie both in it and in folders of it: {_listed(media)}")
    kinds = _media_kinds(media)
    if flat:
        return Found(folder, media=tuple(flat), about=f"folder of {kinds}: {len(flat)}")
    labels = {name.rsplit("/", 1)[0] for name in media}
    words = "1 class folder" if len(labels) == 1 else f"{len(labels)} class folders"
    return Found(folder, media=tuple(media), labelled=True, about=f"folder of {kinds} in {words}: {len(media)}")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (" ..." if len(names) > 8 else "") or "nothing"
