"""Curves of a file that grows: each line is read once, torn ends wait, and a file cut back is read anew."""

import json
from pathlib import Path

import pytest

from luthier.files import append_jsonl, write_jsonl
from luthier.outcome.livefigures import LiveFigures
from luthier.rundir import truncate_metrics


def line(step: int, **more: float) -> dict[str, float]:
    return {"step": step, "loss": 10 - step, "learning_rate": 0.1, "tokens": 100 * step, "seconds": step / 2, **more}


def test_only_what_was_appended_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    figures = LiveFigures(path)
    assert figures.read() is False
    parsed: list[bytes] = []
    taken = LiveFigures._take
    monkeypatch.setattr(LiveFigures, "_take", lambda self, text: (parsed.append(text), taken(self, text))[1])
    for step in range(1, 6):
        append_jsonl(path, line(step))
        assert figures.read() is True
        assert figures.read() is False
        assert figures.last["step"] == step
    assert [json.loads(text)["step"] for text in parsed if text] == [1, 2, 3, 4, 5]
    assert figures.loss == [(step, 10 - step) for step in range(1, 6)]
    assert figures.speed == [(step, 200.0) for step in range(1, 6)]
    assert figures.read_bytes == path.stat().st_size


def test_a_line_that_is_still_being_written_waits_for_its_end(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = json.dumps(line(1)).encode() + b"\n"
    path.write_bytes(whole[:20])
    figures = LiveFigures(path)
    assert figures.read() is False
    with path.open("ab") as stream:
        stream.write(whole[20:])
    assert figures.read() is True
    assert figures.loss == [(1, 9)]


def test_a_file_that_resuming_cut_back_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_jsonl(path, [line(step) for step in range(1, 8)])
    figures = LiveFigures(path)
    figures.read()
    truncate_metrics(path, 3)
    for step in range(4, 12):  # longer than it was: its length alone would not show it
        append_jsonl(path, {**line(step), "loss": -1.0})
    figures.read()
    assert figures.loss == [(1, 9), (2, 8), (3, 7)] + [(step, -1.0) for step in range(4, 12)]


def test_what_is_no_figure_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 1, "loss": NaN, "validation_loss": 2}\nnonsense\n[1]\n{"loss": 3}\n{"step": 2, "loss": 1.5}\n'
    )
    figures = LiveFigures(path)
    figures.read()
    assert (figures.loss, figures.validation, figures.speed) == ([(2, 1.5)], [(1, 2.0)], [])
    assert len(figures.charts()) == 1


def test_charts_name_themselves_for_those_who_do_not_see_them(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_jsonl(path, [line(step, **({} if step % 100 else {"validation_log_loss": 5.0})) for step in range(1, 1000)])
    figures = LiveFigures(path)
    assert figures.charts() == []
    figures.read()
    charts = figures.charts()
    assert len(charts) == 3
    assert "training loss from 9.000 at step 1" in charts[0]
    assert "learning rate from 0.1 at step 1 to 0.1 at step 999" in charts[1]
    assert "tokens per second from 200 at step 1 to 200 at step 999" in charts[2]
    assert sum(map(len, charts)) < 40_000
