"""The scores of one candidate on one exam, each with its interval: what scores.json holds.

The module refuses to know other candidates. Shape suffixes: N items, O options (short rows filled with 0), W wordings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from luthier.assess.metrics import Floats, Ints, bootstrap_ci, ece_of_index
from luthier.errors import DataError
from luthier.exam_records import ExamPrediction, ExamRecord
from luthier.files import read_json, read_jsonl
from luthier.outcome.statistics import Estimate, accuracy_interval, mean_interval
from luthier.outcome.statistics.clusters import bootstrap_means, cluster_ids
from luthier.rundir import ExamDir

_MEND = "examine the candidate anew"


@dataclass(frozen=True)
class Resampling:
    """How intervals are drawn."""

    resamples: int
    seed: int


@dataclass(frozen=True)
class Asked:
    """All items under one wording and order: who was right (N,), what was chosen (N,), in the file's order."""

    correct_N: Floats
    choice_N: Ints


def read_exam_record(exam_dir: ExamDir) -> ExamRecord:
    """exam.json; DataError where it is missing or has other keys."""
    try:
        return ExamRecord(**read_json(exam_dir.exam))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            f"{exam_dir.exam}: not an exam's record: {error}", "examine anew into another folder"
        ) from error


def read_predictions(exam_dir: ExamDir, name: str) -> list[ExamPrediction]:
    """A candidate's answers to the items of items.jsonl, in that order; DataError where it sat others, or one twice."""
    path = exam_dir.candidate(name).predictions
    try:
        found = [ExamPrediction.from_json(row) for row in read_jsonl(path)]
        ids = [row["id"] for row in read_jsonl(exam_dir.items)]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path}: answers that cannot be read: {error}", _MEND) from error
    by_id = {prediction.id: prediction for prediction in found}
    other = sorted(by_id.keys() ^ set(ids))
    if other or len(found) != len(ids) or not ids:
        named = f"{len(other)} differ, first {other[0]!r}" if other else f"{len(found)} answers to {len(ids)} items"
        raise DataError(f"{path}: {name} did not sit the items of {exam_dir.items.name}: {named}", _MEND)
    return [by_id[id] for id in ids]


def item_groups(predictions: Sequence[ExamPrediction]) -> list[str]:
    """The group of each item, "" for one on its own."""
    return [prediction.group for prediction in predictions]


def option_probabilities(predictions: Sequence[ExamPrediction]) -> Floats | None:
    """(N, O) softmax of each item's log-likelihoods as they were scored; None where answers were written."""
    if not all(prediction.logprobs for prediction in predictions):
        return None
    width = max(len(prediction.logprobs) for prediction in predictions)
    found_NO = np.zeros((len(predictions), width))
    for row, prediction in zip(found_NO, predictions, strict=True):
        weights = np.exp(np.asarray(prediction.logprobs) - max(prediction.logprobs))
        row[: len(weights)] = weights / weights.sum()
    return found_NO


def answer_losses(predictions: Sequence[ExamPrediction]) -> Floats | None:
    """(N,) nats: minus the log-probability of the right option among the options; None where answers were written."""
    if not all(prediction.logprobs for prediction in predictions):
        return None
    rows = [np.asarray(prediction.logprobs, dtype=np.float64) for prediction in predictions]
    return np.array([np.logaddexp.reduce(row) - row[item.answer] for row, item in zip(rows, predictions, strict=True)])


def correct_answers(predictions: Sequence[ExamPrediction]) -> Floats:
    """(N,) 1 where the first wording in the file's order was answered rightly."""
    return np.array([float(prediction.correct) for prediction in predictions])


def exam_scores(
    predictions: Sequence[ExamPrediction], exam: ExamRecord, places: Mapping[str, int], draw: Resampling
) -> dict[str, Estimate]:
    """Every score as {"value", "ci", "n"}; `places` is the number of options of each item, by id.

    accuracy, majority, chance; with log-likelihoods log_loss, brier, ece; swap.* where both orders were asked; prompt.*
    where several wordings were; clean.accuracy where training touched some items; unparsed where answers were written.
    Intervals respect the items' groups; the two orders and all wordings of an item are one observation.
    """
    groups, correct_N = item_groups(predictions), correct_answers(predictions)
    found = {
        "accuracy": _accuracy(correct_N, groups, draw),
        "majority": _fixed(exam.majority, len(predictions)),
        "chance": _fixed(exam.chance, len(predictions)),
    }
    found |= _probability_scores(predictions, groups, draw)
    wordings = list(exam.settings.get("prompts", []))
    swapped = _asked(predictions, wordings[0], True) if wordings else None
    if swapped is not None:
        found |= _swap_scores(predictions, swapped, places, draw)
    if len(wordings) > 1:
        found |= _wording_scores(predictions, wordings, draw)
    touched = set(exam.overlap)
    clean = np.array([prediction.id not in touched for prediction in predictions])
    if touched and clean.any():
        kept = [group for group, own in zip(groups, clean, strict=True) if own]
        found["clean.accuracy"] = _accuracy(correct_N[clean], kept, draw)
    if not any(prediction.logprobs for prediction in predictions):
        found["unparsed"] = _accuracy(np.array([float(item.choice < 0) for item in predictions]), groups, draw)
    return found


