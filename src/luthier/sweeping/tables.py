"""The table of a sweep's trials, for people: in the terminal, and as Markdown beside sweep.json.

Says what the figures do not: which trials cannot be compared, and how far apart seeds alone put them. Knows the
records of a sweep; refuses to know runs.
"""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field

from luthier.console import WIDTH, table
from luthier.sweeping.figures import VALIDATION, Objective
from luthier.sweeping.space import Settings, shown
from luthier.sweeping.trial import Trial


@dataclass(frozen=True)
class Group:
    """Trials that differ in their seed alone."""

    settings: Settings
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)


@dataclass(frozen=True)
class Results:
    """Trials and what orders them. Where they are not `comparable` there is no order and no best."""

    objective: Objective
    comparable: bool
    trials: Sequence[Trial] = field(repr=False)

    def ordered(self) -> list[Trial]:
        """Best first where there is a best; trials without the objective come last, in their own order."""
        sign = 1 if self.objective.lower_is_better else -1

        def place(trial: Trial) -> tuple[bool, float, int]:
            done = trial.status == "finished" and trial.objective is not None
            return (not done, sign * (trial.objective or 0.0) if done else 0.0, trial.number)

        return sorted(self.trials, key=place) if self.comparable else list(self.trials)

    def groups(self) -> list[Group]:
        """Finished trials by settings without the seed, best mean first; nothing unless a setting has two seeds."""
        found: dict[tuple[tuple[str, str], ...], list[float]] = {}
        for trial in self.trials:
            if trial.status == "finished" and trial.objective is not None and "seed" in trial.settings:
                key = tuple(item for item in trial.settings.items() if item[0] != "seed")
                found.setdefault(key, []).append(trial.objective)
        groups = [Group(dict(key), tuple(values)) for key, values in found.items()]
        if not self.comparable or not any(len(group.values) > 1 for group in groups):
            return []
        return sorted(groups, key=lambda group: group.mean, reverse=not self.objective.lower_is_better)

    def best(self) -> Trial | None:
        """The first of the order, where there is one."""
        first = self.ordered()[:1]
        done = first and self.comparable and first[0].status == "finished" and first[0].objective is not None
        return first[0] if done else None


def seed_spread(groups: Sequence[Group]) -> float:
    """The standard deviation between seeds of equal settings, pooled over settings."""
    repeated = [group.values for group in groups if len(group.values) > 1]
    squares = sum((len(values) - 1) * statistics.variance(values) for values in repeated)
    return math.sqrt(squares / sum(len(values) - 1 for values in repeated))


def notes(results: Results) -> list[str]:
    """What must be said beside the figures."""
    found, groups = [], results.groups()
    if not results.comparable:
        found.append(
            "No order and no best: data, task, base or max_tokens differ between these trials, so their losses are "
            "over different things. Give --objective a score of test rows that all of them share."
        )
    elif groups:
        spread = seed_spread(groups)
        least = min(len(group.values) for group in groups)
        found.append(
            f"Seeds alone spread {results.objective.key} by {spread:.4g} (standard deviation). Differences between "
            f"means below {2 * spread * math.sqrt(2 / least):.4g} say nothing (two standard errors of {least} seeds)."
        )
    else:
        found.append(
            "One seed each: differences smaller than the spread over seeds say nothing, and it is not known here. "
            "--seeds 1,2,3 repeats each setting and shows it."
        )
    if results.best():
        found.append("The best of many is chosen on these rows, so its figure there is too good; test it on others.")
    found += [
        f"trial {trial.number} {trial.status}: {trial.reason.splitlines()[0]} (logs/{trial.name}.log)"
        for trial in results.trials
        if trial.status == "failed"
    ]
    return found


def for_terminal(results: Results) -> str:
    """Everything in at most 100 columns."""
    keys = _keys(results)
    parts = [
        textwrap.fill(f"settings, in order: {', '.join(keys)}", WIDTH),
        table(_header(results), [row for _, row in _paired(results, keys)]),
    ]
    if results.groups():
        parts.append(table(_GROUPS, _group_rows(results)))
    return "\n\n".join([*parts, "\n".join(textwrap.fill(note, WIDTH) for note in notes(results))])


def for_markdown(results: Results, command: str) -> str:
    """The same as a page, with every setting in a column of its own."""
    keys = _keys(results)
    rows = [[row[0], *(trial.settings[key] for key in keys), *row[2:]] for trial, row in _paired(results, keys)]
    header = _header(results)
    parts = [f"# Sweep\n\n`{command}`", _markdown([header[0], *keys, *header[2:]], rows)]
    if results.groups():
        parts.append(_markdown(_GROUPS, _group_rows(results)))
    return "\n\n".join([*parts, *notes(results)]) + "\n"


_GROUPS = ("settings", "mean", "lowest", "highest", "seeds")


def _group_rows(results: Results) -> list[list[str]]:
    return [
        [
            " ".join(map(shown, group.settings.values())) or "–",
            *(f"{value:.5g}" for value in (group.mean, min(group.values), max(group.values))),
            str(len(group.values)),
        ]
        for group in results.groups()
    ]


def _header(results: Results) -> list[str]:
    key = results.objective.key
    more = [] if key == VALIDATION else [key]
    return ["trial", "settings", *more, "steps", "train loss", "validation", "at step", "tokens/s", "seconds", "status"]


def _paired(results: Results, keys: Sequence[str]) -> list[tuple[Trial, list[str]]]:
    found = []
    for trial in results.ordered():
        stage = trial.stages.get(results.objective.stage, {})
        more = [] if results.objective.key == VALIDATION else [_figure(trial.objective, ".5g")]
        row = [
            str(trial.number),
            " ".join(shown(trial.settings[key]) for key in keys),
            *more,
            _figure(stage.get("steps"), "d"),
            _figure(stage.get("train_loss"), ".4f"),
            _figure(stage.get("validation"), ".4f"),
            _figure(stage.get("validation_step"), "d"),
            _figure(stage.get("tokens_per_second"), ",.0f"),
            _figure(trial.seconds, ".0f"),
            trial.status,
        ]
        found.append((trial, row))
    return found


def _figure(value: float | None, how: str) -> str:
    return "–" if value is None else format(value, how)


def _keys(results: Results) -> list[str]:
    return list(results.trials[0].settings) if results.trials else []


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
