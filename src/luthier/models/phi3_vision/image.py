"""The HD transform: a picture of any size as tiles of one size, and the whole picture as one more.

Pillow and torch alone. Decisions, each of them the published preprocessing's, to the last bit:
* A picture higher than wide is transposed first (not rotated), and back at the end.
* Over `most` tiles, s is the largest whole number with s * ceil(s / ratio) <= most, ratio = width / height. The picture
  is resized to int(s * side) by int(s * side / ratio), with Pillow's bilinear filter (which averages when it shrinks),
  small pictures too. Where that height is 0 (more than s * side times as wide as high) it is 1 here; the published code
  fails there.
* White rows are added above and below up to a multiple of `side`, int(missing / 2) of them above.
* Values are uint8 / 255, minus mean, over deviation, in float32.
* The whole picture is the padded and normalised picture under torch's bicubic interpolation to side x side, without
  anti-aliasing. Tiles are cut row by row; the whole picture goes before them.
* One tile has m x m tokens, m = side / patch / 2. `rows` x `columns` tiles have m * (columns * m + 1) tokens a row of
  tiles (each line of m ends with a separator), then 1, then m * (m + 1) of the whole picture:
  (rows * columns + 1) * m * m + 1 + (rows + 1) * m.

Shapes: T tiles with the whole picture first, S side of a tile, H and W of the padded picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_DEVIATION = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, slots=True)
class Layout:
    """What the HD transform makes of a size: the picture within its padding, before it is transposed back."""

    width: int
    height: int
    rows: int
    columns: int
    """Tiles of the result, transposed back."""
    turned: bool

    def tokens(self, line: int) -> int:
        """Vectors of a picture whose tiles have `line` x `line` of them."""
        return (self.rows * self.columns + 1) * line * line + 1 + (self.rows + 1) * line


def layout(width: int, height: int, most: int, side: int) -> Layout:
    """How a picture of width x height pixels is laid over at most `most` tiles of side x side."""
    turned = width < height
    ratio = max(width, height) / min(width, height)
    scale = 1
    while scale * math.ceil(scale / ratio) <= most:
        scale += 1
    scale -= 1
    wide = scale * side
    high = max(1, int(wide / ratio))
    across, down = scale, math.ceil(high / side)
    return Layout(wide, high, *((across, down) if turned else (down, across)), turned)


def padded_picture(picture: Image.Image, most: int, side: int) -> Image.Image:
    """An RGB picture resized and padded to whole tiles: columns * side by rows * side."""
    found = layout(*picture.size, most, side)
    if found.turned:
        picture = picture.transpose(Image.Transpose.TRANSPOSE)
    resized = picture.resize((found.width, found.height), Image.Resampling.BILINEAR)
    padded_height = math.ceil(found.height / side) * side
    padded = Image.new("RGB", (found.width, padded_height), (255, 255, 255))
    padded.paste(resized, (0, (padded_height - found.height) // 2))
    return padded.transpose(Image.Transpose.TRANSPOSE) if found.turned else padded


def tiles(
    picture: Image.Image,
    most: int,
    side: int,
    mean: Sequence[float] = CLIP_MEAN,
    deviation: Sequence[float] = CLIP_DEVIATION,
) -> torch.Tensor:
    """(T, 3, S, S) float32 of an RGB picture: the whole of it, then its tiles row by row."""
    pixels_HW3 = torch.from_numpy(np.array(padded_picture(picture, most, side)))
    values_3HW = pixels_HW3.permute(2, 0, 1).contiguous().to(torch.float32).div(255)
    values_3HW.sub_(torch.tensor(mean)[:, None, None]).div_(torch.tensor(deviation)[:, None, None])
    whole_13SS = functional.interpolate(values_3HW[None], size=(side, side), mode="bicubic")
    rows, columns = values_3HW.shape[1] // side, values_3HW.shape[2] // side
    cut_T3SS = values_3HW.view(3, rows, side, columns, side).permute(1, 3, 0, 2, 4).reshape(-1, 3, side, side)
    return torch.cat([whole_13SS, cut_T3SS])
