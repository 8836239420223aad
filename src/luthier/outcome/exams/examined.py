"""What the answers of all who sat an exam bear together: scores.json of each, and table.json.

The module refuses to know models: it reads answers on disk. Shape suffixes: K candidates, N items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from luthier.assess.metrics import Floats
from luthier.errors import DataError
from luthier.exam_records import ExamPrediction, ExamRecord, SatRecord
from luthier.files import read_json, read_jsonl, write_json
from luthier.outcome.exams.notes import exam_notes
from luthier.outcome.exams.scores import (
    Resampling,
    answer_losses,
    correct_answers,
    exam_scores,
    item_groups,
    read_exam_record,
    read_predictions,
)
from luthier.outcome.looks import count_looks
from luthier.outcome.statistics import (
    Estimate,
    PairTests,
    all_pairs,
    earliest_of,
    max_t,
    minimum_detectable_effect,
    paired_accuracy,
    paired_t,
    questions_needed,
    selection_corrected,
    significance_groups,
    simultaneous_band,
)
from luthier.outcome.statistics.clusters import cluster_ids, design_effects
from luthier.rundir import ExamDir

ALPHA = 0.05


@dataclass(frozen=True)
class Sat:
    """One candidate: who it is, what it answered, its scores."""

    record: SatRecord
    predictions: list[ExamPrediction]
    scores: dict[str, Estimate]
    losses_N: Floats | None
    """Option log-loss of each item in nats; None where answers were written."""


@dataclass(frozen=True)
class Together:
    """All candidates on one exam, base first, then by step and name."""

    exam: ExamRecord
    sat: list[Sat]
    correct_KN: Floats
    groups: list[str]
    base: int | None
    """Place of the base that the others are adapters of; None where there is none, or several."""
    among: list[int]
    """Places of those whose best is asked for: the checkpoints where one is to be chosen, else all."""
    pairs: PairTests
    draw: Resampling

    @property
    def names(self) -> list[str]:
        return [one.record.name for one in self.sat]

    @property
    def best(self) -> int:
        """Place of the highest accuracy in `among`; of equal ones the first."""
        return self.among[int(self.correct_KN[self.among].mean(axis=1).argmax())]


def write_scores(exam_dir: ExamDir, name: str, *, resamples: int = 1000, seed: int = 0) -> dict[str, Estimate]:
    """Score one candidate's answers into its scores.json, and return the scores. DataError on broken answers."""
    exam = read_exam_record(exam_dir)
    predictions = read_predictions(exam_dir, name)
    places = {item["id"]: len(item["options"]) for item in read_jsonl(exam_dir.items)}
    scores = exam_scores(predictions, exam, places, Resampling(resamples, seed))
    write_json(exam_dir.candidate(name).scores, scores)
    return scores


