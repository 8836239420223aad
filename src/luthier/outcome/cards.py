"""What a card of a model says of its exams: scores with intervals, the base beside them, and how often anyone looked.

Markdown from the records of a stage alone; this module refuses to know models, and writes no file.
"""

from __future__ import annotations

from pathlib import Path

from luthier.outcome import figures
from luthier.outcome.exams.view import ExamView, of_stage
from luthier.outcome.exams.words import alarms, bears, points, verdict, within
from luthier.outcome.pagerecords import Records


def exam_card(stage: Path) -> str:
    """The section on exams of the stage in this folder, as Markdown; empty where it sat none.

    An exam by which the checkpoint was chosen is said to be one, and the looks at each are counted.
    """
    records = Records(stage)
    told = of_stage(records)
    if not told:
        return ""
    head = "| Exam | Questions | This model | Base | Difference | Guessing | Looks |\n|---|---|---|---|---|---|---|"
    parts = ["## Exams", "\n".join([head, *map(_line, told)])]
    parts.append("Intervals are 95%. A look is one candidate's score on an exam; whoever looks often finds luck.")
    for view in told:
        use = "The checkpoint was chosen by this exam, so its score here is flattered." if view.chosen else ""
        sentences = [use, *verdict(view), *bears(view), *alarms(view)]
        parts.append("\n".join([f"### {_plain(view.name)}", "", *(f"- {_plain(one)}" for one in sentences if one)]))
    parts += [f"- could not be read: {_plain(note)}" for note in records.notes]
    return "\n\n".join(parts) + "\n"


def _line(view: ExamView) -> str:
    picked, base = view.picked, view.base
    gap = picked.against_base if picked else None
    cells = [
        _plain(view.name),
        figures.count(view.count),
        f"{within(picked.accuracy)} ({picked.shown})" if picked else "–",
        within(base.accuracy) if base else "–",
        f"{points(gap.value)} [{points(gap.low)}, {points(gap.high)}]" if gap else "–",
        figures.percent(view.share("chance")),
        figures.count(view.table.get("looks")),
    ]
    return f"| {' | '.join(_plain(cell) for cell in cells)} |"


def _plain(words: str) -> str:
    """Words of others as one line that draws no table and no tag."""
    return " ".join(words.split()).replace("|", "\\|").replace("<", "&lt;")
