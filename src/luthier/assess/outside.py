"""Predictions made elsewhere: read from JSON, JSON lines or CSV, and scored as our own are.

A row states P(pass) as `p_pass`, or as a text `prediction` such as "0,0.70" (answer, probability of that
answer). It is held against a `grade` (or `score`, or a number under `label`), or a text `label` of that kind.
A prediction that cannot be read stays in every denominator: P(pass) 1/2, counted as wrong, and named. The
module refuses to know models and runs, and never guesses a probability that the file does not state.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from luthier.assess.metrics import (
    ScoreColumns,
    VerdictItems,
    column_scores,
    majority_side,
    score,
    verdict_scores,
)
from luthier.assess.targets import event_truth, pass_probability
from luthier.errors import RequestError

if TYPE_CHECKING:
    from luthier.recipe import Scale

Located = tuple[str, dict[str, Any]]  # where the row stands, for messages, and the row

_PREDICTION_FIELDS = ("p_pass", "prediction")
_LABEL_FIELDS = ("grade", "score", "label", "group", "held_back")
_ANSWER = re.compile(r"(?<![\d.])([01])\s*,\s*(\d*\.?\d+)(?![\d.])")
# (answer, P(pass)) of the published labels "0,0.50" and "1,0.65": one step under the pass mark, and at it
_UNDER_MARK, _AT_MARK = (0.0, 0.50), (1.0, 0.65)


@dataclass(frozen=True)
class OutsideItem:
    """One answer: P(pass), 1/2 when not `readable`, and what it is held against.

    `grade` if the file has one; of a label its `answer` (0 or 1) and the P(pass) it states, `label_p`.
    """

    id: str
    group: str
    p_pass: float
    readable: bool
    grade: float | None
    answer: float | None
    label_p: float | None
    held_back: tuple[float, ...] = ()


@dataclass(frozen=True)
class Outside:
    """What a file held: the items, the rows whose prediction could not be read, and what was assumed."""

    items: list[OutsideItem]
    unreadable: list[str]
    note: str
    event: str | None = None
    """The event that every row names, if they all name one."""


def read_predictions(path: Path, labels: Path | None = None) -> Outside:
    """Read predictions, and their labels from a second file if given (matched by `id`, else by order).

    Raises RequestError naming the file and the line or item: unreadable file, no rows, no label, an id twice.
    """
    rows = _rows(path)
    if labels is not None:
        rows = _joined(rows, _rows(labels), path, labels)
    if not any(field in row for _, row in rows for field in _PREDICTION_FIELDS):
        raise RequestError(
            f"{path}: no row has one of {', '.join(_PREDICTION_FIELDS)}",
            'give P(pass) as p_pass, or texts such as "0,0.70" as prediction',
        )
    # labels of 0 and 1 alone are answers; as grades they would all lie under any pass mark
    binary = all(_number(row.get("label")) in (None, 0.0, 1.0) for _, row in rows)
    items = [_item(place, row, number, binary) for number, (place, row) in enumerate(rows, 1)]
    twice = [name for name, count in Counter(item.id for item in items).items() if count > 1]
    if twice:
        where = [place for (place, _), item in zip(rows, items, strict=True) if item.id == twice[0]]
        raise RequestError(
            f"{' and '.join(where[:2])}: the id {twice[0]!r} is there twice", "give one prediction per id"
        )
    unreadable = [
        f"{place}: {row.get('prediction', row.get('p_pass'))!r}"
        for (place, row), item in zip(rows, items, strict=True)
        if not item.readable
    ]
    named = {row.get("event") for _, row in rows}
    event = next(iter(named)) if len(named) == 1 else None
    return Outside(items, unreadable, _note(rows, items), event if event in ("panel", "rater", "latent") else None)


def score_outside(
    outside: Outside, scale: Scale, *, event: str = "panel", seed: int = 0, resamples: int = 1000
) -> dict[str, Any]:
    """The scores of `verdict_scores`, plus "probability_mse", "event", "unreadable" (a count) and "note".

    Without grades the label's answer is the verdict, and the labels "0,0.50" and "1,0.65" are the borderline;
    "labels" then gives the mean P(pass) by label. `event` is what log_loss, brier and ece are held against.
    probability_mse: mean of (P(pass) - P(pass) of the label)², where labels state one.
    """
    items = outside.items
    grades = [item.grade for item in items if item.grade is not None]
    if len(grades) == len(items):
        columns = VerdictItems(
            id=[item.id for item in items],
            group=[item.group for item in items],
            grade=grades,
            p_pass=[item.p_pass for item in items],
            held_back=[item.held_back for item in items],
            event=event,
            readable=[item.readable for item in items],
        )
        found = verdict_scores(columns, scale, seed=seed, resamples=resamples)
    else:
        found = column_scores(_columns(items, event, scale), seed=seed, resamples=resamples)
        found["labels"] = _by_label(items)
    stated = np.array([math.nan if item.label_p is None else item.label_p for item in items])
    squares = (np.array([item.p_pass for item in items]) - stated) ** 2
    mse = score(
        lambda index: float(squares[index].mean()),
        ~np.isnan(stated),
        np.array([item.group for item in items]),
        seed=seed,
        resamples=resamples,
    )
    if mse is not None:
        found["probability_mse"] = mse
    return {**found, "event": event, "unreadable": len(outside.unreadable), "note": outside.note}


def _columns(items: list[OutsideItem], event: str, scale: Scale) -> ScoreColumns:
    """Columns where grades are missing: each label stands at the grade that its text implies."""
    mark, under = scale.pass_mark, scale.pass_mark - scale.step
    grade = np.array([_stand_in(item, scale) for item in items])
    lower = np.isclose(grade, under)
    side = np.array([majority_side(item.held_back, scale) for item in items])
    return ScoreColumns(
        p=np.array([item.p_pass for item in items]),
        passed=(grade >= mark).astype(np.float64),
        truth=np.array([event_truth(event, value, scale) for value in grade]),
        group=np.array([item.group for item in items]),
        borderline=lower | np.isclose(grade, mark),
        readable=np.array([item.readable for item in items]),
        side=np.where(lower, side, math.nan),
    )


def _stand_in(item: OutsideItem, scale: Scale) -> float:
    """The grade; for a label the mark, the step under it, or an end of the scale where it is neither."""
    if item.grade is not None:
        return item.grade
    label = (item.answer, item.label_p)
    if label == _UNDER_MARK:
        return scale.pass_mark - scale.step
    if label == _AT_MARK:
        return scale.pass_mark
    return scale.maximum if item.answer == 1 else scale.minimum


def _by_label(items: list[OutsideItem]) -> dict[str, dict[str, float | int]]:
    """Mean P(pass) and count per label as its text reads ("0,0.70"), from sure fail to sure pass."""
    found: dict[tuple[float, float, str], list[float]] = {}
    for item in items:
        if item.answer is not None and item.label_p is not None:
            stated = item.label_p if item.answer == 1 else 1.0 - item.label_p
            name = f"{item.answer:.0f},{stated:.2f}"
            found.setdefault((item.answer, item.label_p, name), []).append(item.p_pass)
    return {key[2]: {"mean_p": sum(ps) / len(ps), "n": len(ps)} for key, ps in sorted(found.items())}


def _item(place: str, row: dict[str, Any], number: int, binary: bool) -> OutsideItem:
    p = _p_pass(row)
    label, text = _number(row.get("label")), _answer(row.get("label"))
    numbers = [_number(row.get("grade")), _number(row.get("score")), None if binary else label]
    grade = next((number for number in numbers if number is not None), None)
    answer = text[0] if text else label if binary else None
    if grade is None and answer is None:
        raise RequestError(
            f"{place}: neither a grade nor a label that can be read",
            'add grade, or label as in "1,0.65", or name a file of labels',
        )
    name = row.get("id")
    key = str(number) if name in (None, "") else str(name)
    group = row.get("group")
    return OutsideItem(
        id=key,
        group=key if group in (None, "") else str(group),
        p_pass=0.5 if p is None else p,
        readable=p is not None,
        grade=grade,
        answer=answer,
        label_p=pass_probability(text) if text else None,
        held_back=_grades(row.get("held_back"), place),
    )


def _p_pass(row: dict[str, Any]) -> float | None:
    """P(pass) in [0, 1] by `p_pass`, else by the text of `prediction`; None when neither can be read."""
    p = _number(row.get("p_pass"))
    if p is None:
        text = _answer(row.get("prediction"))
        return pass_probability(text) if text else None
    return p if 0.0 <= p <= 1.0 else None


def _answer(value: Any) -> tuple[float, float] | None:
    """(answer, probability of the answer) of a text that holds exactly one such pair."""
    pairs = _ANSWER.findall(value) if isinstance(value, str) else []
    if len(pairs) != 1 or not float(pairs[0][1]) <= 1.0:
        return None
    return float(pairs[0][0]), float(pairs[0][1])


def _number(value: Any) -> float | None:
    """A finite number, or the text of one."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def _grades(value: Any, place: str) -> tuple[float, ...]:
    """Grades from a JSON list, or from a text with blanks or semicolons between them."""
    if value in (None, ""):
        return ()
    pieces = re.split(r"[;\s]+", value.strip()) if isinstance(value, str) else value
    found = [_number(piece) for piece in pieces] if isinstance(pieces, list) else [None]
    if any(grade is None for grade in found):
        raise RequestError(f"{place}: held_back {value!r} is not a list of grades", 'write [3, 4] or "3;4"')
    return tuple(grade for grade in found if grade is not None)


