"""Recordings judged while somebody waits: the probabilities are those on record, whatever the company."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from luthier.data.media import load_audio
from luthier.data.table import read_table
from luthier.engines import torch_verdict
from luthier.engines.base import Recording, Zone
from luthier.engines.finding import find_models
from luthier.engines.torch_verdict import TorchVerdict, find_zone
from luthier.errors import CheckpointError, RequestError
from luthier.files import read_jsonl, write_jsonl
from luthier.models import adapters
from luthier.recipe import Scale
from luthier.recipe_data import Limits
from luthier.rundir import StageDir


@pytest.fixture(scope="module")
def engine(finished: Path) -> Iterator[TorchVerdict]:
    made = TorchVerdict(find_models([finished]))
    yield made
    made.close()


@pytest.fixture(scope="module")
def held_out(finished: Path) -> dict[str, tuple[list[Recording], list[str]]]:
    """By stage: the recordings of its test rows by row id, and their questions."""
    table = read_table(finished / "data")
    found = {}
    for stage in ("1764", "1964"):
        rows = [item.row for item in table.select([f"form-{stage}-test"], "test")]
        waves = [load_audio(table.media_bytes(row.media[0]), Limits()) for row in rows]
        found[stage] = (
            [Recording(row.id, wave) for row, wave in zip(rows, waves, strict=True)],
            [row.text for row in rows],
        )
    return found


@pytest.mark.parametrize("stage", ["1764", "1964"])
def test_verdicts_are_those_on_record(engine: TorchVerdict, finished: Path, held_out: Any, stage: str) -> None:
    recordings, questions = held_out[stage]
    records = {record["id"]: record for record in read_jsonl(finished / "stages" / stage / "predictions.jsonl")}
    for question in dict.fromkeys(questions):
        asked = [one for one, its in zip(recordings, questions, strict=True) if its == question]
        found = engine.judge(f"run/{stage}", asked, question)
        assert [verdict.name for verdict in found] == [recording.name for recording in asked]
        for verdict in found:
            record = records[verdict.name]
            assert verdict.p_pass == pytest.approx(record["p_pass"], abs=1e-6)
            assert verdict.p_pass_calibrated == pytest.approx(record["p_pass_calibrated"], abs=1e-6)
            assert (verdict.passed, verdict.event, verdict.error) == (bool(record["answer"]), "rater", "")
            assert verdict.p_panel == record.get("p_panel")


def test_company_and_order_change_no_verdict(engine: TorchVerdict, held_out: Any) -> None:
    recordings, (question, *_) = held_out["1964"]
    many = [*recordings, *recordings[::-1]]
    assert len(many) > torch_verdict._TOGETHER
    found = engine.judge("run/1964", many, question)
    assert len({len(one.wave) for one in recordings}) > 3
    for one, verdict in zip(many, found, strict=True):
        [alone] = engine.judge("run/1964", [one], question)
        assert verdict.p_pass == pytest.approx(alone.p_pass, abs=1e-6)
        assert verdict.name == one.name


def test_what_cannot_be_judged_says_why_and_the_others_are_judged(engine: TorchVerdict, held_out: Any) -> None:
    (first, second, *_), (question, *_) = held_out["1764"]
    bad = [Recording("empty", np.zeros(0, np.float32)), Recording("nan", np.full(9000, np.nan, np.float32))]
    found = engine.judge("run/1764", [bad[0], first, bad[1], second, first], question)
    assert [bool(verdict.error) for verdict in found] == [True, False, True, False, False]
    assert found[0].p_pass is None
    assert found[1] == found[4]
    [reserved] = engine.judge("run/1764", [first], "<|end|>")
    assert reserved.error == "reserved_token_in_prompt"
    assert engine.judge("run/1764", [], question) == []
    with pytest.raises(RequestError, match="is not served here"):
        engine.judge("run/1765", [first], question)


def test_nothing_of_a_recording_is_kept(
    finished: Path, held_out: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = sorted((item, item.stat().st_mtime_ns) for item in finished.rglob("*"))
    recordings, (question, *_) = held_out["1764"]
    TorchVerdict(find_models([finished])).judge("run/1764", recordings[:3], question)
    assert list(tmp_path.iterdir()) == []
    assert sorted((item, item.stat().st_mtime_ns) for item in finished.rglob("*")) == before


def test_stages_and_checkpoints_share_one_base(finished: Path, held_out: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[Any] = []
    build = torch_verdict.build_model
    monkeypatch.setattr(torch_verdict, "build_model", lambda *given: built.append(given) or build(*given))
    engine = TorchVerdict(find_models([finished]))
    (recording, *_), (question, *_) = held_out["1964"]
    found = {model.id: engine.judge(model.id, [recording], question)[0] for model in engine.models()}
    assert len(built) == 1
    assert len({verdict.p_pass for verdict in found.values()}) > 1
    checkpoint = next(name for name in found if "run/1964@" in name)
    # The last checkpoint of this run is its final adapter; only the latter has a temperature and a zone.
    assert found[checkpoint].p_pass == found["run/1964"].p_pass
    assert (found[checkpoint].p_pass_calibrated, found[checkpoint].borderline) == (None, None)
    assert engine.zone(checkpoint) is None


def test_the_zone_is_where_borderline_answers_lie(finished: Path, held_out: Any, tmp_path: Path) -> None:
    copy = shutil.copytree(finished, tmp_path / "copy")
    path = copy / "stages/1964/predictions.jsonl"
    rows = read_jsonl(path)
    for number, row in enumerate(rows):
        row["grade"] = (3.0, 3.5, 4.0, 4.5)[number % 4]
    write_jsonl(path, rows)
    near = sorted(row["p_pass_calibrated"] for row in rows if row["grade"] in (3.5, 4.0))
    engine = TorchVerdict(find_models([copy]))
    zone = engine.zone("copy/1964")
    assert zone is not None
    assert zone.n == len(near)
    assert (zone.low, zone.high) == pytest.approx(tuple(np.quantile(near, [0.1, 0.9])))
    assert near[0] < zone.low < zone.high < near[-1]
    recordings, (question, *_) = held_out["1964"]
    for verdict in engine.judge("copy/1964", recordings, question):
        assert verdict.p_pass_calibrated is not None
        assert verdict.borderline == (zone.low <= verdict.p_pass_calibrated <= zone.high)
    write_jsonl(path, [row | {"grade": 2.0} for row in rows])
    assert engine.zone("copy/1964") is None


def test_rows_without_a_calibrated_probability_or_a_grade_are_in_no_zone(tmp_path: Path) -> None:
    stage, scale = StageDir(tmp_path), Scale()
    assert find_zone(stage, scale) is None
    near = {"grade": scale.pass_mark}
    write_jsonl(stage.predictions, [near, {"grade": None, "p_pass_calibrated": 0.5}])
    assert find_zone(stage, scale) is None
    write_jsonl(stage.predictions, [near, {**near, "p_pass_calibrated": 0.5}])
    assert find_zone(stage, scale) == Zone(0.5, 0.5, 1)


def test_the_zone_has_its_ends_in_it() -> None:
    assert [Zone(0.25, 0.75, 9).holds(p) for p in (0.24, 0.25, 0.5, 0.75, 0.76)] == [False, True, True, True, False]


def test_a_changed_adapter_and_one_of_another_base_are_refused(finished: Path, held_out: Any, tmp_path: Path) -> None:
    copy = shutil.copytree(finished, tmp_path / "copy")
    [checkpoint] = (copy / "stages/1964/checkpoints").iterdir()
    for folder in (checkpoint, copy / "stages/1764/adapter"):
        data = bytearray((folder / adapters.WEIGHTS).read_bytes())
        data[-1] ^= 1
        (folder / adapters.WEIGHTS).write_bytes(data)
    engine = TorchVerdict(find_models([copy]))
    (recording, *_), (question, *_) = held_out["1964"]
    for name in ("copy/1764", f"copy/1964@{checkpoint.name}"):
        with pytest.raises(CheckpointError, match=adapters.WEIGHTS):
            engine.judge(name, [recording], question)
    assert engine.judge("copy/1964", [recording], question)[0].p_pass is not None
