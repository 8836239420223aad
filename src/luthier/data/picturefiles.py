"""Reads the containers of pictures: what a file is, how large, how turned; and leaves its metadata out.

Knows the chunks, segments, blocks and directories of PNG, JPEG, WebP, GIF, TIFF and BMP; refuses to know colours and
decoders. The decoder is given only what makes pixels: comments, profiles, thumbnails and later frames are where a
small file asks for much time or memory. Nothing here costs more than a pass over the file.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from luthier.errors import MediaError

MAX_PIECES = 200_000
"""Chunks, segments or blocks that one file may have; a picture of 2 GiB in PNG's usual chunks has as many."""
MAX_SCANS = 100
"""Scans of a progressive JPEG (an encoder writes about ten): each is a pass over the whole picture."""
MAX_RUNS = 8 * 2**20
"""Bytes of a run-length BMP, which is decoded one run at a time."""
_PNG_KEPT = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_JPEG_SIZES = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0))
_ORIENTATION, _STRIPS, _TILE_WIDTH, _TILE_HEIGHT = 274, (273, 279, 324, 325), 322, 323
# Geometry, samples, packing, strips, orientation, predictor, palette; then tiles, inks, alpha, JPEG tables, YCbCr.
_TIFF_KEPT = {254, 255, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 292, 293, 317, 320}
_TIFF_KEPT |= {322, 323, 324, 325, 332, 338, 339, 347, 529, 530, 531, 532}
_TIFF_WIDTHS = dict(zip(range(1, 19), (1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8), strict=True))


@dataclass(frozen=True, slots=True)
class PictureFile:
    """A picture file without what makes no pixels. `width` and `height` are as stored, 0 where only the decoder
    can tell; `orientation` is EXIF's, 1 to 8."""

    kind: str
    data: bytes
    width: int = 0
    height: int = 0
    orientation: int = 1
    tile: tuple[int, int] = (0, 0)
    """Width and height of a TIFF's tiles."""

    @property
    def room(self) -> tuple[int, int]:
        """The size that the decoder makes room for: a tile larger than the picture is allocated whole."""
        return max(self.width, self.tile[0]), max(self.height, self.tile[1])


def picture_kind(data: bytes) -> str:
    """PNG, JPEG, WEBP, GIF, BMP or TIFF by the first bytes, or "" for anything else."""
    head = bytes(data[:12])
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    begins = {
        b"\x89PNG\r\n\x1a\n": "PNG",
        b"\xff\xd8\xff": "JPEG",
        b"GIF87a": "GIF",
        b"GIF89a": "GIF",
        b"BM": "BMP",
        b"II*\0": "TIFF",
        b"MM\0*": "TIFF",
        b"II+\0": "TIFF",
        b"MM\0+": "TIFF",
    }
    return next((kind for start, kind in begins.items() if head.startswith(start)), "")


def read_picture_file(data: bytes) -> PictureFile:
    """What a file holds, by its headers alone. Raises MediaError: unreadable_image, empty_image, too_large."""
    if not data:
        raise MediaError("empty_image", "no bytes")
    kind = picture_kind(data)
    if not kind:
        raise MediaError("unreadable_image", f"not PNG, JPEG, WebP, GIF, BMP or TIFF; it begins with {data[:8]!r}")
    try:
        return _READERS[kind](data)
    except (struct.error, IndexError) as error:
        raise _unreadable(f"{kind}: the file ends within a header") from error


def _unreadable(detail: str) -> MediaError:
    return MediaError("unreadable_image", detail)


def _cut_short(kind: str, missing: int) -> MediaError:
    return _unreadable(f"{kind}: cut short, {missing} bytes are missing")


def _crowded(kind: str) -> MediaError:
    return _unreadable(f"{kind}: more than {MAX_PIECES:,} pieces")


