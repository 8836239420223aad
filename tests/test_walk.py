"""Small runs from end to end: what the contract promises is on disk, and what is there agrees with itself."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import soundfile

from luthier import verbs
from luthier.data.table import read_table
from luthier.errors import ExistsError, RequestError
from luthier.files import read_json, read_jsonl, sha256_file, verify_folder
from luthier.schema import Row

ROOT = Path(__file__).parents[1]
Luthier = Callable[..., CompletedProcess[str]]


def digests(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256_file(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def held_out(run: Path, form: str, folder: Path) -> tuple[Path, Row]:
    """A test recording of a form as a WAV file, and its row."""
    table = read_table(run / "data")
    row = table.select([f"form-{form}-test"], "test")[3].row
    (folder / "answer.flac").write_bytes(table.media_bytes(row.media[0]))
    samples, rate = soundfile.read(folder / "answer.flac", dtype="int16")
    soundfile.write(folder / "answer.wav", samples, rate)
    return folder / "answer.wav", row


@pytest.mark.parametrize("stage", ["1764", "1964"])
def test_a_stage_leaves_what_the_contract_names(finished: Path, stage: str) -> None:
    folder = finished / "stages" / stage
    steps = read_jsonl(folder / "metrics.jsonl")
    for record in steps:
        assert set(record) >= {"step", "epoch", "loss", "learning_rate", "grad_norm", "tokens", "seconds"}
    assert [record["step"] for record in steps] == list(range(1, len(steps) + 1))
    assert steps[-1]["epoch"] == 1.0
    rows = read_jsonl(folder / "predictions.jsonl")
    for row in rows:
        assert set(row) >= {"id", "group", "grade", "pass", "p_pass", "event"}
        assert row["pass"] == (row["grade"] >= 4)
        assert 0 < row["p_pass"] < 1
        assert row["event"] == "rater"
    test = read_table(finished / "data").select([f"form-{stage}-test"], "test")
    assert [row["id"] for row in rows] == [item.row.id for item in test]
    scores = read_json(folder / "scores.json")
    for name in ("accuracy", "auroc", "log_loss", "brier", "ece", "borderline.accuracy", "borderline.auroc", "closer"):
        assert set(scores[name]) == {"value", "ci", "n"}
        low, high = scores[name]["ci"]
        assert low <= high
        assert 0 < scores[name]["n"] <= len(rows)
    assert scores["accuracy"]["n"] == len(rows)
    for sealed in (folder / "adapter", *(folder / "checkpoints").iterdir()):
        assert verify_folder(sealed) is None
        assert {"adapter_model.safetensors", "adapter_config.json"} <= set(read_json(sealed / "MANIFEST.json")["files"])
    assert (folder / "checkpoints" / f"step-{steps[-1]['step']:06d}").is_dir()


def test_a_run_leaves_what_the_contract_names(finished: Path) -> None:
    about = read_json(finished / "run.json")
    assert about["status"] == "finished"
    assert about["stages"] == ["1764", "1964"]
    assert {"recipe", "data", "base"} <= set(about["hashes"])
    assert about["hashes"]["data"] == read_table(finished / "data").digest
    assert {"luthier", "torch", "peft"} <= set(about["versions"])
    assert verify_folder(finished / "data", "manifest.json") is None
    assert (finished / "recipe.yaml").is_file()
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert not list(finished.rglob(".tmp-*"))


def test_the_ledger_sums_up(finished: Path) -> None:
    summary = [line for line in read_jsonl(finished / "data" / "ledger.jsonl") if "in" in line]
    assert [line["in"] for line in summary] == [48, 24, 32, 24]
    for line in summary:
        assert line["in"] == line["kept"] + line["merged"] + sum(line["dropped"].values())
    assert sum(line["kept"] for line in summary) == len(read_table(finished / "data").rows)


def test_a_run_that_is_there_is_refused_and_not_touched(finished: Path, small: Path) -> None:
    before = digests(finished)
    with pytest.raises(ExistsError):
        verbs.run(small, finished)
    assert digests(finished) == before


def test_resuming_a_finished_run_leaves_every_stage_as_it_is(finished: Path, small: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    before = digests(run / "stages") | digests(run / "data")
    figures = verbs.run(small, run, resume=True)
    assert digests(run / "stages") | digests(run / "data") == before
    assert read_json(run / "run.json")["status"] == "finished"
    assert figures["stages"]["1964"] == read_json(run / "stages" / "1964" / "scores.json")


def test_resuming_with_another_recipe_is_refused(finished: Path, small: Path) -> None:
    before = digests(finished)
    with pytest.raises(RequestError, match="another recipe") as caught:
        verbs.run(small, finished, ["train.learning_rate=2e-3"], resume=True)
    assert str(finished / "recipe.yaml") in caught.value.mend
    assert digests(finished) == before


@pytest.mark.parametrize("stage", ["1764", "1964"])
def test_predict_gives_the_probability_of_the_record(finished: Path, tmp_path: Path, stage: str) -> None:
    recording, row = held_out(finished, stage, tmp_path)
    records = read_jsonl(finished / "stages" / stage / "predictions.jsonl")
    record = next(item for item in records if item["id"] == row.id)
    found = list(verbs.predict(finished, [recording], row.text, stage))
    assert len(found) == 1
    assert found[0]["p_pass"] == pytest.approx(record["p_pass"], abs=1e-6)
    assert found[0]["pass"] is bool(record["answer"])
    assert (found[0]["stage"], found[0]["event"], found[0]["input"]) == (stage, "rater", str(recording))


def test_predict_in_a_fresh_process_gives_json_lines_and_goes_on_past_what_it_cannot_read(
    finished: Path, tmp_path: Path, luthier: Luthier
) -> None:
    recording, row = held_out(finished, "1964", tmp_path)
    (tmp_path / "torn.wav").write_bytes(recording.read_bytes()[:20])
    record = next(item for item in read_jsonl(finished / "stages/1964/predictions.jsonl") if item["id"] == row.id)
    inputs = [tmp_path / "torn.wav", recording, tmp_path / "absent.wav"]
    done = luthier("predict", finished, *inputs, "--question", row.text)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["input"] for line in lines] == [str(path) for path in inputs]
    assert ["error" in line for line in lines] == [True, False, True]
    assert lines[1]["p_pass"] == pytest.approx(record["p_pass"], abs=1e-6)
    alone = luthier("predict", finished, tmp_path / "torn.wav")
    assert alone.returncode == 2
    assert "error" in json.loads(alone.stdout)


def test_the_record_scored_from_outside_gives_the_same_figures(finished: Path) -> None:
    for stage in ("1764", "1964"):
        folder = finished / "stages" / stage
        inside, outside = read_json(folder / "scores.json"), verbs.score(folder / "predictions.jsonl", event="rater")
        for name in ("accuracy", "auroc", "brier", "log_loss", "borderline.accuracy"):
            assert outside[name]["value"] == pytest.approx(inside[name]["value"], abs=1e-9)
            assert outside[name]["n"] == inside[name]["n"]


def test_check_of_what_cannot_be_reached_names_all_of_it_and_checks_the_rest(luthier: Luthier, forms: Path) -> None:
    recipe = ROOT / "recipes" / "speaking.yaml"
    done = luthier("check", recipe, "--set", f"data.sources.form-1764-train.path={forms / 'form-1764-train.parquet'}")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    refused = done.stderr[done.stderr.index("luthier: ") :]
    for name in ("form-1764-test", "form-1964-train", "form-1964-test"):
        assert f"data.sources.{name}:" in refused
        assert f"--set data.sources.{name}.path=FILE" in refused
    assert "model.base: microsoft/Phi-4-multimodal-instruct cannot be reached" in refused
    assert "data.sources.form-1764-train:" not in refused
    assert "form-1764-train  train  48" in done.stderr
    assert "targets: votes" in done.stderr


def test_rehearse_walks_the_real_recipe_offline(luthier: Luthier, tmp_path: Path) -> None:
    done = luthier("rehearse", ROOT / "recipes" / "speaking.yaml", "--out", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("simulated answers stand in for it") == 4
    assert set(json.loads(done.stdout.splitlines()[-1])["stages"]) == {"1764", "1964"}
    run = tmp_path / "out" / "run"
    assert read_json(run / "stages/1964/stage.json")["start_from"] == "1764"
    about = read_json(run / "stages/1764/stage.json")
    assert 0 < about["trainable_parameters"] < about["total_parameters"]
    assert len(read_jsonl(run / "stages/1764/predictions.jsonl")) <= 64


@pytest.mark.parametrize("readout", ["ordinal", "head"])
def test_the_other_readouts_run_and_predict(small: Path, tmp_path: Path, readout: str) -> None:
    figures = verbs.run(small, tmp_path / "run", [f"task.readout={readout}", "task.ranking_weight=0.1"])
    assert set(figures["stages"]["1964"]["auroc"]) == {"value", "ci", "n"}
    recording, row = held_out(tmp_path / "run", "1964", tmp_path)
    record = next(item for item in read_jsonl(tmp_path / "run/stages/1964/predictions.jsonl") if item["id"] == row.id)
    extra = {"p_panel", "p_rater", "grade_mean"}
    assert extra & set(record) == (extra if readout == "ordinal" else set())
    found = next(verbs.predict(tmp_path / "run", [recording], row.text))
    for name in {"p_pass"} | (extra & set(record)):
        assert found[name] == pytest.approx(record[name], abs=1e-6)
    if readout == "ordinal":
        assert 1 <= record["grade_mean"] <= 5


def test_new_learned_tokens_differ_from_those_taken_over(small: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    # Both in one go: bits of a run are those of a process that did the same before it.
    verbs.run(small, tmp_path / "reused")
    verbs.run(small, tmp_path / "run", ["stages.1964.learned_tokens=new"])
    runs = (tmp_path / "reused", tmp_path / "run")
    first = [load_file(run / "stages/1764/adapter/adapter_model.safetensors") for run in runs]
    assert all((first[0][name] == first[1][name]).all() for name in first[0])
    second: list[dict[str, Any]] = [load_file(run / "stages/1964/adapter/adapter_model.safetensors") for run in runs]
    assert any((second[0][name] != second[1][name]).any() for name in second[0])
    records = [read_json(run / "stages/1964/stage.json") for run in runs]
    assert [record["learned_tokens"] for record in records] == ["reuse", "new"]
    assert [record["start_from"] for record in records] == ["1764", "1764"]
