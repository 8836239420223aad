"""Rows that cannot be used, a disk that fills, a stop in the middle: said, counted, and nothing torn."""

import os
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from luthier import verbs
from luthier.errors import DataError, RecipeError
from luthier.files import MANIFEST, read_json, read_jsonl, verify_folder
from support.children import environment

Luthier = Callable[..., CompletedProcess[str]]
Rows = list[dict[str, Any]]
TRAIN = "form-1764-train"


@pytest.fixture
def changed(forms: Path, tmp_path: Path) -> Callable[[Callable[[Rows], Rows]], str]:
    """The first training table with its rows changed, as an override."""

    def change(edit: Callable[[Rows], Rows]) -> str:
        table = pq.read_table(forms / f"{TRAIN}.parquet")
        pq.write_table(pa.Table.from_pylist(edit(table.to_pylist()), schema=table.schema), tmp_path / "changed.parquet")
        return f"data.sources.{TRAIN}.path={tmp_path / 'changed.parquet'}"

    return change


def silence(folder: Path) -> bytes:
    soundfile.write(folder / "silence.wav", np.zeros(16000, dtype=np.float32), 16000)
    return (folder / "silence.wav").read_bytes()


def test_rows_that_cannot_be_used_are_dropped_and_counted_one_by_one(small: Path, tmp_path: Path, changed: Any) -> None:
    quiet = silence(tmp_path)

    def spoil(rows: Rows) -> Rows:
        rows[0]["grade"] = 9.0
        rows[1]["grade"] = float("nan")
        rows[2]["audio"]["bytes"] = b"not a recording"
        rows[3]["audio"]["bytes"] = quiet
        rows[4]["prompt"] = "  "
        rows[5]["audio"] = None
        return [*rows, rows[10], rows[11]]

    run = tmp_path / "run"
    verbs.run(small, run, [changed(spoil)])
    lines = read_jsonl(run / "data" / "ledger.jsonl")
    about = next(line for line in lines if line["source"] == TRAIN and "in" in line)
    assert (about["in"], about["kept"], about["merged"]) == (50, 42, 2)
    assert about["in"] == about["kept"] + about["merged"] + sum(about["dropped"].values())
    assert about["dropped"].keys() >= {"grade_outside_scale", "grade_not_a_number", "missing_prompt", "missing_audio"}
    dropped = [line for line in lines if "reason" in line]
    assert [line["origin"].split()[1] for line in dropped] == [f"1764-train-{number:04d}" for number in range(6)]
    assert "silen" in dropped[3]["reason"]
    assert len({line["reason"] for line in dropped}) == 6
    assert "9" in dropped[0]["detail"]


def test_a_table_without_one_usable_row_is_refused_with_the_reasons(small: Path, tmp_path: Path, changed: Any) -> None:
    override = changed(lambda rows: [{**row, "grade": 90.0} for row in rows])
    with pytest.raises(DataError, match="none of its 48 records can be used: 48 grade_outside_scale") as caught:
        verbs.run(small, tmp_path / "run", [override])
    assert caught.value.exit_code == 2
    assert not (tmp_path / "run" / "data").exists()
    assert read_json(tmp_path / "run" / "run.json")["status"] == "failed"


def test_a_speaker_on_both_sides_is_refused_by_name(small: Path, tmp_path: Path, changed: Any) -> None:
    def leak(rows: Rows) -> Rows:
        return [{**row, "speaker": "1764-test-s000"} if number < 3 else row for number, row in enumerate(rows)]

    override = changed(leak)
    with pytest.raises(DataError, match="speaker is in both train and test: 1764-test-s000") as caught:
        verbs.run(small, tmp_path / "run", [override])
    assert caught.value.exit_code == 2
    with pytest.raises(RecipeError, match="1764-test-s000"):
        verbs.check(small, [override])


def test_the_same_recording_on_both_sides_is_refused(small: Path, forms: Path, tmp_path: Path, changed: Any) -> None:
    tested = pq.read_table(forms / "form-1764-test.parquet").to_pylist()
    override = changed(lambda rows: [{**rows[0], "audio": tested[0]["audio"]}, *rows[1:]])
    with pytest.raises(DataError, match="1 recording is in both train and test"):
        verbs.run(small, tmp_path / "run", [override])


def without_torn_files(folder: Path) -> None:
    """Everything under a final name is whole."""
    assert not [path for path in folder.rglob("*") if path.name.startswith(".tmp-")]
    for manifest in folder.rglob(MANIFEST):
        assert verify_folder(manifest.parent) is None
    for path in folder.rglob("*.json"):
        read_json(path)
    for path in folder.rglob("*.jsonl"):
        read_jsonl(path)
    for path in folder.rglob("*.html"):
        assert path.read_text(encoding="utf-8").rstrip().endswith("</html>")


@pytest.mark.parametrize(
    ("limit", "missing", "there"),
    [
        (60_000, "data", "run.json"),
        (350_000, "stages/1764/checkpoints/step-000003", "data/manifest.json"),
        (900_000, "report.html", "stages/1964/stage.json"),
    ],
    ids=["data", "checkpoint", "report"],
)
def test_a_disk_that_fills_is_one_message_and_the_run_goes_on_when_there_is_room(
    small: Path, tmp_path: Path, luthier: Luthier, limit: int, missing: str, there: str
) -> None:
    def fill() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    run = tmp_path / "run"
    words = ["run", small, "--out", run]
    done = luthier(*words, preexec_fn=fill)
    assert done.returncode == 1, done.stderr
    assert "could not be written: File too large" in done.stderr
    assert "mend: free some space" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (run / missing).exists()
    assert (run / there).is_file()
    without_torn_files(run)
    verbs.run(small, run, resume=True)
    assert (run / missing).exists()
    assert read_json(run / "run.json")["status"] == "finished"
    without_torn_files(run)


@pytest.mark.parametrize(
    "number",
    [pytest.param(signal.SIGINT, id="ctrl-c"), pytest.param(signal.SIGTERM, id="SIGTERM", marks=pytest.mark.slow)],
)
def test_a_stop_in_the_middle_prints_a_line_that_goes_on_with_it(
    small: Path, tmp_path: Path, luthier: Luthier, number: signal.Signals
) -> None:
    run = tmp_path / "a run"
    words = [
        "run",
        str(small),
        "--out",
        str(run),
        "--set",
        "train.epochs=30",
        "--set",
        "train.save_every=1000",
        "--set",
        "stages.1964.train.epochs=1",
    ]
    metrics = run / "stages" / "1764" / "metrics.jsonl"
    with subprocess.Popen(
        [sys.executable, "-m", "luthier.cli", *words], stderr=subprocess.PIPE, text=True, env=environment()
    ) as process:
        limit = time.monotonic() + 60
        while not metrics.is_file() and process.poll() is None and time.monotonic() < limit:
            time.sleep(0.005)
        os.kill(process.pid, number)
        error = process.communicate(timeout=60)[1]
    assert process.returncode == 130, error
    assert "Traceback" not in error
    assert "stopped after step" in error
    assert read_json(run / "run.json")["status"] == "interrupted"
    stopped = read_jsonl(metrics)
    assert 0 < stopped[-1]["step"] < 90
    without_torn_files(run)
    line = next(line for line in error.splitlines() if "--resume" in line)
    resumed = luthier(*shlex.split(line[line.index("luthier run") :])[1:])
    assert resumed.returncode == 0, resumed.stderr
    steps = read_jsonl(metrics)
    assert [record["step"] for record in steps] == list(range(1, 91))
    assert steps[: len(stopped)] == stopped
    assert read_json(run / "run.json")["status"] == "finished"
