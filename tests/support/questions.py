"""Small exams for tests: questions of varied length, made from a seed."""

from __future__ import annotations

from typing import Any

import numpy as np

from luthier.data.exams.exam import Exam, ExamItem, exam_digest
from support.chats import WORDS


def exam(count: int = 12, seed: int = 0, name: str = "made", longest: int = 20, **more: Any) -> Exam:
    """Items of two to four options."""
    rng = np.random.default_rng(seed)

    def words(most: int) -> str:
        return " ".join(rng.choice(WORDS, size=int(rng.integers(1, most))))

    items = [
        ExamItem(
            f"{name}-{number}",
            f"{words(longest)} {number}?",
            tuple(f"{words(6)} {letter}" for letter in "wxyz"[: 2 + number % 3]),
            int(rng.integers(2)),
            **more,
        )
        for number in range(count)
    ]
    return exam_of(items, name)


def exam_of(items: list[ExamItem], name: str = "made", shape: str = "options") -> Exam:
    return Exam(name, items, exam_digest(items), shape, "0")
