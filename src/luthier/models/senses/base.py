"""What a base that sees or hears is to those who train and ask it: how a medium is spelled, encoded and placed.

A medium goes three ways that must agree. In the text, the template's placeholder is replaced by the family's own
spelling of this medium (`spell`), whose slot tokens are as many as it has vectors. On the host, it becomes what the
encoder takes (`prepare`). On the device, encoder and projector make its vectors (`encode`), which then stand where the
slot tokens are. The decoder is always given embeddings, so live and stored vectors go one path. A family knows no rows,
no batches and no training; `Senses` of a family hold what its processors were configured with.

Shapes: L tokens of a row, S slots of a medium, D model width, K layers that take vectors (1; more with deepstack), P
axes of a position (1; 3 with mRoPE).
"""

from __future__ import annotations

import hashlib
import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from luthier.data.mediasource import Facts
from luthier.schema import PartType, canonical

REASONS = ("extreme_shape",)
"""Words of MediaError for a medium that is whole and of a shape that a family does not read."""

Grid = tuple[int, int, int]
"""Patches of a picture or video before merging: frames, rows, columns."""


@dataclass(frozen=True)
class Prepared:
    """A medium on the host, ready for its encoder. `inputs` are of this medium alone; `slots` its number of vectors."""

    kind: PartType
    inputs: Mapping[str, torch.Tensor]
    slots: int
    grid: Grid | None = None
    mode: str = ""
    """By `Senses.modes`."""

    def to(self, device: Any) -> Prepared:
        """The same on another device."""
        moved = {name: value.to(device, non_blocking=True) for name, value in self.inputs.items()}
        return replace(self, inputs=moved)


@dataclass(frozen=True, slots=True)
class Medium:
    """A medium of an encoded row."""

    kind: PartType
    reference: str
    slots: int
    grid: Grid | None = None
    """By `Senses.grid`: positions in the row are known without the medium being opened again."""
    pace: float = 0.0
    """By `Senses.pace`."""
    mode: str = ""
    """By `Senses.modes`, where its company has it read otherwise than alone."""


@dataclass(frozen=True)
class Placed:
    """The media of one row in the order of their slots, as `Senses.positions` needs them."""

    kinds: tuple[PartType, ...] = ()
    grids: tuple[Grid | None, ...] = field(default=())
    """By `Senses.grid`."""
    paces: tuple[float, ...] = field(default=())
    """By `Senses.pace`."""


