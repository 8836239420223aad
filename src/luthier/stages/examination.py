"""The exams of a stage: its base and its checkpoints sit them, and what the answers bear is concluded.

During training the learner itself is examined, just after it was saved; after training each checkpoint is loaded into
it in turn. Both give the same answers, and neither touches what is trained. An examination that was finished is never
repeated: a run that is resumed goes on at the item where it was cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from luthier.console import say
from luthier.data.exams import read_exam, touched_items
from luthier.errors import CheckpointError, RequestError
from luthier.evaluate.exam_media import MediaReader
from luthier.evaluate.exams import Examiner
from luthier.evaluate.journal import AnswerCache, answer_cache
from luthier.evaluate.sweep import BASE, Candidate, Paper, Sitter
from luthier.files import read_json, read_jsonl, remove_folder, verify_folder
from luthier.models.chat_model import ChatModel
from luthier.models.learner import Learner
from luthier.models.text_base import TextBase
from luthier.outcome.exams.examined import conclude, write_scores
from luthier.outcome.looks import record_look
from luthier.recipe import Recipe
from luthier.rundir import ExamDir, RunDir, StageDir
from luthier.runtime.checkpoints import Checkpoints
from luthier.runtime.devices import Devices

START = "start"
"""What an earlier stage left, as a candidate."""


def read_paper(recipe: Recipe, name: str, place: ExamDir) -> Paper:
    """Read an exam of a recipe, and its pool. Raises SourceError, DataError or RequestError."""
    settings, sources = recipe.evaluate.exams[name], recipe.data.sources
    exam = read_exam(sources[name], name, settings.labels, settings.answers)
    pool = read_exam(sources[settings.pool], settings.pool) if settings.pool else None
    if pool is not None and pool.digest == exam.digest:
        raise RequestError(f"evaluate.exams.{name}.pool: is the exam itself", "name another source")
    return Paper(exam, settings, place, pool)


def check_exam(recipe: Recipe, name: str, tokenizer: Any) -> None:
    """Read an exam and put it into words, before there is a base. Raises as `read_paper` does.

    Questions with media wait for the base, which alone knows how long these are.
    """
    paper = read_paper(recipe, name, ExamDir(Path(name)))
    if not any(item.media for exam in paper.exams for item in exam.items):
        paper.examiner(tokenizer)


def _refuse_twins(papers: Mapping[str, Paper], chooser: str) -> None:
    """Raise RequestError where the exam that chooses reports too, under another name."""
    for name, paper in papers.items():
        if chooser and name != chooser and paper.exam.digest == papers[chooser].exam.digest:
            raise RequestError(
                f"evaluate.choose_by: {chooser} has the questions of {name}, so its scores would flatter the choice",
                "choose by other questions than those that report",
            )


@dataclass
class _Prepared:
    examiner: Examiner
    place: ExamDir


@dataclass
class StageExams:
    """The exams of a stage, made ready for its tokenizer."""

    recipe: Recipe
    sitter: Sitter
    exams: dict[str, _Prepared]

    @classmethod
    def of(
        cls, recipe: Recipe, run: RunDir, stage: StageDir, model: ChatModel, base: TextBase, devices: Devices
    ) -> StageExams:
        """Read and encode every exam; exam.json and items.jsonl of each are written. Raises what reading raises."""
        papers = {name: read_paper(recipe, name, stage.exam(name)) for name in recipe.evaluate.exams}
        _refuse_twins(papers, recipe.evaluate.choose_by)
        exams = [exam for paper in papers.values() for exam in paper.exams]
        media, found = (
            MediaReader.of(base, exams, run.features, recipe.data.limits, recipe.data.frames),
            dict[str, _Prepared](),
        )
        for name, paper in papers.items():
            overlap = touched_items(run.data, recipe.data.sources[name], paper.exam)
            if overlap:
                say(
                    f"exam {name}: {len(overlap):,} of {len(paper.exam.items):,} items are touched by the training "
                    "rows; scores are given with and without them"
                )
            replace(paper, overlap=overlap).lay_out()
            found[name] = _Prepared(paper.examiner(base.tokenizer, media), paper.place)
        return cls(recipe, Sitter(base, model.language_model, devices, AnswerCache(answer_cache())), found)

    def before(self) -> None:
        """Examine the base alone, and what an earlier stage left where this one starts from it."""
        model = self.sitter.model
        if hasattr(model, "disable_adapter"):
            with model.disable_adapter():
                self._sit(Candidate(BASE))
        elif not self.recipe.start_from:  # not a weight is tuned yet
            self._sit(Candidate(BASE))
        if self.recipe.start_from:
            self._sit(Candidate(START))

    def during(self, step: int) -> bool:
        """See `Examination`: with evaluate.examine: during, where `step` is due."""
        self._forget_after(step)
        if not step or self.recipe.evaluate.examine != "during" or step % self._every:
            return False
        self._sit(_candidate(step))
        patience = self.recipe.train.early_stopping_patience
        if self.recipe.train.select != "exam" or not patience:
            return False
        looks = self._looks(step)
        best = min(range(len(looks)), key=lambda i: looks[i])
        if len(looks) - 1 - best < patience:
            return False
        name = self.recipe.evaluate.choose_by
        say(f"step {step}: {patience} examined checkpoints without a better log loss on {name}")
        return True

    def settle(self, learner: Learner, checkpoints: Checkpoints, usual: int) -> int:
        """See `Examination`: every checkpoint that is due, the last one and the usual one."""
        steps = checkpoints.steps()
        for step in steps:
            folder = checkpoints.path(step)
            if (step % self._every and step not in (steps[-1], usual)) or self._finished(_candidate(step)):
                continue
            wrong = verify_folder(folder)
            if wrong is not None:
                raise CheckpointError(f"{folder}: {wrong}", "resume the run: broken checkpoints are made again")
            learner.load(folder)
            self._sit(_candidate(step))
        chooser, evaluate = self._chooser, self.recipe.evaluate
        tables = {
            name: conclude(exam.place, choose=name == chooser, resamples=evaluate.resamples, seed=self.recipe.seed)
            for name, exam in self.exams.items()
        }
        if not chooser:
            return usual
        chosen = tables[chooser]["chosen"]
        say(f"{chosen} is kept: the earliest checkpoint that {chooser} cannot tell from the best")
        return next(one["step"] for one in tables[chooser]["candidates"] if one["name"] == chosen)

    def scores(self, step: int) -> dict[str, Any]:
        """Scores of the kept step: those of the report exam at the top, and of each exam under `exams`."""
        found = {name: read_json(exam.place.candidate(_name(step)).scores) for name, exam in self.exams.items()}
        return {**found[self._report], "exam": self._report, "exams": found}

    def predictions(self, step: int) -> Iterator[dict[str, Any]]:
        """Predictions of the kept step on every exam, each with the key `exam`; the report exam's come first."""
        for name in sorted(self.exams, key=lambda name: name != self._report):
            for row in read_jsonl(self.exams[name].place.candidate(_name(step)).predictions):
                yield {"exam": name, **row}

    @property
    def _report(self) -> str:
        """The exam whose scores stand for the stage: the first that chooses nothing."""
        return next((name for name in self.exams if name != self.recipe.evaluate.choose_by), next(iter(self.exams)))

    @property
    def _chooser(self) -> str:
        """The exam that chooses the checkpoint; "" where none does."""
        return self.recipe.evaluate.choose_by if self.recipe.train.select == "exam" else ""

    @property
    def _every(self) -> int:
        return self.recipe.train.save_every * self.recipe.evaluate.examine_every

    def _finished(self, candidate: Candidate) -> bool:
        return all(exam.place.candidate(candidate.name).scores.is_file() for exam in self.exams.values())

    def _forget_after(self, step: int) -> None:
        """Later checkpoints were broken, and their steps will be trained again, perhaps on another machine."""
        for exam in self.exams.values():
            for name in exam.place.candidates():
                seat = exam.place.candidate(name)
                if (read_json(seat.record)["step"] or 0) > step and self.sitter.devices.leads:
                    remove_folder(seat.path)

    def _sit(self, candidate: Candidate) -> None:
        evaluate, chooser = self.recipe.evaluate, self._chooser
        for name, exam in self.exams.items():
            self.sitter.sit(candidate, exam.examiner, exam.place)
            record = read_json(exam.place.candidate(candidate.name).record)
            record_look(exam.examiner.exam.digest, record["key"], "choose" if name == chooser else "report")
            # Last: where there are scores, the sitting is over and was counted.
            write_scores(exam.place, candidate.name, resamples=evaluate.resamples, seed=self.recipe.seed)

    def _looks(self, step: int) -> list[float]:
        """What examined checkpoints up to a step lost on the exam that chooses, in order; lower is better.

        A step that the disk refused to save was not examined.
        """
        place, found = self.exams[self.recipe.evaluate.choose_by].place, []
        for number in range(self._every, step + 1, self._every):
            seat = place.candidate(_name(number))
            if not seat.scores.is_file():
                continue
            scores = read_json(seat.scores)
            found.append(scores["log_loss"]["value"] if "log_loss" in scores else -scores["accuracy"]["value"])
        return found


def _name(step: int) -> str:
    return f"step-{step:06d}"


def _candidate(step: int) -> Candidate:
    return Candidate(_name(step), step=step)
