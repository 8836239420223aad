"""From a grade to P(pass): the target methods, by name, each with the event whose probability it states.

A method is a pure function of one grade (and, for `raters`, of that row's rater grades). It refuses to know
models, losses and tables: soft targets are made here and spent in `models/losses.py`, nowhere else.

Three events can be meant by "pass", and a number is only calibrated against one of them:
    panel    the recorded grade reaches the pass mark
    rater    one more rater, drawn at random, passes the answer
    latent   the ability behind the grade reaches the pass mark (judged as `rater`, being unobservable)
A method that states none of them (`table`, `linear`, `custom`) says so with the event `none`.
"""

from __future__ import annotations

import difflib
import importlib
import itertools
import math
import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luthier.errors import DataError, RecipeError, RequestError

if TYPE_CHECKING:
    from luthier.recipe import Scale, TargetSettings

Forward = Callable[[float, tuple[float, ...]], float]
Inverse = Callable[[float], "float | None"]

# grade -> (answer, probability of that answer) or (answer, low, high); 0 is fail, 1 is pass
DEFAULT_TABLE: dict[float, tuple[float, ...]] = {
    1.0: (0, 0.99),
    2.0: (0, 0.80),
    3.0: (0, 0.70),
    3.5: (0, 0.45, 0.55),
    4.0: (1, 0.65, 0.85),
    5.0: (1, 0.85, 0.99),
}
_TINY = 1e-9


@dataclass(frozen=True)
class TargetMethod:
    """A map grade -> P(pass) on one scale.

    `event` is "panel", "rater", "latent" or "none"; `formula` is the map in words for reports.
    """

    name: str
    event: str
    formula: str
    scale: Scale
    forward: Forward
    backward: Inverse | None = None

    def __call__(self, grade: float, raters: tuple[float, ...] = ()) -> float:
        """P(pass) in [0, 1]. Raises DataError when the grade is not on the scale."""
        if not self.scale.minimum - _TINY <= grade <= self.scale.maximum + _TINY:
            ends = f"{self.scale.minimum:g}..{self.scale.maximum:g}"
            raise DataError(
                f"grade {grade:g} is outside the scale {ends}", "correct the grade, or the scale of the recipe"
            )
        return self.forward(grade, raters)

    def inverse(self, p: float) -> float | None:
        """The one grade whose target is `p`; None when no grade, or more than one, has it."""
        return self.backward(p) if self.backward is not None else None


def make_target(settings: TargetSettings, scale: Scale) -> TargetMethod:
    """The method named by `settings.method`. Raises RequestError on an unknown name or unusable settings."""
    if settings.method not in METHODS:
        close = difflib.get_close_matches(settings.method, METHODS, n=1)
        meant = f"did you mean {close[0]!r}? " if close else ""
        raise RequestError(f"there is no target method {settings.method!r}", f"{meant}known: {', '.join(METHODS)}")
    return METHODS[settings.method](settings, scale)


def target_table(method: TargetMethod, scale: Scale) -> list[tuple[float, float]]:
    """(grade, P(pass)) for every step of the scale, lowest first."""
    count = math.floor((scale.maximum - scale.minimum) / scale.step + _TINY)
    grades = [round(scale.minimum + index * scale.step, 9) for index in range(count + 1)]
    return [(grade, method(grade)) for grade in grades]


def votes(grade: float, scale: Scale) -> float:
    """Share of two raters, at most one mark (two steps) apart, who pass: 0, one half or 1, linear between.

    Unbiased for the event `rater` while the two differ by at most one mark: a grade one step under the pass
    mark is then one rater on each side of it.
    """
    low = scale.pass_mark - 2 * scale.step
    return min(1.0, max(0.0, (grade - low) / (scale.pass_mark - low)))


