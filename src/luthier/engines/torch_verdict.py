"""Recordings, pictures and videos judged by adapters of verdict stages: one forward pass each, read at one position.

A base is loaded once for all stages and checkpoints that hold it alike; their adapters are written over one another.
What is made of a recording is thrown away with the call. Knows no files of clients, no HTTP and no page.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from luthier.assess.calibration import calibrate
from luthier.data.mediasource import DecodedMedia, Film
from luthier.engines.base import Recording, ServedModel, Sight, Verdict, Zone
from luthier.engines.finding import model_called, run_recipes
from luthier.engines.threads import answering_threads
from luthier.errors import CheckpointError
from luthier.evaluate.verdicts import Judge, Judged
from luthier.files import read_jsonl, verify_folder
from luthier.models import package
from luthier.models.chat import ChatTemplate
from luthier.models.encode import Example, PromptEncoder, Spelled, example_of
from luthier.models.features import Features
from luthier.models.load import Base
from luthier.models.senses.base import senses_of
from luthier.models.senses.spelling import Speller
from luthier.models.verdict_features import SeenFeatures
from luthier.recipe import Recipe, Scale
from luthier.rundir import RunDir, StageDir
from luthier.runtime.devices import Devices
from luthier.runtime.threads import is_small, some_threads
from luthier.schema import Part, PartType, canonical
from luthier.stages.prepare import build_model

_TOGETHER = 32
"""Media whose features are held at once: of a minute each some 60 MB."""
_HAIR = 1e-9
_NAMES = {"audio": "a recording", "image": "a picture", "video": "a video"}


class TorchVerdict:
    """A `VerdictEngine` over the verdict models among `models`; a base is loaded when it is first asked.

    Asked from two threads at once, the second waits for the first.
    """

    def __init__(self, models: Sequence[ServedModel], threads: int = 0) -> None:
        found = [replace(model, reads=("audio",)) for model in models if model.kind == "verdict"]
        self._models = {model.id: model for model in found}
        recipes = {run: run_recipes(RunDir(run)) for run in {model.run for model in found if model.run is not None}}
        self._recipes = {model.id: recipes[model.run][model.stage] for model in found if model.run is not None}
        self._threads = threads
        self._bases: dict[str, _VerdictBase] = {}
        self._lock = Lock()

    def models(self) -> list[ServedModel]:
        return list(self._models.values())

    def judge(self, model: str, shown: Sequence[Recording | Sight], question: str) -> list[Verdict]:
        """One verdict each, in order; what cannot be judged says why.

        Raises RequestError for a model that is not there or does not fit its base, CheckpointError for a broken one.
        """
        chosen = model_called(model, self._models)
        with self._lock:
            base = self._base(chosen)
            base.put_on(chosen)
            parts = [shown[i : i + _TOGETHER] for i in range(0, len(shown), _TOGETHER)]
            return [verdict for part in parts for verdict in base.judge(part, question)]

    def zone(self, model: str) -> Zone | None:
        """Of a stage's final adapter; a checkpoint has no probabilities on record, and so no zone."""
        chosen = model_called(model, self._models)
        return None if chosen.step is not None else find_zone(_stage(chosen), self._recipes[chosen.id].task.scale)

    def close(self) -> None:
        with self._lock:
            self._bases.clear()

    def _base(self, model: ServedModel) -> _VerdictBase:
        recipe = self._recipes[model.id]
        key = canonical([asdict(recipe.model), asdict(recipe.task)])
        if key not in self._bases:
            self._bases[key] = _VerdictBase(recipe, self._threads)
        return self._bases[key]


