"""Descriptions judged field by field: how near an answer is to what the row says, and what answering blindly would get.

An answer that is not in the form is wrong in every field: similarity 0, category and amounts missed. Its error in an
amount is that of the training amount farthest from the truth, so that it is never better than any constant, and
medians and intervals stay finite. Constants are the best that can be said without a look at the picture; each is
chosen on the training rows for the very score that it stands beside. Knows fields and their kinds; refuses to know
models, files and intervals.

Shapes: N rows.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from luthier.errors import DataError
from luthier.recipe_describe import AnswerForm, amount

Floats = NDArray[np.float64]
Values = Mapping[str, str]
"""Field -> its text, as an answer's form reads it."""
WITHIN = (0.10, 0.25)
"""An amount is near where it differs from the truth by at most such a share of the truth."""
QUANTILES = {"median_log_error": 0.5, "p90_log_error": 0.9}
"""Scores of amounts that are quantiles over rows (linear between two rows) of the absolute error of the logarithm."""
_WORD = re.compile(r"\w+")
_ROUNDING = 1e-9


def within_name(share: float) -> str:
    """The name of a score: within_10 for 0.10."""
    return f"within_{round(100 * share)}"


def token_f1(answer: str, truth: str) -> float:
    """F1 over words, each as often as it comes, folded and without punctuation (as SQuAD has it: Rajpurkar et al. 2016,
    arXiv 1606.05250; articles count here)."""
    said, true = Counter(_words(answer)), Counter(_words(truth))
    shared = (said & true).total()
    return 2 * shared / (said.total() + true.total()) if shared else float(said == true)


def edit_similarity(answer: str, truth: str) -> float:
    """1 - edits / length of the longer, over folded letters (Levenshtein 1966); 1 for equal texts."""
    a, b = _folded(answer), _folded(truth)
    return 1.0 - _edits(a, b) / max(len(a), len(b), 1)


def same_category(answer: str, truth: str) -> bool:
    """Whether two names of a category are one, whatever their letters' case and white space."""
    return _folded(answer) == _folded(truth)


@dataclass(frozen=True)
class AmountConstants:
    """The best constant for each score of an amount on the training rows, and the ends of what they have."""

    lowest: float
    highest: float
    best: Mapping[str, float]
    """Score -> the constant."""

    def worst_error(self, truth: float) -> float:
        """The error of whoever names the training amount that is farthest from the truth."""
        return max(log_error(self.lowest, truth), log_error(self.highest, truth))


@dataclass(frozen=True)
class Constants:
    """What can be answered without a look at the picture: a category each, and a few constants for each amount."""

    categories: Mapping[str, str]
    amounts: Mapping[str, AmountConstants]

    @classmethod
    def of(cls, form: AnswerForm, rows: Sequence[Values]) -> Constants:
        """Of the training rows. Raises DataError where there are none."""
        if not rows:
            raise DataError(
                "no training row has an answer in the form of task.describe.template, so nothing can be scored by it",
                "let data.train name a source of descriptions",
            )
        kinds = dict(form.kinds)
        return cls(
            {name: _commonest([row[name] for row in rows]) for name in form.fields if kinds[name] == "category"},
            {name: _amounts([_number(row[name]) for row in rows]) for name in form.fields if kinds[name] == "amount"},
        )


def log_error(answer: float, truth: float) -> float:
    """|ln answer - ln truth|: 0.1 is about ten per cent either way."""
    return abs(math.log(answer) - math.log(truth))  # the ratio may leave what a float holds


def row_scores(form: AnswerForm, constants: Constants, read: Values | None, truth: Values) -> dict[str, float]:
    """What one answer gets, as `field.score`; `read` is None for one that is not in the form."""
    found: dict[str, float] = {"unparseable": float(read is None)}
    for name, kind in form.kinds:
        said, true = None if read is None else read[name], truth[name]
        if kind == "text":
            found[f"{name}.token_f1"] = 0.0 if said is None else token_f1(said, true)
            found[f"{name}.edit_similarity"] = 0.0 if said is None else edit_similarity(said, true)
        elif kind == "category":
            found[f"{name}.accuracy"] = float(said is not None and same_category(said, true))
        else:
            number, right = None if said is None else _number(said), _number(true)
            worst = constants.amounts[name].worst_error(right)
            found[f"{name}.log_error"] = worst if number is None else log_error(number, right)
            for share in WITHIN:
                found[f"{name}.{within_name(share)}"] = float(number is not None and _near(number, right, share))
    return found


