"""LLaVA-OneVision: a picture seen whole, then in tiles whose features lie as one map, with a learned mark after a row.

Every picture is cut into tiles as if it were alone in its row. The library does so where pictures are given as a flat
list; given a list for each row, it would see the pictures of a row of several whole only, in fewer tokens. A medium
would then be spelled by its company, and stored features would not fit, so that way is not built. A video is read
natively: each frame whole, its map halved, and one mark at the end; the model is not told the times of frames.

Shapes: T tiles, F frames, S slots of a medium, D model width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoImageProcessor, AutoVideoProcessor
from transformers.image_processing_utils import select_best_resolution

from luthier.data.mediasource import Facts
from luthier.models.senses.base import Prepared, Senses
from luthier.models.senses.processors import processor_settings, read_processor
from luthier.schema import PartType


class LlavaOnevisionSenses(Senses):
    """The eyes of a LLaVA-OneVision."""

    kinds = ("image", "video")

    def __init__(self, config: Any, tokenizer: Any, images: Any, videos: Any) -> None:
        """`config` is the whole model's; `images` and `videos` are its processors."""
        self._images, self._videos = images, videos
        self._tile = int(config.vision_config.image_size)
        self._side = self._tile // config.vision_config.patch_size
        self._pinpoints = config.image_grid_pinpoints
        self._most = int(config.vision_aspect_ratio.removeprefix("anyres_max_"))
        self.slot_ids = {"image": config.image_token_id, "video": config.video_token_id}
        self.marks = {kind: tokenizer.convert_ids_to_tokens(slot) for kind, slot in self.slot_ids.items()}
        self.encoders = dict.fromkeys(self.kinds, ("model.vision_tower",))
        self.projectors = dict.fromkeys(self.kinds, ("model.multi_modal_projector", "model.image_newline"))

    @classmethod
    def of(cls, model: Any, tokenizer: Any, name: str, revision: str = "") -> LlavaOnevisionSenses:
        """The senses of a bare model. Raises SourceError."""
        if name.startswith("toy:"):
            from luthier.models.senses.toy_llava_onevision import processors

            return cls(model.config, tokenizer, *processors(model.config.model_type))
        readers = (AutoImageProcessor, AutoVideoProcessor)
        return cls(model.config, tokenizer, *(read_processor(kind, name, revision) for kind in readers))

    def spell(self, facts: Facts) -> str:
        if facts.kind == "video":
            slots = self._of_frames(len(facts.seconds))
        else:
            slots = self._of_picture(facts.width, facts.height)
        return self.marks[facts.kind] * slots

    def prepare(self, kind: PartType, medium: Any) -> Prepared:
        if kind == "video":
            frames_FHW3 = np.stack([np.asarray(frame) for frame in medium.frames])
            options = {"do_sample_frames": False, "input_data_format": "channels_last", "return_tensors": "pt"}
            film = self._videos([frames_FHW3], **options)["pixel_values_videos"]
            return Prepared(kind, {"pixel_values_videos": film}, self._of_frames(len(medium.frames)))
        found = self._images([medium], return_tensors="pt")
        inputs = {"pixel_values": found["pixel_values"][0], "image_sizes": found["image_sizes"]}
        return Prepared(kind, inputs, self._of_picture(*medium.size))

    def encode(self, model: Any, prepared: Sequence[Prepared]) -> list[torch.Tensor]:
        eyes = model.model.vision_tower
        pictures = [one for one in prepared if one.kind == "image"]
        seen: list[torch.Tensor] = []
        if pictures:
            tiles = torch.cat([one.inputs["pixel_values"] for one in pictures])
            sizes = torch.cat([one.inputs["image_sizes"] for one in pictures])
            seen = model.model.get_image_features(
                tiles.to(eyes.device, eyes.dtype), sizes, return_dict=True
            ).pooler_output
        following = iter(seen)
        return [next(following)[None] if one.kind == "image" else self._film(model, one) for one in prepared]

    def decoder(self, model: Any) -> Any:
        return model.model.language_model

    def slot_token(self, kind: PartType) -> str:
        return self.marks[kind]

    def settings(self) -> dict[str, Any]:
        return {
            "image": processor_settings(self._images),
            "video": processor_settings(self._videos),
            "pinpoints": self._pinpoints,
            "most_tiles": self._most,
        }

    def _film(self, model: Any, film: Prepared) -> torch.Tensor:
        eyes = model.model.vision_tower
        frames = film.inputs["pixel_values_videos"].to(eyes.device, eyes.dtype)
        found: torch.Tensor = model.model.get_video_features(frames, return_dict=True).pooler_output
        return found

    def _of_frames(self, frames: int) -> int:
        return frames * math.ceil(self._side / 2) ** 2 + 1

    def _of_picture(self, width: int, height: int) -> int:
        """Slots of a picture: the whole, and its tiles' map without what was padded, each row with its mark."""
        best_height, best_width = select_best_resolution((height, width), self._pinpoints)
        rows, columns = best_height // self._tile * self._side, best_width // self._tile * self._side
        if width / height > columns / rows:
            rows -= (rows - int(round(height * (columns / width), 7))) // 2 * 2
        else:
            columns -= (columns - int(round(width * (rows / height), 7))) // 2 * 2
        ratio = math.sqrt(rows * columns / (self._most * self._side**2))
        # Slightly larger maps stay: a threshold of the model, which shrinks the others to the tiles that it may have.
        if ratio > 1.1:
            rows, columns = int(rows // ratio), int(columns // ratio)
        return self._side**2 + rows * (columns + 1)
