"""The only module that knows a run's folder layout: where things are, what is finished, who holds the lock."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from luthier.errors import ExistsError, RequestError
from luthier.files import read_json, read_jsonl, remove_leftovers, write_bytes, write_json

_GLANCE_SECONDS = 0.05


@dataclass(frozen=True)
class SatDir:
    """The folder of one candidate's answers to one exam."""

    path: Path

    @property
    def predictions(self) -> Path:
        return self.path / "predictions.jsonl"

    @property
    def scores(self) -> Path:
        return self.path / "scores.json"

    @property
    def record(self) -> Path:
        return self.path / "candidate.json"

    @property
    def finished(self) -> bool:
        """candidate.json is written last."""
        return self.record.is_file()


@dataclass(frozen=True)
class ExamDir:
    """The folder of one exam and of all who sat it; of a stage, or of `luthier exam`."""

    path: Path

    @property
    def exam(self) -> Path:
        return self.path / "exam.json"

    @property
    def items(self) -> Path:
        """id question options answer group of every item, for pages that show them."""
        return self.path / "items.jsonl"

    @property
    def table(self) -> Path:
        """What the answers of all candidates bear: scores, differences, groups, the chosen one."""
        return self.path / "table.json"

    def candidate(self, name: str) -> SatDir:
        return SatDir(self.path / name)

    def candidates(self) -> list[str]:
        """Who has finished, by name."""
        return sorted(record.parent.name for record in self.path.glob("*/candidate.json"))


@dataclass(frozen=True)
class StageDir:
    """The folder of one stage."""

    path: Path

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def predictions(self) -> Path:
        return self.path / "predictions.jsonl"

    @property
    def scores(self) -> Path:
        return self.path / "scores.json"

    @property
    def before(self) -> Path:
        """How well the held-out answers were known before this stage was trained."""
        return self.path / "before.jsonl"

    @property
    def card(self) -> Path:
        """What is to be said of the stage's model wherever it goes: its exams, and how often they were looked at."""
        return self.path / "card.md"

    @property
    def published(self) -> Path:
        """Where this stage was published: repository, commit and digests. Written after the last byte has arrived."""
        return self.path / "published.json"

    @property
    def described_before(self) -> Path:
        """id answer stopped of the held-out pictures that were described before training."""
        return self.path / "described-before.jsonl"

    @property
    def held_out(self) -> Path:
        """Losses of held-out rows, of a stage whose predictions are answers to exams."""
        return self.path / "held-out.jsonl"

    @property
    def samples(self) -> Path:
        """Held-out questions, answered before and after."""
        return self.path / "samples.jsonl"

    def exam(self, name: str) -> ExamDir:
        """One exam that checkpoints of this stage sat."""
        return ExamDir(self.path / "exams" / name)

    def exams(self) -> list[str]:
        """Names of the exams that have records here."""
        return sorted(record.parent.name for record in self.path.glob("exams/*/exam.json"))

    @property
    def record(self) -> Path:
        return self.path / "stage.json"

    @property
    def finished(self) -> bool:
        """stage.json is written last."""
        return self.record.is_file()


@dataclass(frozen=True)
class StageOptions:
    """How a stage is run: from its newest checkpoint, after a proof that resuming changes nothing."""

    resume: bool = False
    verify: bool = False
    resume_line: str = ""


@dataclass(frozen=True)
class RunDir:
    """The folder of one run."""

    path: Path

    @classmethod
    def create(cls, path: Path) -> RunDir:
        """A new folder; one that exists and holds anything is an error."""
        refuse_existing(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RequestError(f"{path}: cannot be made: {error.strerror}", "give another --out") from error
        return cls(path)

    @classmethod
    def open(cls, path: Path, mend: str = "give the folder that --out named") -> RunDir:
        """A folder that a run made before."""
        if not (path / "run.json").is_file():
            raise RequestError(f"{path}: not a run (no run.json in it)", mend)
        return cls(path)

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def manifest(self) -> Path:
        return self.path / "run.json"

    @property
    def data(self) -> Path:
        return self.path / "data"

    @property
    def features(self) -> Path:
        """Cached sound features; they can be made again and are not part of the record."""
        return self.path / "features"

    @property
    def tokens(self) -> Path:
        """Encoded chats; they can be made again and are not part of the record."""
        return self.path / "tokens"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def began(self) -> bool:
        """Whether a stage has left anything."""
        return any(self.path.glob("stages/*/*"))

    def stage(self, name: str) -> StageDir:
        return StageDir(self.path / "stages" / name)

    def read_manifest(self) -> dict[str, Any]:
        found: dict[str, Any] = read_json(self.manifest)
        return found

    def update_manifest(self, **changes: Any) -> None:
        """Change some keys of run.json."""
        write_json(self.manifest, {**self.read_manifest(), **changes})

    def clear(self) -> None:
        """Remove all that is in the folder, run.json last: without it nobody could go on with what is left."""
        for item in sorted(self.path.iterdir(), key=lambda item: item == self.manifest):
            if item.is_dir():
                shutil.rmtree(item)
            else:
                item.unlink()

    @property
    def held(self) -> bool:
        """Whether a process is working on the run. Changes nothing, but takes the lock for an instant if it is free."""
        try:
            stream = (self.path / ".lock").open()
        except OSError:
            return False
        with stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run; a second process that wants it is refused. The lock dies with its process."""
        with (self.path / ".lock").open("w") as stream:
            try:
                _hold(stream)
            except BlockingIOError as error:
                raise RequestError(
                    f"{self.path}: another process is working on this run", "wait for it, or stop it"
                ) from error
            stream.write(str(os.getpid()))
            stream.flush()
            work = [self.path, self.tokens, *self.path.glob("stages/*"), *self.path.glob("stages/*/checkpoints")]
            for folder in work:
                remove_leftovers(folder)
            yield


def _hold(stream: IO[str]) -> None:
    """Lock a file, or raise BlockingIOError where another process holds it for longer than a glance (`held`) takes."""
    for seconds in (_GLANCE_SECONDS, 0.0):
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if not seconds:
                raise
            time.sleep(seconds)


def refuse_existing(path: Path) -> None:
    """Raise ExistsError where `path` is there, unless it is an empty folder."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        more = (
            ", or --resume to go on with it"
            if any((path / one).is_file() for one in ("run.json", "exam-run.json"))
            else ""
        )
        raise ExistsError(
            f"{path}: exists already, and nothing that exists is overwritten", f"give another --out{more}"
        )


def truncate_metrics(path: Path, step: int) -> None:
    """Drop the lines after `step`, so that a resumed curve repeats and loses nothing."""
    if path.is_file():
        lines = [line for line in path.read_bytes().split(b"\n") if line.strip()]
        rows = read_jsonl(path)
        kept = [line for line, row in zip(lines, rows, strict=False) if row["step"] <= step]
        write_bytes(path, b"".join(line + b"\n" for line in kept))
