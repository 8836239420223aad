"""Draws the pictures of docs/media.md from our own cards, frames and augmentation: what is shown is what is done.

.venv/bin/python docs/mediapictures.py          # or: make docs
"""

from __future__ import annotations

import io
import random
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "src")]

import av  # noqa: E402
from PIL import Image, ImageDraw, ImageFont  # noqa: E402

from luthier.data.augment import Draw, augment_picture  # noqa: E402
from luthier.data.drawing import Look, draw_card  # noqa: E402
from luthier.data.video import load_video  # noqa: E402
from luthier.recipe_data import Augmentation, Frames, Limits  # noqa: E402

CARD = Look("Coat", "Blue", "Striped", "$2140")
SETTINGS = Augmentation(crop=0.1, colour=0.3, noise=0.04)
EPOCHS = 5
SHOTS = ((Look("Dress", "Red", "Plain", "$1290"), 3.2), (Look("Bag", "Beige", "Checked", "$1980"), 1.2), (CARD, 2.6))
"""What the film shows, and for how many seconds."""
RATE, SIDE = 25, 112
SAMPLING = {
    "rate: 1.0": Frames(by="rate", rate=1.0),
    "count: 4": Frames(by="count", count=4),
    "scene": Frames(by="scene"),
}
WHITE, INK, LINE = (255, 255, 255), (40, 40, 40), (190, 190, 190)
FONT = ImageFont.load_default(15)


def main() -> int:
    _save(augmented(), HERE / "media-augmented.png")
    _save(sampled(), HERE / "media-frames.png")
    return 0


def augmented() -> Image.Image:
    """One card as it is, and as a training row shows it in five epochs."""
    card = draw_card(CARD, random.Random(3))
    shown = [card, *(augment_picture(card, SETTINGS, Draw(17, epoch, "row-1", 0)) for epoch in range(EPOCHS))]
    titles = ["as it is", *(f"epoch {epoch + 1}" for epoch in range(EPOCHS))]
    step, size = 160, 150
    page = Image.new("RGB", (step * len(shown), size + 34), WHITE)
    for place, (picture, title) in enumerate(zip(shown, titles, strict=True)):
        page.paste(picture.resize((size, size), Image.Resampling.LANCZOS), (place * step + 5, 5))
        _write(page, title, (place * step + step // 2, size + 19))
    return page


def sampled() -> Image.Image:
    """The frames that each way takes of one film, over its seconds."""
    data = film()
    seconds = sum(length for _, length in SHOTS)
    left, wide, high, size = 96, 820, 92, 76
    page = Image.new("RGB", (left + wide + 50, high * len(SAMPLING) + 62), WHITE)
    pen = ImageDraw.Draw(page)
    place_of = lambda second: left + round(second / seconds * wide)
    begin = 0.0
    for number, (_, length) in enumerate(SHOTS, 1):
        pen.rectangle((place_of(begin), 8, place_of(begin + length) - 2, 24), fill=(225, 228, 235))
        _write(page, f"shot {number}", ((place_of(begin) + place_of(begin + length)) // 2, 16))
        begin += length
    for row, (name, wanted) in enumerate(SAMPLING.items()):
        top = 34 + row * high
        _write(page, name, (left // 2 - 4, top + size // 2))
        found = load_video(data, Limits(), wanted)
        for frame, second in zip(found.frames, found.seconds, strict=True):
            page.paste(frame.resize((size, size), Image.Resampling.LANCZOS), (place_of(second), top))
            pen.line((place_of(second), top - 4, place_of(second), top + size), fill=INK)
    bottom = 34 + len(SAMPLING) * high
    pen.line((left, bottom, left + wide, bottom), fill=LINE)
    for second in range(int(seconds) + 1):
        pen.line((place_of(second), bottom - 4, place_of(second), bottom + 4), fill=INK)
        _write(page, f"{second} s", (place_of(second), bottom + 15))
    return page


def film() -> bytes:
    """An mp4 of the shots; in each a card that does not move."""
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=RATE)
        stream.width = stream.height = SIDE
        stream.pix_fmt, stream.codec_context.time_base = "yuv420p", Fraction(1, RATE)
        for number, picture in enumerate(_shots()):
            frame = av.VideoFrame.from_image(picture)
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return out.getvalue()


def _shots() -> Sequence[Image.Image]:
    return [
        card
        for number, (look, length) in enumerate(SHOTS)
        for card in [draw_card(look, random.Random(number))] * round(length * RATE)
    ]


def _write(page: Image.Image, text: str, middle: tuple[int, int]) -> None:
    ImageDraw.Draw(page).text(middle, text, fill=INK, font=FONT, anchor="mm")


def _save(page: Image.Image, path: Path) -> None:
    page.quantize(128, dither=Image.Dither.NONE).save(path, "PNG", optimize=True)


if __name__ == "__main__":
    sys.exit(main())