class _VerdictBase:
    """A base with its read-out, and the adapter that is on it."""

    def __init__(self, recipe: Recipe, threads: int) -> None:
        recipe = replace(recipe, train=replace(recipe.train, gradient_checkpointing=False))
        self._base, self._model, self._about, _ = build_model(recipe, recipe.seed)
        self._devices = Devices(recipe.model.dtype)
        self._devices.place(self._model.eval())
        self._encoder = PromptEncoder.of(self._base, recipe)
        self._scale, self._settings = recipe.task.scale, recipe.model
        self._threads = answering_threads(is_small(self._base.model), threads)
        self._on = self._event = self._judges = ""
        self._temperature: float | None = None
        self._zone: Zone | None = None
        """Both were found for final adapters alone."""

    def put_on(self, model: ServedModel) -> None:
        """Have this adapter judge from now on, after a look at every byte of it and at what it says of its base."""
        if self._on == model.id:
            return
        self._on = ""
        final = _stage(model).adapter
        stored = package.Package.read(final)
        package.check(stored, self._about.base_sha256, self._about.learned_tokens, final)
        folder = model.adapter or final
        wrong = verify_folder(folder) if folder != final else None
        if wrong is not None:
            raise CheckpointError(f"{folder}: {wrong}", "choose another checkpoint")
        self._model.load(folder)
        self._event, self._judges = stored.event, stored.judges
        self._temperature = stored.calibration["temperature"] if folder == final else None
        self._zone = find_zone(_stage(model), self._scale) if folder == final else None
        self._on = model.id

    def judge(self, shown: Sequence[Recording | Sight], question: str) -> list[Verdict]:
        """Some in one go, as far as they can be judged."""
        found: dict[str, Verdict] = {}
        media: dict[str, Any] = {
            str(place): one.wave if isinstance(one, Recording) else one.medium for place, one in enumerate(shown)
        }
        for place, medium in list(media.items()):
            if _kind(medium) != self._judges:
                error = f"it is {_NAMES[_kind(medium)]}, and this stage judges {_NAMES[self._judges]}"
                found[place] = Verdict("", error=error)
                del media[place]
        with some_threads(self._threads), TemporaryDirectory(prefix="luthier-seen-") as scratch:
            if self._judges == "audio":
                sounds = _Sounds(self._base)
                spelled = {place: sounds.add(place, wave) for place, wave in media.items()}
                found |= self._judged(sounds, spelled, question)
            else:
                sights = self._sights(Path(scratch), media)
                spelled = sights.prepare(Part(_kind(medium), media=place) for place, medium in media.items())
                found |= self._judged(sights, spelled, question)
        return [replace(found[str(place)], name=one.name) for place, one in enumerate(shown)]

    def _judged(self, features: Features, spelled: Mapping[str, Spelled], question: str) -> dict[str, Verdict]:
        """The verdict of each medium by its place, or the reason why there is none."""
        found, examples = dict[str, Verdict](), list[Example]()
        for place, medium in spelled.items():
            encoded = self._encoder.prompt_ids(question, medium)
            if isinstance(medium, str) or isinstance(encoded, str):
                found[place] = Verdict("", error=str(encoded))
            else:
                examples.append(example_of(place, encoded, medium))
        judge = Judge(self._model, features, self._devices, self._base.tokenizer.pad_token_id, _TOGETHER)
        verdicts = self._verdicts(judge(examples))
        return found | {one.id: verdict for one, verdict in zip(examples, verdicts, strict=True)}

    def _sights(self, folder: Path, seen: Mapping[str, Any]) -> SeenFeatures:
        base = self._base
        senses = senses_of(base.model, base.tokenizer, self._settings.base, self._settings.revision)
        assert senses is not None
        return SeenFeatures(folder, Speller(senses, DecodedMedia.of(seen)), ChatTemplate.of(base.tokenizer), base.model)

    def _verdicts(self, judged: Judged) -> Iterator[Verdict]:
        def at(row: int, column: NDArray[np.float64] | None) -> float | None:
            return None if column is None else float(column[row])

        for row, p in enumerate(judged.p_pass.tolist()):
            calibrated = None if self._temperature is None else float(calibrate([p], self._temperature)[0])
            borderline = None if self._zone is None or calibrated is None else self._zone.holds(calibrated)
            more = at(row, judged.p_panel), at(row, judged.p_rater), at(row, judged.grade_mean)
            yield Verdict("", p > 0.5, p, calibrated, self._event, *more, borderline)


class _Sounds:
    """Log-mel of the recordings of one call, by place; it goes with the call."""

    encoded = False

    def __init__(self, base: Base) -> None:
        self._base = base
        self._mels: dict[str, torch.Tensor] = {}

    def add(self, place: str, wave: NDArray[np.float32]) -> Spelled:
        """Returns the positions that the recording takes in a prompt, or why there are none."""
        if not len(wave) or not np.isfinite(wave).all():
            return "it holds no sound"
        self._mels[place] = self._base.family.mel(self._base.extractor, wave)
        return self._base.family.sound_tokens(self._base.model, len(self._mels[place]))

    def load(self, place: str) -> torch.Tensor:
        """(T, F)."""
        return self._mels[place]


def _kind(medium: Any) -> PartType:
    if isinstance(medium, np.ndarray):
        return "audio"
    return "video" if isinstance(medium, Film) else "image"


def find_zone(stage: StageDir, scale: Scale) -> Zone | None:
    """Where the calibrated probabilities of a stage's borderline answers lie, as its predictions have them."""
    rows = read_jsonl(stage.predictions) if stage.predictions.is_file() else []
    found = [
        float(row["p_pass_calibrated"])
        for row in rows
        # Stages of before calibration was recorded have no such probability, and some rows no grade.
        if row.get("p_pass_calibrated") is not None
        and row.get("grade") is not None
        and -scale.step - _HAIR < float(row["grade"]) - scale.pass_mark < _HAIR
    ]
    if not found:
        return None
    low, high = np.percentile(found, (10, 90))
    return Zone(float(low), float(high), len(found))


def _stage(model: ServedModel) -> StageDir:
    assert model.run is not None
    return RunDir(model.run).stage(model.stage)
