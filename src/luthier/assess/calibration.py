"""Temperature scaling of P(pass), accepted only when it helps on items it was not fitted to.

One parameter and no more: on a hundred items a second one costs more than it mends. The answer p > 1/2 and
the ranking never change. It refuses to know models and files: probabilities come in, probabilities go out.
Temperature scaling: Guo et al. 2017, "On Calibration of Modern Neural Networks".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit

from luthier.errors import DataError

Floats = npt.NDArray[np.float64]

_CLIP = 1e-7
_LOWEST, _HIGHEST = 0.05, 20.0  # beyond these a temperature answers to a handful of items


@dataclass(frozen=True)
class Calibration:
    """The temperature to use (1 when not accepted); the cross-validated loss without and with it, in nats."""

    temperature: float
    accepted: bool
    nll_before: float
    nll_after: float
    n: int


def calibrate(p: npt.ArrayLike, temperature: float) -> Floats:
    """sigmoid(logit(p) / T), shape kept; p clipped to 1e-7 .. 1 - 1e-7. T over 1 pulls towards 1/2."""
    if not (math.isfinite(temperature) and temperature > 0):
        raise DataError(f"temperature {temperature} is not above 0", "use 1 for no calibration")
    return np.asarray(expit(_logits(np.asarray(p, dtype=np.float64)) / temperature), dtype=np.float64)


def fit_temperature(p: npt.ArrayLike, y: npt.ArrayLike) -> float:
    """The T in 0.05 .. 20 of the least soft log loss of `calibrate(p, T)` against y (n,) in [0, 1].

    1 when every p is 1/2, which no temperature moves. Raises DataError on empty or unequal columns.
    """
    p, y = _checked(p, y)
    logits = _logits(p)
    if not logits.any():
        return 1.0
    # the loss is convex in 1/T, so it has one valley in ln T as well, where the bounds are even-handed
    found = minimize_scalar(
        lambda log_t: float(_losses(logits / math.exp(log_t), y).mean()),
        method="bounded",
        bounds=(math.log(_LOWEST), math.log(_HIGHEST)),
        options={"xatol": 1e-6},
    )
    return math.exp(float(found.x))


def fit_calibration(
    p: npt.ArrayLike, y: npt.ArrayLike, groups: Sequence[str], folds: int = 5, seed: int = 0
) -> Calibration:
    """Fit T on all items if, fitted on other groups, it lowers the log loss by more than one standard error.

    The folds never split a group, and the standard error is that of a mean over groups. Fewer than two
    groups, or folds, leave nothing to judge by: not accepted. Raises DataError on empty or unequal columns.
    """
    p, y = _checked(p, y)
    if len(groups) != len(p):
        raise DataError(f"{len(p)} probabilities with {len(groups)} groups", "give one group per item")
    members = np.unique(np.asarray(groups), return_inverse=True)[1].ravel()
    count = int(members.max()) + 1
    folds = min(folds, count)
    logits = _logits(p)
    before = _losses(logits, y)
    if folds < 2:
        return Calibration(1.0, False, float(before.mean()), float(before.mean()), len(p))
    fold = (np.random.default_rng(seed).permutation(count) % folds)[members]
    after = np.empty_like(before)
    for index in range(folds):
        held = fold == index
        after[held] = _losses(logits[held] / fit_temperature(p[~held], y[~held]), y[held])
    fall = before - after
    sums = np.bincount(members, weights=fall - fall.mean())
    error = math.sqrt(float((sums**2).sum()) * count / (count - 1)) / len(p)
    accepted = bool(fall.mean() > error)
    temperature = fit_temperature(p, y) if accepted else 1.0
    return Calibration(temperature, accepted, float(before.mean()), float(after.mean()), len(p))


def _checked(p: npt.ArrayLike, y: npt.ArrayLike) -> tuple[Floats, Floats]:
    p, y = np.asarray(p, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if p.ndim != 1 or p.shape != y.shape or len(p) == 0:
        raise DataError(
            f"probabilities {p.shape} and labels {y.shape} do not pair up", "give two equal, filled columns"
        )
    if not (((p >= 0) & (p <= 1)).all() and ((y >= 0) & (y <= 1)).all()):
        raise DataError("a probability or a label lies outside 0..1", "correct the predictions")
    return p, y


def _logits(p: Floats) -> Floats:
    return np.asarray(logit(np.clip(p, _CLIP, 1.0 - _CLIP)), dtype=np.float64)


def _losses(logits: Floats, y: Floats) -> Floats:
    """-(y ln s + (1 - y) ln(1 - s)) with s = sigmoid(logits), without rounding s to 1."""
    return np.asarray(np.logaddexp(0.0, logits) - y * logits, dtype=np.float64)
