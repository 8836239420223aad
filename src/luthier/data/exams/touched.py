"""Which items of an exam the training rows touch.

Knows nothing of its own: the audit finds them, under the ids that the exam's items have; refuses to judge how badly.
"""

from __future__ import annotations

from pathlib import Path

from luthier.data.leaks.audit import audit
from luthier.recipe_data import Source


def touched_items(table: Path, source: Source | Path) -> list[str]:
    """Ids of the items of an exam that rows of a table's training split touch, in the exam's order.

    Items that `read_exam` leaves out may be among them. Raises SourceError or DataError where one cannot be read.
    """
    return list(audit(table, source).touched)
