"""Trackers mirror metrics.jsonl, know no secret, repeat no step, and never stop a run; the bar that goes with it."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import signal
import sqlite3
import struct
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from luthier import console
from luthier.errors import RequestError
from luthier.recipe import TRACKERS, Recipe, TrackConfig
from luthier.records import StepRecord
from luthier.runtime import tracking
from luthier.runtime.trackers.told import HIDDEN, Scrubber, told_about
from luthier.runtime.tracking import PACKAGES, Trackers, missing_trackers
from support.children import environment

SECRETS = {
    "HF_TOKEN": "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",
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "OPENAI_API_KEY": "sk-proj-Zz91yQ0mB7vKx3Lw8TnR2aHc",
    "ANTHROPIC_API_KEY": "sk-ant-api03-Mm4pQ7_rT-2xWv9KzLb",
    "AWS_ACCESS_KEY_ID": "AKIAQWERTYUIOP123456",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYzzzzzzKEY1",
    "GITHUB_TOKEN": "ghp_a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8",
    "GITLAB_TOKEN": "glpat-xY3zW5vU7tS9rQ1pO3nM",
    "SLACK_TOKEN": "xoxb-123456789012-abcdefghijkl",
    "GOOGLE_API_KEY": "AIzaSyA1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6Q",
    "SESSION_TOKEN": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl",
    "WANDB_V1_KEY": "wandb_v1_Pq8Rs7Tu6Vw5Xy4Za3Bc2De1",
}
BEARER = "b9f3opaquebearervalue"
URL_PASSWORD = "correct-horse-battery"
NAMED_ONLY = "quietlittlepassphrase"  # no shape; known by its variable's name
PLANTED = [*SECRETS.values(), BEARER, URL_PASSWORD, NAMED_ONLY]


def _needs(name: str) -> None:
    if absent := [package for package in PACKAGES[name] if importlib.util.find_spec(package) is None]:
        pytest.skip(f"{name} is not installed ({', '.join(absent)})")


@pytest.fixture(params=TRACKERS)
def tracker(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each tracker that is installed, with nothing of this machine's settings for it."""
    _needs(request.param)
    for name in list(os.environ):
        if name.startswith(("WANDB_", "MLFLOW_", "TRACKIO_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    return str(request.param)


def _record(step: int) -> StepRecord:
    return StepRecord(step, step / 10, 100.0 + step, 1e-4, 0.5, 64 * step, 0.1 * step)


def _about(recipe: Recipe | None = None) -> dict[str, object]:
    return {
        "recipe": asdict(recipe or Recipe(name="voice")),
        "versions": {"torch": "2.15.0"},
        "hashes": {"data": "ab" * 32},
        "command": "luthier run --token " + SECRETS["HF_TOKEN"],
        "environment": dict(SECRETS),
    }


def _open(tracker: str, run: Path, step: int = 0) -> Trackers:
    return Trackers.open(TrackConfig([tracker], "project"), "voice/one", run, _about(), step)


def _seen(tracker: str, run: Path) -> list[int]:
    """The steps at which the tracker's own files have a loss, in order; each loss is checked."""
    found = _READERS[tracker](run / "track" / tracker)
    assert all(loss == 100.0 + step for step, loss in found), found
    return [step for step, _ in found]


def _tensorboard(folder: Path) -> list[tuple[int, float]]:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(folder / "voice-one")).Reload()
    return [(item.step, item.value) for item in events.Scalars("loss")]


def _wandb(folder: Path) -> list[tuple[int, float]]:
    """Records of W&B's log: blocks of 32 KiB, each chunk with a header of 7 bytes (LevelDB's format)."""
    from wandb.proto import wandb_internal_pb2

    found = []
    for path in sorted(folder.glob("offline-run-*/*.wandb")):
        data, at, whole = path.read_bytes(), 7, b""
        while at + 7 <= len(data):
            if 2**15 - at % 2**15 < 7:
                at += 2**15 - at % 2**15
                continue
            size, kind = struct.unpack_from("<HB", data, at + 4)
            whole += data[at + 7 : at + 7 + size]
            at += 7 + size
            if kind in (1, 4):  # whole, or the last part
                record, whole = wandb_internal_pb2.Record.FromString(whole), b""
                values = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
                if "loss" in values:
                    found.append((record.history.step.num, float(values["loss"])))
    return found


def _trackio(folder: Path) -> list[tuple[int, float]]:
    with sqlite3.connect(folder / "project.db") as base:
        rows = base.execute("select step, metrics from metrics order by step").fetchall()
    return [(step, json.loads(metrics)["loss"]) for step, metrics in rows]


def _mlflow(folder: Path) -> list[tuple[int, float]]:
    with sqlite3.connect(folder / "mlflow.db") as base:
        return base.execute("select step, value from metrics where key = 'loss' order by step").fetchall()


_READERS = {"tensorboard": _tensorboard, "wandb": _wandb, "trackio": _trackio, "mlflow": _mlflow}


def test_a_resumed_run_goes_on_in_the_same_one_and_repeats_no_step(tracker, tmp_path, capsys):
    first = _open(tracker, tmp_path)
    for step in (10, 20, 30, 40):
        first.log(_record(step), step)
    first.close("interrupted")
    identity = json.loads((tmp_path / "track" / tracker / "voice-one.json").read_text())["id"]
    again = _open(tracker, tmp_path, step=20)  # the newest checkpoint
    for step in (30, 40, 50):
        again.log(_record(step), step)
    again.close("finished")
    assert _seen(tracker, tmp_path) == [10, 20, 30, 40, 50]
    assert json.loads((tmp_path / "track" / tracker / "voice-one.json").read_text()) == {"id": identity, "step": 50}
    assert [path.name for path in tmp_path.iterdir()] == ["track"]
    assert "failed" not in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_run_leaves_a_mirror_that_is_whole_and_can_go_on(tracker, tmp_path):
    script = f"""
import os, signal, time
from pathlib import Path
from luthier.recipe import TrackConfig
from luthier.runtime.tracking import Trackers
run = Path({str(tmp_path)!r})
trackers = Trackers.open(TrackConfig([{tracker!r}], "project"), "voice/one", run, {{}})
for step in (10, 20):
    trackers.log({{"loss": 100.0 + step}}, step)
state = run / "track" / {tracker!r} / "voice-one.json"
until = time.monotonic() + 30
while time.monotonic() < until and not (state.is_file() and '"step": 20' in state.read_text()):
    time.sleep(0.02)
time.sleep(0.3)
os.kill(os.getpid(), signal.SIGKILL)
"""
    child = subprocess.run([sys.executable, "-c", script], env=environment(WANDB_MODE="offline"), timeout=60)
    assert child.returncode == -signal.SIGKILL
    until = time.monotonic() + 20
    while _at_work_in(tmp_path) and time.monotonic() < until:  # the tracker's process closes the run, and leaves
        time.sleep(0.05)
    trackers = _open(tracker, tmp_path, step=10)
    for step in (20, 30):
        trackers.log(_record(step), step)
    trackers.close("finished")
    assert _seen(tracker, tmp_path) == [10, 20, 30]


@pytest.mark.slow
def test_wandb_with_a_key_and_no_server_is_kept_offline(monkeypatch, tmp_path, capsys):
    _needs("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", SECRETS["WANDB_API_KEY"])
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    trackers = _open("wandb", tmp_path)
    trackers.log(_record(10), 10)
    trackers.close("finished")
    assert _seen("wandb", tmp_path) == [10]
    assert "its server was not reached" in (said := capsys.readouterr().err)
    assert "kept offline; `wandb sync" in said
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or SECRETS["WANDB_API_KEY"].encode() not in path.read_bytes()


def _at_work_in(folder: Path) -> list[str]:
    """Processes that work in a folder."""
    found = []
    for link in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if Path(os.readlink(link)).is_relative_to(folder):
                found.append(link.parent.name)
        except OSError:  # gone meanwhile, or another's
            continue
    return found


def test_no_file_of_a_tracker_knows_a_secret(tracker, tmp_path, monkeypatch, capsys):
    for name, value in {**SECRETS, "BOX_PASSPHRASE": NAMED_ONLY, "AUTHORIZATION": f"Bearer {BEARER}"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_MODE", "offline")  # with a key it would go online
    recipe = Recipe(name="voice", vars={"where": f"https://me:{URL_PASSWORD}@host/x", **SECRETS})
    recipe.model.base = f"/models/{SECRETS['HF_TOKEN']}/{NAMED_ONLY}/base"
    recipe.task.instruction = f"Authorization: Bearer {BEARER} then " + " ".join(SECRETS.values())
    recipe.data.columns.audio = [f"s3://me:{URL_PASSWORD}@bucket/{value}.wav" for value in SECRETS.values()]
    recipe.stages = {SECRETS["GITHUB_TOKEN"]: {"api_key": "unshapely-but-named", "x": SECRETS["AWS_ACCESS_KEY_ID"]}}
    about = {**_about(recipe), "hashes": {"data": SECRETS["WANDB_API_KEY"], "rows": "ab" * 32}}
    settings = TrackConfig([tracker], "project")
    trackers = Trackers.open(settings, f"run-{SECRETS['SLACK_TOKEN']}", tmp_path, about)
    trackers.log({**_record(10).to_json(), "text": SECRETS["HF_TOKEN"]}, 10)
    trackers.close("finished")

    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    written = b"\0".join(path.read_bytes() + str(path).encode() for path in files)
    assert b"learning_rate" in written  # the config is there
    said = capsys.readouterr().err
    assert "failed" not in said
    for value in [*PLANTED, "unshapely-but-named"]:
        assert value.encode() not in written, value
        assert value not in said
    assert b"ab" * 32 in written


@pytest.mark.parametrize("secret", PLANTED[:12])
def test_a_token_is_known_by_its_shape_alone(secret):
    scrub = Scrubber({})
    for text in (secret, f"/data/{secret}/rows.jsonl", f"--token={secret}", f"x '{secret}', y"):
        assert secret not in scrub.text(text), text


def test_what_is_no_secret_is_told():
    recipe = Recipe(name="voice")
    recipe.model.base = "meta-llama/Llama-3.2-1B-Instruct"
    recipe.model.revision = "0123456789abcdef0123456789abcdef01234567"
    told = told_about(_about(recipe), {"TOKENIZERS_PARALLELISM": "false", "HOME": "/root"})
    plain = asdict(recipe)
    del plain["vars"], plain["publish"]
    assert told == {"recipe": plain, "versions": {"torch": "2.15.0"}, "hashes": {"data": "ab" * 32}}
    assert HIDDEN not in json.dumps(told)


def test_a_tracker_that_is_not_there_is_told_before_training(monkeypatch, tmp_path):
    monkeypatch.setitem(PACKAGES, "wandb", ("no_such_wandb",))
    (line,) = missing_trackers(["wandb"])
    assert line.startswith("track.trackers: wandb needs no_such_wandb")
    assert "pip install 'luthier[wandb]'" in line
    with pytest.raises(RequestError, match=r"luthier\[wandb\]"):
        _open("wandb", tmp_path)
    assert list(tmp_path.iterdir()) == []


def _with_library(monkeypatch: pytest.MonkeyPatch, folder: Path, body: str) -> None:
    """A tensorboardX of our own making in front of the real one."""
    folder.mkdir()
    (folder / "tensorboardX.py").write_text(
        "class SummaryWriter:\n"
        "    def __init__(self, *a, **k): self.seen = 0\n"
        "    def add_text(self, *a): pass\n"
        "    def flush(self): pass\n"
        "    def close(self): pass\n"
        f"    def add_scalar(self, name, value, step):\n        {body}\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{environment()['PYTHONPATH']}")
    monkeypatch.setitem(PACKAGES, "tensorboard", ("json",))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("if step == 20: raise OSError(28, 'No space left, said hf_QwErTyUiOpAsDfGhJkLzXcVb')", "No space left"),
        ("if step == 20: __import__('os')._exit(3)", "its process ended"),
        ("if step == 20: __import__('time').sleep(60)", "no answer for 1 s"),
    ],
)
def test_a_tracker_that_breaks_is_said_once_and_training_goes_on(body, reason, monkeypatch, tmp_path, capsys):
    _with_library(monkeypatch, tmp_path / "lib", body)
    monkeypatch.setattr(tracking, "CLOSING_SECONDS", 1.0 if "no answer" in reason else 30.0)
    trackers = _open("tensorboard", tmp_path / "run")
    took = []
    for step in (10, 20, 30, 40):
        start = time.perf_counter()
        trackers.log(_record(step), step)
        took.append(time.perf_counter() - start)
    trackers.close("finished")
    said = capsys.readouterr().err
    assert said.count("tensorboard failed and is no longer fed; what it misses is in metrics.jsonl") == 1
    assert reason in said
    assert "hf_Qw" not in said
    assert max(took) < 0.1  # nothing waits


