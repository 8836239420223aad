"""Sound features made once per recording: log-mel always, projected encoder outputs where both are frozen.

Keys are digests of everything a feature depends on, so a changed extractor, encoder or recording is never served
an old feature. Files can be thrown away at any time: they are made again.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save

from luthier.console import progress
from luthier.files import sha256_bytes, write_bytes
from luthier.models.families import SOUND_QUANTUM, Family, parameters_digest

_DECODERS = 2
"""Threads that decode recordings and make their log-mel."""
_TOGETHER = 8
"""Recordings of one length in a call of the encoder."""


class Features(Protocol):
    """What batches take their sound from."""

    @property
    def encoded(self) -> bool:
        """Whether `load` gives encoder outputs (S, D); else log-mel (T, F)."""
        ...

    def load(self, reference: str) -> torch.Tensor:
        """The feature of one recording."""
        ...


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
    memory: int = 2**30
    """Bytes of features kept in memory."""

    def __post_init__(self) -> None:
        self._memory: dict[str, torch.Tensor] = {}
        self._held = 0
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
        unique = sorted(set(references))
        with ThreadPoolExecutor(_DECODERS) as pool:  # decoding and the Fourier transform leave the interpreter's lock
            lengths = pool.map(lambda reference: len(self._mel(reference)), unique)
            frames = dict(zip(unique, progress(lengths, "sound features", len(unique)), strict=True))
        if self.sound_folder is not None:
            self._encode(sorted(unique, key=lambda reference: (frames[reference], reference)), frames)
        return {reference: self.family.sound_tokens(self.model, count) for reference, count in frames.items()}

    def load(self, reference: str) -> torch.Tensor:
        """The feature of one recording: from memory, from its file, or made now."""
        if reference not in self._memory:
            feature = self._mel(reference) if self.sound_folder is None else self._sound(reference)
            if self._held + feature.nbytes > self.memory:
                return feature
            self._held += feature.nbytes
            self._memory[reference] = feature
        return self._memory[reference]

    def _encode(self, ordered: list[str], frames: dict[str, int]) -> None:
        """Encode what is missing in calls of up to 8 recordings of one length.

        A call is repeated whole when one of its files is missing, so that a resumed run gets the same bits.
        """
        groups = [list(group) for _, group in itertools.groupby(ordered, key=frames.__getitem__)]
        calls = [group[i : i + _TOGETHER] for group in groups for i in range(0, len(group), _TOGETHER)]
        for call in progress(calls, "encoding sound", len(calls)):
            absent = [reference for reference in call if read_feature(self._sound_path(reference)) is None]
            if absent:
                with torch.no_grad():
                    mel_GTF = torch.stack([self._mel(reference) for reference in call])
                    encoded = self.family.encode_sound(self.model, mel_GTF).float().cpu()
                for reference in absent:
                    write_feature(self._sound_path(reference), encoded[call.index(reference)])

    def _sound(self, reference: str) -> torch.Tensor:
        feature = read_feature(self._sound_path(reference))
        if feature is None:
            with torch.no_grad():
                feature = self.family.encode_sound(self.model, self._mel(reference)[None])[0].float().cpu()
            write_feature(self._sound_path(reference), feature)
        return feature

    def _sound_path(self, reference: str) -> Path:
        assert self.sound_folder is not None
        return self.sound_folder / _name(reference)

    def _mel(self, reference: str) -> torch.Tensor:
        path = self.mel_folder / _name(reference)
        feature = read_feature(path)
        if feature is None:
            feature = self.family.mel(self.extractor, self.waveform(reference))
            write_feature(path, feature)
        return feature


def _name(reference: str) -> str:
    return f"{reference.removeprefix('sha256:')}.safetensors"


def read_feature(path: Path) -> torch.Tensor | None:
    """A feature from its file; None where there is none, or one torn by a crash (it will be made again)."""
    if not path.is_file():
        return None
    try:
        return load(path.read_bytes())["feature"]
    except SafetensorError:
        return None


def write_feature(path: Path, feature: torch.Tensor) -> None:
    """Put a feature into its file."""
    write_bytes(path, save({"feature": feature.contiguous()}), durable=False)
