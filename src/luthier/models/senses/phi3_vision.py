"""Eyes of Phi-3-vision, with our own classes of it (models/phi3_vision); Phi-3.5-vision goes the same way.

Its template takes strings, in which `<|image_1|>` stands for the first picture of the conversation, `<|image_2|>` for
the second. The published processor cuts the text at these tags and tokenises each piece by itself, special tokens and
all, so that BOS follows every picture; a picture's places are ids below 0. We tokenise the text whole: a tag becomes as
many slot tokens as the picture has vectors, then BOS as text where the tokenizer adds it. The slot token is
`<|image|>` of the published vocabulary, or the first of its unused placeholders that does as well. That the ids are
those of the processor but for the slots is tried when the senses are made; a tokenizer that reads on otherwise behind a
picture than at the beginning of a text (SentencePiece's blank put first only there) is refused, never guessed.

Knows no rows and no batches. Shapes: T tiles of a picture (3, S, S), in `encode` S slots, D model width.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from luthier.data.mediasource import Facts
from luthier.errors import RequestError
from luthier.models.phi3_vision import Phi3VImageProcessor
from luthier.models.phi3_vision.image import Layout, layout
from luthier.models.senses.base import Grid, Prepared, Senses
from luthier.models.senses.processors import processor_settings, read_processor
from luthier.schema import PartType

_EYES = "model.vision_embed_tokens"
_CANDIDATES = ("<|image|>", *(f"<|placeholder{number}|>" for number in range(1, 41)))
_BEFORE = ("", "a", "a ", "a \n", "<|user|>\n", "<|end|>")
_BEHIND = ("", "b", " b", "\n b", "\n<|end|>\n", "<|end|>", "é\t")


class Phi3VisionSenses(Senses):
    """The eyes of one base."""

    kinds = ("image",)

    def __init__(self, config: Any, tokenizer: Any, images: Phi3VImageProcessor) -> None:
        """`config` is the model's. Raises RequestError for a tokenizer that has no token for slots."""
        sight = config.vision_config
        self._line = sight.image_size // sight.patch_size // 2
        self._patches = 2 * self._line
        if (images.image_size, images.num_img_tokens) != (sight.image_size, self._line**2):
            raise RequestError(
                f"model.base: its image processor makes tiles of {images.image_size} pixels and "
                f"{images.num_img_tokens} vectors, its encoder takes {sight.image_size} and {self._line**2}",
                "take preprocessor_config.json and config.json of one repository",
            )
        self._images = images
        bos = tokenizer("")["input_ids"]
        self.opening = "".join(tokenizer.convert_ids_to_tokens(bos))
        self._slot = _slot_token(tokenizer, self.opening)
        eyes = f"{_EYES}.img_processor.vision_model"
        layers = range(sight.num_hidden_layers - 1)  # the last is not passed through
        parts = (f"{eyes}.embeddings", f"{eyes}.pre_layrnorm", *(f"{eyes}.encoder.layers.{layer}" for layer in layers))
        self.slot_ids = {"image": tokenizer.convert_tokens_to_ids(self._slot)}
        self.marks = {"image": "<|image_{n}|>"}
        self.encoders = {"image": parts}
        self.projectors = {"image": tuple(f"{_EYES}.{part}" for part in ("img_projection", "glb_GN", "sub_GN"))}

    @classmethod
    def of(cls, model: Any, tokenizer: Any, name: str, revision: str = "") -> Phi3VisionSenses:
        """The eyes of the bare model `name`. Raises SourceError where its settings cannot be read, RequestError."""
        if name.startswith("toy:"):
            from luthier.models.senses.toy_phi3_vision import image_processor

            return cls(model.config, tokenizer, image_processor())
        return cls(model.config, tokenizer, read_processor(Phi3VImageProcessor, name, revision))

    def spell(self, facts: Facts) -> str:
        return self._slot * self._layout(facts).tokens(self._line) + self.opening

    def grid(self, facts: Facts) -> Grid:
        found = self._layout(facts)
        return (1, found.rows * self._patches, found.columns * self._patches)

    def prepare(self, kind: PartType, medium: Image.Image) -> Prepared:
        facts = Facts(kind, medium.width, medium.height)
        tiles_T3SS = self._images.tiles(medium)
        return Prepared(kind, {"tiles": tiles_T3SS}, self._layout(facts).tokens(self._line), self.grid(facts))

    def _layout(self, facts: Facts) -> Layout:
        return layout(facts.width, facts.height, self._images.num_crops, self._images.image_size)

    def encode(self, model: Any, prepared: Sequence[Prepared]) -> list[torch.Tensor]:
        """One call for all: no tile attends to another. Tiles of padding are never made."""
        if not prepared:
            return []
        eyes = model.get_submodule(_EYES)
        grids = [(one.grid[1] // self._patches, one.grid[2] // self._patches) for one in prepared if one.grid]
        device = eyes.glb_GN.device
        found = eyes([one.inputs["tiles"].to(device, non_blocking=True) for one in prepared], grids)
        return [vectors_SD[None] for vectors_SD in found]

    def decoder(self, model: Any) -> Any:
        return model.model

    def slot_token(self, kind: PartType) -> str:
        return self._slot

    def settings(self) -> dict[str, Any]:
        return {"image": processor_settings(self._images), "slot": self._slot, "opening": self.opening}


def _slot_token(tokenizer: Any, opening: str) -> str:
    """The first token of the vocabulary that stands for slots without changing how the text around it is read."""
    known = tokenizer.get_added_vocab()
    for token in _CANDIDATES:
        if token in known and all(
            _same(tokenizer, token, opening, *pair) for pair in itertools.product(_BEFORE, _BEHIND)
        ):
            return token
    raise RequestError(
        "model.base: no token of its tokenizer can stand for the vectors of a picture: the text around it would not be "
        "read as Phi-3-vision's processor reads it",
        "take tokenizer.json as microsoft/Phi-3-vision-128k-instruct publishes it",
    )


def _same(tokenizer: Any, token: str, opening: str, before: str, behind: str) -> bool:
    """Whether a text with two slots in it is read whole as its pieces are by themselves."""
    slots = [tokenizer.convert_tokens_to_ids(token)] * 2
    pieces = [*tokenizer(before)["input_ids"], *slots, *tokenizer(behind)["input_ids"]]
    whole: list[int] = tokenizer(before + token * 2 + opening + behind)["input_ids"]
    return whole == pieces
