"""Streams one split of a hub dataset row by row through `datasets`, at a commit that is looked up first.

Knows the extra `hub`; refuses to decode: sound and pictures stay the bytes that the dataset holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from luthier.data.reading.hubfiles import fail, list_files, reason_of
from luthier.errors import SourceError

if TYPE_CHECKING:
    from luthier.recipe_data import Source

Record = dict[str, Any]


def open_stream(source: Source) -> tuple[str, Callable[[], Iterator[Record]]]:
    """The commit, and what gives the rows anew from the first each time that it is called.

    Raises SourceError where `datasets` is not installed or the hub does not answer; so does the reading.
    """
    try:
        import datasets  # noqa: F401
    except ImportError as error:
        raise SourceError(
            f"source {source.name}: streaming: true needs the library datasets, which is not installed",
            'pip install "luthier[hub]"',
        ) from error
    _, commit = list_files(source, source.revision or None)
    return commit, lambda: _rows(replace(source, revision=commit))


def _rows(source: Source) -> Iterator[Record]:
    import datasets

    try:
        rows = datasets.load_dataset(
            source.hub, split=source.split, revision=source.revision or None, streaming=True
        ).decode(False)
        yield from rows
    except Exception as error:  # readers of a dozen formats and the client below them; to a user they are one
        if isinstance(error, SourceError):
            raise
        fail(source, f"split {source.split!r}: {reason_of(error)}", cause=error)
