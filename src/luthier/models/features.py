"""Sound features made once per recording: log-mel always, projected encoder outputs where both are frozen.

Keys are digests of everything a feature depends on, so a changed extractor, encoder or recording is never served
an old feature. Files can be thrown away at any time: they are made again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save

from luthier.console import progress
from luthier.files import sha256_bytes, write_bytes
from luthier.models.families import SOUND_QUANTUM, Family, parameters_digest


@dataclass
class FeatureStore:
    """A folder of features. `waveform` maps a media reference to its 16 kHz mono samples.

    With `frozen`, features are the encoder's and projector's outputs (S, D) of the bare `model`; without,
    log-mel (T, F), and the model is asked for its shapes alone.
    """

    folder: Path
    family: Family
    extractor: Any
    waveform: Callable[[str], NDArray[np.float32]]
    model: Any
    frozen: bool = False

    def __post_init__(self) -> None:
        about = json.dumps([self.extractor.to_dict(), SOUND_QUANTUM, self.family.name], sort_keys=True, default=str)
        self.mel_folder = self.folder / f"mel-{sha256_bytes(about.encode())[:16]}"
        self.sound_folder: Path | None = None
        if self.frozen:
            weights = parameters_digest(self.model, (self.family.encoder, *self.family.projector))
            self.sound_folder = self.folder / f"sound-{sha256_bytes((about + weights).encode())[:16]}"

    @property
    def encoded(self) -> bool:
        """Whether `load` gives encoder outputs."""
        return self.sound_folder is not None

    def prepare(self, references: Iterable[str]) -> dict[str, int]:
        """Make what is missing. Returns the number of sound tokens of each recording."""
        found = {}
        unique = sorted(set(references))
        for reference in progress(unique, "sound features", len(unique)):
            feature = self.load(reference)
            found[reference] = len(feature) if self.encoded else self.family.sound_tokens(self.model, len(feature))
        return found

    def load(self, reference: str) -> torch.Tensor:
        """The feature of one recording, from its file or made now."""
        if self.sound_folder is None:
            return self._cached(self.mel_folder, reference, self._mel)
        return self._cached(self.sound_folder, reference, self._sound)

    def _mel(self, reference: str) -> torch.Tensor:
        return self.family.mel(self.extractor, self.waveform(reference))

    def _sound(self, reference: str) -> torch.Tensor:
        mel = self._cached(self.mel_folder, reference, self._mel)
        with torch.no_grad():
            return self.family.encode_sound(self.model, mel[None])[0].float().cpu()

    def _cached(self, folder: Path, reference: str, make: Callable[[str], torch.Tensor]) -> torch.Tensor:
        path = folder / f"{reference.removeprefix('sha256:')}.safetensors"
        if path.is_file():
            try:
                return load(path.read_bytes())["feature"]
            except SafetensorError:
                path.unlink()  # torn by a crash: made again below
        feature = make(reference).contiguous()
        write_bytes(path, save({"feature": feature}), durable=False)
        return feature
