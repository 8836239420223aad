"""The ways in which questions are put in this benchmark, in words that both sides read. Imports no library."""

from __future__ import annotations

from dataclasses import dataclass

SHOTS = 5


@dataclass(frozen=True)
class Case:
    """One exam file put in one way."""

    exam: str
    """Its file below FILES/exams."""
    method: str
    """letters, or text: the whole of an option."""
    shots: int = 0
    """Solved questions from pool.jsonl before each."""


CASES = {
    "letters": Case("questions.jsonl", "letters"),
    "letters-5": Case("questions.jsonl", "letters", SHOTS),
    "text": Case("questions.jsonl", "text"),
    "text-5": Case("questions.jsonl", "text", SHOTS),
    "piqa": Case("piqa.jsonl", "text"),
    "winogrande": Case("winogrande.jsonl", "text"),
}
