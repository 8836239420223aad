"""Reads csv and parquet tables; a line of the wrong width or a corrupt row group costs its own rows and no others.

Knows delimiters, quotes and row groups; refuses to know what columns mean. Memory is bounded by a batch of rows,
which is small where cells are large.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.data.reading.lines import (
    MAX_LINE,
    Broken,
    Malformed,
    Record,
    ends_in_returns,
    numbered_lines,
    of_the_file,
    returned_lines,
    text_of,
)
from luthier.data.reading.sniff import Shape, suffixes

if TYPE_CHECKING:
    import pyarrow.parquet as pq

BATCH_ROWS = 1024
BATCH_BYTES = 8 * 2**20
_LINE_COST = 128  # bytes that a line takes beside its text while a quote is open
_PLAIN = {
    "unexpected end of data": "a quote is opened and never closed",
    "new-line character seen in unquoted field": "a carriage return outside quotes",
}
MAX_LOST = 10_000_000
"""A corrupt row group that claims more rows than this is not listed row by row: the file is refused."""


def delimited(path: Path, shape: Shape) -> Iterator[tuple[int, Record | Broken]]:
    """(record number from 1, record of texts) for every line after the header; empty lines make no record.

    The delimiter is a tab for .tsv, else what the header has of tab, comma and semicolon. Lines may end in a carriage
    return alone where the header does. Raises Malformed for a header that is not text or names a column twice.
    """
    csv.field_size_limit(MAX_LINE)  # the default of 128 KiB is less than a long text
    lines = returned_lines if ends_in_returns(path, shape) else numbered_lines
    feed = _Feed(lines(path, shape))
    first = next(feed.source, None)
    if first is None:
        return
    header = first[1] if isinstance(first[1], Broken) else text_of(first[1])
    if isinstance(header, Broken):
        raise Malformed(f"the header: {header.detail}")
    feed.waiting.append(first)
    reader = csv.reader(feed, delimiter=_delimiter(header, suffixes(path.name)[0]), strict=True)
    try:
        names = next(reader, [])
    except csv.Error as error:
        raise Malformed(f"the header: {feed.said(error)}") from error
    if len(set(names)) < len(names):
        raise Malformed(f"two columns share a name: {', '.join(names)}")
    width, number = len(names), 0
    while True:
        feed.begin()
        try:
            fields = next(reader)
        except StopIteration:
            if feed.trouble is None:
                return
            number += 1
            yield number, feed.take_trouble()
            continue
        except csv.Error as error:
            number += 1
            begun = feed.taken[0][0]
            said = feed.said(error)
            trouble = feed.take_trouble() if feed.trouble else Broken("broken_line", f"line {begun}: {said}")
            feed.push_back(said)
            yield number, trouble
            continue
        if not fields:
            continue
        number += 1
        if len(fields) == width:
            yield number, dict(zip(names, fields, strict=True))
        else:
            yield number, Broken("broken_line", f"line {feed.taken[0][0]}: {len(fields)} fields in place of {width}")


class _Feed:
    """Lines as the csv reader wants them. It remembers those of the record at hand, so that they can be read again.

    A line that is not text ends what the reader sees; the reason waits in `trouble`. At the begin of a line a quote is
    either open or not, and nothing else is known of what came before. So a line that once followed an open quote in a
    record that failed fails behind every open quote: no line is read more than twice, however many quotes are open.
    """

    def __init__(self, source: Iterator[tuple[int, bytes | Broken]]) -> None:
        self.source = source
        self.waiting: list[tuple[int, bytes | Broken]] = []
        self.taken: list[tuple[int, bytes | Broken]] = []
        self.trouble: Broken | None = None
        self._size = 0
        self._failed_to, self._why = 0, ""
        self._stopped = ""

    def __iter__(self) -> _Feed:
        return self

    def begin(self) -> None:
        self.taken.clear()
        self._size = 0
        self._stopped = ""

    def __next__(self) -> str:
        if self.taken and self.taken[-1][0] < self._failed_to:
            self._stopped = self._why
            raise StopIteration
        item = self.waiting.pop() if self.waiting else next(self.source)
        number, line = item
        text = line if isinstance(line, Broken) else text_of(line)
        if isinstance(text, Broken):
            if self.taken:
                self.waiting.append(item)  # a quote was open: the line is looked at again by itself
                self._stopped = f"a quote is open before line {number}, which is not text"
            else:
                self.trouble = Broken(text.reason, f"line {number}: {text.detail}")
                self.taken.append(item)
            raise StopIteration
        self._size += len(text) + _LINE_COST
        if self.taken and self._size > MAX_LINE:
            self.waiting.append(item)
            self._stopped = f"a quote is open for more than {MAX_LINE >> 20} MiB"
            raise StopIteration
        self.taken.append(item)
        return text + "\n"

    def said(self, error: csv.Error) -> str:
        """Why a record failed, for a person."""
        if self._stopped:
            return self._stopped
        words = str(error)
        return next((plain for begin, plain in _PLAIN.items() if words.startswith(begin)), words)

    def take_trouble(self) -> Broken:
        assert self.trouble is not None
        trouble, self.trouble = self.trouble, None
        return trouble

    def push_back(self, why: str) -> None:
        """A quote that was opened by mistake takes only its own line with it."""
        self.waiting += reversed(self.taken[1:])
        if self.taken[-1][0] > self._failed_to:
            self._failed_to, self._why = self.taken[-1][0], why


def _delimiter(header: str, suffix: str) -> str:
    if suffix == ".tsv" or ("\t" in header and "," not in header):
        return "\t"
    return ";" if ";" in header and "," not in header else ","


def open_parquet(path: Path) -> pq.ParquetFile:
    """The file with its footer read. Raises pyarrow.ArrowException or OSError for a torn one, Malformed."""
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path, memory_map=True, page_checksum_verification=True)
        names = file.schema_arrow.names
    except (UnicodeDecodeError, OverflowError) as error:
        raise Malformed(f"its schema cannot be read: {error}") from error
    if len(set(names)) < len(names):
        file.close()
        raise Malformed(f"two columns share a name: {', '.join(names)}")
    return file


def parquet(path: Path, shape: Shape) -> Iterator[tuple[int, Record | Broken]]:
    """(record number from 1, record) for every row; the rows of a corrupt row group are Broken, one by one.

    Raises Malformed where a corrupt group claims more than `MAX_LOST` rows.
    """
    import pyarrow

    number = 0
    with open_parquet(path) as file:
        for index in range(file.num_row_groups):
            group = file.metadata.row_group(index)
            given, reason = 0, "it has fewer rows than it says"
            each = max(1, group.total_byte_size // max(1, group.num_rows))
            size = max(1, min(BATCH_ROWS, BATCH_BYTES // each))
            try:
                for batch in file.iter_batches(batch_size=size, row_groups=[index]):
                    for row in _rows(batch):
                        given += 1
                        yield number + given, row
            except (pyarrow.ArrowException, OSError) as error:
                if isinstance(error, OSError) and not of_the_file(error):
                    raise
                reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            lost = group.num_rows - given
            if lost > MAX_LOST:
                raise Malformed(f"row group {index + 1} is corrupt ({reason}) and claims {lost:,} more rows")
            for _ in range(lost):
                given += 1
                yield number + given, Broken("corrupt_row_group", f"row group {index + 1}: {reason}")
            number += given


def _rows(batch: Any) -> Iterator[Record | Broken]:
    """The rows of a batch; where a text is not UTF-8 they are looked at one by one."""
    try:
        yield from batch.to_pylist()
        return
    except (UnicodeDecodeError, ValueError, OverflowError):
        pass
    for index in range(batch.num_rows):
        try:
            yield from batch.slice(index, 1).to_pylist()
        except UnicodeDecodeError as error:
            yield Broken("not_utf8", f"a text holds 0x{error.object[error.start]:02x}, which is not UTF-8")
        except (ValueError, OverflowError) as error:
            yield Broken("unreadable_value", str(error)[:200])
