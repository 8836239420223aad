"""What a recipe says of exams: how the questions of one are put to a model. Where its file is, its source says.

Checks that need nothing but these keys are in `exam_problems`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

METHODS = ("letters", "text", "generate")
NORMALIZATIONS = ("none", "bytes", "tokens")
PROMPTS = ("question", "instruction", "exam")
ANSWER_BASES = ("", "0", "1", "letter", "text")


@dataclass
class ExamSettings:
    """How one exam is examined. Its name is that of a source in data.sources, which says where its file is."""

    method: str = "letters"
    """letters (log-likelihood of the option's letter), text (of the option's whole text) or generate (the model
    writes its answer, and a strict parser reads it)."""
    normalization: str = "none"
    """With text, what a log-likelihood is divided by: none, bytes (of UTF-8) or tokens."""
    chat_template: bool = True
    """Put questions as the user's turn of the base's chat template; false: as plain text."""
    prompts: list[str] = field(default_factory=lambda: ["question"])
    """Wordings: question, instruction, exam. The first gives the score; of several the spread is shown beside it."""
    both_orders: bool = True
    """Also put every question with its options in reverse order: shows which place a model prefers (not with text)."""
    shots: int = 0
    """Solved questions that stand before each question."""
    pool: str = ""
    """The source in data.sources that these come from; never the exam itself."""
    labels: str = ""
    """A second file with the answers, one a line or row, where the exam's file has none."""
    answers: str = ""
    """How the file counts its answers: 0, 1, letter or text; empty: found out from the whole file."""
    max_new_tokens: int = 16
    """With generate: the longest answer, in tokens."""


def exam_problems(where: str, exam: ExamSettings) -> list[str]:
    """Everything wrong with one exam's keys, as `key: reason (mend)` lines."""
    found = []
    for name, known in (("method", METHODS), ("normalization", NORMALIZATIONS), ("answers", ANSWER_BASES)):
        if getattr(exam, name) not in known:
            shown = ", ".join(word or "empty" for word in known)
            found.append(f"{where}.{name}: {getattr(exam, name)!r} is not one of {shown}")
    unknown = [name for name in exam.prompts if name not in PROMPTS]
    if unknown or not exam.prompts or len(set(exam.prompts)) < len(exam.prompts):
        found.append(f"{where}.prompts: one or more of {', '.join(PROMPTS)}, each once")
    if exam.normalization != "none" and exam.method != "text":
        found.append(f"{where}.normalization: goes with method: text (letters are one token each)")
    if exam.shots < 0 or exam.max_new_tokens < 1:
        found.append(f"{where}: shots must not be below 0, nor max_new_tokens below 1")
    if bool(exam.shots) != bool(exam.pool):
        found.append(f"{where}.shots: go with a pool (name where solved questions come from: pool)")
    return found
