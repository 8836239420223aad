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
    touched = set(audit(table, source).touched)
    return [item.id for item in exam.items if item.id in touched]
