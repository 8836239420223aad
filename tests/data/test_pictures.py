"""Pictures: colours, depths and turns come out right beside Pillow's own reading; hostile files are named."""

import io
import random
import re
import struct
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from luthier.data.picturefiles import MAX_PIECES, picture_kind
from luthier.data.pictures import MAX_BYTES, REASONS, check_picture, load_picture, picture_size
from luthier.errors import MediaError
from luthier.recipe_data import Limits
from support.children import environment

KINDS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
LIMITS = Limits()


def scene(width: int = 60, height: int = 40) -> Image.Image:
    """A red, a green, a blue and a grey quarter with a slope of light over them, so that every turn is seen."""
    across, down = np.meshgrid(np.linspace(0, 60, width), np.linspace(0, 60, height))
    pixels = np.zeros((height, width, 3))
    pixels[: height // 2, : width // 2, 0] = pixels[: height // 2, width // 2 :, 1] = 180
    pixels[height // 2 :, : width // 2, 2] = 180
    pixels[height // 2 :, width // 2 :] = 90
    return Image.fromarray((pixels + ((across + down) / 2)[..., None]).astype(np.uint8))


def saved(image: Image.Image, kind: str, **how) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **how)
    return stream.getvalue()


def reason_of(data: bytes, limits: Limits = LIMITS) -> str:
    """The reason for which both ways refuse; they have to agree."""
    with pytest.raises(MediaError) as checked:
        check_picture(data, limits)
    with pytest.raises(MediaError) as loaded:
        load_picture(data, limits)
    assert checked.value.reason == loaded.value.reason
    return checked.value.reason


def size_or_reason(verb, data: bytes) -> tuple[int, int] | str:
    try:
        return verb(data, Limits(maximum_pixels=1_000_000))
    except MediaError as error:
        return error.reason


def far(one: Image.Image, other: Image.Image) -> int:
    return int(np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max())


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, depth: int, colour: int, packed: bytes, *between: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(between) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def one_bit_png(side: int) -> bytes:
    packer, row = zlib.compressobj(9), b"\0" + b"\xaa" * ((side + 7) // 8)
    return png(side, side, 1, 0, b"".join(packer.compress(row) for _ in range(side)) + packer.flush())


def tiff(entries: list[tuple[int, int, int, int]], tail: bytes = b"") -> bytes:
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + b"\0\0\0\0" + tail


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_gives_the_pixels_that_pillow_gives(kind):
    data = saved(scene(), kind)
    assert picture_kind(data) == kind
    assert check_picture(data, LIMITS) == (60, 40)
    found = load_picture(data, LIMITS)
    assert found.mode == "RGB"
    assert far(found, Image.open(io.BytesIO(data)).convert("RGB")) == 0


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_a_picture_is_turned_as_its_exif_says(kind, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    how = {"PNG": {}, "JPEG": {"quality": 95}, "WEBP": {"lossless": True}, "TIFF": {}}[kind]
    data = saved(scene(), kind, exif=exif, **how)
    right = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert check_picture(data, LIMITS) == right.size == ((60, 40) if turn < 5 else (40, 60))
    assert picture_size(data, LIMITS) == right.size
    assert far(load_picture(data, LIMITS), right) == 0


def test_a_tile_larger_than_its_picture_is_not_taken_for_the_picture():
    numbers = {256: 10, 257: 7, 258: 8, 259: 1, 262: 1, 274: 6, 277: 1, 322: 16, 323: 16, 325: 256}
    where = 8 + 2 + 12 * (len(numbers) + 1) + 4
    data = tiff([(tag, 4, 1, value) for tag, value in sorted({**numbers, 324: where}.items())], bytes(range(256)))
    found = load_picture(data, LIMITS)
    assert picture_size(data, LIMITS) == check_picture(data, LIMITS) == found.size == (7, 10)
    assert found.getpixel((6, 0)) == (0, 0, 0)


def test_broken_exif_does_not_break_the_picture():
    for exif in (b"", b"II*\0", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff", b"XX"):
        data = png(1, 1, 8, 0, zlib.compress(b"\0\x80"), chunk(b"eXIf", exif))
        assert load_picture(data, LIMITS).getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_keep_their_high_byte(kind):
    values = np.array([[0, 255, 256, 32768, 65279, 65535]], dtype=np.uint16)
    found = load_picture(saved(Image.fromarray(values), kind), LIMITS)
    assert np.asarray(found)[0, :, 0].tolist() == [0, 0, 1, 128, 254, 255]


def test_sixteen_bits_of_the_other_byte_order_are_the_same():
    values = np.array([[0, 256, 32768, 65535]], dtype=">u2")
    entries = [(256, 4, 1, 4), (257, 4, 1, 1), (258, 3, 1, 16), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 0)]
    entries += [(277, 3, 1, 1), (278, 4, 1, 1), (279, 4, 1, 8)]
    place = 8 + 2 + 12 * len(entries) + 4
    entries[5] = (273, 4, 1, place)
    body = b"".join(struct.pack(">HHIHH", *e, 0) if e[1] == 3 else struct.pack(">HHII", *e) for e in entries)
    data = b"MM\0*" + struct.pack(">IH", 8, len(entries)) + body + b"\0\0\0\0" + values.tobytes()
    assert np.asarray(load_picture(data, LIMITS))[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0, -3.0], [0, 128, 255, 0]),
        ([0.0, 100.0, 255.0, float("nan")], [0, 100, 255, 0]),
        ([0.0, 32767.5, 65535.0, 1.0], [0, 128, 255, 0]),
        ([0.0, float("inf"), 1.0, -float("inf")], [0, 255, 255, 0]),
    ],
)
def test_float_greys_are_scaled_by_the_range_that_they_fit_into(values, expected):
    data = saved(Image.fromarray(np.array([values], dtype=np.float32)), "TIFF")
    assert np.asarray(load_picture(data, LIMITS))[0, :, 0].tolist() == expected


def test_greys_of_thirty_two_bits_are_scaled_by_the_range_that_they_fit_into():
    for values, expected in (([0, 100, 255], [0, 100, 255]), ([0, 256, 65535], [0, 1, 255])):
        data = saved(Image.fromarray(np.array([values], dtype=np.int32)), "TIFF")
        assert np.asarray(load_picture(data, LIMITS))[0, :, 0].tolist() == expected


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_is_not_inverted(kind):
    data = saved(scene().convert("CMYK"), kind)
    assert far(load_picture(data, LIMITS), scene()) < (60 if kind == "JPEG" else 3)
    assert far(load_picture(data, LIMITS), Image.open(io.BytesIO(data)).convert("RGB")) == 0


def test_transparency_lies_over_white():
    clear = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    clear.putpixel((1, 0), (0, 0, 0, 128))
    for kind in ("PNG", "TIFF"):
        assert np.asarray(load_picture(saved(clear, kind), LIMITS))[0].tolist() == [[255] * 3, [127] * 3]
    grey = Image.new("LA", (1, 1), (10, 0))
    assert load_picture(saved(grey, "PNG"), LIMITS).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (2, 1))
    palette.putpalette([200, 0, 0, 0, 200, 0])
    palette.putpixel((1, 0), 1)
    for kind in ("PNG", "GIF"):
        found = load_picture(saved(palette, kind, transparency=0), LIMITS)
        assert np.asarray(found)[0].tolist() == [[255] * 3, [0, 200, 0]]


