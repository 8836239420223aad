"""What a page says of an exam: its sentences, score table, charts, flips and costs, from records that were read for it.

The same part stands in the report of a run and on the page of `luthier exam`. No file is opened here but through
`Records`, and no model is known; what is missing reads as a dash or "not run".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from luthier.outcome import figures
from luthier.outcome.exams.drawn import exam_charts
from luthier.outcome.exams.flips import flips
from luthier.outcome.exams.view import Candidate, ExamView, Gap, read
from luthier.outcome.exams.words import alarms, bears, chance_of, points, verdict
from luthier.outcome.figures import percent
from luthier.outcome.pagerecords import Records

Json = dict[str, Any]
Cell = tuple[str, str]
_SHARES = (
    ("swap.accuracy", "Both orders", "share right, mean of both orders of the options"),
    ("swap.consistent", "Right in both", "share right in both orders of the options"),
    ("swap.first", "Takes the first", "share of choices of the option that stands first, whatever it is"),
    ("clean.accuracy", "Untouched", "share right of the questions that no training row touches"),
    ("unparsed", "Unparsed", "share of written answers that name no option"),
    ("prompt.spread", "Spread", "highest less lowest share right over the wordings"),
)
_NUMBERS = (
    ("log_loss", "Log loss", "nats of the right option; lower is better"),
    ("brier", "Brier", "squared error of the options' probabilities; lower is better"),
    ("ece", "ECE", "mean gap of confidence and share right; lower is better"),
)


def parts(
    records: Records,
    base: str,
    asked: Iterable[str] = (),
    metrics: Sequence[Json] = (),
    kept_step: int | None = None,
) -> list[Json]:
    """The exams below the folder `base`, those that were `asked` for and those that left records, by name.

    `metrics` are the lines of the training's log, `kept_step` the step that it kept, where there was one.
    """
    there = [path.parent.name for path in records.run.joinpath(base).glob("exams/*/exam.json")]
    found = []
    for name in sorted({*map(str, asked), *there}):
        folder = f"{base}/exams/{name}" if base else f"exams/{name}"
        found.append(part(read(records, folder, name, kept_step), base, metrics))
    return found


def named_charts(exams: Sequence[Json], prefix: str = "") -> dict[str, str]:
    """Name -> SVG of all charts of some exams, for their files."""
    return {f"{prefix}{exam['name']}-{name}": svg for exam in exams for name, _, svg, _ in exam["charts"]}


def part(view: ExamView, where: str, metrics: Sequence[Json] = ()) -> Json:
    """Everything a page shows of an exam; `where` stands in the titles of its charts."""
    rows, columns = _rows(view)
    return {
        "name": view.name,
        "ran": view.ran,
        "exam": view.exam,
        "count": view.count,
        "chance": view.share("chance"),
        "majority": view.share("majority"),
        "looks": view.table.get("looks"),
        "sentences": verdict(view),
        "alarms": alarms(view),
        "bears": bears(view),
        "notes": view.exam.get("notes") or [],
        "columns": columns,
        "rows": rows,
        "charts": exam_charts(view, where, metrics),
        "flips": flips(view),
        "costs": [(one.shown, one.sat) for one in view.candidates if one.sat],
    }


def _rows(view: ExamView) -> tuple[list[Json], list[Cell]]:
    """The lines of the score table, and its columns as (label, meaning): those that some line has a figure for."""
    wanted: list[tuple[str, str, dict[str, Cell]]] = [
        ("Right", "share of questions answered rightly", {one.name: _right(one) for one in view.candidates}),
        ("Against base", "difference in points, and p after correction", _gaps(view, "against_base")),
        ("Against best", "difference in points, and p after correction", _gaps(view, "against_best")),
        ("Group", "who shares a letter cannot be told apart", _groups(view)),
    ]
    for key, label, meaning in (*_SHARES, *_prompts(view), *_NUMBERS):
        form = figures.number if key in {number for number, _, _ in _NUMBERS} else percent
        wanted.append((label, meaning, _cells(view, key, form)))
    columns = [column for column in wanted if any(column[2].values())]
    words = {"chosen": view.chosen, "kept": view.kept if view.kept is not view.chosen else None, "best": view.best}
    rows = []
    for one in view.candidates:
        cells = [column[2].get(one.name) or ("–", "") for column in columns]
        rows.append(
            {"name": one.shown, "word": ", ".join(w for w, other in words.items() if other is one), "cells": cells}
        )
    return rows, [(label, meaning) for label, meaning, _ in columns]


def _right(one: Candidate) -> Cell:
    low, high = (100 * one.accuracy[end] for end in ("low", "high"))
    return percent(one.accuracy["value"]), f"{low:.1f} – {high:.1f}"


def _gaps(view: ExamView, key: str) -> dict[str, Cell]:
    found: dict[str, Cell] = {}
    for one in view.candidates:
        gap: Gap | None = getattr(one, key)
        if gap is not None:
            found[one.name] = (points(gap.value), chance_of(gap.p))
    return found


def _groups(view: ExamView) -> dict[str, Cell]:
    return {one.name: ("".join(one.group), "") for one in view.candidates if one.group and len(view.candidates) > 1}


def _prompts(view: ExamView) -> list[tuple[str, str, str]]:
    keys = dict.fromkeys(key for one in view.candidates for key in one.scores if key.startswith("prompt."))
    keys.pop("prompt.spread", None)
    wordings = [key.removeprefix("prompt.").removesuffix(".accuracy") for key in keys]
    return [(key, f"As {word}", f"share right in the wording {word}") for key, word in zip(keys, wordings, strict=True)]


def _cells(view: ExamView, key: str, form: Callable[[float], str]) -> dict[str, Cell]:
    found: dict[str, Cell] = {}
    for one in view.candidates:
        figure = one.score(key)
        if figure:
            ends = "" if figure["low"] is None else f"{form(figure['low'])} – {form(figure['high'])}"
            found[one.name] = (form(figure["value"]), ends.replace("%", ""))
    return found
