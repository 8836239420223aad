"""`luthier sweep`: many settings of one recipe, every trial a run folder of its own, and one table of them at the end.

Trials run in child processes, so that one which crashes ends alone. What is wrong with any combination is told before
the first one starts. sweep.json is the record: a sweep that was cut off goes on from it.
"""

from __future__ import annotations

import itertools
import os
import shlex
import shutil
import sys
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event, Lock
from typing import Any

from luthier import verbs
from luthier.console import say
from luthier.errors import Interrupted, LuthierError, RecipeError, RequestError
from luthier.files import read_json, sha256_file, write_bytes, write_json, write_text
from luthier.recipefile import load_recipe, stage_recipes
from luthier.rundir import RunDir
from luthier.sweeping import sense
from luthier.sweeping.figures import VALIDATION, Objective, read_figures, read_looks
from luthier.sweeping.search import Search
from luthier.sweeping.space import corners, folder_name, parse_grid, parse_search, product
from luthier.sweeping.tables import Results, for_markdown, for_terminal, notes, seed_spread
from luthier.sweeping.trial import DONE, Trial, status_of, watch

RUN = (sys.executable, "-m", "luthier.cli", "run")


@dataclass(frozen=True)
class SweepRequest:
    """What is asked for. `grid` and `search` are words as on the command line; one of them, or `seeds`, must be there."""

    recipe: Path
    out: Path
    overrides: Sequence[str] = ()
    grid: Sequence[str] = ()
    seeds: str = ""
    search: Sequence[str] = ()
    trials: int = 20
    """Trials of a search."""
    objective: str = VALIDATION
    stage: str = ""
    jobs: int = 1
    resume: bool = False

    def words(self) -> list[str]:
        """The request as a command line, without --resume."""
        flags = [("--set", w) for w in self.overrides]
        flags += [("--grid", w) for w in self.grid] + [("--search", w) for w in self.search]
        flags += [("--seeds", self.seeds)] if self.seeds else []
        flags += [("--trials", str(self.trials))] if self.search else []
        flags += [("--objective", self.objective)] if self.objective != VALIDATION else []
        flags += [("--stage", self.stage)] if self.stage else []
        flags += [("--jobs", str(self.jobs))] if self.jobs != 1 else []
        return ["luthier", "sweep", str(self.recipe), "--out", str(self.out), *itertools.chain(*flags)]


def sweep(request: SweepRequest, command: Sequence[str] = RUN) -> dict[str, Any]:
    """Run every trial, then write and show the table. Returns sweep.json.

    `command` runs one recipe, given like `luthier run`. Raises RequestError before anything starts, Interrupted with
    the line that resumes, and LuthierError where no trial finished.
    """
    book = _Book(request, _planned(request))
    with RunDir(request.out).lock():
        hands = _Hands(book, command)
        try:
            hands.work()
        except KeyboardInterrupt as error:
            book.save()
            done = sum(trial.status in DONE for trial in book.trials)
            line = shlex.join([*request.words(), "--resume"])
            raise Interrupted(f"interrupted with {done} trials done; they are kept", line) from error
        figures = book.finish()
    if not any(trial.status in DONE for trial in book.trials):
        raise LuthierError(
            f"none of {len(book.trials)} trials finished", f"the table says why; logs are in {request.out}/logs"
        )
    return figures


def _planned(request: SweepRequest) -> dict[str, Any]:
    """What is the same whenever this sweep is asked for. Raises RecipeError with every problem."""
    problems: list[str] = []
    axes = parse_grid(request.grid, request.seeds, problems)
    space = parse_search(request.search, problems)
    if request.search:
        problems += sense.search_problems(request.trials, request.seeds, request.grid)
    elif not (request.grid or request.seeds):
        problems.append("nothing is varied (give --grid KEY=V1,V2, --seeds 1,2,3 or --search KEY=LOW..HIGH)")
    if request.jobs < 1:
        problems.append(f"--jobs {request.jobs}: must be at least 1")
    if request.resume and not (request.out / "sweep.json").is_file():
        problems.append(f"--resume: {request.out} is not a sweep (no sweep.json in it)")
    if not request.resume and request.out.exists() and (not request.out.is_dir() or any(request.out.iterdir())):
        problems.append(f"--out {request.out}: exists already (give another, or --resume to go on with it)")
    combinations = corners(space) if request.search else product(axes)
    read: list[sense.Stages] = []
    if (space or axes) and not (space and axes):
        read = sense.load_all(request.recipe, request.overrides, combinations, problems)
    if read:
        objective = sense.objective_of(request.objective, request.stage, read[0], problems)
    if problems:
        raise RecipeError(str(request.recipe), problems)
    return {
        "recipe": str(request.recipe),
        "recipe_sha256": sha256_file(request.recipe),
        "overrides": list(request.overrides),
        "grid": {axis.key: list(axis.values) for axis in axes},
        "search": [asdict(axis) for axis in space],
        "objective": asdict(objective),
        "comparable": len({sense.measure(stages, objective) for stages in read}) == 1,
        "stages": list(read[0]),
        "seed": next(iter(read[0].values())).seed,
    }


