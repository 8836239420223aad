"""What a trial's run folder says of it: its steps, losses and scores, read from the records alone.

Refuses to know how the run was made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.files import read_json, read_jsonl
from luthier.rundir import RunDir

VALIDATION = "validation_loss"
"""The objective by default: the lowest mean loss over the validation rows that a run came to."""
_LOWER = {VALIDATION, "log_loss", "brier", "ece", "perplexity", "unparseable"}


@dataclass(frozen=True)
class Objective:
    """What trials are ordered by: the validation loss, or a score of scores.json, of one stage."""

    key: str
    stage: str

    @property
    def lower_is_better(self) -> bool:
        return self.key in _LOWER or self.key.endswith(("_loss", "_log_error"))

    def of(self, figures: dict[str, dict[str, Any]]) -> float | None:
        """Its value among the figures of a trial's stages; None where it is not there."""
        stage = figures.get(self.stage, {})
        value = stage.get("validation") if self.key == VALIDATION else stage.get("scores", {}).get(self.key)
        return None if value is None else float(value)


def read_figures(folder: Path, stages: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The figures of each stage that has begun. A run that is still being written to is read as far as it is."""
    rundir = RunDir(folder)
    return {name: _stage(rundir, name) for name in stages if rundir.stage(name).metrics.is_file()}


def _stage(rundir: RunDir, name: str) -> dict[str, Any]:
    stage = rundir.stage(name)
    lines = read_jsonl(stage.metrics)
    if not lines:
        return {}
    last, seen = lines[-1], looks(lines)
    step, best = min(seen, key=lambda look: look[1]) if seen else (None, None)
    found = {
        "steps": last["step"],
        "train_loss": last["loss"],
        "validation": best,
        "validation_step": step,
        "tokens_per_second": last["tokens"] / last["seconds"] if last["seconds"] else None,
    }
    if stage.scores.is_file():
        scores = read_json(stage.scores)
        found["scores"] = {
            key: score["value"] for key, score in scores.items() if isinstance(score, dict) and "value" in score
        }
    return found


def looks(lines: Sequence[dict[str, Any]]) -> list[tuple[int, float]]:
    """(step, loss) of each look at the validation rows among the lines of metrics.jsonl."""
    return [(line["step"], line[VALIDATION]) for line in lines if line.get(VALIDATION) is not None]


def read_looks(folder: Path, stage: str) -> list[tuple[int, float]]:
    """The looks of a run that may be at work."""
    path = RunDir(folder).stage(stage).metrics
    return looks(read_jsonl(path)) if path.is_file() else []