def _note(rows: list[Located], items: list[OutsideItem]) -> str:
    """What was assumed, in sentences; empty when nothing was."""
    clashes = 0
    for (_, row), item in zip(rows, items, strict=True):
        said = _answer(row.get("prediction"))
        clashes += item.readable and said is not None and (said[0] == 1) != (item.p_pass > 0.5)
    unread = sum(not item.readable for item in items)
    facts = [
        (unread, f"{unread} of {len(items)} predictions could not be read: wrong, with P(pass) 0.5."),
        (clashes, f"{clashes} predictions name an answer their P(pass) does not favour: P(pass) counts."),
        (any(item.grade is None for item in items), "Rows without grades: their labels' answers count."),
        (all(item.group == item.id for item in items), "No groups: intervals take answers as independent."),
    ]
    return " ".join(text for holds, text in facts if holds)


def _joined(rows: list[Located], labels: list[Located], path: Path, labels_path: Path) -> list[Located]:
    """Each prediction with the fields of its label; what the label file says of them holds."""

    def kept(row: dict[str, Any]) -> dict[str, Any]:
        return {name: row[name] for name in _LABEL_FIELDS if name in row}

    if all("id" in row for _, row in [*rows, *labels]):
        by_id = {str(row["id"]): kept(row) for _, row in labels}
        missing = [f"{place}: id {row['id']!r}" for place, row in rows if str(row["id"]) not in by_id]
        if missing:
            raise RequestError(f"{missing[0]} is not in {labels_path}", "give a label for every prediction")
        return [(place, {**row, **by_id[str(row["id"])]}) for place, row in rows]
    if len(rows) != len(labels):
        raise RequestError(
            f"{path} has {len(rows)} rows and {labels_path} has {len(labels)}",
            "give ids in both files, or the same rows in the same order",
        )
    return [(place, {**row, **kept(label)}) for (place, row), (_, label) in zip(rows, labels, strict=True)]


