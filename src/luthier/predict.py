"""`luthier predict`: recordings, pictures or videos in, verdicts out, with the adapter, tokens and calibration of a
finished stage.

Chat and describe runs are answered by predict_chat.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from luthier.data.mediakind import media_kind
from luthier.data.mediasource import MediaSource
from luthier.engines.base import Recording, ServedModel, Sight, Verdict
from luthier.engines.finding import finished_stages
from luthier.engines.torch_verdict import TorchVerdict
from luthier.errors import MediaError, RequestError
from luthier.predict_chat import answers
from luthier.recipe_data import DataConfig
from luthier.rundir import RunDir

_SHOWN = ("p_panel", "p_rater", "grade_mean")
"""What only an ordinal read-out says."""


def predict(run: RunDir, inputs: Sequence[Path], question: str, stage: str) -> Iterator[dict[str, Any]]:
    """One mapping per medium or question, in order; one that cannot be judged or answered gets `error` instead."""
    stages = {one.path.name: recipe for one, recipe in finished_stages(run)}
    name = stage or list(stages)[-1]
    if name not in stages:
        raise RequestError(
            f"{run.path}: stage {name} is not finished (finished: {', '.join(stages)})",
            "let the run finish, or name another --stage",
        )
    if stages[name].task.of_text:
        return answers(run.stage(name), stages[name], inputs, question)
    model = ServedModel(name, "verdict", stages[name].model.base, run.path, name, adapter=run.stage(name).adapter)
    return _verdicts(model, stages[name].data, inputs, question)


def _verdicts(model: ServedModel, read: DataConfig, inputs: Sequence[Path], question: str) -> Iterator[dict[str, Any]]:
    """A finished verdict stage's judgement of each medium, given as soon as it is there."""
    if not inputs:
        raise RequestError("predict: nothing to judge", "give one or more recordings, pictures or videos")
    engine = TorchVerdict([model])
    for path in inputs:
        try:
            data = path.read_bytes()
            source = MediaSource(lambda _, data=data: data, read.limits, read.frames)  # type: ignore[misc]
            kind = media_kind(data) or "audio"
            made = Recording if kind == "audio" else Sight
            shown = made(str(path), source.load(kind, str(path)))
        except (MediaError, OSError) as error:
            yield {"input": str(path), "error": str(error)}
            continue
        [verdict] = engine.judge(model.id, [shown], question)
        yield _line(verdict, model.stage)


def _line(verdict: Verdict, stage: str) -> dict[str, Any]:
    if verdict.error:
        return {"input": verdict.name, "error": verdict.error}
    said = {
        "input": verdict.name,
        "pass": verdict.passed,
        "p_pass": verdict.p_pass,
        "p_pass_calibrated": verdict.p_pass_calibrated,
        "event": verdict.event,
        "stage": stage,
    }
    return said | {key: value for key in _SHOWN if (value := getattr(verdict, key)) is not None}
