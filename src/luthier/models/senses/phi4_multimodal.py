"""Eyes and ears of Phi-4-multimodal as transformers has it natively. A video is read as its frames and its sound.

The model puts vectors in only where it is given ids; whoever passes embeddings has a blind and deaf model without an
error. So we make the vectors and put them in ourselves, as `VerdictModel` does (see `families`).

Pictures: a global view and up to 36 crops, of which the part that is not padding counts; each row of features ends with
a learned separator. The crops of a size are found by the processor's own code, run on a tensor without values; the rest
of the count is ours. Sound: padded with silence to a multiple of `SOUND_QUANTUM`, so that a recording is the same in
any company. Beside a picture the model projects sound by weights of their own (`vision_speech`): each row is read as
the model reads it alone, while the model's own forward decides that for a whole batch.

Refuses pictures that would be less than 10 pixels high or wide, as the library does; knows no rows and no batches.

Shapes: C crops, the global view first; E features on a side of one, R and Q rows and columns of them that are used; W
width of a feature, D model width; T mel frames, F mel bins; S slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from luthier.data.mediasource import Facts
from luthier.errors import MediaError
from luthier.models.families import PHI4_MULTIMODAL, SOUND_QUANTUM
from luthier.models.senses.base import Grid, Prepared, Senses
from luthier.models.senses.processors import processor_settings, read_processor
from luthier.schema import PartType

SPEECH, BESIDE_PICTURES = "speech", "vision_speech"
_PARTS = "model.embed_tokens_extend."
_SOUND = tuple(
    f"{_PARTS}audio_embed.{way}_proj_for_{mode}" for mode in (SPEECH, BESIDE_PICTURES) for way in ("up", "down")
)
_SIGHT = tuple(
    f"{_PARTS}image_embed.{name}"
    for name in ("img_projection_up", "img_projection_down", "global_img_feature_extensor", "sub_img_feature_extensor")
)


@dataclass
class Phi4Senses(Senses):
    """The eyes and ears of one base. Its picture processor is set by the configuration, as the base was published."""

    kinds: ClassVar[tuple[PartType, ...]] = ("image", "audio")
    images: Any
    extractor: Any
    config: Any
    marks: dict[PartType, str]
    _grids: dict[tuple[int, int], Grid] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, model: Any, tokenizer: Any, name: str, revision: str) -> Phi4Senses:
        """The senses of the bare model `name`. Raises SourceError where its feature extractor cannot be read."""
        from transformers import AutoFeatureExtractor, Phi4MultimodalFeatureExtractor, Phi4MultimodalImageProcessor

        _look_both_ways(model)
        vision, toy = model.config.vision_config, name.startswith("toy:")
        size = {"height": vision.crop_size, "width": vision.crop_size}
        return cls(
            Phi4MultimodalImageProcessor(size=size, patch_size=vision.patch_size),
            Phi4MultimodalFeatureExtractor() if toy else read_processor(AutoFeatureExtractor, name, revision),
            model.config,
            {
                "image": tokenizer.convert_ids_to_tokens(vision.image_token_id),
                "audio": tokenizer.convert_ids_to_tokens(model.config.audio_config.audio_token_id),
            },
        )

    def __post_init__(self) -> None:
        vision = self.config.vision_config
        self.slot_ids = {"image": vision.image_token_id, "audio": self.config.audio_config.audio_token_id}
        self.encoders = {"image": (_PARTS + "image_embed.img_processor",), "audio": (PHI4_MULTIMODAL.encoder,)}
        self.projectors = {"image": _SIGHT, "audio": _SOUND}
        self._patches = vision.crop_size // vision.patch_size
        self._side = -(-self._patches // 2)

    def slot_token(self, kind: PartType) -> str:
        return self.marks[kind]

    def spell(self, facts: Facts) -> str:
        """Raises MediaError for a shape that the base does not read."""
        return self.marks[facts.kind] * self.slots(facts)

    def slots(self, facts: Facts) -> int:
        """Raises MediaError for a shape that the base does not read."""
        if facts.kind == "image":
            return self._picture_slots(self._used(facts.width, facts.height))
        samples = -(-facts.samples // SOUND_QUANTUM) * SOUND_QUANTUM
        frames = (samples - self.extractor.win_length) // self.extractor.hop_length + 1
        return PHI4_MULTIMODAL.sound_tokens(self, frames)

    def modes(self, kinds: Sequence[PartType]) -> tuple[str, ...]:
        sound = BESIDE_PICTURES if "image" in kinds else ""
        return tuple(sound if kind == "audio" else "" for kind in kinds)

    def prepare(self, kind: PartType, medium: Image.Image | NDArray[np.float32]) -> Prepared:
        """Raises MediaError for a shape that the base does not read."""
        if isinstance(medium, np.ndarray):
            mel_TF = PHI4_MULTIMODAL.mel(self.extractor, medium)
            return Prepared(kind, {"mel_TF": mel_TF}, PHI4_MULTIMODAL.sound_tokens(self, len(mel_TF)))
        used = self._used(*medium.size)
        made = self.images(medium, return_tensors="pt")
        inputs = {"pixels": made["image_pixel_values"][0], "mask": made["image_attention_mask"][0].bool()}
        return Prepared(kind, inputs, self._picture_slots(used), used)

    def encode(self, model: Any, prepared: Sequence[Prepared]) -> list[torch.Tensor]:
        """Pictures one a call, for each is a batch of crops; recordings of one length and mode together."""
        found: dict[int, torch.Tensor] = {}
        together: dict[tuple[int, str], list[int]] = {}
        if any(one.kind == "image" for one in prepared):
            _look_both_ways(model)  # again: it may be another model of the base, or have trained copies of its eyes
        for place, one in enumerate(prepared):
            if one.kind == "image":
                found[place] = self._picture(model.model.embed_tokens_extend.image_embed, one)
            else:
                together.setdefault((len(one.inputs["mel_TF"]), one.mode or SPEECH), []).append(place)
        for (_, mode), places in together.items():
            mel_BTF = torch.stack([prepared[place].inputs["mel_TF"] for place in places])
            found.update(zip(places, PHI4_MULTIMODAL.encode_sound(model, mel_BTF, mode), strict=True))
        return [found[place][None] for place in range(len(prepared))]

    def decoder(self, model: Any) -> Any:
        return model.model

    def settings(self) -> dict[str, Any]:
        processors = [processor_settings(one) for one in (self.images, self.extractor)]
        audio = self.config.audio_config
        return {
            "processors": processors,
            "quantum": SOUND_QUANTUM,
            "audio": [audio.time_reduction, audio.downsample_rate],
        }

    def _picture_slots(self, used: Grid) -> int:
        """The used features and the global view, a separator after each row of them and one between."""
        _, rows, columns = used
        return rows * (columns + 1) + 1 + self._side * (self._side + 1)

    def _used(self, width: int, height: int) -> Grid:
        """Rows of crops, and rows and columns of features that are no padding."""
        if (width, height) not in self._grids:
            self._grids[width, height] = self._measured(width, height)
        return self._grids[width, height]

    def _measured(self, width: int, height: int) -> Grid:
        crop, patch = self.config.vision_config.crop_size, self.config.vision_config.patch_size
        nothing = torch.empty(3, height, width, dtype=torch.uint8, device="meta")
        try:
            padded, _ = self.images.dynamic_preprocess(
                nothing, crop, patch, self._patches, max_num=self.images.dynamic_hd
            )
        except ValueError as error:  # its words are the library's: a side would be less than 10 pixels
            raise MediaError("extreme_shape", f"{width} x {height} pixels: {error}") from error
        tall, wide = padded.shape[-2:]
        across, down = wide / width, tall / height
        blank_x, blank_y = (0, tall - int(height * across)) if across < down else (wide - int(width * down), 0)
        rows, columns = self._features(tall // crop, blank_y // patch), self._features(wide // crop, blank_x // patch)
        return tall // crop, rows, columns

    def _features(self, crops: int, blank: int) -> int:
        """Along one side: every second patch of each crop, but for the last `blank` patches of all."""
        shown = crops * self._patches - blank
        return sum(
            crop * self._patches + place < shown for crop in range(crops) for place in range(0, self._patches, 2)
        )

    def _picture(self, embed: Any, one: Prepared) -> torch.Tensor:
        """(S, D) of a picture."""
        assert one.grid is not None
        down, rows, columns = one.grid
        side = self._side
        weight = embed.img_projection_up.weight
        pixels, mask = (one.inputs[name].to(weight.device) for name in ("pixels", "mask"))
        features = embed.get_img_features(pixels.to(embed.img_processor.embeddings.patch_embedding.weight.dtype), mask)
        views_CEEW = features.unflatten(1, (side, side))
        crops = views_CEEW[1:].unflatten(0, (down, -1)).transpose(1, 2)
        whole_RQW = crops.flatten(2, 3).flatten(0, 1)[:rows, :columns]
        parts = [
            torch.cat([block, embed.sub_img_feature_extensor[0].expand(len(block), -1, -1)], dim=1).flatten(0, 1)
            for block in (whole_RQW, views_CEEW[0])
        ]
        lines = torch.cat([parts[0], embed.global_img_feature_extensor[0], parts[1]]).to(weight.dtype)
        found: torch.Tensor = embed.img_projection_down(torch.nn.functional.gelu(embed.img_projection_up(lines)))
        return found


def _look_both_ways(model: Any) -> None:
    """Have the eyes attend to the whole crop, as they were trained to and as the library's own plain attention does.

    Its classes (5.17 to 5.23) call their attention causal, which torch's fused attention heeds where a call has no
    padding to mask: a picture would then be read in two ways, by what pictures are beside it.
    """
    for module in model.get_submodule(_PARTS + "image_embed").modules():
        if getattr(module, "is_causal", False):
            module.is_causal = False
