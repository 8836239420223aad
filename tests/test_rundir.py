"""One run, one process; nothing that exists is overwritten; a resumed curve is cut where it goes on."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.errors import ExistsError, RequestError
from luthier.files import read_jsonl, write_json
from luthier.rundir import RunDir, truncate_metrics

HOLD = """
import sys
from pathlib import Path
from luthier.rundir import RunDir
with RunDir(Path(sys.argv[1])).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_and_the_lock_dies_with_its_holder(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RequestError, match="another process is working on this run"), run.lock():
            raise AssertionError("the lock was given twice")
    finally:
        holder.kill()
        holder.communicate()
    with run.lock():
        assert (run.path / ".lock").is_file()


def test_a_refused_process_does_not_touch_what_the_holder_is_writing(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run")
    with run.lock():
        half = run.path / ".tmp-run.json-1"
        half.write_text("being written")
        with pytest.raises(RequestError), RunDir(run.path).lock():
            raise AssertionError("the lock was given twice")
        assert half.is_file()
    with run.lock():
        assert not half.exists()


@pytest.mark.parametrize("inside", ["file", "folder", "itself a file"])
def test_a_folder_that_holds_anything_is_refused_and_left_alone(tmp_path: Path, inside: str) -> None:
    path = tmp_path / "run"
    if inside == "itself a file":
        path.write_text("mine")
    else:
        path.mkdir()
        (path / "thing").mkdir() if inside == "folder" else (path / "thing").write_text("mine")
    with pytest.raises(ExistsError, match="nothing that exists is overwritten") as caught:
        RunDir.create(path)
    assert caught.value.exit_code == 2
    assert "--out" in caught.value.mend
    assert path.read_text() == "mine" if path.is_file() else [item.name for item in path.iterdir()] == ["thing"]


def test_an_empty_folder_may_become_a_run_and_one_that_cannot_be_made_is_a_request_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert RunDir.create(tmp_path / "empty").path.is_dir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(RequestError, match="cannot be made"):
        RunDir.create(tmp_path / "file" / "run")


def test_a_folder_without_run_json_is_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="not a run"):
        RunDir.open(tmp_path)
    write_json(tmp_path / "run.json", {"status": "new", "seed": 3})
    run = RunDir.open(tmp_path)
    run.update_manifest(status="running")
    assert run.read_manifest() == {"status": "running", "seed": 3}


def test_a_stage_is_finished_when_its_record_is_there(tmp_path: Path) -> None:
    stage = RunDir.create(tmp_path / "run").stage("1764")
    assert not stage.finished
    write_json(stage.record, {})
    assert stage.finished


@pytest.mark.parametrize(("step", "left"), [(0, []), (2, [1, 2]), (3, [1, 2]), (9, [1, 2, 4])])
def test_metrics_are_cut_after_a_step_and_their_lines_kept(tmp_path: Path, step: int, left: list[int]) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": number, "loss": 1.0 / 3.0}) + "\n" for number in (1, 2, 4)]
    path.write_text("".join(lines) + '{"step": 5, "lo')  # torn by a kill
    truncate_metrics(path, step)
    assert [row["step"] for row in read_jsonl(path)] == left
    assert path.read_text() == "".join(lines[: len(left)])


def test_cutting_metrics_that_are_not_there_makes_none(tmp_path: Path) -> None:
    truncate_metrics(tmp_path / "metrics.jsonl", 3)
    assert list(tmp_path.iterdir()) == []
