"""The table of an exam: who has how much right, within what, and who cannot be told apart.

For a terminal (100 columns), as Markdown and as CSV. Guessing and the majority's place always stand beside the scores.
This module reads records alone.
"""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Sequence

from luthier.console import WIDTH, table
from luthier.outcome.exams.view import Candidate, ExamView, Gap
from luthier.outcome.exams.words import chance_of, points, within
from luthier.outcome.figures import percent

HEADER = ("candidate", "accuracy [95 %]", "log loss", "groups")
READING = "Those who share a letter cannot be told apart. p is corrected for the number of comparisons."
_COLUMNS = (
    "exam candidate step accuracy low high right questions log_loss groups against_base against_base_low "
    "against_base_high against_base_p against_best against_best_low against_best_high against_best_p chance majority "
    "clean_accuracy swap_first swap_consistent prompt_spread unparsed base adapter seconds"
).split()
_SCORES = ("clean_accuracy", "swap_first", "swap_consistent", "prompt_spread", "unparsed")
"""Columns of scores that not every exam has; in scores.json their first underscore is a dot."""


def for_terminal(view: ExamView) -> str:
    """The table with its sentences, in at most 100 columns."""
    title = f"exam {view.name}: {view.count:,} questions"
    sentences = [textwrap.fill(sentence, WIDTH) for sentence in _sentences(view)]
    return "\n".join([title, table(_header(view), _rows(view)), "", *sentences])


def for_markdown(views: Sequence[ExamView], command: str) -> str:
    """The tables of several exams as one page."""
    parts = [f"# Exams\n\n`{command}`"]
    for view in views:
        parts.append(f"## {view.name}\n\n{view.count:,} questions")
        header = _header(view)
        lines = [header, ["---"] * len(header), *_rows(view)]
        parts.append("\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines))
        parts += [*_sentences(view), *map(str, view.exam.get("notes", []))]
    return "\n\n".join(parts) + "\n"


def for_csv(views: Sequence[ExamView]) -> str:
    """One line a candidate and exam, figures as they are; what was not measured is empty."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    for view in views:
        writer.writerows(_figures(view, one) for one in view.candidates)
    return stream.getvalue()


def _sentences(view: ExamView) -> list[str]:
    reading = [READING] if len(view.candidates) > 1 else []
    return [*reading, *map(str, view.table.get("notes", []))]


def _header(view: ExamView) -> list[str]:
    return [*HEADER, "against base" if view.base else "against best", "p"]


def _rows(view: ExamView) -> list[list[str]]:
    rows = [_row(one, one.against_base if view.base else one.against_best) for one in view.candidates]
    for name, key in (("(always the same place)", "majority"), ("(guessing)", "chance")):
        share = view.share(key)
        if share is not None:
            rows.append([name, percent(share), "", "", "", ""])
    return rows


def _row(one: Candidate, gap: Gap | None) -> list[str]:
    loss = one.score("log_loss")
    return [
        one.name,
        within(one.accuracy),
        f"{loss['value']:.4f}" if loss else "–",
        "".join(one.group),
        "" if gap is None else f"{points(gap.value)} [{points(gap.low)}, {points(gap.high)}]",
        "" if gap is None else chance_of(gap.p),
    ]


def _figures(view: ExamView, one: Candidate) -> dict[str, object]:
    loss = one.score("log_loss")
    return {
        "exam": view.name,
        "candidate": one.name,
        "step": one.step,
        "accuracy": one.accuracy["value"],
        "low": one.accuracy["low"],
        "high": one.accuracy["high"],
        "right": one.right,
        "questions": one.accuracy["n"],
        "log_loss": loss["value"] if loss else None,
        "groups": "".join(one.group),
        **_gap("against_base", one.against_base),
        **_gap("against_best", one.against_best),
        "chance": view.share("chance"),
        "majority": view.share("majority"),
        **{key: (one.score(key.replace("_", ".", 1)) or {}).get("value") for key in _SCORES},
        "base": one.sat.get("base"),
        "adapter": one.sat.get("adapter"),
        "seconds": one.sat.get("seconds"),
    }


def _gap(name: str, gap: Gap | None) -> dict[str, object]:
    return (
        {} if gap is None else {name: gap.value, f"{name}_low": gap.low, f"{name}_high": gap.high, f"{name}_p": gap.p}
    )
