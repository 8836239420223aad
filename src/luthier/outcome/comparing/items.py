"""What K runs have in common to be held against one another: N items that all of them answered, a value each.

Items are the same where their ids are (an id is the hash of a row's content) and what was asked of them agrees. Those
that are not shared are counted and named. This module computes no statistics.

Shapes: K runs, N items.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from luthier.assess.targets import event_truth
from luthier.exam_records import ExamPrediction
from luthier.outcome.comparing.runrecords import Json, RunStage

Floats = NDArray[np.float64]
NAMED = 5
"""Ids that a record of items left out gives."""
_CLIP = 1e-7
_DESCRIBED = ("accuracy", "log_error", "within_10", "token_f1")
"""Scores of a description that are compared, the first in the headline."""
_BYTES_APART = 0.02
"""Share by which the bytes of one answer may differ between tokenizers, which decode blanks in different ways."""


@dataclass(frozen=True)
class Measure:
    """One figure of every run on the same items: the mean of `value_KN` over items."""

    name: str
    value_KN: Floats
    lower_is_better: bool = False
    exact: bool = False
    """Values are 0 and 1: wins and losses can be counted."""
    weight_N: Floats | None = None
    """What an item weighs in the mean; None: all alike."""


@dataclass(frozen=True)
class Matched:
    """Items that all runs share. `left_out`: by run, how many of its own are not, and the first of them."""

    runs: list[str]
    ids: list[str]
    group_N: NDArray[np.str_]
    measures: list[Measure]
    left_out: dict[str, Json]
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)


def match_verdicts(runs: Sequence[RunStage]) -> Matched:
    """Held-out answers by accuracy (p_pass above one half against the recorded pass) and log loss of the event.

    Answers that were recorded as a pass in one run and as a fail in another are left out, and so is the log loss of
    runs whose p_pass is the probability of different events.
    """
    labels, tables = [run.label for run in runs], [_by_id(run.verdicts) for run in runs]
    notes = _repeats(labels, [run.verdicts for run in runs])
    ids = _shared(tables, lambda rows: len({bool(row["pass"]) for row in rows}) == 1)
    lines_KN = [[table[name] for name in ids] for table in tables]
    p_KN = _column(lines_KN, lambda line: line["p_pass"])
    passed_KN = _column(lines_KN, lambda line: line["pass"])
    measures = [Measure("accuracy", ((p_KN > 0.5) == (passed_KN == 1.0)).astype(np.float64), exact=True)]
    events = {str(run.recipe.task.event) for run in runs}
    if len(events) == 1:
        truth_KN = np.array(
            [
                [event_truth(run.recipe.task.event, line["grade"], run.recipe.task.scale) for line in lines]
                for run, lines in zip(runs, lines_KN, strict=True)
            ]
        ).reshape(p_KN.shape)
        clipped = np.clip(p_KN, _CLIP, 1 - _CLIP)
        losses_KN = -(truth_KN * np.log(clipped) + (1 - truth_KN) * np.log1p(-clipped))
        measures.append(Measure("log loss", losses_KN, lower_is_better=True))
    else:
        notes.append(f"log loss is not compared: p_pass is the probability of {' and of '.join(sorted(events))}")
    return _matched(labels, tables, ids, measures, notes)


def ranking(runs: Sequence[RunStage], ids: Sequence[str]) -> tuple[Floats, Floats]:
    """p_pass (K, N) and whether each was recorded as a pass (N), of matched verdicts; for AUROC."""
    lines_KN = [[table[name] for name in ids] for table in (_by_id(run.verdicts) for run in runs)]
    return _column(lines_KN, lambda line: line["p_pass"]), _column(lines_KN[:1], lambda line: line["pass"])[0]


def match_descriptions(runs: Sequence[RunStage]) -> Matched:
    """Held-out pictures of which all runs know the same truth, by the scores that an answer has by itself: categories
    and amounts within a tenth right or wrong, errors of an amount's logarithm, words of a text."""
    labels, tables = [run.label for run in runs], [_by_id(run.described) for run in runs]
    ids = _shared(tables, lambda lines: all(line["truth"] == lines[0]["truth"] for line in lines))
    lines_KN = [[table[name] for name in ids] for table in tables]
    scored = [name for name in (lines_KN[0][0]["scores"] if ids else ()) if name.rpartition(".")[2] in _DESCRIBED]
    measures = [
        Measure(
            name.replace(".", " ").replace("_", " "),
            _column(lines_KN, lambda line, name=name: line["scores"][name]),
            lower_is_better=name.endswith(".log_error"),
            exact=name.endswith((".accuracy", ".within_10")),
        )
        for name in sorted(scored, key=lambda name: _DESCRIBED.index(name.rpartition(".")[2]))
    ]
    return _matched(labels, tables, ids, measures, _repeats(labels, [run.described for run in runs]))


