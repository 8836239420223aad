"""Pictures as the vectors that a base which sees puts in their place, each made once and kept in a file.

Vectors come from the model's own image embedding, one picture a call: `Phi4MultimodalForCausalLM` as transformers has
it. They are worth something as long as that part of the model stays as it is. Files can be thrown away at any time.

Shapes: S vectors of a picture, D model width.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from luthier.console import progress
from luthier.files import sha256_bytes
from luthier.models.families import parameters_digest
from luthier.models.features import read_feature, write_feature

EMBEDDING = "model.embed_tokens_extend.image_embed"
"""The part of the model that turns a picture into vectors."""
_COUNTED = 16
"""The processor counts tokens for crops of 16 x 16 features, as the published base has them."""


@dataclass
class PictureEncoder:
    """Makes vectors with a bare base in evaluation mode, as its modules are at that moment."""

    model: Any

    def __post_init__(self) -> None:
        from transformers import Phi4MultimodalImageProcessor

        vision = self.model.config.vision_config
        side = {"height": vision.crop_size, "width": vision.crop_size}
        self.processor = Phi4MultimodalImageProcessor(size=side, patch_size=vision.patch_size)

    @torch.no_grad()
    def encode(self, picture: Image.Image) -> torch.Tensor:
        """(S, D) of an upright picture in RGB."""
        made = self.processor(picture, return_tensors="pt")
        embed = self.model.get_submodule(EMBEDDING)
        side = int(embed.num_img_tokens**0.5)
        count = int(made.pop("num_img_tokens")[0]) - _COUNTED * (_COUNTED + 1) + side * (side + 1)
        device = embed.img_projection_up.weight.device
        ids_1S = torch.full((1, count), self.model.config.vision_config.image_token_id, device=device)
        blank_1SD = torch.zeros(1, count, self.model.config.hidden_size, device=device)
        found: torch.Tensor = embed(ids_1S, blank_1SD, **{key: value.to(device) for key, value in made.items()})[0]
        return found.cpu()


@dataclass
class PictureStore:
    """A folder of vectors. `picture` maps a media reference to the upright picture in RGB."""

    folder: Path
    model: Any
    """The bare base, in evaluation mode."""
    picture: Callable[[str], Image.Image]

    def __post_init__(self) -> None:
        self.encoder = PictureEncoder(self.model)
        about = json.dumps(self.encoder.processor.to_dict(), sort_keys=True, default=str)
        weights = parameters_digest(self.model, (EMBEDDING,))
        self.place = self.folder / f"pictures-{sha256_bytes((about + weights).encode())[:16]}"

    def prepare(self, references: Iterable[str]) -> dict[str, int]:
        """Make what is missing. Returns the number of vectors of each picture."""
        unique = sorted(set(references))
        return {
            reference: len(self.load(reference)) for reference in progress(unique, "encoding pictures", len(unique))
        }

    def load(self, reference: str) -> torch.Tensor:
        """(S, D) of one picture, from its file or made now."""
        path = self.place / f"{reference.removeprefix('sha256:')}.safetensors"
        feature = read_feature(path)
        if feature is None:
            feature = self.encoder.encode(self.picture(reference))
            write_feature(path, feature)
        return feature
