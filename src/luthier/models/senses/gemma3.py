"""Gemma 3: every picture is one square and takes the same number of tokens, which look at one another both ways.

Pan-and-scan, which adds crops of long pictures, is off as in the published processor. A video is read as its frames.

Shapes: B lines, L tokens a line, S slots of a picture, D model width, M slots of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import AutoImageProcessor
from transformers.masking_utils import create_causal_mask

from luthier.data.mediasource import Facts
from luthier.errors import RequestError
from luthier.models.senses.base import Prepared, Senses
from luthier.models.senses.processors import processor_settings, read_processor
from luthier.schema import PartType


class Gemma3Senses(Senses):
    """The eyes of a Gemma 3."""

    kinds = ("image",)
    keeps_causal = False

    def __init__(self, config: Any, tokenizer: Any, images: Any) -> None:
        """`config` is the whole model's; `images` its image processor."""
        ids = [config.boi_token_id, config.image_token_id, config.eoi_token_id]
        self._begin, self._soft, self._end = tokenizer.convert_ids_to_tokens(ids)
        self._tokens = int(config.mm_tokens_per_image)
        self._images = images
        self.slot_ids = {"image": config.image_token_id}
        self.marks = {"image": self._begin}
        self.encoders = {"image": ("model.vision_tower",)}
        self.projectors = {"image": ("model.multi_modal_projector",)}

    @classmethod
    def of(cls, model: Any, tokenizer: Any, name: str, revision: str = "") -> Gemma3Senses:
        """The senses of a bare model. Raises SourceError, and RequestError for a processor that pans and scans."""
        if name.startswith("toy:"):
            from luthier.models.senses.toy_gemma3 import processors

            (images,) = processors(model.config.model_type)
        else:
            images = read_processor(AutoImageProcessor, name, revision)
        if images.do_pan_and_scan:
            raise RequestError(
                f"model.base: the image processor of {name} pans and scans, which is not built here",
                "set do_pan_and_scan to false in its preprocessor_config.json",
            )
        return cls(model.config, tokenizer, images)

    def spell(self, facts: Facts) -> str:
        return f"\n\n{self._begin}{self._soft * self._tokens}{self._end}\n\n"

    def prepare(self, kind: PartType, medium: Any) -> Prepared:
        found = self._images([medium], do_pan_and_scan=False, return_tensors="pt")
        return Prepared(kind, {"pixel_values": found["pixel_values"]}, self._tokens)

    def encode(self, model: Any, prepared: Sequence[Prepared]) -> list[torch.Tensor]:
        eyes, projector = model.model.vision_tower, model.model.multi_modal_projector
        pixels = torch.cat([one.inputs["pixel_values"] for one in prepared])
        seen = eyes(pixel_values=pixels.to(eyes.device, eyes.dtype)).last_hidden_state
        return [vectors_SD[None] for vectors_SD in projector(seen)]

    def decoder(self, model: Any) -> Any:
        return model.model.language_model

    def slot_token(self, kind: PartType) -> str:
        token: str = self._soft
        return token

    def decoder_inputs(
        self,
        model: Any,
        embeds_BLD: torch.Tensor,
        slot_BL: torch.Tensor,
        vectors_KMD: torch.Tensor | None,
        mask_BL: torch.Tensor | None = None,
    ) -> dict[str, Any]:
        """A mask for each kind of layer: causal, and both ways within a picture.

        A line with pictures holds one row. `packed_rows` is taken back, for with it attention would be causal.
        """
        if vectors_KMD is None:
            return {}
        config = model.config.get_text_config()
        options = {
            "config": config,
            "inputs_embeds": embeds_BLD,
            "attention_mask": mask_BL,
            "past_key_values": None,
            "or_mask_function": _same_picture(slot_BL),
        }
        window = _within(config.sliding_window)
        masks = {
            "full_attention": create_causal_mask(**options),
            "sliding_attention": create_causal_mask(**options, and_mask_function=window),
        }
        return {"attention_mask": masks, "packed_rows": None}

    def settings(self) -> dict[str, Any]:
        return {"image": processor_settings(self._images), "tokens": self._tokens, "pan_and_scan": False}


def _same_picture(slot_BL: torch.Tensor) -> Callable[..., torch.Tensor]:
    """Whether two tokens are of one picture: of one run of slots, since text stands between any two pictures."""
    before_BL = torch.nn.functional.pad(slot_BL, (1, 0))[:, :-1]
    number_BL = (slot_BL & ~before_BL).cumsum(1) * slot_BL

    def allowed(line: Any, head: Any, query: Any, key: Any) -> torch.Tensor:
        same: torch.Tensor = (number_BL[line, query] == number_BL[line, key]) & slot_BL[line, query]
        return same

    return allowed


def _within(window: int) -> Callable[..., Any]:
    """What a layer with a window looks back on; forward, within a picture, it has no bound (as the library does)."""
    return lambda line, head, query, key: key > query - window