def test_a_transparent_grey_of_sixteen_bits_is_white():
    data = png(2, 1, 16, 0, zlib.compress(b"\0\x12\x34\x80\x00"), chunk(b"tRNS", b"\x12\x34"))
    assert np.asarray(load_picture(data, LIMITS))[0, :, 0].tolist() == [255, 128]


def test_one_bit_is_black_and_white_and_a_large_alpha_picture_has_no_seams():
    assert np.asarray(load_picture(one_bit_png(8), LIMITS))[0, :, 0].tolist() == [255, 0] * 4
    rng = np.random.default_rng(3)
    image = Image.fromarray(rng.integers(0, 256, (1100, 4200, 4), dtype=np.uint8), "RGBA")
    white = Image.new("RGBA", image.size, "white")
    right = Image.alpha_composite(white, image).convert("RGB")
    assert far(load_picture(saved(image, "PNG", compress_level=1), LIMITS), right) == 0


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_is_taken(kind):
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "lime", "blue")]
    data = saved(
        frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {})
    )
    assert load_picture(data, LIMITS).getpixel((4, 4)) == (255, 0, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_torn_picture_is_found(kind):
    rng = np.random.default_rng(1)
    data = saved(Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)), kind)
    for share in (0.2, 0.5, 0.9, 0.97):
        assert reason_of(data[: int(len(data) * share)]) in ("unreadable_image", "empty_image")


