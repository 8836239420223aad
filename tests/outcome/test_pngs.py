"""PNG files of charts: the page's light colours, letters on a machine without fonts, and a word where resvg is not."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont

from luthier.outcome import charts, pngs
from luthier.outcome.charts import Frame
from luthier.outcome.exams.part import named_charts, parts
from luthier.outcome.pagerecords import Records
from support.fakeexams import FakeExam, bases, checkpoints, write_exam

PLAIN = Frame("a chart", "of nothing", (0, 1), (0, 1), height=100)


def pixels(svg: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(pngs.png(svg))).convert("RGB")).astype(int)


def test_a_picture_is_three_pixels_a_unit_on_white() -> None:
    drawn = pixels(PLAIN.svg('<rect class="s1" x="10" y="10" width="20" height="20"/>'))
    assert drawn.shape == (300, 1080, 3)
    assert drawn[5, 5].tolist() == [255, 255, 255]
    assert drawn[60, 60].tolist() == [0x2B, 0x62, 0xA3], "the light colour of s1 in style.css.j2"


def test_letters_are_drawn_without_a_font_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    import resvg_py

    kept: list[bool] = []
    real = resvg_py.svg_to_bytes

    def watched(**words: object) -> bytes:
        kept.append(bool(words["skip_system_fonts"]))
        return real(**words)  # type: ignore[arg-type]

    monkeypatch.setattr(resvg_py, "svg_to_bytes", watched)
    drawn = pixels(PLAIN.svg(charts.text(10, 50, "76.5% – 82.4 ½ ×", css="ink strong")))
    assert kept == [True]
    ink = (drawn.sum(axis=2) < 300)[90:160]
    assert ink.sum() > 1500
    assert np.flatnonzero(ink.any(axis=0))[-1] > 30 + 14 * 15, "all of the words, not the first of them"


def test_only_other_letters_ask_for_the_fonts_of_the_machine() -> None:
    assert pngs._HAS.fullmatch("<text>step 50 · …</text>\n") is not None
    assert pngs._HAS.fullmatch("<text>日本語</text>") is None


def test_the_font_has_every_letter_that_is_drawn_with_it_alone() -> None:
    font = ImageFont.load_default(size=20)
    missing = bytes(font.getmask("\uffff"))
    have = [chr(code) for code in range(0x21, 0x7F)] + list("·…±")
    assert [letter for letter in have if bytes(font.getmask(letter)) == missing] == []


def test_charts_of_exams_are_drawn_with_our_font_and_colours_alone(tmp_path: Path) -> None:
    write_exam(tmp_path / "exams/trivia", FakeExam(items=60, candidates=checkpoints(3)))
    write_exam(tmp_path / "exams/bases", FakeExam("bases", items=60, candidates=bases(), chooses=False))
    found = named_charts(parts(Records(tmp_path), ""))
    assert len(found) >= 16
    for name, svg in found.items():
        for letter, plain in pngs._PLAIN.items():
            svg = svg.replace(letter, plain)
        assert pngs._HAS.fullmatch(svg) is not None, name
    assert "var(" not in pngs._light()


def test_a_name_that_no_xml_can_hold_is_drawn_all_the_same() -> None:
    assert pngs.png(PLAIN.svg(charts.text(10, 50, "a\x0bb\ufffe"))).startswith(b"\x89PNG")


def test_files_stand_beside_the_page_and_never_on_one_another(tmp_path: Path) -> None:
    svg = PLAIN.svg()
    written = pngs.write_pngs(tmp_path / "report.html", {"Main: Loss": svg, "main loss": svg, "x": "", "é": svg})
    assert [path.name for path in written] == ["report-main-loss.png", "report-main-loss-1.png", "report-chart.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)


def test_without_resvg_the_line_that_installs_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert pngs.write_pngs(tmp_path / "report.html", {"loss": PLAIN.svg()}) == []
    assert "pip install resvg-py" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
