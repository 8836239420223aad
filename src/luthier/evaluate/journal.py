"""Answers on their way to the disk: a journal of a sitting that is under way, and a cache of finished ones.

Both go by a key that says all that decides an answer: base, adapter, questions, number format. Answers under another
key are never used. This module knows nothing of models and of what was asked.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.console import say
from luthier.data.building.stagecache import default_cache
from luthier.errors import DiskError, ExistsError
from luthier.exam_records import ExamPrediction, SatRecord
from luthier.files import atomic_folder, read_json, read_jsonl, sha256_bytes, verify_folder, write_json, write_jsonl
from luthier.rundir import SatDir

_JOURNAL = "predictions.part.jsonl"
_TORN = (ValueError, KeyError, IndexError, TypeError)
"""What a line raises that is not whole."""
_PUSH_SECONDS = 5.0
"""How much work a power cut may cost. A kill costs none: lines are handed to the system as they come."""


class Journal:
    """Answers of one sitting, one a line as they come: predictions.part.jsonl, with the key on its first line.

    `done` holds what an earlier process answered under the same key. What stands behind a torn line is asked again.
    """

    def __init__(self, seat: SatDir, key: str) -> None:
        self.path = seat.path / _JOURNAL
        self.done: dict[str, ExamPrediction] = {}
        self.seconds = 0.0
        """What answering took up to the last line, over all processes."""
        kept = self._read(key)
        with self._said():
            seat.path.mkdir(parents=True, exist_ok=True)
            self._stream = self.path.open("w" if kept is None else "r+", encoding="utf-8")
            if kept is None:
                self._write({"key": key})
            else:
                self._stream.truncate(kept)
                self._stream.seek(0, os.SEEK_END)
        self._before, self._begin = self.seconds, time.monotonic()
        self._pushed = self._begin

    def keep(self, prediction: ExamPrediction) -> None:
        """Write down one item; an item that is there already keeps its answer. Raises DiskError."""
        if prediction.id in self.done:
            return
        self.done[prediction.id] = prediction
        self.seconds = self._before + time.monotonic() - self._begin
        with self._said():
            self._write({"seconds": round(self.seconds, 3), "prediction": prediction.to_json()})
            if time.monotonic() - self._pushed > _PUSH_SECONDS:
                os.fsync(self._stream.fileno())
                self._pushed = time.monotonic()

    def close(self) -> None:
        """Stop writing; the file stays for whoever goes on."""
        self._stream.close()

    @staticmethod
    def remove(seat: SatDir) -> None:
        """Remove the journal of a sitting that is finished."""
        (seat.path / _JOURNAL).unlink(missing_ok=True)

    def _read(self, key: str) -> int | None:
        """Read what is there; returns the bytes that are whole, None for a journal that must begin anew."""
        if not self.path.is_file():
            return None
        lines = self.path.read_bytes().split(b"\n")[:-1]  # what stands behind the last line break is torn
        try:
            known = json.loads(lines[0])["key"]
        except _TORN:
            return None
        if known != key:
            say(f"{self.path}: begun with other weights, questions or settings; all items are asked again")
            return None
        whole = len(lines[0]) + 1
        for line in lines[1:]:
            try:
                found = json.loads(line)
                prediction, self.seconds = ExamPrediction.from_json(found["prediction"]), float(found["seconds"])
            except _TORN:
                break
            self.done[prediction.id] = prediction
            whole += len(line) + 1
        return whole

    def _write(self, line: dict[str, Any]) -> None:
        self._stream.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
        self._stream.flush()

    @contextmanager
    def _said(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DiskError(
                f"{self.path}: could not be written: {error.strerror or error}",
                "free some space or choose a folder that can be written; answers so far are kept",
            ) from error


def answer_cache() -> Path:
    """Where answers are kept: in `$LUTHIER_CACHE/exams`, or exams under the user's cache folder.

    A folder below is named by this package's code and the libraries that compute: what another version answered is
    not taken.
    """
    return default_cache().parent / "exams" / _made_by()


@functools.cache
def _made_by() -> str:
    package = Path(__file__).parents[1]
    files = [path for floor in ("evaluate", "models") for path in sorted((package / floor).glob("*.py"))]
    code = [path.read_bytes() for path in (*files, package / "exam_records.py")]
    versions = [importlib.metadata.version(name) for name in ("torch", "transformers", "peft")]
    return sha256_bytes(b"\0".join([*code, *(version.encode() for version in versions)]))[:16]


@functools.cache
def _say_once(root: Path) -> None:
    say(f"answers are not kept for other runs: {root} cannot be written (set LUTHIER_CACHE to a folder of yours)")


@dataclass(frozen=True)
class AnswerCache:
    """Finished sittings of any run, each in a folder named by its key. Without a root nothing is found or kept."""

    root: Path | None

    def find(self, key: str) -> tuple[list[ExamPrediction], SatRecord] | None:
        """Answers under this key, and the record of who gave them; a folder that is not whole is removed."""
        if self.root is None or not (folder := self.root / key).is_dir():
            return None
        if verify_folder(folder) is not None:
            shutil.rmtree(folder, ignore_errors=True)
            return None
        return read_predictions(SatDir(folder)), SatRecord(**read_json(SatDir(folder).record))

    def keep(self, key: str, predictions: Sequence[ExamPrediction], record: SatRecord) -> None:
        """Keep a finished sitting. A disk that refuses is said once and stops nothing: the run has its own records."""
        if self.root is None:
            return
        try:
            with atomic_folder(self.root / key, {}, durable=False) as folder:
                seat = SatDir(folder)
                write_jsonl(seat.predictions, (prediction.to_json() for prediction in predictions))
                write_json(seat.record, record.to_json())
        except (ExistsError, DiskError):
            if not (self.root / key).is_dir():  # else another process kept the same meanwhile
                _say_once(self.root)


NO_CACHE = AnswerCache(None)


def read_predictions(seat: SatDir) -> list[ExamPrediction]:
    """What a candidate answered, in the exam's order."""
    return [ExamPrediction.from_json(line) for line in read_jsonl(seat.predictions)]
