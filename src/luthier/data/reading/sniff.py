"""Says what shape a file has: by its first bytes, then by its suffix; where the two disagree, it says so.

Knows magic bytes, suffixes, gzip and zstd; refuses to know rows and columns. Reads at most 64 KiB of a file.
"""

from __future__ import annotations

import codecs
import gzip
import io
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import orjson

HEAD = 1 << 16
SHAPES = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
}
PACKINGS = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd"}
_WIDE = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_OTHERS = {
    b"PK\x03\x04": "a zip archive",
    b"ARROW1": "an Arrow file",
    b"\x89HDF": "an HDF5 file",
    b"SQLite format": "an SQLite database",
    b"Obj\x01": "an Avro file",
    b"BZh": "packed with bzip2",
    b"\xfd7zXZ": "packed with xz",
    b"%PDF": "a PDF",
}


class Unknown(ValueError):
    """A file whose shape is none that is read; the text says what it is, as far as that is known."""


@dataclass(frozen=True, slots=True)
class Shape:
    """`name`: parquet, csv, jsonl, json or text. `packing`: gzip, zstd or "". `remark`: where the name misleads."""

    name: str
    packing: str = ""
    remark: str = ""

    def __str__(self) -> str:
        return ", ".join(word for word in (self.name, self.packing, self.remark) if word)


def suffixes(name: str) -> tuple[str, str]:
    """The suffix of what is inside and that of its packing, in lower case: `a.jsonl.gz` has (".jsonl", ".gz")."""
    path = Path(name.lower())
    if path.suffix in PACKINGS:
        return Path(path.stem).suffix, path.suffix
    return path.suffix, ""


def named_shape(name: str) -> str:
    """The shape that a file's name promises, or ""."""
    return SHAPES.get(suffixes(name)[0], "")


def unpacked(stream: BinaryIO, packing: str) -> BinaryIO:
    """The bytes inside. Memory is bounded by the packing's window; a torn end raises OSError or EOFError."""
    if packing == "gzip":
        return cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, gzip.GzipFile(fileobj=stream)), 1 << 20))
    if packing == "zstd":
        import pyarrow

        # Unlike the plain zstd binding it reports a torn end, and it reads frame after frame.
        inner = pyarrow.CompressedInputStream(pyarrow.PythonFile(stream, mode="r"), "zstd")
        return cast(BinaryIO, io.BufferedReader(inner, 1 << 20))
    return stream


def wide_encoding(head: bytes) -> str:
    """utf-16 or utf-32 where the first bytes are such a mark, or ""."""
    return next((name for mark, name in _WIDE.items() if head.startswith(mark)), "")


def sniff(path: Path) -> Shape:
    """The shape of a file. Raises Unknown for one that is not read, OSError or EOFError for one that cannot be."""
    inner, packed = suffixes(path.name)
    with path.open("rb") as stream:
        magic = stream.read(4)
        packing = "gzip" if magic[:2] == b"\x1f\x8b" else "zstd" if magic == b"\x28\xb5\x2f\xfd" else ""
        stream.seek(0)
        head = unpacked(stream, packing).read(HEAD)
    promised = SHAPES.get(inner, "")
    name = _shape(head, promised)
    remarks = []
    if promised and name != promised and {name, promised} != {"json", "jsonl"}:
        remarks.append(f"its name says {inner}")
    if PACKINGS.get(packed, "") != packing:
        remarks.append(
            "packed although its name does not say so" if packing else "not packed although its name says so"
        )
    return Shape(name, packing, ", ".join(remarks))


def _shape(head: bytes, promised: str) -> str:
    if not head:
        return promised or "text"
    if head.startswith(b"PAR1") or promised == "parquet":
        return "parquet"
    for magic, what in _OTHERS.items():
        if head.startswith(magic):
            raise Unknown(what)
    encoding = wide_encoding(head)
    text = head.decode(encoding, "ignore").encode(errors="ignore") if encoding else head.removeprefix(codecs.BOM_UTF8)
    text = text.lstrip()
    first, _, rest = text.partition(b"\n")
    if text[:1] == b"[" and (promised in ("json", "") or (promised == "jsonl" and not _parses(first, rest))):
        return "json"
    if text[:1] == b"{" and (promised in ("json", "jsonl", "") or _parses(first)):
        return "jsonl" if promised == "jsonl" else "json"
    if promised:
        return promised
    raise Unknown("of no shape that is known")


def _parses(line: bytes, rest: bytes = b"more") -> bool:
    """Whether a line is JSON by itself and not the whole file."""
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    return bool(rest.strip())
