"""Media in memory, and the smallest base that sees and hears: for tests of what lies between rows and encoders."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import soundfile
import torch
from PIL import Image

from luthier.data.mediasource import Facts, MediaSource
from luthier.models.senses.base import Medium, Prepared, Senses
from luthier.recipe_data import Frames, Limits

SAMPLES = 1600
"""Of one slot of the small base."""


@dataclass
class MediaBox:
    """Files by reference, as a table has them. `opened` lists what was read, in order."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    opened: list[str] = field(default_factory=list)

    def put(self, data: bytes) -> str:
        reference = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self.blobs[reference] = data
        return reference

    def picture(self, picture: Image.Image) -> str:
        stream = io.BytesIO()
        picture.save(stream, "PNG")
        return self.put(stream.getvalue())

    def sound(self, seconds: float, hertz: float = 440.0) -> str:
        stream = io.BytesIO()
        time = np.arange(round(seconds * 16_000)) / 16_000
        soundfile.write(stream, 0.3 * np.sin(2 * math.pi * hertz * time), 16_000, format="WAV", subtype="FLOAT")
        return self.put(stream.getvalue())

    def data(self, reference: str) -> bytes:
        self.opened.append(reference)
        return self.blobs[reference.partition("#")[0]]

    @property
    def source(self) -> MediaSource:
        return MediaSource(self.data, Limits(), Frames())

    def medium(self, senses: Senses, kind: Any, reference: str) -> Medium:
        """A medium as the row of it was encoded."""
        opened = list(self.opened)
        facts = self.source.facts(kind, reference)
        self.opened[:] = opened  # what is counted is what is decoded for encoders
        return Medium(kind, reference, senses.slots(facts), senses.grid(facts))

    def media(self, senses: Senses, kind: Any = "image") -> list[Medium]:
        """All files, which are of this kind."""
        return [self.medium(senses, kind, reference) for reference in self.blobs]


class SmallBase(torch.nn.Module):
    """Embeddings, a decoder that is one matrix, and an encoder and a projector of each kind."""

    def __init__(self, width: int = 6, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embedding = torch.nn.Embedding(32, width)
            self.eye = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Dropout(0.5))
            self.ear = torch.nn.Linear(SAMPLES, 5)
            self.eye_out = torch.nn.Linear(5, width)
            self.ear_out = torch.nn.Linear(5, width)
            self.decoder = torch.nn.Linear(width, 32)
        self.requires_grad_(False).eval()

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.embedding


@dataclass
class SmallSenses(Senses):
    """A picture has a vector for each 8 pixels of its width, a recording one for each 1600 samples begun."""

    layers: int = 2
    scale: float = 1.0
    kinds: ClassVar[tuple[Any, ...]] = ("image", "audio")
    slot_ids: ClassVar[dict[Any, int]] = {"image": 1, "audio": 2}
    marks: ClassVar[dict[Any, str]] = {"image": "<i>", "audio": "<a>"}
    encoders: ClassVar[dict[Any, tuple[str, ...]]] = {"image": ("eye.",), "audio": ("ear.",)}
    projectors: ClassVar[dict[Any, tuple[str, ...]]] = {"image": ("eye_out",), "audio": ("ear_out",)}

    def spell(self, facts: Facts) -> str:
        count = -(-facts.width // 8) if facts.kind == "image" else -(-facts.samples // SAMPLES)
        return self.slot_token(facts.kind) * count

    def slot_token(self, kind: Any) -> str:
        return f"<{kind}>"

    def prepare(self, kind: Any, medium: Any) -> Prepared:
        if kind == "image":
            slots = -(-medium.width // 8)
            pixels = np.asarray(medium.resize((slots, 1), Image.Resampling.BOX), dtype=np.float32)[0] / 255
            return Prepared(kind, {"pixels": self.scale * torch.from_numpy(pixels)}, slots)
        padded = np.zeros(-(-len(medium) // SAMPLES) * SAMPLES, dtype=np.float32)
        padded[: len(medium)] = medium
        return Prepared(kind, {"samples": torch.from_numpy(padded).view(-1, SAMPLES)}, len(padded) // SAMPLES)

    def encode(self, model: Any, prepared: Sequence[Prepared]) -> list[torch.Tensor]:
        found = []
        for one in prepared:
            if one.kind == "image":
                vectors_SD = model.eye_out(model.eye(one.inputs["pixels"]))
            else:
                vectors_SD = model.ear_out(model.ear(one.inputs["samples"]))
            found.append(torch.stack([vectors_SD * (layer + 1) for layer in range(self.layers)]))
        return found

    def decoder(self, model: Any) -> Any:
        return model.decoder

    def settings(self) -> dict[str, Any]:
        return {"layers": self.layers, "scale": self.scale}