def _probability_scores(
    predictions: Sequence[ExamPrediction], groups: list[str], draw: Resampling
) -> dict[str, Estimate]:
    """log_loss in nats; brier: half the squared distance to the right answer (Brier 1950), (p - y)² for two options;
    ece of the chosen option's probability in ten equal-mass bins."""
    probabilities_NO, losses_N = option_probabilities(predictions), answer_losses(predictions)
    if probabilities_NO is None or losses_N is None:
        return {}
    truth_NO = np.zeros_like(probabilities_NO)
    truth_NO[np.arange(len(predictions)), [prediction.answer for prediction in predictions]] = 1.0
    confidence_N, correct_N = probabilities_NO.max(axis=1), correct_answers(predictions)
    briers_N = 0.5 * ((probabilities_NO - truth_NO) ** 2).sum(axis=1)
    return {
        "log_loss": mean_interval(losses_N, groups, resamples=draw.resamples, seed=draw.seed),
        "brier": mean_interval(briers_N, groups, resamples=draw.resamples, seed=draw.seed),
        "ece": _estimate(ece_of_index(confidence_N, correct_N), groups, draw),
    }


def _swap_scores(
    predictions: Sequence[ExamPrediction], swapped: Asked, places: Mapping[str, int], draw: Resampling
) -> dict[str, Estimate]:
    """accuracy over both orders, consistent: right in both, first: share of choices that take what stands first."""
    groups, correct_N = item_groups(predictions), correct_answers(predictions)
    choice_N = np.array([prediction.choice for prediction in predictions])
    last_N = np.array([places[prediction.id] - 1 for prediction in predictions])
    firsts_N = (choice_N == 0).astype(np.float64) + (swapped.choice_N == last_N)
    named_N = (choice_N >= 0).astype(np.float64) + (swapped.choice_N >= 0)
    both = {
        "swap.accuracy": mean_interval(
            (correct_N + swapped.correct_N) / 2, groups, resamples=draw.resamples, seed=draw.seed
        ),
        "swap.consistent": _accuracy(correct_N * swapped.correct_N, groups, draw),
    }
    if not named_N.any():
        return both

    def first(index: Ints) -> float | None:
        named = float(named_N[index].sum())
        return float(firsts_N[index].sum()) / named if named else None

    return {**both, "swap.first": _estimate(first, groups, draw)}


def _wording_scores(
    predictions: Sequence[ExamPrediction], wordings: Sequence[str], draw: Resampling
) -> dict[str, Estimate]:
    """Accuracy of each wording and their spread, highest minus lowest; noise alone lifts a spread above 0."""
    groups = item_groups(predictions)
    columns = [correct_answers(predictions)]
    for wording in wordings[1:]:
        asked = _asked(predictions, wording, False)
        if asked is None:
            raise DataError(f"no item was asked in the wording {wording!r} that exam.json names", _MEND)
        columns.append(asked.correct_N)
    correct_WN = np.stack(columns)
    members = cluster_ids(groups, len(predictions))
    spreads_R = np.ptp(bootstrap_means(correct_WN, members, resamples=draw.resamples, seed=draw.seed), axis=1)
    low, high = np.quantile(spreads_R, [0.025, 0.975])
    found = {
        f"prompt.{wording}.accuracy": _accuracy(row, groups, draw)
        for wording, row in zip(wordings, correct_WN, strict=True)
    }
    spread = float(np.ptp(correct_WN.mean(axis=1)))
    return {**found, "prompt.spread": {"value": spread, "ci": [float(low), float(high)], "n": len(predictions)}}


def _asked(predictions: Sequence[ExamPrediction], prompt: str, is_reversed: bool) -> Asked | None:
    """One of the further askings over all items; None where no item has it, DataError where only some have."""
    found = [
        next((asked for asked in item.more if asked.prompt == prompt and asked.reversed == is_reversed), None)
        for item in predictions
    ]
    there = [asked for asked in found if asked is not None]
    if not there:
        return None
    if len(there) < len(found):
        missing = predictions[found.index(None)].id
        raise DataError(f"item {missing!r} was not asked in the wording {prompt!r} as others were", _MEND)
    choice_N = np.array([asked.choice for asked in there])
    return Asked((choice_N == [item.answer for item in predictions]).astype(np.float64), choice_N)


def _accuracy(correct_N: Floats, groups: list[str], draw: Resampling) -> Estimate:
    return accuracy_interval(correct_N, groups, resamples=draw.resamples, seed=draw.seed)


def _fixed(value: float, n: int) -> Estimate:
    return {"value": value, "ci": [value, value], "n": n}


def _estimate(statistic: Callable[[Ints], float | None], groups: list[str], draw: Resampling) -> Estimate:
    """A statistic that is no mean of items, with the interval of the cluster bootstrap."""
    members = cluster_ids(groups, len(groups)).astype(str)
    value = statistic(np.arange(len(groups)))
    interval = bootstrap_ci(statistic, members, resamples=draw.resamples, seed=draw.seed)
    if value is None or interval is None:
        raise DataError("a score that no item bears", _MEND)
    return {"value": value, "ci": list(interval), "n": len(groups)}
