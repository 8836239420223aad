"""From tiles to vectors of the decoder's width: CLIP, the merge of patches, separators, the projector.

Decisions:
* Vectors are CLIP's hidden states before its last layer, without the class token. The last layer and the final norm are
  in the checkpoint and in `state_dict`, but nothing passes through them, so they are not run and get no gradient.
* Four neighbouring patches become one vector of 4 C: upper left, upper right, lower left, lower right.
* Tiles are put together to one map before it is read line by line; each line ends with `sub_GN`. Then comes `glb_GN`,
  then the whole picture line by line, each line with `sub_GN` too; then the projector: linear, exact GELU, linear.
* CLIP's parts are held here by themselves: between versions of the library the names inside its CLIP classes moved, and
  the checkpoint's (`img_processor.vision_model.`) must stay.
* Tiles of padding, which the published processor adds to stack pictures, are not encoded.

Shapes: T tiles of a picture with the whole picture first, S side of a tile in pixels, P patches of a tile, g patches
and m vectors of one line of a tile (g = 2 m), C width of CLIP, D width of the decoder, V vectors of a picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import CLIPPreTrainedModel, CLIPVisionConfig
from transformers.models.clip.modeling_clip import CLIPEncoder, CLIPVisionEmbeddings


class ClipVision(CLIPPreTrainedModel):
    """The parts of a CLIP encoder by their published names."""

    config: CLIPVisionConfig
    config_class = CLIPVisionConfig

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__(config)
        self.embeddings = CLIPVisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.encoder = CLIPEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def forward(self, tiles_T3SS: torch.Tensor) -> torch.Tensor:
        """(T, P, C) of patches, before the last layer."""
        hidden = self.pre_layrnorm(self.embeddings(tiles_T3SS))
        for layer in self.encoder.layers[:-1]:
            hidden = layer(hidden, None)
            hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        patches: torch.Tensor = hidden[:, 1:]
        return patches


class ClipTower(nn.Module):
    """One level of names, as in the checkpoint."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.vision_model = ClipVision(config)

    def forward(self, tiles_T3SS: torch.Tensor) -> torch.Tensor:
        """(T, P, C) of patches."""
        patches: torch.Tensor = self.vision_model(tiles_T3SS)
        return patches


class Phi3VImageEmbedding(nn.Module):
    """Pictures as vectors that stand among the embeddings of a text."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        sight = config.vision_config
        self.side = sight.image_size
        self.line = sight.image_size // sight.patch_size // 2
        merged = 4 * sight.hidden_size
        self.img_processor = ClipTower(sight)
        self.glb_GN = nn.Parameter(torch.zeros(1, 1, merged))
        self.sub_GN = nn.Parameter(torch.zeros(1, 1, 1, merged))
        self.img_projection = nn.Sequential(
            nn.Linear(merged, config.hidden_size), nn.GELU(), nn.Linear(config.hidden_size, config.hidden_size)
        )

    def forward(self, pictures: Sequence[torch.Tensor], grids: Sequence[tuple[int, int]]) -> list[torch.Tensor]:
        """(V, D) of each picture, from its tiles (T, 3, S, S) and its (rows, columns) of tiles, T = 1 + both."""
        patches = self.img_processor(torch.cat(list(pictures)).to(self.glb_GN.dtype))
        parts = patches.split([len(tiles) for tiles in pictures])
        merged = [self._merged(part_TPC, *grid) for part_TPC, grid in zip(parts, grids, strict=True)]
        projected: torch.Tensor = self.img_projection(torch.cat(merged))
        return list(projected.split([len(vectors) for vectors in merged]))

    def _merged(self, patches_TPC: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        """(V, 4 C) of one picture: tiles, separator, whole picture."""
        tiles = self._lines(patches_TPC[1:], rows, columns)
        return torch.cat([tiles, self.glb_GN[0], self._lines(patches_TPC[:1], 1, 1)])

    def _lines(self, patches_TPC: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        """Tiles in their places as one map of merged patches, line by line, each with its separator: (V, 4 C)."""
        line, width = self.line, patches_TPC.shape[-1]
        pairs = patches_TPC.view(rows, columns, line, 2, line, 2, width).permute(0, 2, 1, 4, 3, 5, 6)
        lines = pairs.reshape(rows * line, columns * line, 4 * width)
        return torch.cat([lines, self.sub_GN[0].expand(rows * line, 1, -1)], dim=1).flatten(0, 1)