def constant_scores(form: AnswerForm, constants: Constants, truth: Values) -> dict[str, float]:
    """What the constants get on a row, as `field.score`; texts have none. Each score has the constant best for it."""
    found: dict[str, float] = {}
    for name, kind in form.kinds:
        if kind == "category":
            found[f"{name}.accuracy"] = float(same_category(constants.categories[name], truth[name]))
        elif kind == "amount":
            right, best = _number(truth[name]), constants.amounts[name].best
            for score in QUANTILES:
                found[f"{name}.{score}"] = log_error(best[score], right)
            for share in WITHIN:
                found[f"{name}.{within_name(share)}"] = float(_near(best[within_name(share)], right, share))
    return found


def _near(answer: float, truth: float, share: float) -> bool:
    return abs(answer - truth) <= share * truth * (1 + _ROUNDING)


def _amounts(numbers: Sequence[float]) -> AmountConstants:
    sorted_N = np.sort(np.asarray(numbers, dtype=np.float64))
    logs_N = np.log(sorted_N)
    best = {name: math.exp(_middle_of_shortest(logs_N, share)) for name, share in QUANTILES.items()}
    best |= {within_name(share): _best_window(sorted_N, share) for share in WITHIN}
    return AmountConstants(float(sorted_N[0]), float(sorted_N[-1]), best)


def _middle_of_shortest(sorted_N: Floats, share: float) -> float:
    """The constant with the smallest such quantile of |value - constant|: the middle of the shortest stretch that holds
    this share of the values (for the median: Rousseeuw 1984, least median of squares)."""
    held = max(1, math.ceil(share * len(sorted_N)))
    width = sorted_N[held - 1 :] - sorted_N[: len(sorted_N) - held + 1]
    at = int(width.argmin())
    return float(sorted_N[at] + sorted_N[at + held - 1]) / 2


def _best_window(sorted_N: Floats, share: float) -> float:
    """The constant that is near to most values: those of a window whose ends are (1 + share) / (1 - share) apart."""
    ratio = (1 + share) / (1 - share)
    ends = np.searchsorted(sorted_N, sorted_N * ratio * (1 - _ROUNDING), side="right")
    at = int((ends - np.arange(len(sorted_N))).argmax())
    lowest, highest = float(sorted_N[at]), float(sorted_N[ends[at] - 1])
    return (lowest * (1 + share) + highest * (1 - share)) / 2  # anything between the two is near to both ends


def _commonest(names: Sequence[str]) -> str:
    """The most frequent name, the first in the alphabet where several are."""
    counts = Counter(map(_folded, names))
    most = max(counts.values())
    chosen = min(name for name, count in counts.items() if count == most)
    return next(name for name in names if _folded(name) == chosen)


def _number(text: str) -> float:
    found = amount(text)
    if found is None:  # the form reads no such answer, and writes none
        raise DataError(f"{text!r} is no amount", "read answers with the form's own reader")
    return found


def _folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _words(text: str) -> list[str]:
    return _WORD.findall(_folded(text))


def _edits(a: str, b: str) -> int:
    """Insertions, deletions and replacements from one text to the other; a row of the table at a time."""
    row = list(range(len(b) + 1))
    for i, one in enumerate(a, 1):
        above, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (one != other))
    return row[-1]


Summary = Callable[[Floats], float]


def summaries(form: AnswerForm) -> dict[str, tuple[str, Summary, bool]]:
    """Score -> (the column of `row_scores` that it sums up, how, whether higher is better), in the form's order."""
    found: dict[str, tuple[str, Summary, bool]] = {"unparseable": ("unparseable", _mean, False)}
    for name, kind in form.kinds:
        if kind == "text":
            found |= {f"{name}.{one}": (f"{name}.{one}", _mean, True) for one in ("token_f1", "edit_similarity")}
        elif kind == "category":
            found[f"{name}.accuracy"] = (f"{name}.accuracy", _mean, True)
        else:
            for score, share in QUANTILES.items():
                found[f"{name}.{score}"] = (f"{name}.log_error", _quantile(share), False)
            for share in WITHIN:
                found[f"{name}.{within_name(share)}"] = (f"{name}.{within_name(share)}", _mean, True)
    return found


def _mean(values_N: Floats) -> float:
    return float(values_N.mean())


def _quantile(share: float) -> Summary:
    return lambda values_N: float(np.quantile(values_N, share))
