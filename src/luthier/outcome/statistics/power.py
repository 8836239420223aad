"""Before an exam: what gap its questions can show. After it: how many more would be needed.

Normal approximations for two-sided tests. `discordance` is the share of questions that exactly one of two candidates
has right: pairing puts it in the place of 2p(1-p), so checkpoints of one run need far fewer questions than strangers.
The module refuses to know scores.
"""

from __future__ import annotations

import math

from luthier.errors import RequestError
from luthier.outcome.statistics.paired import mcnemar_exact


def questions_needed(difference: float, discordance: float, power: float = 0.8, alpha: float = 0.05) -> int:
    """Questions on which a paired test finds a true `difference` with probability `power` (Connor 1987)."""
    gap = abs(difference)
    if not 0 < gap <= discordance <= 1:
        raise RequestError(
            f"no number of questions for a difference of {difference} at a discordance of {discordance}",
            "give a difference that is not 0 and at most the discordance, itself at most 1",
        )
    level, reach = _normal_points(power, alpha)
    return math.ceil((level * math.sqrt(discordance) + reach * math.sqrt(discordance - gap**2)) ** 2 / gap**2)


def questions_needed_unpaired(first: float, second: float, power: float = 0.8, alpha: float = 0.05) -> int:
    """Questions for each of two candidates that sit different ones, at their accuracies (Fleiss, Levin & Paik 2003)."""
    if first == second or not (0 <= first <= 1 and 0 <= second <= 1):
        raise RequestError(f"no number of questions tells {first} from {second}", "give two different shares of 0..1")
    level, reach = _normal_points(power, alpha)
    middle = (first + second) / 2
    pooled = math.sqrt(2 * middle * (1 - middle))
    apart = math.sqrt(first * (1 - first) + second * (1 - second))
    return math.ceil((level * pooled + reach * apart) ** 2 / (first - second) ** 2)


def minimum_detectable_effect(n: float, discordance: float, power: float = 0.8, alpha: float = 0.05) -> float | None:
    """The smallest true difference that `n` questions find with probability `power` in a paired test (Connor 1987).

    None where even a difference as large as the discordance is missed. `n` is a fraction where groups of items are
    worth fewer.
    """
    from scipy.optimize import brentq

    if n <= 0 or not 0 <= discordance <= 1:
        raise RequestError(f"no effect from {n} questions at a discordance of {discordance}", "give n > 0, 0..1")
    level, reach = _normal_points(power, alpha)

    def missing(gap: float) -> float:
        return level * math.sqrt(discordance) + reach * math.sqrt(discordance - gap**2) - gap * math.sqrt(n)

    return None if discordance == 0 or missing(discordance) > 0 else float(brentq(missing, 0.0, discordance))


def minimum_detectable_effect_unpaired(n: int, accuracy: float, power: float = 0.8, alpha: float = 0.05) -> float:
    """The same for two candidates that sit `n` different questions each, both near `accuracy`."""
    return sum(_normal_points(power, alpha)) * math.sqrt(2 * accuracy * (1 - accuracy) / n)


def smallest_gap(n: int, discordant: int | None = None, alpha: float = 0.05) -> float | None:
    """The smallest difference of accuracies on `n` questions that exact McNemar calls real; None where none is.

    `discordant` is the number of questions that one of the two has right; None: the fewest that can do, all won.
    """
    if discordant is None:
        discordant = next(wins for wins in range(1, 64) if mcnemar_exact(wins, 0) <= alpha)
    nets = range(discordant % 2, discordant + 1, 2)
    enough = (net for net in nets if mcnemar_exact((discordant + net) // 2, (discordant - net) // 2) <= alpha)
    net = next(enough, None)
    return None if net is None or net > n else net / n


def more_questions_sentence(names: tuple[str, str], n: int, more: int | None) -> str:
    """Says of two not told apart on `n` questions how many `more` would do; None: their scores tie."""
    first, second = names
    if more is None:
        return f"{first} and {second} cannot be told apart: on these {n:,} questions their scores are the same."
    rounded = round(more, -max(0, len(str(more)) - 2))
    return (
        f"{first} and {second} cannot be told apart: about {rounded:,} more questions would be needed, "
        "were the difference as seen."
    )


def _normal_points(power: float, alpha: float) -> tuple[float, float]:
    from scipy.stats import norm

    if not (0 < alpha < 1 and 0 < power < 1):
        raise RequestError(f"power {power} at alpha {alpha}", "give both between 0 and 1")
    return float(norm.isf(alpha / 2)), float(norm.ppf(power))