def _rows(path: Path) -> list[Located]:
    """The rows of a file, each with its place; the content tells the kind, CSV being what is not JSON."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path} cannot be read: {error}", "name a JSON or CSV file") from error
    found = _json(path, text) if text.lstrip()[:1] in ("[", "{") else _csv(path, text)
    if not found:
        raise RequestError(f"{path}: holds no predictions", "name a file with one row per answer")
    rows = [(place, value) for place, value in found if isinstance(value, dict)]
    if len(rows) != len(found):
        place = next(place for place, value in found if not isinstance(value, dict))
        raise RequestError(f"{place}: not an object with fields", "give one object per answer")
    return rows


def _csv(path: Path, text: str) -> list[tuple[str, Any]]:
    reader = csv.DictReader(
        io.StringIO(text, newline=""), strict=True, delimiter="\t" if path.suffix == ".tsv" else ","
    )
    try:
        return [(f"{path} line {reader.line_num}", row) for row in reader]
    except csv.Error as error:
        # the reader counts the rows it finished; the broken one begins on the next line
        raise RequestError(f"{path} line {reader.line_num + 1}: not CSV: {error}", "correct it") from error


def _json(path: Path, text: str) -> list[tuple[str, Any]]:
    """A list, the first filled list inside an object, one row by itself, or one object per line."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as whole:
        if whole.msg != "Extra data":  # what a second line of JSON lines looks like to a JSON reader
            raise RequestError(f"{path} line {whole.lineno}: not JSON: {whole.msg}", "correct it") from whole
        found = []
        for number, line in enumerate(text.split("\n"), 1):
            try:
                found += [(f"{path} line {number}", json.loads(line))] if line.strip() else []
            except json.JSONDecodeError as error:
                raise RequestError(f"{path} line {number}: not JSON: {error.msg}", "correct it") from error
        return found
    alone = isinstance(value, dict) and any(
        not isinstance(value.get(name, []), list) for name in (*_PREDICTION_FIELDS, *_LABEL_FIELDS)
    )
    if isinstance(value, dict) and not alone:
        value = next((inner for inner in value.values() if isinstance(inner, list) and inner), [])
    return [(f"{path} item {number}", row) for number, row in enumerate([value] if alone else value, 1)]