def test_only_finite_numbers_are_passed_on(monkeypatch, tmp_path, capsys):
    _with_library(monkeypatch, tmp_path / "lib", "if name != 'loss': raise ValueError(name)")
    trackers = _open("tensorboard", tmp_path / "run")
    trackers.log({"loss": 1.5, "step": 10, "why": "a word", "nan": float("nan"), "inf": float("inf")}, 10)
    trackers.close("finished")
    assert capsys.readouterr().err == ""


def test_nothing_of_the_environment_reaches_a_tracker_but_what_is_its_own(monkeypatch):
    variables = {
        "HF_TOKEN": "x",
        "WANDB_API_KEY": "y",
        "WANDB_NOTES": "z",
        "TRACKIO_SPACE_ID": "me/space",
        "HOME": "/h",
    }
    seen = {name: tracking._environment_for(name, variables) for name in TRACKERS}
    for name, found in seen.items():
        assert "HF_TOKEN" not in found
        assert "TRACKIO_SPACE_ID" not in found
        assert "WANDB_NOTES" not in found
        assert ("WANDB_API_KEY" in found) == (name == "wandb")
        assert found["DO_NOT_TRACK"] == "true"
    assert os.environ.get("DO_NOT_TRACK") is None  # ours is as it was


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class _Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    made = _Clock()
    monkeypatch.setattr(console, "time", made)
    return made


