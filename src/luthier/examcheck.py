"""`luthier check` for the exams of a recipe: what each holds, what of it is trained on, what its questions can show."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.checked import Checked
from luthier.console import WIDTH, table
from luthier.data.exams import Exam, read_exam, touched_items
from luthier.errors import LuthierError
from luthier.outcome.exams.words import counted
from luthier.outcome.statistics.power import minimum_detectable_effect, smallest_gap
from luthier.recipe import Recipe

DISCORDANCES = (0.05, 0.1, 0.2, 0.3)
"""Shares of questions that exactly one of two candidates has right; near checkpoints 5 to 10 %, strangers 20 to 30."""


@dataclass(frozen=True)
class Read:
    """An exam that can be read, and the recipe of the first stage that it is for."""

    exam: Exam
    recipe: Recipe


def check_exams(stages: Mapping[str, Recipe], tokenizer: Any, found: Checked) -> dict[str, Read]:
    """Read every exam once and, where there is a tokenizer, put it into words; what is wrong is added to `found`."""
    read: dict[str, Read] = {}
    asked = {name: stage for stage in reversed(list(stages.values())) for name in stage.evaluate.exams}
    for name, stage in sorted(asked.items()):
        settings, sources = stage.evaluate.exams[name], stage.data.sources
        try:
            read[name] = Read(read_exam(sources[name], name, settings.labels, settings.answers), stage)
            if tokenizer is not None:
                _put_into_words(stage, name, tokenizer)
        except LuthierError as error:
            found.problems.append(f"evaluate.exams.{name}: {error}")
    for name, one in read.items():
        found.sections.append("\n".join(_about(name, one.exam, one.recipe)))
        found.figures.setdefault("exams", {})[name] = _figures(one.exam)
    return read


def check_overlap(read: Mapping[str, Read], built: Path, found: Checked) -> None:
    """Say which items the rows of a table's training split touch."""
    for name, one in read.items():
        try:
            count = len(touched_items(built, one.recipe.data.sources[name], one.exam))
        except LuthierError as error:
            found.problems.append(f"evaluate.exams.{name}: {error}")
            continue
        found.figures["exams"][name]["touched"] = count
        found.sections.append(
            f"exam {name}: the training rows touch {count:,} of its {len(one.exam.items):,} items"
            + ("; scores will be given with and without them (luthier data audit shows each)" if count else "")
        )


def _put_into_words(stage: Recipe, name: str, tokenizer: Any) -> None:
    from luthier.stages.examination import check_exam

    check_exam(stage, name, tokenizer)


def _about(name: str, exam: Exam, recipe: Recipe) -> list[str]:
    settings, n = recipe.evaluate.exams[name], len(exam.items)
    how = [f"method {settings.method}", f"wordings {', '.join(settings.prompts)}"]
    how += ["both orders"] * (settings.both_orders and settings.method != "text")
    how += [f"{settings.shots} shots"] * bool(settings.shots)
    lines = [
        f"exam {name}: {n:,} items of the shape {exam.shape}, answers {counted(exam.answers)}",
        f"  {', '.join(how)}",
        f"  chance {exam.chance:.1%}, always the most frequent place {exam.majority:.1%}",
        *(textwrap.fill(note, WIDTH, initial_indent="  ", subsequent_indent="  ") for note in exam.notes),
    ]
    rows = [[f"{share:.0%}", _points(real), _points(seen)] for share, real, seen in _power(n)]
    header = ["questions that one alone has right", "smallest gap called real", "true gap found 4 times in 5"]
    return [*lines, table(header, rows)]


def _power(n: int) -> list[tuple[float, float | None, float | None]]:
    """(discordance, smallest observed difference with p <= 0.05, true difference found with 80 %) of two candidates."""
    return [(d, smallest_gap(n, round(d * n)), minimum_detectable_effect(n, d)) for d in DISCORDANCES]


def _points(share: float | None) -> str:
    return "none" if share is None else f"{100 * share:.1f} points"


def _figures(exam: Exam) -> dict[str, Any]:
    return {
        "items": len(exam.items),
        "shape": exam.shape,
        "answers": exam.answers,
        "chance": exam.chance,
        "majority": exam.majority,
        "unreadable": len(exam.unreadable),
        "notes": exam.notes,
        "minimum_detectable_effect": {f"{share:g}": seen for share, _, seen in _power(len(exam.items))},
    }