class Senses(ABC):
    """A family's eyes and ears on one base. Made by `senses_of`."""

    kinds: ClassVar[tuple[PartType, ...]]
    """What it reads natively. A video is read as its frames where "video" is not among them (see `unfold`)."""
    slot_ids: Mapping[PartType, int]
    """The id whose positions are filled with vectors, by kind."""
    marks: Mapping[PartType, str]
    """What the chat template writes for one medium: the text that its spelling replaces. `{n}` in it stands for the
    number of the medium among those of its kind, from 1, over the whole chat. A template that takes strings alone is
    given the mark in the string, with nothing between it and the parts beside it."""
    opening: str = ""
    """What every text begins with for the family's processor, where its template does not write it."""
    encoders: Mapping[PartType, tuple[str, ...]]
    """Prefixes of the encoder's module names, full, in the bare model."""
    projectors: Mapping[PartType, tuple[str, ...]]
    """Prefixes of what leads from the encoder to the decoder (learned separators too)."""
    keeps_causal: bool = True
    """False where tokens of one picture attend to one another both ways (Gemma 3): such rows cannot be packed."""

    def mark(self, kind: PartType, number: int) -> str:
        """The mark of one medium: the `number`-th of its kind in a chat, from 1."""
        return self.marks[kind].replace("{n}", str(number))

    @property
    def plain(self) -> bool:
        """Whether media are vectors among the embeddings and no more: positions count up, and the decoder is given
        nothing else. Then texts that begin alike can be read as a tree."""
        own = type(self)
        return own.positions is Senses.positions and own.decoder_inputs is Senses.decoder_inputs

    @abstractmethod
    def spell(self, facts: Facts) -> str:
        """The text that stands for a medium, from its header alone: as many slot tokens as `prepare` has slots."""

    def grid(self, facts: Facts) -> Grid | None:
        """The grid that `prepare` gives, from the header alone; None for families whose `positions` need none."""
        return None

    def pace(self, facts: Facts) -> float:
        """Seconds between the frames of a video's grid, for families whose `positions` need them; else 0."""
        return 0.0

    def modes(self, kinds: Sequence[PartType]) -> tuple[str, ...]:
        """How each medium of a row is read, whose kinds in order these are: "" but where its company decides
        (Phi-4-multimodal projects sound in another way beside a picture)."""
        return ("",) * len(kinds)

    @abstractmethod
    def prepare(self, kind: PartType, medium: Any) -> Prepared:
        """A decoded medium (see MediaSource.load) as the encoder takes it, alone: company must not change it."""

    @abstractmethod
    def encode(self, model: Any, prepared: Sequence[Prepared]) -> list[torch.Tensor]:
        """(K, S, D) of each medium through the bare model's encoder and projector, on its device; gradients flow.

        Media whose inputs have one shape may share a call; each result is that of the medium alone.
        """

    @abstractmethod
    def decoder(self, model: Any) -> Any:
        """The text decoder of the bare model, which takes `inputs_embeds` and `position_ids` and has no head."""

    def slots(self, facts: Facts) -> int:
        """How many vectors a medium has."""
        token = self.slot_token(facts.kind)
        return self.spell(facts).count(token)

    @abstractmethod
    def slot_token(self, kind: PartType) -> str:
        """The token of `slot_ids` as text."""

    def positions(self, ids_L: NDArray[np.int64], placed: Placed) -> NDArray[np.int64]:
        """(P, L) position ids of a row by itself."""
        return np.arange(len(ids_L), dtype=np.int64)[None]

    def decoder_inputs(
        self,
        model: Any,
        embeds_BLD: torch.Tensor,
        slot_BL: torch.Tensor,
        vectors_KMD: torch.Tensor | None,
        mask_BL: torch.Tensor | None = None,
    ) -> dict[str, Any]:
        """What else the decoder is given: deepstack features, a mask of its own. `slot_BL` is true at slots of
        pictures and videos; `vectors_KMD` are all vectors in the order of slots, None where no row has any. `mask_BL`
        is 1 at tokens, for rows that are padded on the left; None: on the right, where no token sees the padding."""
        return {}

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Everything that decides `spell` and `prepare`, as JSON: it is part of the key of stored features."""

    def digest(self) -> str:
        """sha256 of `settings`."""
        return hashlib.sha256(canonical([type(self).__name__, self.settings()]).encode()).hexdigest()


SENSES = {
    "phi4_multimodal": "luthier.models.senses.phi4_multimodal:Phi4Senses",
    "qwen2_vl": "luthier.models.senses.qwen_vl:QwenSenses",
    "qwen2_5_vl": "luthier.models.senses.qwen_vl:QwenSenses",
    "qwen3_vl": "luthier.models.senses.qwen_vl:QwenSenses",
    "gemma3": "luthier.models.senses.gemma3:Gemma3Senses",
    "smolvlm": "luthier.models.senses.idefics3:Idefics3Senses",
    "idefics3": "luthier.models.senses.idefics3:Idefics3Senses",
    "llava_onevision": "luthier.models.senses.llava_onevision:LlavaOnevisionSenses",
    "phi3_v": "luthier.models.senses.phi3_vision:Phi3VisionSenses",
}
"""By the model_type of config.json; each class has `of(model, tokenizer, name, revision)`, where `name` is the base as
the recipe names it (`toy:...`, a folder, a hub id), from which the processors' settings are read."""


def has_senses(model_type: str) -> bool:
    """Whether bases of an architecture see or hear."""
    return model_type in SENSES


def kinds_read(model_type: str) -> tuple[PartType, ...]:
    """What bases of an architecture read beside text, natively."""
    return _class(model_type).kinds if has_senses(model_type) else ()


def _class(model_type: str) -> type[Any]:
    module, kind = SENSES[model_type].split(":")
    found: type[Any] = getattr(importlib.import_module(module), kind)
    return found


def senses_of(model: Any, tokenizer: Any, name: str, revision: str = "") -> Senses | None:
    """The senses of a bare model; None for one that reads text alone. Raises SourceError, RequestError."""
    if not has_senses(model.config.model_type):
        return None
    found: Senses = _class(model.config.model_type).of(model, tokenizer, name, revision)
    return found
