"""A picture from a visitor -> upright RGB, within bounds. No address is ever opened, only bytes."""

import io

from PIL import Image, ImageOps, UnidentifiedImageError

MOST_BYTES, MOST_PIXELS = 10 * 2**20, 40_000_000
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")


class Refused(Exception):
    """A sentence for the visitor."""


def read_picture(data: bytes) -> Image.Image:
    """Raises Refused for what is no picture, and for one that is too large. Transparency is laid over white."""
    if not data or len(data) > MOST_BYTES:
        raise Refused("The picture is empty, or larger than 10 MB.")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as found:
            if found.width * found.height > MOST_PIXELS:  # by the header: nothing is decoded yet
                raise Refused("The picture has more than 40 megapixels.")
            upright = ImageOps.exif_transpose(found)
            if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
                seen = upright.convert("RGBA")
                white = Image.new("RGBA", seen.size, "white")
                return Image.alpha_composite(white, seen).convert("RGB")
            return upright.convert("RGB")
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError) as error:
        raise Refused("The file is not a picture that can be read (jpg, png, webp, gif, bmp).") from error
