"""The scores of a describe stage: its held-out answers, the best constants and the answers before training, each on the
same rows, with intervals over products.

Scores are `field.score`, with `constant.`, `over_constant.` or `before.` before them. `over_constant` is how much
better than the constant the model is, above 0 for better whichever way the score goes, with a paired interval. Reads
records alone.

Shapes: N rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from luthier.assess.described import Floats, Summary, summaries
from luthier.assess.metrics import Ints, bootstrap_ci
from luthier.outcome.statistics import Estimate, accuracy_interval, paired_accuracy
from luthier.recipe_describe import AnswerForm
from luthier.records import DescribePrediction


def describe_scores(
    rows: Sequence[DescribePrediction], form: AnswerForm, *, resamples: int = 1000, seed: int = 0
) -> dict[str, Estimate]:
    """Every score as {"value", "ci", "n"}; empty for no rows.

    An answer that is not in the form counts as wrong everywhere (see `assess.described`), so n is that of all rows.
    """
    if not rows:
        return {}
    drawing, found = _Drawing([row.group for row in rows], resamples, seed), dict[str, Estimate]()
    for name, (column, sum_up, higher) in summaries(form).items():
        own_N = _column([row.scores for row in rows], column)
        found[name] = drawing.score(own_N, sum_up)
        if name in rows[0].constant:
            blind_N = _column([row.constant for row in rows], name)
            found[f"constant.{name}"] = drawing.score(blind_N, sum_up)
            better = (own_N, blind_N) if higher else (blind_N, own_N)
            found[f"over_constant.{name}"] = drawing.difference(*better, sum_up)
        before = [row.before.scores for row in rows if row.before]
        if len(before) == len(rows):
            found[f"before.{name}"] = drawing.score(_column(before, column), sum_up)
    return found


@dataclass(frozen=True)
class _Drawing:
    """How intervals are drawn: whole products, again and again. Shares (0 or 1 a row) have intervals of their own,
    which stay honest where all rows are alike."""

    groups: list[str]
    resamples: int
    seed: int

    def score(self, values_N: Floats, sum_up: Summary) -> Estimate:
        if _is_share(values_N):
            return accuracy_interval(values_N, self.groups, resamples=self.resamples, seed=self.seed)
        return self._drawn(lambda drawn: sum_up(values_N[drawn]))

    def difference(self, a_N: Floats, b_N: Floats, sum_up: Summary) -> Estimate:
        """First minus second, on the same rows."""
        if _is_share(a_N) and _is_share(b_N):
            pair = paired_accuracy(a_N, b_N, self.groups, resamples=self.resamples, seed=self.seed)
            return {"value": pair["value"], "ci": pair["ci"], "n": pair["n"]}
        return self._drawn(lambda drawn: sum_up(a_N[drawn]) - sum_up(b_N[drawn]))

    def _drawn(self, statistic: Callable[[Ints], float]) -> Estimate:
        interval = bootstrap_ci(statistic, self.groups, resamples=self.resamples, seed=self.seed)
        assert interval is not None  # the statistic has a value on every draw
        return {"value": statistic(np.arange(len(self.groups))), "ci": list(interval), "n": len(self.groups)}


def _is_share(values_N: Floats) -> bool:
    return set(values_N.tolist()) <= {0.0, 1.0}


def _column(lines: Sequence[dict[str, float]], name: str) -> Floats:
    return np.array([line[name] for line in lines], dtype=np.float64)
