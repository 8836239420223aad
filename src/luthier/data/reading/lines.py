"""Reads text line by line: packed or plain, UTF-8 or UTF-16 with its mark, in bounded memory.

Knows bytes, lines, paragraphs and encodings; refuses to know what a line means. A line longer than 64 MiB is
passed over without being held; one that is not UTF-8 or holds a NUL byte is named by its reader.
"""

from __future__ import annotations

import codecs
import gzip
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from luthier.data.reading.sniff import Shape, unpacked, wide_encoding

MAX_LINE = 64 * 2**20
_BLOCK = 1 << 20
Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Broken:
    """A record that cannot be read: `reason` is one word of `readers.REASONS`, `detail` is for a person."""

    reason: str
    detail: str


TOO_LONG = Broken("line_too_long", f"longer than {MAX_LINE >> 20} MiB")


class Malformed(ValueError):
    """A whole file that cannot be parsed."""


@contextmanager
def opened(path: Path, shape: Shape) -> Iterator[BinaryIO]:
    """The unpacked bytes of a file."""
    with path.open("rb", buffering=_BLOCK) as stream:
        yield unpacked(stream, shape.packing)


def of_the_file(error: OSError) -> bool:
    """Whether an error says that a file's bytes are wrong; other ones come from the disk, or from outside.

    What unpacks a file raises plain OSErrors without a number, and gzip its own kind.
    """
    return error.errno is None and type(error) in (OSError, gzip.BadGzipFile)


def numbered_lines(path: Path, shape: Shape) -> Iterator[tuple[int, bytes | Broken]]:
    """(number from 1, line with its newline) for every line of a file; a byte order mark is taken off."""
    with opened(path, shape) as stream:
        first = stream.readline(MAX_LINE + 1)
        encoding = wide_encoding(first)
        if encoding:
            yield from enumerate(_bounded(_recoded(first, stream, encoding)), start=1)
            return
        line = first.removeprefix(codecs.BOM_UTF8)
        number = 0
        read = stream.readline
        while line:
            number += 1
            if len(line) > MAX_LINE and line[-1] != 10:
                yield number, TOO_LONG
                while line and line[-1] != 10:
                    line = read(_BLOCK)
            else:
                yield number, line
            line = read(MAX_LINE + 1)


def ends_in_returns(path: Path, shape: Shape) -> bool:
    """Whether the first line ends in a carriage return alone, outside quotes, as old Macintosh files' lines do."""
    with opened(path, shape) as stream:
        head = stream.read(_BLOCK)
    encoding = wide_encoding(head)
    if encoding:
        head = head.decode(encoding, "ignore").encode(errors="ignore")
    quoted = False
    for place in re.finditer(rb'"|\n|\r+', head):
        if place[0] == b'"':
            quoted = not quoted
        elif not quoted:
            return place[0] != b"\n" and head[place.end() : place.end() + 1] != b"\n"
    return False


def returned_lines(path: Path, shape: Shape) -> Iterator[tuple[int, bytes | Broken]]:
    """As `numbered_lines`, where a carriage return ends a line too."""
    with opened(path, shape) as stream:
        first = stream.read(_BLOCK)
        encoding = wide_encoding(first)
        blocks = _recoded(first, stream, encoding) if encoding else _blocks_of(first, stream)
        yield from enumerate(_bounded(block.replace(b"\r", b"\n") for block in blocks), start=1)


def _blocks_of(first: bytes, stream: BinaryIO) -> Iterator[bytes]:
    block = first.removeprefix(codecs.BOM_UTF8)
    while block:
        yield block
        block = stream.read(_BLOCK)


def text_of(line: bytes) -> str | Broken:
    """A line as text, without its end; Broken where it is not UTF-8 or holds a NUL byte."""
    if b"\0" in line:
        return Broken("nul_byte", f"a NUL byte at byte {line.index(0) + 1}")
    try:
        return line.decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        return Broken("not_utf8", f"byte {error.start + 1} (0x{line[error.start]:02x}) is not UTF-8")


def texts(path: Path, shape: Shape, sample_by: str) -> Iterator[tuple[int, Record | Broken]]:
    """Rows of a text file, `{"text": ...}`, with their numbers: the line's, or that of the paragraph or document.

    Empty lines make no rows. A paragraph ends at an empty line. Bad bytes break the row that they are in.
    """
    if sample_by == "line":
        for number, line in numbered_lines(path, shape):
            text = line if isinstance(line, Broken) else text_of(line)
            if isinstance(text, Broken):
                yield number, Broken(text.reason, f"line {number}: {text.detail}")
            elif text.strip():
                yield number, {"text": text}
        return
    yield from enumerate(_blocks(path, shape, by_paragraph=sample_by == "paragraph"), start=1)


def _blocks(path: Path, shape: Shape, by_paragraph: bool) -> Iterator[Record | Broken]:
    held: list[str] = []
    size, begun, trouble = 0, 0, None
    for number, line in numbered_lines(path, shape):
        text = line if isinstance(line, Broken) else text_of(line)
        if isinstance(text, Broken):
            trouble = trouble or Broken(text.reason, f"line {number}: {text.detail}")
            continue
        if by_paragraph and not text.strip():
            yield from _block(held, trouble)
            held, size, trouble, begun = [], 0, None, 0
            continue
        begun = begun or number
        size += len(text) + 1
        if size > MAX_LINE:
            held, trouble = [], trouble or Broken("line_too_long", f"from line {begun} on: {TOO_LONG.detail}")
        if trouble is None:
            held.append(text)
    yield from _block(held, trouble)


def _block(held: list[str], trouble: Broken | None) -> Iterator[Record | Broken]:
    text = "\n".join(held).strip("\n")
    if trouble is not None:
        yield trouble
    elif text.strip():
        yield {"text": text}


def _recoded(first: bytes, stream: BinaryIO, encoding: str) -> Iterator[bytes]:
    """UTF-16 or UTF-32 as UTF-8, in blocks; what does not decode becomes a byte that UTF-8 does not have."""
    decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")
    block = first
    while True:
        last = not block
        try:
            yield decoder.decode(block, last).encode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            yield b"\xff\n"
            return
        if last:
            return
        block = stream.read(_BLOCK)


def _bounded(blocks: Iterator[bytes]) -> Iterator[bytes | Broken]:
    """Blocks cut into lines."""
    held, skipping = b"", False
    for block in blocks:
        pieces = (held + block).split(b"\n")
        held = pieces.pop()
        for piece in pieces:
            yield TOO_LONG if skipping else piece + b"\n"
            skipping = False
        if len(held) > MAX_LINE:
            held, skipping = b"", True
    if held or skipping:
        yield TOO_LONG if skipping else held