def _png(data: bytes) -> PictureFile:
    """The chunks that make pixels, each with its checksum proved (Pillow does not look at those of pixels)."""
    view, kept, place, orientation = memoryview(data), [data[:8]], 8, 1
    for _ in range(MAX_PIECES):
        size, name = struct.unpack_from(">I4s", data, place)
        end = place + 12 + size
        if end > len(data):
            raise _cut_short("PNG", end - len(data))
        if place == 8 and (name != b"IHDR" or size != 13):
            raise _unreadable("PNG: it does not begin with its header")
        if name in _PNG_KEPT:
            if zlib.crc32(view[place + 4 : end - 4]) != int.from_bytes(view[end - 4 : end]):
                raise _unreadable(f"PNG: a wrong checksum in {name.decode()} at byte {place}")
            kept.append(bytes(view[place:end]))
        elif name == b"eXIf":
            orientation = _turned(data[place + 8 : end - 4])
        place = end
        if name == b"IEND":
            width, height = struct.unpack_from(">II", data, 16)
            return PictureFile("PNG", b"".join(kept), width, height, orientation)
    raise _crowded("PNG")


def _jpeg(data: bytes) -> PictureFile:
    """The segments that make pixels; of the application segments only JFIF's and Adobe's, which name the colours."""
    kept, place, width, height, orientation = [data[:2]], 2, 0, 0, 1
    for _ in range(MAX_PIECES):
        place = data.find(b"\xff", place)
        if place < 0:
            raise _unreadable("JPEG: cut short, it has no picture")
        marker = data[place + 1]
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD8:
            place += 1 if marker == 0xFF else 2
            continue
        if marker == 0xD9:
            raise MediaError("empty_image", "JPEG: it ends before its picture")
        if marker == 0xDA:
            scans = data.count(b"\xff\xda", place)
            if scans > MAX_SCANS:
                raise _unreadable(f"JPEG: {scans:,} scans, the most is {MAX_SCANS}")
            return PictureFile("JPEG", b"".join([*kept, data[place:]]), width, height, orientation)
        end = place + 2 + int(struct.unpack_from(">H", data, place + 2)[0])
        if end > len(data):
            raise _cut_short("JPEG", end - len(data))
        if marker in _JPEG_SIZES:
            height, width = struct.unpack_from(">HH", data, place + 5)
        if marker == 0xE1 and data[place + 4 : place + 10] == b"Exif\0\0":
            orientation = _turned(data[place + 10 : end])
        if marker in (0xE0, 0xEE) or not (0xE1 <= marker <= 0xEF or marker == 0xFE):
            kept.append(data[place:end])
        place = end
    raise _crowded("JPEG")


def _webp(data: bytes) -> PictureFile:
    size = 8 + int.from_bytes(data[4:8], "little")
    if size > len(data):
        raise _cut_short("WebP", size - len(data))
    place, width, height, orientation = 12, 0, 0, 1
    for _ in range(MAX_PIECES):
        if place + 8 > size:
            return PictureFile("WEBP", data, width, height, orientation)
        name, length = struct.unpack_from("<4sI", data, place)
        body = place + 8
        if width == 0 and name == b"VP8X":
            width = 1 + int.from_bytes(data[body + 4 : body + 7], "little")
            height = 1 + int.from_bytes(data[body + 7 : body + 10], "little")
        elif width == 0 and name == b"VP8L":
            packed = int.from_bytes(data[body + 1 : body + 5], "little")
            width, height = 1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF)
        elif width == 0 and name == b"VP8 ":
            width, height = (value & 0x3FFF for value in struct.unpack_from("<HH", data, body + 6))
        elif name == b"EXIF":
            orientation = _turned(data[body : body + length].removeprefix(b"Exif\0\0"))
        place = body + length + length % 2
    raise _crowded("WebP")