def match_losses(labels: Sequence[str], scored: Sequence[Sequence[Json]]) -> Matched:
    """Rows of text by bits a byte of their answers: scored rows of each run, with id, group, nll and target_bytes.

    A byte is one of the first run's, so that tokenizers which decode a blank more or less are held against the same
    length; a row whose answers differ by more than that was cut or weighed otherwise, and is left out.
    """
    tables = [_by_id(rows) for rows in scored]
    ids = _shared(tables, _same_text)
    lines_KN = [[table[name] for name in ids] for table in tables]
    bytes_N = _column(lines_KN[:1], lambda line: line["target_bytes"])[0]
    bits_KN = _column(lines_KN, lambda line: line["nll"]) / math.log(2.0)
    measure = Measure("bits a byte", bits_KN / bytes_N, lower_is_better=True, weight_N=bytes_N)
    return _matched(labels, tables, ids, [measure], _repeats(labels, scored))


def match_exam(labels: Sequence[str], sat: Sequence[Sequence[ExamPrediction]]) -> Matched:
    """The items of an exam by accuracy and, where all runs have log-likelihoods of the options, by their log loss."""
    tables = [{one.id: one for one in answers} for answers in sat]
    ids = [name for name in tables[0] if all(name in table for table in tables)]
    answers_KN = [[table[name] for name in ids] for table in tables]
    measures = [Measure("accuracy", _column(answers_KN, lambda one: one.correct), exact=True)]
    if ids and all(one.logprobs for answers in answers_KN for one in answers):
        measures.append(Measure("log loss", _column(answers_KN, _option_loss), lower_is_better=True))
    groups = np.array([tables[0][name].group or name for name in ids], dtype=np.str_)
    left_out = {label: _rest(table, ids) for label, table in zip(labels, tables, strict=True)}
    return Matched(list(labels), ids, groups, measures, left_out)


def _option_loss(one: ExamPrediction) -> float:
    """Nats: minus the log of the right option's probability, of all options."""
    scores = np.asarray(one.logprobs, dtype=np.float64)
    highest = float(scores.max())
    return float(highest + np.log(np.exp(scores - highest).sum()) - scores[one.answer])


def _same_text(rows: Sequence[Json]) -> bool:
    lengths = [float(row["target_bytes"]) for row in rows]
    return min(lengths) > 0 and max(lengths) - min(lengths) <= max(2.0, _BYTES_APART * max(lengths))


def _by_id(lines: Sequence[Json]) -> dict[str, Json]:
    return {str(line["id"]): line for line in lines}


def _repeats(labels: Sequence[str], lines: Sequence[Sequence[Json]]) -> list[str]:
    """Lines that name an item once more: a row that lies in two held-out sources."""
    counts = {
        label: len(own) - len({str(line["id"]) for line in own}) for label, own in zip(labels, lines, strict=True)
    }
    return [f"{label}: {count} lines repeat an item, and count once" for label, count in counts.items() if count]


def _shared(tables: Sequence[Mapping[str, Json]], same: Callable[[Sequence[Json]], bool]) -> list[str]:
    """Ids of every table, in the first one's order, whose lines belong together."""
    return [
        name for name in tables[0] if all(name in table for table in tables) and same([table[name] for table in tables])
    ]


def _column(lines_KN: Sequence[Sequence[object]], read: Callable[..., float]) -> Floats:
    width = len(lines_KN[0])
    return np.array([[read(line) for line in lines] for lines in lines_KN], dtype=np.float64).reshape(
        len(lines_KN), width
    )


def _matched(
    labels: Sequence[str],
    tables: Sequence[Mapping[str, Json]],
    ids: list[str],
    measures: list[Measure],
    notes: list[str],
) -> Matched:
    groups = np.array([str(tables[0][name].get("group") or name) for name in ids], dtype=np.str_)
    left_out = {label: _rest(table, ids) for label, table in zip(labels, tables, strict=True)}
    return Matched(list(labels), ids, groups, measures, left_out, notes)


def _rest(table: Mapping[str, object], ids: Sequence[str]) -> Json:
    kept = set(ids)
    rest = [name for name in table if name not in kept]
    return {"n": len(rest), "first": rest[:NAMED]}
