"""The charts of a page as PNG files beside it, drawn from the very SVGs of the page in its light colours.

Letters come from the font that Pillow carries, so that a picture is the same on every machine, with and without fonts
of its own; only a name in letters that this font lacks is drawn with the machine's. This module refuses to know what a
chart shows.
"""

from __future__ import annotations

import functools
import importlib.resources
import importlib.util
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

from luthier import files
from luthier.console import say
from luthier.errors import RequestError

SCALE = 3
"""Pixels to a unit of the viewBox."""
FAMILY = "Aileron"
_PLAIN = {"–": "-", "−": "-", "½": "1/2", "×": "x", "\u202f": " "}
_HAS = re.compile("[\\x20-\\x7e\\n·…±]*")
_ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What a page bears and no XML can hold."""
INSTALL = "pip install resvg-py"


def write_pngs(page: Path, charts: Mapping[str, str]) -> list[Path]:
    """Write `PAGE-NAME.png` beside `page` for each chart (name -> SVG; an empty one is left out), durably.

    Names become lower-case letters, digits and dashes. Without resvg-py nothing is written, and the line that installs
    it is said. Raises DiskError where a file cannot be written.
    """
    if importlib.util.find_spec("resvg_py") is None:
        say(f"{page.name}: no PNG files beside it, as resvg-py is not installed ({INSTALL})")
        return []
    written: list[Path] = []
    for name, svg in charts.items():
        if svg:
            path = page.with_name(f"{page.stem}-{slug(name)}.png")
            if path in written:
                path = page.with_name(f"{path.stem}-{len(written)}.png")
            files.write_bytes(path, png(svg))
            written.append(path)
    return written


def png(svg: str) -> bytes:
    """One chart as a PNG on white, three pixels to a unit."""
    import resvg_py

    svg = _ILLEGAL.sub("?", str(svg))  # Markup would escape what is put into it
    for letter, plain in _PLAIN.items():
        svg = svg.replace(letter, plain)
    drawn = svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    width = re.search(r'viewBox="0 0 (\d+) ', svg)
    if width is None:
        raise ValueError("a chart without a viewBox")
    with tempfile.NamedTemporaryFile(suffix=".ttf") as font:
        font.write(_font())
        font.flush()
        return resvg_py.svg_to_bytes(
            svg_string=drawn,
            width=SCALE * int(width[1]),
            background="#ffffff",
            style_sheet=_light(),
            font_files=[font.name],
            font_family=FAMILY,
            sans_serif_family=FAMILY,
            skip_system_fonts=_HAS.fullmatch(svg) is not None,
        )


def slug(name: str) -> str:
    """A name as a part of a file's name: lower-case letters, digits and dashes."""
    return re.sub("[^a-z0-9]+", "-", name.lower()).strip("-") or "chart"


@functools.cache
def _font() -> bytes:
    """The bytes of Pillow's own font (Aileron, CC0), some 13 KB."""
    from PIL import ImageFont

    font = ImageFont.load_default(size=12)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RequestError("this Pillow is built without FreeType, so it has no letters for PNGs", "install its wheel")
    return bytes(font.font_bytes)


@functools.cache
def _light() -> str:
    """The pages' rules for charts with the light colours written in: resvg knows no CSS variables."""
    folder = importlib.resources.files("luthier").joinpath("outcome/templates")
    colours = folder.joinpath("style.css.j2").read_text("utf-8").split("\n", 1)[0]
    sheet = folder.joinpath("chart.css.j2").read_text("utf-8")
    for name, colour in re.findall(r"--([a-z]+):(#[0-9a-f]+)", colours):
        sheet = sheet.replace(f"var(--{name})", colour)
    return sheet + f'.chart {{ font-family:"{FAMILY}"; }}'