def test_the_bar_shows_step_loss_rate_time_left_and_memory(clock, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with console.training_bar(total=160, done=100) as bar:
        for step in range(20):
            clock.now += 0.5
            bar.step(loss=1.25 if step == 9 else None, tokens=1000, memory=3 * 2**30)
        assert bar.line() == "step 120/160 (75%)  loss 1.2500  2,000 tokens/s  left 0:20  3.00 GiB"


def test_the_bar_forgets_slow_first_steps(clock, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    bar = console.TrainingBar(total=1000)
    clock.now += 600
    bar.step(tokens=10)
    for _ in range(200):
        clock.now += 1
        bar.step(tokens=10)
    assert "10 tokens/s  left 13:19" in bar.line()


def test_a_log_file_gets_plain_lines_now_and_then(clock, monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with console.training_bar(total=100) as bar:
        for _ in range(100):
            clock.now += 0.5
            bar.step(tokens=1)
    lines = stream.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["30/100", "60/100", "90/100", "100/100"]
    assert "\r" not in stream.getvalue()


def test_a_terminal_is_redrawn_at_most_ten_times_a_second_in_one_line(clock, monkeypatch):
    stream = _Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(console.shutil, "get_terminal_size", lambda _: os.terminal_size((30, 24)))
    with console.training_bar(total=1000) as bar:
        for _ in range(1000):
            clock.now += 0.001
            bar.step(loss=1.0, tokens=5)
    drawn = [part for part in stream.getvalue().split("\r") if part.strip().startswith("step")]
    assert 9 <= len(drawn) <= 12
    assert stream.getvalue().count("\n") == 1
    assert max(len(part.strip()) for part in drawn) <= 29
