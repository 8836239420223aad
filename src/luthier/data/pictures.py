"""Opens, bound-checks and decodes pictures, and brings them to upright RGB.

Knows colours, depths and transparency; refuses to know rows, columns and how files lay out their bytes. Nothing is
decoded before its header has been believed, so a few bytes cannot claim a gigabyte. The memory rule: twice the file,
and for each pixel what its decoder needs and what the result needs, are at most `MEMORY`; a picture above that is
`too_many_pixels` whatever the limit says. At any limit the peak of a decoding stays under 900 MB, and a
one-bit picture of 13,000 x 13,000 is read where the limit is raised for it. Large pictures are decoded one at a time.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import numpy as np
from PIL import BmpImagePlugin, GifImagePlugin, Image, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

from luthier.data.picturefiles import PictureFile, read_picture_file
from luthier.errors import MediaError

if TYPE_CHECKING:
    from luthier.recipe_data import Limits

REASONS = ("unreadable_image", "too_many_pixels", "empty_image", "too_large")
MAX_BYTES = 256 * 2**20
MEMORY = 860_000_000
_LARGE = 100_000_000
_lock = threading.Lock()
# The classes themselves: Image.open tries every format, reads and warns by a global limit of pixels, and follows
# a JPEG of several pictures into all of them.
_OPENERS: dict[str, Callable[[io.BytesIO], Image.Image]] = {
    "PNG": PngImagePlugin.PngImageFile,
    "JPEG": JpegImagePlugin.JpegImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
}
# Bytes a pixel that a decoder takes beside the picture: coefficients of a progressive JPEG (three components of two
# bytes), three canvases of WebP, the strips of a TIFF of four 16-bit samples, the frame of a GIF.
_DECODERS = {"PNG": 0, "JPEG": 6, "WEBP": 12, "GIF": 1, "BMP": 0, "TIFF": 8}
_ONE_BYTE = ("1", "L", "P")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TILE = (4096, 512)


def check_picture(data: bytes, limits: Limits) -> tuple[int, int]:
    """Width and height of a picture as it is shown, after EXIF rotation; its pixels are really decoded once.

    Raises MediaError with any word of `REASONS`: too_large (bytes of the file), too_many_pixels (by the header,
    before anything is decoded), empty_image, unreadable_image (torn, of no known format, or of colours not read).
    """
    with _decoded(data, limits) as (image, orientation):
        return image.size if orientation < 5 else (image.height, image.width)


def picture_size(data: bytes, limits: Limits) -> tuple[int, int]:
    """Width and height as shown, by the header where it tells them. Raises as `check_picture`."""
    file = read_picture_file(data)
    if not file.width:
        return check_picture(data, limits)
    _check_size(*file.room, file.kind, limits)
    return (file.width, file.height) if file.orientation < 5 else (file.height, file.width)


def load_picture(data: bytes, limits: Limits) -> Image.Image:
    """The picture upright in RGB, 8 bits a channel; of an animation the first frame. Raises as `check_picture`.

    Transparency is laid over white. 16-bit greys keep their high byte; greys of 32 bits or in floats are scaled by
    the smallest of 1 (floats), 255, 65535 and 2^32 - 1 that their largest value fits into, below zero and NaN are
    black. CMYK is converted without a colour profile, and other profiles are not applied.
    """
    with _decoded(data, limits) as (image, orientation):
        try:
            shown = _rgb(image)
            image.close()
            del image
            return shown.transpose(_TURNS[orientation]) if orientation in _TURNS else shown
        except (ValueError, OSError, MemoryError) as error:
            raise MediaError("unreadable_image", f"its colours cannot be converted: {_said(error)}") from error


@contextmanager
def _decoded(data: bytes, limits: Limits) -> Iterator[tuple[Image.Image, int]]:
    """The decoded picture, and the orientation by which it is still to be turned."""
    if len(data) > MAX_BYTES:
        raise MediaError("too_large", f"{len(data):,} bytes, the most is {MAX_BYTES:,}")
    file = read_picture_file(data)
    width, height = file.room
    _check_size(width, height, file.kind, limits)
    with _lock if _need(file, width * height, "RGBA") > _LARGE else nullcontext():
        yield _open(file, limits), 1 if file.kind == "TIFF" else file.orientation  # Pillow turns a TIFF as it decodes


def _open(file: PictureFile, limits: Limits) -> Image.Image:
    try:
        image = _OPENERS[file.kind](io.BytesIO(file.data))
        _check_size(*image.size, file.kind, limits)
        need = _need(file, max(image.width * image.height, file.room[0] * file.room[1]), image.mode)
        if need > MEMORY:
            raise MediaError(
                "too_many_pixels",
                f"{file.kind} of {image.width} x {image.height}: {need:,} bytes to decode, the most is {MEMORY:,}",
            )
        image.load()
    except MediaError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise MediaError("too_many_pixels", f"{file.kind}: {_said(error)}") from error
    except Exception as error:  # Pillow's decoders let every kind of exception out of a hostile file
        raise MediaError("unreadable_image", f"{file.kind}: {_said(error)}") from error
    return image


def _check_size(width: int, height: int, kind: str, limits: Limits) -> None:
    if width <= 0 or height <= 0:
        raise MediaError("empty_image", f"{kind} of {width} x {height} pixels")
    if width * height > limits.maximum_pixels:
        raise MediaError("too_many_pixels", f"{kind} of {width} x {height}, the most is {limits.maximum_pixels:,}")


def _need(file: PictureFile, pixels: int, mode: str) -> int:
    """Bytes at the peak of decoding and converting a picture, by the memory rule."""
    held = 1 if mode in _ONE_BYTE else 4
    # The decoder's own memory is gone when the result is made; a turned picture is there twice, without its source.
    return 2 * len(file.data) + pixels * max(held + _DECODERS[file.kind], held + 4, 8 if file.orientation > 1 else 0)


def _rgb(image: Image.Image) -> Image.Image:
    """The picture in RGB, not turned. Conversions of more than one pass go tile by tile, to stay small."""
    if image.mode.startswith("I;16"):
        return _from_greys(image, 65535.0)
    if image.mode in ("I", "F"):
        return _from_greys(image, _largest(image))
    if image.has_transparency_data:
        shown = Image.new("RGB", image.size)
        for box in _tiles(image):
            tile = image.crop(box).convert("RGBA")
            shown.paste(Image.alpha_composite(Image.new("RGBA", tile.size, "white"), tile).convert("RGB"), box[:2])
        return shown
    return image.convert("RGB")


def _from_greys(image: Image.Image, top: float) -> Image.Image:
    shown = Image.new("RGB", image.size)
    key = image.info.get("transparency")
    for box in _tiles(image):
        values = np.asarray(image.crop(box))
        if top == 65535.0 and values.dtype.kind in "iu":
            grey = (np.clip(values, 0, 65535) >> 8).astype(np.uint8)
        else:
            scaled = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=top, neginf=0.0) * (255.0 / top)
            grey = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
        if isinstance(key, int):
            grey[values == key] = 255
        shown.paste(Image.fromarray(grey).convert("RGB"), box[:2])
    return shown


def _largest(image: Image.Image) -> float:
    """What white is among greys of no fixed depth."""
    top = 0.0
    for box in _tiles(image):
        values = np.asarray(image.crop(box))
        top = max(top, float(np.max(values, initial=0.0, where=np.isfinite(values))))
    ranges = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
    return next((limit for limit in ranges if top <= limit), max(top, 2.0**32 - 1))


def _tiles(image: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    wide, high = _TILE
    for top in range(0, image.height, high):
        for left in range(0, image.width, wide):
            yield left, top, min(left + wide, image.width), min(top + high, image.height)


def _said(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__