def event_truth(event: str, grade: float, scale: Scale) -> float:
    """What a probability of `event` is scored against: 1[grade >= mark] for `panel`, else the votes.

    `latent` cannot be observed and `none` names no event: both are held against the votes, the nearest
    thing to another opinion that a single grade offers. Raises RequestError on an unknown event.
    """
    if event == "panel":
        return _passes(grade, scale)
    if event in ("rater", "latent", "none"):
        return votes(grade, scale)
    raise RequestError(f"there is no event {event!r}", "known: panel, rater, latent, none")


def parse_answer(value: str | Sequence[Any]) -> tuple[float, ...]:
    """`[0, 0.7]`, `[0, 0.45, 0.55]`, "0, 0.70" or "0, 0.45..0.55" as (answer, probability[, high]).

    Raises ValueError when it is none of these, the answer is not 0 or 1, or a probability leaves [0, 1].
    """
    pieces = re.split(r"\s*(?:,|\.\.)\s*", value.strip()) if isinstance(value, str) else value
    numbers = tuple(float(piece) for piece in pieces)
    if len(numbers) not in (2, 3) or numbers[0] not in (0.0, 1.0):
        raise ValueError("write [answer, probability] or [answer, low, high], the answer being 0 or 1")
    if not all(0.0 <= p <= 1.0 for p in numbers[1:]) or numbers[1] > numbers[-1]:
        raise ValueError("probabilities lie in 0..1, the low one first")
    return numbers


def pass_probability(answer: Sequence[float]) -> float:
    """P(pass) of (answer, probability of that answer[, high]); of a range its middle is used."""
    stated = sum(answer[1:]) / len(answer[1:])
    return round(stated if answer[0] == 1 else 1.0 - stated, 12)  # 1 - 0.7 is to be the 0.3 that was meant


def _passes(grade: float, scale: Scale) -> float:
    # grades are multiples of a step; the hair forgives 3.9999999 from a mean of raters
    return 1.0 if grade >= scale.pass_mark - _TINY else 0.0


def _hard(settings: TargetSettings, scale: Scale) -> TargetMethod:
    return TargetMethod(
        "hard", "panel", f"1 if g >= {scale.pass_mark:g} else 0", scale, lambda grade, raters: _passes(grade, scale)
    )


def _votes(settings: TargetSettings, scale: Scale) -> TargetMethod:
    low, mark = scale.pass_mark - 2 * scale.step, scale.pass_mark

    def backward(p: float) -> float | None:
        return low + p * (mark - low) if 0.0 < p < 1.0 else None  # all of 1..3 share 0, all of 4..5 share 1

    return TargetMethod(
        "votes",
        "rater",
        f"0 if g <= {low:g}, 1 if g >= {mark:g}, linear between",
        scale,
        lambda grade, raters: votes(grade, scale),
        backward,
    )


def _linear(settings: TargetSettings, scale: Scale) -> TargetMethod:
    low, width = scale.minimum, scale.maximum - scale.minimum

    def backward(p: float) -> float | None:
        return low + p * width if 0.0 <= p <= 1.0 else None

    return TargetMethod(
        "linear",
        "none",
        f"(g - {low:g}) / {width:g}",
        scale,
        lambda grade, raters: min(1.0, max(0.0, (grade - low) / width)),
        backward,
    )


def _logistic(settings: TargetSettings, scale: Scale) -> TargetMethod:
    centre, spread = scale.pass_mark - scale.step, settings.temperature
    if not (math.isfinite(spread) and spread > 0):
        raise RecipeError("task.target", [f"temperature: {spread} is not above 0 (try 0.25)"])

    def forward(grade: float, raters: tuple[float, ...]) -> float:
        # tanh, as exp overflows for a temperature near 0
        return 0.5 * (1.0 + math.tanh((grade - centre) / (2.0 * spread)))

    def backward(p: float) -> float | None:
        return centre + spread * math.log(p / (1.0 - p)) if 0.0 < p < 1.0 else None

    formula = f"sigmoid((g - {centre:g}) / {spread:g})"
    return TargetMethod("logistic", "none", formula, scale, forward, backward)


