"""What an adapter is told about the source whose records it turns into rows.

Knows settings and the place of media; refuses to know files' shapes and what a record holds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.recipe import Scale
from luthier.recipe_data import Columns, Limits, Source
from luthier.recipe_describe import DescribeSettings
from luthier.schema import Draft, Drop, Provenance

Record = dict[str, Any]
Adapter = Callable[[str, Record], Draft | Drop]
"""(origin, record) -> a draft of a row, or why there is none."""


@dataclass(frozen=True)
class Context:
    """One source, as an adapter sees it."""

    source: Source
    split: str = "train"
    folder: Path = field(default_factory=Path)
    """Where relative names of media begin."""
    trusted: bool = False
    """The user named the folder: absolute names inside it may be used."""
    found: tuple[str, ...] = ()
    """Columns seen in the first records."""
    columns: Columns = field(default_factory=Columns)
    """The recipe's names of columns, for graded rows."""
    scale: Scale = field(default_factory=Scale)
    limits: Limits = field(default_factory=Limits)
    describe: DescribeSettings = field(default_factory=DescribeSettings)
    """How descriptions are asked for and written, for described rows."""
    touched: list[Path] = field(default_factory=list)
    """Media files that were read one by one; where one of them changes, what was kept is stale."""

    def provenance(self, origin: str) -> Provenance:
        """Where a record of this source comes from."""
        source = self.source
        return Provenance(source.name, origin, source.license or None, source.attribution or None)

    def drop(self, origin: str, reason: str, detail: str = "") -> Drop:
        """A record of this source that makes no row."""
        return Drop(self.source.name, origin, reason, detail)
