"""Which items of an exam the training rows touch.

Knows nothing of its own: the audit finds them, under the ids that the exam's items have; refuses to judge how badly.
"""

from __future__ import annotations

from pathlib import Path

from luthier.data.exams.exam import Exam
from luthier.data.leaks.audit import audit
from luthier.recipe_data import Source


def touched_items(table: Path, source: Source | Path, exam: Exam) -> list[str]:
    """Ids of the items of an exam, read from `source`, that rows of a table's training split touch, in its order.

    Raises SourceError or DataError where one of them cannot be read.
    """
    # By origin: of two items with one id, the audit may leave out one that the exam counts, and call the other by it.
    touched = set(audit(table, source).origins.values())
    return [item.id for item in exam.items if item.origin in touched]