def _gif(data: bytes) -> PictureFile:
    """The first frame alone, with the transparency that was set for it. Its frame may reach beyond the screen."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    place = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    head, control = data[:place], b""
    for _ in range(MAX_PIECES):
        mark = data[place]
        if mark == 0x3B:
            raise MediaError("empty_image", "GIF: it has no frame")
        if mark == 0x2C:
            left, top, wide, high, flags = struct.unpack_from("<4HB", data, place + 1)
            begin = place
            place = _past_blocks(data, place + 11 + (3 << (flags & 7) + 1 if flags & 0x80 else 0))
            size = max(width, left + wide), max(height, top + high)
            return PictureFile("GIF", head + control + data[begin:place] + b";", *size)
        if mark != 0x21:
            raise _unreadable(f"GIF: no block begins with 0x{mark:02x} (at byte {place})")
        end = _past_blocks(data, place + 2)
        if data[place + 1] == 0xF9:
            control = data[place:end]
        place = end
    raise _crowded("GIF")


def _past_blocks(data: bytes, place: int) -> int:
    """Where a chain of blocks ends; each begins with its length, the last is empty."""
    while size := data[place]:
        place += 1 + size
    return place + 1


def _bmp(data: bytes) -> PictureFile:
    header = struct.unpack_from("<I", data, 14)[0]
    if header == 12:
        width, height = struct.unpack_from("<HH", data, 18)
        return PictureFile("BMP", data, width, height)
    width, height, _, _, packing = struct.unpack_from("<iiHHI", data, 18)
    if packing in (1, 2) and len(data) > MAX_RUNS:
        raise MediaError("too_large", f"BMP: {len(data):,} bytes of runs, the most is {MAX_RUNS:,}")
    return PictureFile("BMP", data, width, abs(height))


def _tiff(data: bytes) -> PictureFile:
    """The file with a first directory that holds only the tags of pixels."""
    order = "<" if data[:2] == b"II" else ">"
    big = 43 in data[2:4]
    where, counted, entry, word = ("8", "Q", "HHQ8s", "Q") if big else ("4", "H", "HHI4s", "I")
    start = int(struct.unpack_from(order + word, data, int(where))[0])
    count = int(struct.unpack_from(order + counted, data, start)[0])
    if count > 65_535:
        raise _crowded("TIFF")
    first, step = start + struct.calcsize("<" + counted), struct.calcsize("<" + entry)
    kept: dict[int, bytes] = {}
    values: dict[int, int] = {}
    for place in range(first, first + count * step, step):
        tag, kind, number, raw = struct.unpack_from(order + entry, data, place)
        if tag not in _TIFF_KEPT:
            continue
        if number * _TIFF_WIDTHS.get(kind, 1) > len(data):
            raise _unreadable(f"TIFF: tag {tag} claims {number:,} values")
        if tag in _STRIPS and number > MAX_PIECES:
            raise _crowded("TIFF")
        kept[tag] = data[place : place + step]
        values[tag] = int(struct.unpack_from(order + ("H" if kind == 3 else "I"), raw)[0])
    turned = values.get(_ORIENTATION, 1)
    body = data + b"\0" * (len(data) % 2)
    directory = struct.pack(order + counted, len(kept)) + b"".join(kept[tag] for tag in sorted(kept))
    offset = struct.pack(order + word, len(body))
    at = int(where)
    patched = body[:at] + offset + body[at + len(offset) :] + directory + bytes(struct.calcsize("<" + word))
    return PictureFile(
        "TIFF",
        patched,
        values.get(256, 0),
        values.get(257, 0),
        turned if 1 <= turned <= 8 else 1,
        (values.get(_TILE_WIDTH, 0), values.get(_TILE_HEIGHT, 0)),
    )


def _turned(exif: bytes) -> int:
    """The orientation (1 to 8) that EXIF data holds; 1 where there is none that can be read."""
    try:
        order = {b"II": "<", b"MM": ">"}[bytes(exif[:2])]
        start = int(struct.unpack_from(order + "I", exif, 4)[0])
        count = int(struct.unpack_from(order + "H", exif, start)[0])
        for place in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", exif, place)
            if tag == _ORIENTATION and kind == 3:
                return value if 1 <= value <= 8 else 1
    except (KeyError, struct.error):
        pass  # a broken note about a picture does not break the picture
    return 1


_READERS: dict[str, Callable[[bytes], PictureFile]] = {
    "PNG": _png,
    "JPEG": _jpeg,
    "WEBP": _webp,
    "GIF": _gif,
    "BMP": _bmp,
    "TIFF": _tiff,
}
