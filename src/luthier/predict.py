"""`luthier predict`: recordings in, verdicts out, with the adapter, tokens and calibration of a finished stage.

Chat runs are answered by predict_chat.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from luthier.assess.calibration import calibrate
from luthier.data.media import load_audio
from luthier.errors import MediaError, RequestError
from luthier.evaluate.verdicts import Judge
from luthier.files import sha256_bytes
from luthier.models import package
from luthier.models.encode import Example, PromptEncoder
from luthier.models.features import FeatureStore
from luthier.predict_chat import answers
from luthier.recipe import Recipe
from luthier.recipefile import read_tree, resolve, stage_recipes
from luthier.rundir import RunDir, StageDir
from luthier.runtime.devices import Devices
from luthier.stages.prepare import build_model


def predict(run: RunDir, inputs: Sequence[Path], question: str, stage: str) -> Iterator[dict[str, Any]]:
    """One mapping per recording or question, in order; one that cannot be judged or answered gets `error` instead."""
    recipe = resolve(read_tree(run.recipe), [])
    stages = stage_recipes(recipe)
    finished = [name for name in stages if run.stage(name).finished]
    name = stage or (finished[-1] if finished else "")
    if name not in finished:
        raise RequestError(
            f"{run.path}: stage {name or '(any)'} is not finished (finished: {', '.join(finished) or 'none'})",
            "let the run finish, or name another --stage",
        )
    work = answers if stages[name].task.of_text else _verdicts
    return work(run.stage(name), stages[name], inputs, question)


def _verdicts(stage: StageDir, chosen: Recipe, inputs: Sequence[Path], question: str) -> Iterator[dict[str, Any]]:
    """A finished verdict stage's judgement of each recording."""
    if not inputs:
        raise RequestError("predict: nothing to judge", "give one or more recordings")
    base, model, about, _ = build_model(chosen, chosen.seed)
    folder = stage.adapter
    stored = package.Package.read(folder)
    package.check(stored, about.base_sha256, about.learned_tokens, folder)
    model.load(folder)
    devices = Devices(chosen.model.dtype)
    devices.place(model)
    waves: dict[str, Any] = {}
    scratch = tempfile.TemporaryDirectory(prefix="luthier-predict-")  # a finished run is never written to
    store = FeatureStore(Path(scratch.name), base.family, base.extractor, waves.__getitem__, base.model)
    encoder = PromptEncoder.of(base, chosen)
    judge = Judge(model, store, devices, base.tokenizer.pad_token_id)
    for path in inputs:
        try:
            reference = _read(path, chosen.data.limits, waves)
        except (MediaError, OSError) as error:
            yield {"input": str(path), "error": str(error)}
            continue
        length = store.prepare([reference])[reference]
        encoded = encoder.prompt_ids(question, length)
        if isinstance(encoded, str):
            yield {"input": str(path), "error": encoded}
            continue
        example = Example(str(path), "", "", encoded[0], reference, encoded[1], length, 0.0, 0.0, 0)
        judged = judge([example])
        waves.clear()
        p = float(judged.p_pass[0])
        calibrated = float(calibrate([p], stored.calibration["temperature"])[0])
        verdict = {
            "input": str(path),
            "pass": p > 0.5,
            "p_pass": p,
            "p_pass_calibrated": calibrated,
            "event": stored.event,
            "stage": stage.path.name,
        }
        extra = {"p_panel": judged.p_panel, "p_rater": judged.p_rater, "grade_mean": judged.grade_mean}
        yield verdict | {key: float(value[0]) for key, value in extra.items() if value is not None}


def _read(path: Path, limits: Any, waves: dict[str, Any]) -> str:
    data = path.read_bytes()
    reference = f"sha256:{sha256_bytes(data)}"
    waves[reference] = load_audio(data, limits)
    return reference