def test_a_flipped_bit_among_the_pixels_of_a_png_is_found():
    data = bytearray(saved(scene(), "PNG"))
    data[data.index(b"IDAT") + 40] ^= 1
    assert reason_of(bytes(data)) == "unreadable_image"


def test_what_is_no_picture_is_refused():
    for data in (
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%!PS-Adobe-3.0 EPSF",
        b"BM",
        b"GIF89a",
        b"\0" * 99,
        b"x",
    ):
        assert reason_of(data) == "unreadable_image"
    assert reason_of(b"") == "empty_image"
    assert reason_of(b"GIF89a\x05\0\x05\0\0\0\0;") == "empty_image"
    assert reason_of(png(0, 5, 8, 0, zlib.compress(b""))) == "empty_image"


def test_sizes_are_refused_before_anything_is_decoded():
    begun = time.process_time()
    wide = struct.pack("<HHBBB", 65535, 65535, 0, 0, 0)
    frame = b",\0\0\0\0" + struct.pack("<HHB", 65535, 65535, 0) + b"\x02\x01\0\0;"
    claims = {
        "PNG": png(60_000, 60_000, 8, 6, zlib.compress(b"\0")),
        "GIF screen": b"GIF89a" + wide + b",\0\0\0\0\x01\0\x01\0\0\x02\x01\0\0;",
        "GIF frame": b"GIF89a\x01\0\x01\0\0\0\0" + frame,
        "BMP": b"BM" + bytes(12) + struct.pack("<IiiHHI", 40, 60_000, -60_000, 1, 24, 0) + bytes(40),
        "TIFF": tiff([(256, 4, 1, 60_000), (257, 4, 1, 60_000)]),
        "TIFF tile": tiff([(256, 4, 1, 1), (257, 4, 1, 1), (322, 4, 1, 40_000), (323, 4, 1, 40_000)]),
        "WEBP": b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<II", 10, 0) + b"\xff\xff\0\xff\xff\0",
    }
    assert {name: reason_of(data) for name, data in claims.items()} == dict.fromkeys(claims, "too_many_pixels")
    assert time.process_time() - begun < 1
    assert reason_of(saved(scene(), "JPEG"), Limits(maximum_pixels=2399)) == "too_many_pixels"
    assert check_picture(saved(scene(), "JPEG"), Limits(maximum_pixels=2400)) == (60, 40)
    assert reason_of(bytes(MAX_BYTES + 1)) == "too_large"


