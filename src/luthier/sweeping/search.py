"""A search through settings by Optuna: tree-structured Parzen estimators (Bergstra et al. 2011), with median pruning
(Golovin et al. 2017: a trial whose best so far is worse than the median of the others at that step is stopped).

Optuna stores nothing: the study is made again from the trials of sweep.json, and the sampler is seeded by the
trial's number. What is asked for is therefore a pure function of what the trials before came to, and a break changes
nothing of it (one job at a time).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from luthier.sweeping.space import Axis, Choice, Settings
from luthier.sweeping.trial import Trial

RANDOM_TRIALS = 8
"""Trials drawn at random before the estimators are fitted."""
UNPRUNED_TRIALS = 4
"""Trials that finish before one is measured against their median."""


class Search:
    """One study. Optuna is loaded when it is made."""

    def __init__(self, axes: Sequence[Axis], seed: int, lower_is_better: bool) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna, self._seed = optuna, seed
        self._axes = {axis.key: axis for axis in axes}
        self._space = {axis.key: self._distribution(axis) for axis in axes}
        self._open: dict[int, Any] = {}
        self._told: dict[int, int] = {}
        self._study = optuna.create_study(
            direction="minimize" if lower_is_better else "maximize",
            pruner=optuna.pruners.MedianPruner(n_startup_trials=UNPRUNED_TRIALS),
        )

    def remember(self, trial: Trial, looks: Sequence[tuple[int, float]]) -> None:
        """Take over a trial of an earlier process that is done."""
        if trial.status == "finished" and trial.objective is None:
            return  # nothing is learned from it
        states = {"finished": "COMPLETE", "pruned": "PRUNED"}
        if trial.status not in states:
            return
        self._study.add_trial(
            self._optuna.trial.create_trial(
                state=self._optuna.trial.TrialState[states[trial.status]],
                value=trial.objective if trial.status == "finished" else None,
                params={key: axis.read(trial.settings[key]) for key, axis in self._axes.items()},
                distributions=self._space,
                intermediate_values=dict(looks),
            )
        )

    def ask(self, number: int) -> Settings:
        """Settings for trial `number`."""
        seed = (self._seed * 1_000_003 + number) % 2**32
        self._study.sampler = self._optuna.samplers.TPESampler(seed=seed, n_startup_trials=RANDOM_TRIALS)
        return self._begin(number)

    def again(self, number: int, settings: Settings) -> None:
        """Open a trial that was cut off, with the settings that it had."""
        self._study.enqueue_trial({key: axis.read(settings[key]) for key, axis in self._axes.items()})
        self._begin(number)

    def _begin(self, number: int) -> Settings:
        asked = self._open[number] = self._study.ask(self._space)
        return {
            key: str(asked.params[key]) if isinstance(axis, Choice) else axis.write(asked.params[key])
            for key, axis in self._axes.items()
        }

    def hopeless(self, number: int, looks: Sequence[tuple[int, float]]) -> bool:
        """Whether a trial with these looks so far should be stopped."""
        told = self._told.setdefault(number, 0)
        for step, value in looks[told:]:
            self._open[number].report(value, step)
        self._told[number] = len(looks)
        return len(looks) > told and bool(self._open[number].should_prune())

    def close(self, trial: Trial, looks: Sequence[tuple[int, float]]) -> None:
        """Tell how a trial ended, with all of its looks."""
        asked, states = self._open.pop(trial.number), self._optuna.trial.TrialState
        for step, value in looks[self._told.pop(trial.number, 0) :]:
            asked.report(value, step)
        if trial.status == "finished" and trial.objective is not None:
            self._study.tell(asked, trial.objective)
        else:
            self._study.tell(asked, state=states.PRUNED if trial.status == "pruned" else states.FAIL)

    def _distribution(self, axis: Axis) -> Any:
        made = self._optuna.distributions
        if isinstance(axis, Choice):
            return made.CategoricalDistribution(axis.values)
        if axis.whole:
            return made.IntDistribution(int(axis.low), int(axis.high), log=axis.log)
        return made.FloatDistribution(axis.low, axis.high, log=axis.log)
