"""A table with pictures reaches the tracker that has tables, offline and inside the run's folder, without secrets."""

from __future__ import annotations

import importlib.util
import io
import json
from dataclasses import asdict
from pathlib import Path

import pytest
from PIL import Image

from luthier.recipe import Recipe, TrackConfig
from luthier.runtime.tracking import PACKAGES, Trackers

SECRET = "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"


def jpeg(colour: tuple[int, int, int]) -> bytes:
    packed = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(packed, "JPEG")
    return packed.getvalue()


def opened(name: str, run: Path) -> Trackers:
    if importlib.util.find_spec(PACKAGES[name][0]) is None:
        pytest.skip(f"{name} is not installed")
    return Trackers.open(TrackConfig([name], "project"), "describer/main", run, {"recipe": asdict(Recipe())}, 0)


def test_the_offline_run_holds_the_table_and_its_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    trackers = opened("wandb", tmp_path / "run")
    trackers.log({"loss": 1.0}, 10)
    rows = [[jpeg((200, 10, 10)), "The worst", f"a {SECRET}"], [b"", "Drawn by chance", "b"]]
    trackers.table("predictions", ["picture", "shown as", "answer"], rows)
    trackers.close("finished")
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file() and not path.is_symlink()]
    (table,) = (path for path in files if path.name.startswith("predictions_") and path.suffix == ".json")
    found = json.loads(table.read_text())
    assert found["columns"] == ["picture", "shown as", "answer"]
    assert [row[1:] for row in found["data"]] == [["The worst", "a [secret]"], ["Drawn by chance", "b"]]
    (picture,) = (path for path in files if path.parent.name == "images")
    with Image.open(picture) as image:
        assert image.size == (40, 30)
        assert image.getpixel((3, 3))[0] > 150
    record = b"".join(path.read_bytes() for path in files if path.suffix == ".wandb")
    assert b"predictions_pictures" in record
    assert b"table-file" in record
    assert not any(SECRET.encode() in path.read_bytes() for path in files)
    assert not list(home.rglob("*.json")), "nothing waits to be sent outside the run's folder"
    assert "failed" not in capsys.readouterr().err


def test_a_tracker_without_tables_passes_over_it_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trackers = opened("tensorboard", tmp_path)
    trackers.table("predictions", ["a"], [[1]])
    trackers.log({"loss": 2.0}, 20)
    trackers.close("finished")
    assert json.loads((tmp_path / "track/tensorboard/describer-main.json").read_text())["step"] == 20
    assert "failed" not in capsys.readouterr().err