def test_metadata_cannot_cost_time_or_memory():
    begun = time.process_time()
    bomb = chunk(b"zTXt", b"note\0\0" + zlib.compress(bytes(300 * 2**20), 1))
    assert load_picture(png(1, 1, 8, 0, zlib.compress(b"\0\x80"), bomb), LIMITS).getpixel((0, 0)) == (128, 128, 128)
    gif = saved(scene(), "GIF")
    start = 13 + (3 << (gif[10] & 7) + 1)
    comment = b"!\xfe" + (b"\xff" + b"c" * 255) * 60_000 + b"\0"
    assert check_picture(gif[:start] + comment + gif[start:], LIMITS) == (60, 40)
    small = b",\0\0\0\0\x01\0\x01\0\0\x02\x02\x4c\x01\0"
    assert check_picture(b"GIF89a\x01\0\x01\0\x80\0\0" + bytes(6) + small * 1_000_000 + b";", LIMITS) == (1, 1)
    assert reason_of(gif[:start] + b"!\xfe\0" * (MAX_PIECES + 1) + gif[start:]) == "unreadable_image"
    jpeg = saved(scene(), "JPEG")
    assert reason_of(jpeg[:2] + b"\xff\xfe\0\x02" * (MAX_PIECES + 1) + jpeg[2:]) == "unreadable_image"
    assert reason_of(jpeg[:-2] + b"\xff\xda\0\x0c\3\1\0\2\x11\3\x11\0\x3f\0" * 1000 + jpeg[-2:]) == "unreadable_image"
    many = png(1, 1, 8, 0, zlib.compress(b"\0\x80"), chunk(b"tEXt", b"a\0") * (MAX_PIECES + 1))
    assert reason_of(many) == "unreadable_image"
    # 60,000 tags that all name the same megabyte
    tags = tiff([(1000 + i, 7, 2**20, 720_100) for i in range(60_000)], bytes(2**20 + 400))
    assert reason_of(tags) in ("unreadable_image", "empty_image")
    assert time.process_time() - begun < 8


CHILD = """
import sys
from luthier.data.pictures import check_picture, load_picture
from luthier.errors import MediaError
from luthier.recipe_data import Limits
data = open(sys.argv[1], "rb").read()
limits = Limits(maximum_pixels=int(sys.argv[3]))
try:
    print(sys.argv[2], check_picture(data, limits) if sys.argv[2] == "check" else load_picture(data, limits).size)
except MediaError as error:
    print(sys.argv[2], error.reason)
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def in_a_child(path, verb: str, most: int) -> tuple[str, int]:
    line = [sys.executable, "-c", CHILD, str(path), verb, str(most)]
    done = subprocess.run(line, env=environment(), capture_output=True, text=True, check=True, timeout=60)
    said, peak = done.stdout.split("\n")[:2]  # getrusage would count the parent's memory before exec too
    assert not done.stderr
    return said, 1024 * int(re.sub(r"\D", "", peak))


@pytest.mark.parametrize("verb", ["check", "load"])
def test_a_huge_one_bit_picture_is_dropped_or_read_in_under_a_gigabyte(tmp_path, verb):
    path = tmp_path / "huge.png"
    path.write_bytes(one_bit_png(13_000))
    said, peak = in_a_child(path, verb, LIMITS.maximum_pixels)
    assert said == f"{verb} too_many_pixels"
    assert peak < 2e8
    said, peak = in_a_child(path, verb, 200_000_000)
    assert said == f"{verb} (13000, 13000)"
    assert peak < 1e9


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_the_largest_pictures_of_the_default_limit_stay_under_a_gigabyte(tmp_path, kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("RGB" if kind == "JPEG" else "RGBA", (8000, 7990 if kind != "WEBP" else 6600), (9, 8, 7))
    how = {"JPEG": {"progressive": True, "subsampling": 0}, "TIFF": {"compression": "tiff_lzw"}}.get(kind, {})
    path = tmp_path / "large"
    path.write_bytes(saved(image, kind, exif=exif, **how))
    said, peak = in_a_child(path, "load", LIMITS.maximum_pixels)
    assert said == f"load {(image.height, image.width)}"
    assert peak < 1e9


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(KINDS), st.integers(0, 2**32), st.integers(1, 12))
def test_a_damaged_picture_is_read_or_refused_with_a_known_word(kind, seed, count):
    rng = random.Random(seed)
    data = bytearray(saved(scene(24, 16), kind))
    for _ in range(count):
        data[rng.randrange(len(data) if rng.random() < 0.5 else min(len(data), 200))] = rng.randrange(256)
    said = size_or_reason(check_picture, bytes(data))
    assert said == size_or_reason(lambda *given: load_picture(*given).size, bytes(data))
    assert not isinstance(said, tuple) or said == size_or_reason(picture_size, bytes(data))
    assert isinstance(said, tuple) or said in REASONS
