"""Idefics3 and SmolVLM: a picture is enlarged, cut into square tiles in rows and columns, and seen whole beside them.

A picture of one tile is seen whole alone. A video is read as its frames, each cut as a picture is: SmolVLM's own way of
reading videos is not built, for it writes numbers as words with one more package, and in place of the base's own chat
template with one of the library's. Tiles of a picture are squares of one size, so none is padded: the library's
`pixel_attention_mask` would be all ones and is not carried.

Shapes: T tiles of a picture, H x W pixels of a tile, S slots of a tile, D model width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoImageProcessor

from luthier.data.mediasource import Facts
from luthier.errors import RequestError
from luthier.models.senses.base import Prepared, Senses
from luthier.models.senses.processors import processor_settings, read_processor
from luthier.schema import PartType

_FAKE, _GLOBAL = "<fake_token_around_image>", "<global-img>"
_LARGEST = 4096
"""Pixels of a side beyond which the library makes a picture smaller, whatever its settings."""


class Idefics3Senses(Senses):
    """The eyes of an Idefics3 or SmolVLM."""

    kinds = ("image",)

    def __init__(self, config: Any, tokenizer: Any, images: Any) -> None:
        """`config` is the whole model's; `images` its image processor."""
        self._image = tokenizer.convert_ids_to_tokens(config.image_token_id)
        self._images = images
        self._side = int(images.max_image_size["longest_edge"])
        self._tokens = (self._side // config.vision_config.patch_size) ** 2 // config.scale_factor**2
        self.slot_ids = {"image": config.image_token_id}
        self.marks = {"image": self._image}
        self.encoders = {"image": ("model.vision_model",)}
        self.projectors = {"image": ("model.connector",)}

    @classmethod
    def of(cls, model: Any, tokenizer: Any, name: str, revision: str = "") -> Idefics3Senses:
        """The senses of a bare model. Raises SourceError, and RequestError for a processor that resizes otherwise."""
        if name.startswith("toy:"):
            from luthier.models.senses.toy_idefics3 import processors

            (images,) = processors(model.config.model_type)
        else:
            images = read_processor(AutoImageProcessor, name, revision)
        if not images.do_resize or not images.size["longest_edge"]:
            raise RequestError(
                f"model.base: the image processor of {name} does not resize pictures to a longest edge",
                "set do_resize to true and size to longest_edge in its preprocessor_config.json",
            )
        return cls(model.config, tokenizer, images)

    def spell(self, facts: Facts) -> str:
        seen = self._image * self._tokens
        rows, columns = self._rows_and_columns(facts.width, facts.height)
        whole = f"{_FAKE}{_GLOBAL}{seen}{_FAKE}"
        if not rows:
            return whole
        lines = (
            "".join(f"{_FAKE}<row_{row}_col_{column}>{seen}" for column in range(1, columns + 1))
            for row in range(1, rows + 1)
        )
        return "\n".join((*lines, "", whole))

    def prepare(self, kind: PartType, medium: Any) -> Prepared:
        tiles_T3HW = self._images([medium], return_tensors="pt")["pixel_values"][0]
        return Prepared(kind, {"pixel_values": tiles_T3HW}, len(tiles_T3HW) * self._tokens)

    def encode(self, model: Any, prepared: Sequence[Prepared]) -> list[torch.Tensor]:
        # Not the model's own `get_image_features`: it drops tiles that are all zeros as if they were padding.
        eyes, projector = model.model.vision_model, model.model.connector
        pixels = torch.cat([one.inputs["pixel_values"] for one in prepared])
        seen = projector(eyes(pixel_values=pixels.to(eyes.device, eyes.dtype)).last_hidden_state)
        tiles = [len(one.inputs["pixel_values"]) for one in prepared]
        return [vectors_TSD.flatten(0, 1)[None] for vectors_TSD in seen.split(tiles)]

    def decoder(self, model: Any) -> Any:
        return model.model.text_model

    def slot_token(self, kind: PartType) -> str:
        token: str = self._image
        return token

    def settings(self) -> dict[str, Any]:
        return {"image": processor_settings(self._images), "tokens": self._tokens}

    def _rows_and_columns(self, width: int, height: int) -> tuple[int, int]:
        """How a picture is cut; (0, 0) where it is not. The rounding is that of the library's image processor."""
        if not self._images.do_image_splitting:
            return 0, 0
        width, height = _enlarged(width, height, int(self._images.size["longest_edge"]))
        ratio = width / height
        if width >= height:
            width = self._whole_tiles(width)
            height = self._whole_tiles(int(width / ratio))
        else:
            height = self._whole_tiles(height)
            width = self._whole_tiles(int(height * ratio))
        if max(width, height) <= self._side:
            return 0, 0
        return height // self._side, width // self._side

    def _whole_tiles(self, length: int) -> int:
        return math.ceil(length / self._side) * self._side


def _enlarged(width: int, height: int, longest: int) -> tuple[int, int]:
    """The size of a picture whose longer side is made `longest`; the shorter one becomes even."""
    ratio = width / height
    if width >= height:
        width, height = longest, int(longest / ratio)
        height = max(height + height % 2, 1)
    else:
        width, height = int(longest * ratio), longest
        width = max(width + width % 2, 1)
    ratio = width / height
    if width >= height and width > _LARGEST:
        width, height = _LARGEST, max(int(_LARGEST / ratio), 1)
    elif height > width and height > _LARGEST:
        width, height = max(int(_LARGEST * ratio), 1), _LARGEST
    return width, height
