"""Eyes of Qwen2-VL, Qwen2.5-VL and Qwen3-VL: pictures and videos natively, positions in three axes (mRoPE).

Pictures are read by transformers' processor for tensors (torchvision), its own default: three to six times as fast as
the one for PIL, whose pixels differ from it by 0.03 at most. How many patches a medium takes is asked of the
processor's own `resize`, run on a tensor that has a shape and no values. Positions come from the model's own
`get_rope_index`, which reads the configuration alone. A video's frames are those of `data.frames`, never sampled again.

Decisions: a video of one frame is read as that frame twice (two frames make one step of a grid). Where a base leaves
`cap_pixels_per_frame` open it is off, as the library has it today. Qwen3-VL's template has one pair of vision marks
around a video, and its processor a pair around each step inside of it: both are kept. The pace of a video of uneven
frames (scenes), which only Qwen2.5-VL's positions know, is the mean. Refuses pictures longer than 200 times their
width, as the library does; knows no rows and no batches.

Shapes: N patches, L tokens of a row, S slots of a medium, M of all, D model width, K layers that take vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import vision_utils

from luthier.data.mediasource import Facts, Film
from luthier.errors import MediaError
from luthier.models.senses.base import Grid, Placed, Prepared, Senses
from luthier.models.senses.processors import processor_settings, read_processor
from luthier.schema import PartType

QWEN3 = "qwen3_vl"
_VISION = "model.visual."


@dataclass
class QwenSenses(Senses):
    """The eyes of one base."""

    kinds: ClassVar[tuple[PartType, ...]] = ("image", "video")
    images: Any
    films: Any
    """Its processors of pictures and videos."""
    config: Any
    body: type
    """The class of `model.model`, for its positions."""
    marks: dict[PartType, str]
    _grids: dict[tuple[int, int, int], Grid] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, model: Any, tokenizer: Any, name: str, revision: str) -> QwenSenses:
        """The eyes of the bare model `name`. Raises SourceError where its processors cannot be read."""
        config = model.config
        if name.startswith("toy:"):
            from luthier.models.toys import toy_processors

            images, films = toy_processors(name)
        else:
            from transformers import AutoImageProcessor, AutoVideoProcessor

            images, films = (read_processor(auto, name, revision) for auto in (AutoImageProcessor, AutoVideoProcessor))
        if getattr(films, "cap_pixels_per_frame", None) is None:
            films.cap_pixels_per_frame = False
        tokens = tokenizer.convert_ids_to_tokens([config.image_token_id, config.video_token_id])
        return cls(images, films, config, type(model.model), {"image": tokens[0], "video": tokens[1]})

    def __post_init__(self) -> None:
        self.slot_ids = {"image": self.config.image_token_id, "video": self.config.video_token_id}
        encoder, projector = ["patch_embed", "blocks"], ["merger"]
        if self.config.model_type == QWEN3:
            encoder.append("pos_embed")
            projector.append("deepstack_merger_list")
        self.encoders = dict.fromkeys(self.kinds, tuple(_VISION + name for name in encoder))
        self.projectors = dict.fromkeys(self.kinds, tuple(_VISION + name for name in projector))

    def slot_token(self, kind: PartType) -> str:
        return self.marks[kind]

    def spell(self, facts: Facts) -> str:
        frames, rows, columns = self.grid(facts)
        merge = self.config.vision_config.spatial_merge_size
        step = self.marks[facts.kind] * (rows // merge * (columns // merge))
        if facts.kind == "image" or self.config.model_type != QWEN3:
            return step * frames
        times = [*facts.seconds, facts.seconds[-1]]  # the last stands twice where the frames are odd
        middles = ((times[2 * number] + times[2 * number + 1]) / 2 for number in range(frames))
        return "".join(f"<{middle:.1f} seconds><|vision_start|>{step}<|vision_end|>" for middle in middles)

    def grid(self, facts: Facts) -> Grid:
        """Raises MediaError for a shape that the base does not read."""
        frames = 0 if facts.kind == "image" else max(2, len(facts.seconds))
        key = (frames, facts.height, facts.width)
        if key not in self._grids:
            self._grids[key] = self._measured(*key)
        return self._grids[key]

    def _measured(self, frames: int, height: int, width: int) -> Grid:
        """The grid of a picture (`frames` 0) or video: the processor's own resizing, without values."""
        maker, shape = (self.films, (1, frames, 3)) if frames else (self.images, (1, 3))
        nothing = torch.empty(*shape, height, width, dtype=torch.uint8, device="meta")
        try:
            resized = maker.resize(
                nothing,
                size=maker.size,
                resample=maker.resample,
                factor=maker.patch_size * maker.merge_size,
                temporal_factor=maker.temporal_patch_size,
                cap_pixels_per_frame=self.films.cap_pixels_per_frame,
            )
        except ValueError as error:  # its words are the library's: the shape is too long for its height
            raise MediaError("extreme_shape", f"{width} x {height} pixels: {error}") from error
        rows, columns = (side // maker.patch_size for side in resized.shape[-2:])
        return max(1, -(-frames // self.films.temporal_patch_size)), rows, columns

    def pace(self, facts: Facts) -> float:
        if len(facts.seconds) < 2:
            return 0.0
        return float(self.films.temporal_patch_size * (facts.seconds[-1] - facts.seconds[0]) / (len(facts.seconds) - 1))

    def prepare(self, kind: PartType, medium: Image.Image | Film) -> Prepared:
        """Raises MediaError for a shape that the base does not read."""
        if isinstance(medium, Film):
            self.grid(Facts("video", *medium.frames[0].size, seconds=medium.seconds))
            frames = medium.frames if len(medium.frames) > 1 else medium.frames * 2
            pixels = np.stack([np.asarray(frame) for frame in frames])
            # Left to guess, the processor takes the rows of a film 3 pixels high for its colours.
            made = self.films(
                videos=[pixels], input_data_format="channels_last", do_sample_frames=False, return_tensors="pt"
            )
            pixels_NP, grid = made["pixel_values_videos"], made["video_grid_thw"]
        else:
            self.grid(Facts("image", *medium.size))
            made = self.images(images=[medium], return_tensors="pt")
            pixels_NP, grid = made["pixel_values"], made["image_grid_thw"]
        slots = len(pixels_NP) // self.config.vision_config.spatial_merge_size**2
        steps, rows, columns = grid[0].tolist()
        return Prepared(kind, {"pixels_NP": pixels_NP}, slots, (steps, rows, columns))

    def encode(self, model: Any, prepared: Sequence[Prepared]) -> list[torch.Tensor]:
        """One call for all: patches of a medium attend to those of the same medium (and frame) alone."""
        if not prepared:
            return []
        visual = model.model.visual
        weight = visual.patch_embed.proj.weight
        pixels_NP = torch.cat([one.inputs["pixels_NP"].to(weight.device) for one in prepared])
        grids = torch.tensor([one.grid for one in prepared])
        made = model.model.get_image_features(pixels_NP, grids, return_dict=True, **_geometry(visual, grids))
        layers = [made.pooler_output, *getattr(made, "deepstack_features", [])]
        # Older versions of the library leave the further layers in one piece.
        vectors_KMD = torch.stack([one if isinstance(one, torch.Tensor) else torch.cat(one) for one in layers])
        return list(vectors_KMD.split([one.slots for one in prepared], dim=1))

    def decoder(self, model: Any) -> Any:
        return model.model.language_model

    def positions(self, ids_L: NDArray[np.int64], placed: Placed) -> NDArray[np.int64]:
        if not placed.kinds:
            return np.tile(np.arange(len(ids_L), dtype=np.int64), (3, 1))
        rule: Any = object.__new__(self.body)  # without weights: the rule reads the configuration alone
        rule.__dict__["config"] = self.config
        ids_1L = torch.from_numpy(np.ascontiguousarray(ids_L))[None]
        types_1L = torch.zeros_like(ids_1L)
        for number, kind in enumerate(self.kinds, start=1):  # 1 and 2 are the library's numbers for them
            types_1L[ids_1L == self.slot_ids[kind]] = number
        paces = [pace for pace, kind in zip(placed.paces, placed.kinds, strict=True) if kind == "video"]
        found, _ = rule.get_rope_index(
            ids_1L,
            types_1L,
            image_grid_thw=_grids(placed, "image"),
            video_grid_thw=_grids(placed, "video"),
            second_per_grid_ts=torch.tensor(paces) if paces else None,
        )
        return np.asarray(found[:, 0].numpy())

    def decoder_inputs(
        self,
        model: Any,
        embeds_BLD: torch.Tensor,
        slot_BL: torch.Tensor,
        vectors_KMD: torch.Tensor | None,
        mask_BL: torch.Tensor | None = None,
    ) -> dict[str, Any]:
        """Qwen3-VL adds the further layers of vectors after its first layers."""
        if vectors_KMD is None or len(vectors_KMD) == 1:
            return {}
        return {"visual_pos_masks": slot_BL, "deepstack_visual_embeds": list(vectors_KMD[1:])}

    def settings(self) -> dict[str, Any]:
        processors = [processor_settings(one) for one in (self.images, self.films)]
        return {"family": self.config.model_type, "processors": processors}


def _grids(placed: Placed, kind: PartType) -> torch.Tensor | None:
    """(media, 3) the grids of one kind."""
    own = [grid for grid, its in zip(placed.grids, placed.kinds, strict=True) if its == kind]
    return torch.tensor(own) if own else None


def _geometry(visual: Any, grids: torch.Tensor) -> dict[str, Any]:
    """What the encoder would read back from a grid on the device, worked out on the host and sent there.

    `cu_seqlens` and `cu_window_seqlens` stay on the host, where attention other than flash reads them layer by layer.
    """
    device, merge = visual.patch_embed.proj.weight.device, visual.spatial_merge_size
    there = device if "flash" in (visual.config._attn_implementation or "") else torch.device("cpu")
    found = {
        "position_ids": vision_utils.get_vision_position_ids(grids, merge).to(device),
        "cu_seqlens": vision_utils.get_vision_cu_seqlens(grids).to(there),
    }
    if hasattr(visual, "window_size"):
        index, borders = vision_utils.get_vision_window_index(grids, merge, visual.window_size, visual.patch_size)
        found |= {"window_index": index.to(device), "cu_window_seqlens": borders.to(there)}
    if hasattr(visual, "pos_embed"):
        taps, weights = vision_utils.get_vision_interpolation_indices_and_weights(
            grids,
            num_grid_per_side=visual.num_grid_per_side,
            mode=visual.interpolation_mode,
            align_corners=visual.interpolation_align_corners,
            spatial_merge_size=merge,
        )
        found |= {"interp_indices": taps.to(device), "interp_weights": weights.to(device)}
    return found
