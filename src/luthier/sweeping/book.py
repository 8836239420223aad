"""sweep.json: what a sweep is, its trials, and what they came to. Refuses to know how a trial is run."""

from __future__ import annotations

import shlex
from pathlib import Path
from threading import Lock
from typing import Any

from luthier.console import say
from luthier.errors import RequestError
from luthier.files import read_json, write_bytes, write_json, write_text
from luthier.sweeping.figures import Objective
from luthier.sweeping.request import SweepRequest
from luthier.sweeping.space import Settings, folder_name, parse_grid, product
from luthier.sweeping.tables import Results, for_markdown, for_terminal, notes, seed_spread
from luthier.sweeping.trial import Trial


class Book:
    """The record of one sweep. Raises RequestError where a sweep that is resumed was begun as another one."""

    def __init__(self, request: SweepRequest, plan: dict[str, Any]) -> None:
        self.request, self.plan, self.trials = request, plan, list[Trial]()
        self.objective = Objective(**plan["objective"])
        self.path = request.out / "sweep.json"
        self.recipe = request.out / "recipe.yaml"
        self._writing = Lock()
        if request.resume:
            found = read_json(self.path)
            if any(found[key] != value for key, value in plan.items()):
                raise RequestError(
                    f"{request.out}: was begun with another recipe or other settings", "give the same, or another --out"
                )
            self.trials = [Trial(**trial) for trial in found["trials"]]
        else:
            write_bytes(self.recipe, request.recipe.read_bytes())  # trials share one, whatever becomes of the original
            axes = parse_grid(request.grid, request.seeds, [])
            for settings in product(axes) if axes else []:
                self.add(settings)
            self.save()

    @property
    def results(self) -> Results:
        return Results(self.objective, self.plan["comparable"], self.trials)

    def add(self, settings: Settings) -> Trial:
        number = len(self.trials) + 1
        self.trials.append(Trial(number, folder_name(number, settings), settings))
        return self.trials[-1]

    def folder(self, trial: Trial) -> Path:
        return self.request.out / "trials" / trial.name

    def save(self) -> dict[str, Any]:
        """Write sweep.json as things stand."""
        results = self.results
        best, groups = results.best(), results.groups()
        figures = {
            **self.plan,
            "best": best.name if best else None,
            "seeds": [{"settings": group.settings, "values": group.values} for group in groups],
            "seed_spread": seed_spread(groups) if groups else None,
            "notes": notes(results),
            "trials": [trial.to_json() for trial in self.trials],
        }
        with self._writing:
            write_json(self.path, figures)
        return figures

    def finish(self) -> dict[str, Any]:
        """The table, on standard error and as sweep.md."""
        results = self.results
        write_text(self.request.out / "sweep.md", for_markdown(results, shlex.join(self.request.words())))
        say(for_terminal(results))
        say(f"written to {self.request.out / 'sweep.md'} and {self.path.name}; each trial is a run in trials/")
        return self.save()
