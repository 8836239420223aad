"""`luthier sweep`: many settings of one recipe, every trial a run folder of its own, and one table of them at the end.

Trials run in child processes, so that one which crashes ends alone. What is wrong with any combination is told before
the first one starts. sweep.json is the record: a sweep that was cut off goes on from it.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from threading import Event, Lock
from typing import Any

from luthier import verbs
from luthier.console import say
from luthier.errors import Interrupted, LuthierError
from luthier.recipefile import load_recipe, stage_recipes
from luthier.rundir import RunDir
from luthier.sweeping import sense
from luthier.sweeping.book import Book
from luthier.sweeping.figures import read_figures, read_looks
from luthier.sweeping.request import SweepRequest, planned
from luthier.sweeping.search import Search
from luthier.sweeping.space import parse_search
from luthier.sweeping.trial import DONE, Trial, status_of, watch

__all__ = ["SweepRequest", "sweep"]

RUN = (sys.executable, "-m", "luthier.cli", "run")


def sweep(request: SweepRequest, command: Sequence[str] = RUN) -> dict[str, Any]:
    """Run every trial, then write and show the table. Returns sweep.json.

    `command` runs one recipe, given like `luthier run`. Raises RequestError before anything starts, Interrupted with
    the line that resumes, and LuthierError where no trial finished.
    """
    book = Book(request, planned(request))
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


class _Hands:
    """Takes trials one after the other, on as many threads as there are jobs."""

    def __init__(self, book: Book, command: Sequence[str]) -> None:
        self.book, self.command, request = book, command, book.request
        self.left = [trial for trial in book.trials if trial.status not in DONE]
        self.stopping, self.taking = Event(), Lock()
        self.search: Search | None = None
        if request.search:
            space = parse_search(request.search, [])
            self.search = Search(space, book.plan["seed"], book.objective.lower_is_better)
            for trial in book.trials:
                self.search.remember(trial, self._looks(trial))

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
                    self.search.close(trial, self._looks(trial))
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
        folder = self.book.folder(trial)
        if not _finished(folder):
            log = self.book.request.out / "logs" / f"{trial.name}.log"
            ended = watch(self._words(trial, folder), log, lambda: self._hopeless(trial), self.stopping)
            trial.status, trial.reason = status_of(ended)
            trial.seconds += round(ended.seconds, 3)
        else:  # it ended after the sweep was cut off
            trial.status = "finished"
        trial.stages = read_figures(folder, self.book.plan["stages"])
        trial.objective = self.book.objective.of(trial.stages)
        value = "–" if trial.objective is None else f"{trial.objective:.5g}"
        what = trial.reason.splitlines()[0] if trial.reason else f"{self.book.objective.key} {value}"
        say(f"trial {trial.number} {trial.status} after {trial.seconds:.0f} s: {what}")

    def _hopeless(self, trial: Trial) -> bool:
        if self.search is None:
            return False
        with self.taking:
            return self.search.hopeless(trial.number, self._looks(trial))

    def _looks(self, trial: Trial) -> list[tuple[int, float]]:
        return read_looks(self.book.folder(trial), self.book.objective.stage)

    def _words(self, trial: Trial, folder: Path) -> list[str]:
        """The child's command line. Its folder is begun here where a trial before it has made the same table."""
        request, resume = self.book.request, (folder / "run.json").is_file()
        sets = [*request.overrides, *sense.words(trial.settings)]
        words = [str(self.book.recipe), "--out", str(folder), *(word for one in sets for word in ("--set", one))]
        if not resume:
            if folder.exists():  # killed before its first record: there is nothing in it
                shutil.rmtree(folder)
            with self.taking:
                table = self._table(trial, sets)
            if table:
                line = shlex.join(["luthier", "run", *words])
                verbs.open_run(load_recipe(self.book.recipe, sets), folder, line, resume=False)
                _link(table, folder / "data")
                resume = True
        return [*self.command, *words, *(["--resume"] if resume else [])]

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