def _raters(settings: TargetSettings, scale: Scale) -> TargetMethod:
    a = settings.smoothing
    if not (math.isfinite(a) and a >= 0):
        raise RecipeError("task.target", [f"smoothing: {a} is below 0 (0.5 is Jeffreys, 0 the plain share)"])

    def forward(grade: float, raters: tuple[float, ...]) -> float:
        if not raters:
            return votes(grade, scale)
        passed = sum(_passes(rater, scale) for rater in raters)
        return (a + passed) / (2 * a + len(raters))

    formula = f"({a:g} + raters who pass) / ({2 * a:g} + raters), votes of the grade where none are given"
    return TargetMethod("raters", "rater", formula, scale, forward)


def _table(settings: TargetSettings, scale: Scale) -> TargetMethod:
    knots = _knots(settings.table or DEFAULT_TABLE)
    grades, chances = [grade for grade, _ in knots], [p for _, p in knots]

    def forward(grade: float, raters: tuple[float, ...]) -> float:
        return _interpolate(grade, grades, chances)

    def backward(p: float) -> float | None:
        # a flat stretch shares one p among its grades, and outer knots are flat to the ends of the scale
        before, after = scale.minimum < grades[0], scale.maximum > grades[-1]
        padded = chances[:1] * before + chances + chances[-1:] * after
        shared = sum(abs(knot - p) < _TINY for knot in padded) > 1
        if shared or not chances[0] <= p <= chances[-1]:
            return None
        return _interpolate(p, chances, grades)

    formula = "linear between " + ", ".join(f"{grade:g}: {p:.3g}" for grade, p in knots)
    return TargetMethod("table", "none", formula, scale, forward, backward)


def _knots(table: dict[Any, Any]) -> list[tuple[float, float]]:
    """(grade, P(pass)) by rising grade. Raises RecipeError with every bad line, or every falling pair."""
    problems, found = [], []
    for key, value in table.items():
        try:
            found.append((float(key), pass_probability(parse_answer(value))))
        except (ValueError, TypeError) as error:
            problems.append(f"table.{key}: {value!r} cannot be used ({error})")
    found.sort()
    for (low, p), (high, q) in itertools.pairwise(found):
        if low == high:
            problems.append(f"table.{low:g}: the grade is there twice (keep one)")
        elif q < p - _TINY:
            problems.append(
                f"table: P(pass) falls from {p:.3g} at {low:g} to {q:.3g} at {high:g} "
                "(it cannot fall with the grade; the probability is that of the answer given)"
            )
    if len(table) < 2:
        problems.append("table: needs two grades at least (or leave it out for the example table)")
    if problems:
        raise RecipeError("task.target", problems)
    return found


def _interpolate(x: float, xs: list[float], ys: list[float]) -> float:
    """Linear between knots, constant outside; `xs` does not fall."""
    if x <= xs[0]:
        return ys[0]
    if x >= xs[-1]:
        return ys[-1]
    right = bisect_right(xs, x)
    share = (x - xs[right - 1]) / (xs[right] - xs[right - 1])
    return ys[right - 1] + share * (ys[right] - ys[right - 1])


def _custom(settings: TargetSettings, scale: Scale) -> TargetMethod:
    where = settings.function or ""
    module, _, name = where.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise RecipeError(
            "task.target",
            [f"function: {where!r} cannot be imported: {error} (write 'module:function', the module being importable)"],
        ) from error
    if not callable(function):
        raise RecipeError("task.target", [f"function: {where!r} is not a function"])

    def forward(grade: float, raters: tuple[float, ...]) -> float:
        found = float(function(grade, raters, scale))
        if not 0.0 <= found <= 1.0:
            raise DataError(f"{where} gave {found} for grade {grade:g}", "make it return a probability in 0..1")
        return found

    return TargetMethod("custom", "none", f"{where}(grade, raters, scale)", scale, forward)


METHODS: dict[str, Callable[[TargetSettings, Scale], TargetMethod]] = {
    "hard": _hard,
    "votes": _votes,
    "table": _table,
    "linear": _linear,
    "logistic": _logistic,
    "raters": _raters,
    "custom": _custom,
}