class _Book:
    """sweep.json, and the trials in it. It is written whenever a trial begins or ends."""

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

    def add(self, settings: dict[str, str]) -> Trial:
        number = len(self.trials) + 1
        self.trials.append(Trial(number, folder_name(number, settings), settings))
        return self.trials[-1]

    def folder(self, trial: Trial) -> Path:
        return self.request.out / "trials" / trial.name

    def save(self) -> dict[str, Any]:
        """Write sweep.json as things stand."""
        results = Results(self.objective, self.plan["comparable"], self.trials)
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
        results = Results(self.objective, self.plan["comparable"], self.trials)
        write_text(self.request.out / "sweep.md", for_markdown(results, shlex.join(self.request.words())))
        say(for_terminal(results))
        say(f"written to {self.request.out / 'sweep.md'} and {self.path.name}; each trial is a run in trials/")
        return self.save()


class _Hands:
    """Takes trials one after the other, on as many threads as there are jobs."""

    def __init__(self, book: _Book, command: Sequence[str]) -> None:
        self.book, self.command, request = book, command, book.request
        self.left = [trial for trial in book.trials if trial.status not in DONE]
        self.stopping, self.taking = Event(), Lock()
        self.search: Search | None = None
        if request.search:
            space = parse_search(request.search, [])
            self.search = Search(space, book.plan["seed"], book.objective.lower_is_better)
            for trial in book.trials:
                self.search.remember(trial, read_looks(book.folder(trial), book.objective.stage))

    def work(self) -> None:
        """Until no trial is left. On any exception the children are told to save and end, and are waited for."""
        with ThreadPoolExecutor(self.book.request.jobs) as pool:
            hands = [pool.submit(self._hand) for _ in range(self.book.request.jobs)]
            try:
                for hand in as_completed(hands):
                    hand.result()
            except BaseException:
                self.stopping.set()
                raise

    def _hand(self) -> None:
        while (trial := self._take()) is not None:
            self._run(trial)
            with self.taking:
                if self.search:
                    self.search.close(trial)
                self.book.save()

    def _take(self) -> Trial | None:
        with self.taking:
            if self.stopping.is_set():
                return None
            if self.left:
                trial = self.left.pop(0)
                if self.search:
                    self.search.again(trial.number, trial.settings)
            elif self.search and len(self.book.trials) < self.book.request.trials:
                trial = self.book.add(self.search.ask(len(self.book.trials) + 1))
            else:
                return None
            trial.status, trial.reason = "running", ""
            self.book.save()
        total = self.book.request.trials if self.search else len(self.book.trials)
        say(f"trial {trial.number} of {total}: {' '.join(sense.words(trial.settings))}")
        return trial

    def _run(self, trial: Trial) -> None:
        folder, stage = self.book.folder(trial), self.book.objective.stage
        if not _finished(folder):
            log = self.book.request.out / "logs" / f"{trial.name}.log"
            ended = watch(self._words(trial, folder), log, lambda: self._hopeless(trial, folder, stage), self.stopping)
            trial.status, trial.reason = status_of(ended)
            trial.seconds += round(ended.seconds, 3)
        else:  # it ended after the sweep was cut off
            trial.status = "finished"
        trial.stages = read_figures(folder, self.book.plan["stages"])
        trial.objective = self.book.objective.of(trial.stages)
        value = "–" if trial.objective is None else f"{trial.objective:.5g}"
        what = trial.reason.splitlines()[0] if trial.reason else f"{self.book.objective.key} {value}"
        say(f"trial {trial.number} {trial.status} after {trial.seconds:.0f} s: {what}")

    def _hopeless(self, trial: Trial, folder: Path, stage: str) -> bool:
        if self.search is None:
            return False
        with self.taking:
            return self.search.hopeless(trial.number, read_looks(folder, stage))

    def _words(self, trial: Trial, folder: Path) -> list[str]:
        """The child's command line. Its folder is begun here where a trial before it has made the same table."""
        request, resume = self.book.request, (folder / "run.json").is_file()
        sets = [*request.overrides, *sense.words(trial.settings)]
        if not resume:
            if folder.exists():  # killed before its first record: there is nothing in it
                shutil.rmtree(folder)
            with self.taking:
                table = self._table(trial, sets)
            if table:
                verbs._open(load_recipe(self.book.recipe, sets), folder, shlex.join(request.words()), resume=False)
                _link(table, folder / "data")
                resume = True
        words = [*self.command, str(self.book.recipe), "--out", str(folder)]
        words += [word for one in sets for word in ("--set", one)]
        return [*words, *(["--resume"] if resume else [])]

    def _table(self, trial: Trial, sets: Sequence[str]) -> Path | None:
        """The finished table of a trial whose rows are the same as this one's."""
        own = sense.table_key(stage_recipes(load_recipe(self.book.recipe, sets)))
        for other in self.book.trials:
            table = self.book.folder(other) / "data"
            if other is not trial and (table / "manifest.json").is_file():
                theirs = [*self.book.request.overrides, *sense.words(other.settings)]
                if sense.table_key(stage_recipes(load_recipe(self.book.recipe, theirs))) == own:
                    return table
        return None


def _finished(folder: Path) -> bool:
    return (folder / "run.json").is_file() and RunDir(folder).read_manifest()["status"] == "finished"


def _link(table: Path, place: Path) -> None:
    """The same files under another name, or copies of them where the disk knows no hard links."""
    temporary = place.with_name(f".tmp-{place.name}-{uuid.uuid4().hex[:8]}")  # a run removes what is left of it

    def link(source: str, target: str) -> None:
        try:
            os.link(source, target)
        except OSError:
            shutil.copy2(source, target)

    shutil.copytree(table, temporary, copy_function=link)
    temporary.rename(place)