def conclude(exam_dir: ExamDir, *, choose: bool, resamples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Write table.json over all who finished the exam, and return it.

    `choose`: this exam chooses among the checkpoints (candidates with a step): the best is the best of them, the
    chosen the earliest that cannot be told from it; else the best is that of all, and nobody is chosen. Tests and
    groups are over all candidates at once (statistics.many). Scores that are not there yet are written. DataError
    where nobody finished, or where candidates sat different items.
    """
    found = _read(exam_dir, choose, Resampling(resamples, seed))
    chosen = _chosen(found) if choose else None
    bands = simultaneous_band(found.correct_KN, found.groups, resamples=resamples, seed=seed)
    letters = significance_groups(found.pairs.p_KK <= ALPHA, found.correct_KN.mean(axis=1))
    to_base_K = None if found.base is None else _adjusted(found, found.base)
    discordance, effect = _sensitivity(found)
    table = {
        "exam": found.exam.name,
        "n": len(found.groups),
        "chance": found.exam.chance,
        "majority": found.exam.majority,
        "alpha": ALPHA,
        "candidates": [
            {
                "name": one.record.name,
                "step": one.record.step,
                "scores": one.scores,
                "band": [float(end) for end in bands[k]],
                "group": letters[k],
                "against_base": _against(found, k, found.base, to_base_K),
                "against_best": _against(found, k, found.best, found.pairs.p_KK[:, found.best]),
            }
            for k, one in enumerate(found.sat)
        ],
        "best": found.names[found.best],
        "chosen": None if chosen is None else found.names[chosen],
        "corrected": _corrected(found),
        "discordance": discordance,
        "minimum_detectable_effect": effect,
        "more_questions": _more_questions(found, chosen),
        "looks": count_looks(found.exam.digest),
    }
    table["notes"] = exam_notes(table, found.exam, found.groups, [one.record for one in found.sat])
    write_json(exam_dir.table, table)
    return table


def _read(exam_dir: ExamDir, choose: bool, draw: Resampling) -> Together:
    exam = read_exam_record(exam_dir)
    names = exam_dir.candidates()
    if not names:
        raise DataError(f"{exam_dir.path}: nobody has finished this exam", "examine a candidate first")
    records = {name: _record(exam_dir, name) for name in names}
    base = _base_of(list(records.values()))
    far = float("inf")
    names.sort(key=lambda name: (name != base, far if records[name].step is None else records[name].step, name))
    sat = []
    for name in names:
        scores_path = exam_dir.candidate(name).scores
        if not scores_path.is_file():
            write_scores(exam_dir, name, resamples=draw.resamples, seed=draw.seed)
        scores = read_json(scores_path)
        predictions = read_predictions(exam_dir, name)
        sat.append(Sat(records[name], predictions, scores, answer_losses(predictions)))
    _refuse_other_answers(exam_dir, sat)
    correct_KN = np.stack([correct_answers(one.predictions) for one in sat])
    groups = item_groups(sat[0].predictions)
    pairs = all_pairs(correct_KN, groups, alpha=ALPHA, resamples=draw.resamples, seed=draw.seed)
    checkpoints = [k for k, one in enumerate(sat) if one.record.step is not None] if choose else []
    among = checkpoints or list(range(len(sat)))
    return Together(exam, sat, correct_KN, groups, None if base is None else 0, among, pairs, draw)


def _record(exam_dir: ExamDir, name: str) -> SatRecord:
    path = exam_dir.candidate(name).record
    try:
        return SatRecord(**read_json(path))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path}: not a candidate's record: {error}", "examine the candidate anew") from error


def _base_of(records: Sequence[SatRecord]) -> str | None:
    """The one candidate without an adapter that all others are adapters of."""
    bare = [record.name for record in records if not record.adapter_sha256]
    one_base = len({record.base_sha256 for record in records}) == 1
    return bare[0] if len(bare) == 1 and one_base else None


def _refuse_other_answers(exam_dir: ExamDir, sat: Sequence[Sat]) -> None:
    """Equal ids whose right answers or groups differ come from two versions of the exam."""
    first = sat[0]
    known = [(item.id, item.answer, item.group) for item in first.predictions]
    for one in sat[1:]:
        for (id, answer, group), item in zip(known, one.predictions, strict=True):
            if (item.answer, item.group) != (answer, group):
                raise DataError(
                    f"{exam_dir.path}: {first.record.name} and {one.record.name} have another right answer "
                    f"or group for item {id!r}",
                    "examine both anew on one version of the exam",
                )


def _chosen(found: Together) -> int:
    """The earliest not told from the best; those without a step stand in their order."""
    steps = [found.sat[k].record.step or 0 for k in found.among]
    own_p = found.pairs.p_KK[np.ix_(found.among, found.among)]
    return found.among[earliest_of(found.correct_KN[found.among].mean(axis=1), steps, own_p, ALPHA)]


def _adjusted(found: Together, reference: int) -> Floats:
    return max_t(found.correct_KN, reference, found.groups, resamples=found.draw.resamples, seed=found.draw.seed)


def _against(found: Together, k: int, reference: int | None, adjusted_K: Floats | None) -> dict[str, Any] | None:
    """One candidate minus the reference: accuracy with its tests, and option log-loss where there is one."""
    if reference is None or adjusted_K is None or k == reference:
        return None
    draw = found.draw
    pair = paired_accuracy(
        found.correct_KN[k], found.correct_KN[reference], found.groups, resamples=draw.resamples, seed=draw.seed
    )
    losses, others = found.sat[k].losses_N, found.sat[reference].losses_N
    log_loss = None
    if losses is not None and others is not None and len(losses) > 1:
        t = paired_t(losses, others, found.groups)
        log_loss = {"value": t["value"], "ci": t["ci"], "p": t["p"]}
    return {**pair, "p_adjusted": float(adjusted_K[k]), "log_loss": log_loss}


def _corrected(found: Together) -> dict[str, Any]:
    """What the best keeps on items that did not help to find it; "of": how many it was the best of.

    Of one item alone nothing is left that did not help: the score stands, and its interval says nothing.
    """
    draw = found.draw
    if len(found.groups) == 1:
        raw = float(found.correct_KN[found.best].mean())
        return {"value": raw, "ci": [0.0, 1.0], "n": 1, "of": len(found.among)}
    value = selection_corrected(found.correct_KN[found.among], found.groups, resamples=draw.resamples, seed=draw.seed)
    return {**value, "of": len(found.among)}


def _sensitivity(found: Together) -> tuple[float | None, float | None]:
    """Median share of items that exactly one of two candidates has right, and the true gap found at 80 % power."""
    count, n = found.correct_KN.shape
    if count < 2:
        return None, None
    first, second = np.triu_indices(count, 1)
    difference_PN = found.correct_KN[first] - found.correct_KN[second]
    discordance = float(np.median(np.abs(difference_PN).mean(axis=1)))
    worth = n / float(np.median(design_effects(difference_PN, cluster_ids(found.groups, n))))
    return discordance, minimum_detectable_effect(worth, discordance, alpha=ALPHA)


def _more_questions(found: Together, chosen: int | None) -> dict[str, Any] | None:
    """The pair whose verdict a reader waits for, and the further questions it would take at 80 % power.

    That pair is the best and the chosen; where they are one, the best and the highest not told from it. `questions`
    is None where their scores tie.
    """
    mean_K, best = found.correct_KN.mean(axis=1), found.best
    open_to_best = [k for k in np.argsort(-mean_K, kind="stable") if k != best and found.pairs.p_KK[k, best] > ALPHA]
    other = chosen if chosen is not None and chosen != best else next(iter(open_to_best), None)
    if other is None or found.pairs.p_KK[other, best] <= ALPHA:
        return None
    difference_N = found.correct_KN[best] - found.correct_KN[other]
    difference, n = float(difference_N.mean()), len(difference_N)
    questions = None
    if difference:
        needed = questions_needed(abs(difference), float(np.abs(difference_N).mean()), alpha=found.pairs.single_alpha)
        worth = float(design_effects(difference_N[None], cluster_ids(found.groups, n))[0])
        questions = max(1, round(needed * worth) - n)
    return {"pair": [found.names[other], found.names[best]], "difference": difference, "questions": questions}
