"""The report of a small made-up run: what it says, what it embeds, and that it opens offline."""

import base64
import io
import json
import re
import wave
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from luthier import files
from luthier.errors import SourceError
from luthier.outcome import clips, figures
from luthier.outcome.report import write_report

CHROMIUM = Path("/usr/bin/chromium")
GRADES = (2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0)
ATTACK = "<script>alert('x')</script> Describe your town & street."


def tone(seconds: float, pitch: float) -> bytes:
    """A 16-bit mono wav of 16 kHz."""
    wanted = (8000 * np.sin(2 * np.pi * pitch * np.arange(int(16000 * seconds)) / 16000)).astype("<i2")
    target = io.BytesIO()
    with wave.open(target, "wb") as sink:
        sink.setnchannels(1)
        sink.setsampwidth(2)
        sink.setframerate(16000)
        sink.writeframes(wanted.tobytes())
    return target.getvalue()


def figure(value: float, n: int = 120) -> dict[str, object]:
    return {"value": value, "ci": [round(value - 0.04, 4), round(value + 0.04, 4)], "n": n}


def write_data(run: Path, count: int, seconds: float) -> None:
    """Rows with a question and a recording each, in two shards, and a ledger that adds up."""
    rows = []
    for index in range(count):
        data = tone(seconds, 200 + index)
        digest = files.sha256_bytes(data)
        files.write_bytes(run / "data/media" / digest, data)
        content = [{"type": "text", "text": ATTACK}, {"type": "audio", "media": f"sha256:{digest}"}]
        rows.append(
            {
                "id": f"row-{index:03}",
                "messages": json.dumps([{"role": "user", "content": content}]),
                "target": json.dumps({"grade": GRADES[index % 7]}),
                "group": f"speaker-{index % 9}",
                "split": "test",
                "source": "1764",
            }
        )
    for shard in (0, 1):
        parquet.write_table(pa.Table.from_pylist(rows[shard::2]), run / f"data/rows-{shard:05}.parquet")
    files.write_jsonl(
        run / "data/ledger.jsonl",
        [
            {"source": "form-1764", "in": 130, "kept": 120, "merged": 3, "dropped": {"silent": 5, "too_long": 2}},
            {"source": "form-1964", "in": 80, "kept": 80, "merged": 0, "dropped": {}},
            {"source": "form-1764", "origin": "a.csv:7", "reason": "silent", "detail": "peak <0.001"},
        ],
    )


def write_stage(run: Path, name: str, count: int, skill: float) -> None:
    """The records of one stage, seeded by its name."""
    rng, base = np.random.default_rng(int(name)), run / "stages" / name
    predictions = []
    for index in range(count):
        grade = GRADES[index % 7]
        logit = skill * (grade - 3.6) + rng.normal()
        p = float(1 / (1 + np.exp(-logit)))
        predictions.append(
            {
                "id": f"row-{index:03}",
                "source": name,
                "group": f"speaker-{index % 9}",
                "grade": grade,
                "pass": grade >= 4,
                "answer": "pass" if p > 0.5 else "fail",
                "p_pass": p,
                "p_pass_calibrated": float(1 / (1 + np.exp(-logit / 1.3))),
                "event": "rater",
                "held_back": [4.0],
            }
        )
    files.write_jsonl(base / "predictions.jsonl", predictions)
    files.write_jsonl(
        base / "metrics.jsonl",
        [
            {
                "step": step,
                "epoch": step / 40,
                "loss": 0.3 + 0.4 * np.exp(-step / 30) + 0.02 * rng.normal(),
                "learning_rate": 1e-4,
                "grad_norm": 1.0,
                "tokens": 900,
                "seconds": 0.5,
                **({"validation_loss": 0.35 + 0.2 * float(np.exp(-step / 40))} if step % 40 == 0 else {}),
            }
            for step in range(1, 201)
        ],
    )
    files.write_json(
        base / "scores.json",
        {
            "accuracy": figure(0.8312),
            "auroc": figure(0.84 + skill / 50),
            "log_loss": figure(0.391),
            "brier": figure(0.121),
            "ece": figure(0.051),
            "borderline.accuracy": figure(0.71, 34),
            "borderline.auroc": figure(0.733, 34),
            "closer": figure(0.667, 17),
            "calibrated.log_loss": figure(0.377),
            "grades": {"3.5": {"mean_p": 0.48, "n": 17}},
            "reference": {"bayes.auroc": figure(0.9615), "ratio.auroc": {"value": 0.9421, "ci": None, "n": 120}},
        },
    )
    files.write_json(
        base / "stage.json",
        {
            "name": name,
            "start_from": "base",
            "learned_tokens": ["<|grade|>"],
            "steps": 200,
            "seconds": 754.2,
            "epochs": 5,
            "trainable_parameters": 1234567,
            "total_parameters": 5574460384,
            "target_table": [[3.0, 0.0], [3.5, 0.5], [4.0, 1.0]],
            "target": {"method": "votes", "event": "rater", "formula": "0 (g<=3), 0.5, 1 (g>=4)"},
            "checks": {"deafness": {"auroc_shuffled": figure(0.512), "hears": True, "message": "It hears."}},
            "calibration": {"temperature": 1.31, "accepted": True, "nll_before": 0.402, "nll_after": 0.381, "n": 92},
            "answers_per_second": {"train": 3.21, "score": 11.4},
        },
    )


def write_run(run: Path, count: int = 120, seconds: float = 1.0) -> Path:
    """A finished run of two stages."""
    run.mkdir()
    write_data(run, count, seconds)
    write_stage(run, "1764", count, 1.6)
    write_stage(run, "1964", count, 2.6)
    files.write_json(
        run / "run.json",
        {
            "name": "speaking <two stages>",
            "status": "finished",
            "created": "2026-11-03 10:00",
            "finished": "2026-11-03 10:41",
            "seed": 17,
            "versions": {"torch": "2.13.0", "peft": "0.21.2"},
            "machine": {"gpu": "none", "cores": 2},
            "hashes": {"data": "ab" * 32, "base": "cd" * 32},
            "stages": ["1764", "1964"],
            "command": "luthier run recipes/speaking.yaml --seed 17",
        },
    )
    files.write_text(run / "recipe.yaml", "base: toy\ntarget: votes  # <soft>\n")
    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    run = write_run(tmp_path_factory.mktemp("report") / "run")
    path = write_report(run)
    return path, path.read_text(encoding="utf-8")


def test_it_is_written_into_the_run(finished: tuple[Path, str]) -> None:
    path, page = finished
    assert path.name == "report.html"
    assert page.lstrip().startswith("<!doctype html>")


def test_main_scores_stand_with_intervals_and_bayes(finished: tuple[Path, str]) -> None:
    _, page = finished
    assert "Stage 1964 ranks a pass above a fail with AUROC 0.892 [0.852, 0.932]" in page
    assert "the intervals overlap (difference +0.020)" in page
    assert "<b>0.831</b><small>0.791 – 0.871</small>" in page
    assert "Bayes limit, 1764" in page
    assert "<b>0.962</b>" in page
    assert "<b>0.942</b>" in page
    assert "Did stage 1964 hear the recordings? Yes." in page
    assert "0.512 [0.472, 0.552]" in page


def test_every_part_of_the_story_is_there(finished: tuple[Path, str]) -> None:
    _, page = finished
    for expected in (
        "Loss of stage 1764",
        "Reliability of stage 1964",
        "Probability by grade, stage 1764",
        "Grades 3.5 and 4 of stage 1964",
        "Temperature 1.310: accepted",
        "votes",
        "12 min 34 s",
        "luthier run recipes/speaking.yaml --seed 17",
        "target: votes",
        "2.13.0",
        "abab",
        "silent",
        "peak &lt;0.001",
        "speaking &lt;two stages&gt;",
    ):
        assert expected in page, expected
    assert page.count("<svg") == page.count('role="img"') == page.count("<desc") == 8
    assert "not run" not in page
    assert "does not add up" not in page


def test_text_of_others_is_escaped_and_nothing_is_fetched(finished: tuple[Path, str]) -> None:
    _, page = finished
    assert "<script" not in page
    assert "&lt;script&gt;alert" in page
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)
    assert "default-src 'none'" in page


def test_worst_errors_are_the_worst_and_can_be_played(finished: tuple[Path, str]) -> None:
    path, page = finished
    predictions = files.read_jsonl(path.parent / "stages/1964/predictions.jsonl")
    worst = sorted(predictions, key=lambda row: -abs(row["p_pass"] - row["pass"]))
    section = page[page.index("Stage 1964</h2>") :]
    shown = re.findall(r"Recording of (row-\d+)", section)
    assert shown == [row["id"] for row in worst[:8]]
    sound = re.search(r'src="data:audio/wav;base64,([^"]+)"', section)
    assert sound is not None
    assert base64.b64decode(sound[1])[:4] == b"RIFF"


def test_long_recordings_are_cut_and_the_page_stays_small(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", count=42, seconds=30)
    page = write_report(run).read_text(encoding="utf-8")
    sizes = [len(base64.b64decode(data)) for data in re.findall(r"base64,([^\"]+)", page)]
    assert sizes
    assert max(sizes) <= clips.CLIP_BYTES
    assert sum(sizes) <= 3 * 1024 * 1024
    assert "the first 43% of the recording" in page
    assert "not embedded (937 KB)" in page


@pytest.mark.parametrize(
    "remove",
    [
        "run.json",
        "recipe.yaml",
        "data",
        "stages/1964",
        "stages",
        "stages/1764/stage.json",
        "stages/1764/metrics.jsonl",
        "stages/1764/predictions.jsonl",
        "stages/1764/scores.json",
    ],
)
def test_what_is_missing_reads_as_not_there(tmp_path: Path, remove: str) -> None:
    import shutil

    run = write_run(tmp_path / "run", count=21, seconds=0.2)
    gone = run / remove
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    page = write_report(run).read_text(encoding="utf-8")
    assert re.search("not run|not recorded|not in the data folder", page)


def test_an_empty_folder_gives_a_page_and_no_folder_an_error(tmp_path: Path) -> None:
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "No stage of this run has been scored yet." in page
    assert "The check was not run." in page
    with pytest.raises(SourceError, match="not a run folder"):
        write_report(tmp_path / "nowhere")


def test_broken_records_are_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", count=21, seconds=0.2)
    (run / "stages/1964/scores.json").write_text('{"auroc": ')
    (run / "stages/1964/metrics.jsonl").write_text('{"step":\n{"step": 2, "loss": 1.0}\n')
    (run / "data/rows-00001.parquet").write_bytes(b"not a table")
    page = write_report(run).read_text(encoding="utf-8")
    for name in ("stages/1964/scores.json", "stages/1964/metrics.jsonl", "data/rows-00001.parquet"):
        assert f"{name} cannot be read" in page


def test_a_ledger_that_does_not_add_up_says_so(tmp_path: Path) -> None:
    files.write_jsonl(
        tmp_path / "data/ledger.jsonl", [{"source": "a", "in": 10, "kept": 7, "merged": 1, "dropped": {"silent": 1}}]
    )
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "a does not add up: 1 rows are unaccounted for" in page


def test_a_deaf_stage_is_said_to_be_deaf(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", count=21, seconds=0.2)
    about = files.read_json(run / "stages/1964/stage.json")
    about["checks"]["deafness"] |= {"hears": False, "message": "Shuffling changed nothing."}
    files.write_json(run / "stages/1964/stage.json", about)
    page = write_report(run).read_text(encoding="utf-8")
    assert 'class="hears deaf"' in page
    assert "Did stage 1964 hear the recordings? No." in page


def test_other_sources_have_rows_of_their_own(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", count=21, seconds=0.2)
    files.write_json(run / "stages/1964/scores-1764.json", {"accuracy": figure(0.6543), "auroc": figure(0.7)})
    page = write_report(run).read_text(encoding="utf-8")
    assert "Stage 1964 on 1764" in page
    assert "<b>0.654</b>" in page


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"fLaC\x00", "audio/flac"),
        (b"OggS\x00", "audio/ogg"),
        (b"ID3\x04", "audio/mpeg"),
        (b"\xff\xfb\x90", "audio/mpeg"),
        (b"\xff\xf1\x50", ""),
        (b"RIFF\0\0\0\0WAVE", "audio/wav"),
        (b"", ""),
    ],
)
def test_media_types_come_from_the_first_bytes(start: bytes, kind: str) -> None:
    assert clips.mime(start) == kind


def test_a_reference_cannot_leave_the_run(tmp_path: Path) -> None:
    (tmp_path / "data/media").mkdir(parents=True)
    (tmp_path / "secret").write_bytes(tone(0.1, 300))
    assert clips.embed(tmp_path, "sha256:../../secret", 10**6).uri == ""


@pytest.mark.skipif(not CHROMIUM.exists(), reason="no Chromium at /usr/bin/chromium")
@pytest.mark.parametrize(("width", "height"), [(390, 844), (1440, 900)])
def test_it_opens_offline_at_both_widths(finished: tuple[Path, str], width: int, height: int) -> None:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    said: list[str] = []
    asked: list[str] = []
    flags = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    with api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=str(CHROMIUM), args=flags)
        page = browser.new_page(viewport={"width": width, "height": height})
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(finished[0].resolve().as_uri())
        # "() =>" forms only: the page's policy forbids evaluating strings as code.
        page.wait_for_function("() => document.querySelector('audio').readyState > 0")
        seconds = page.evaluate("() => document.querySelector('audio').duration")
        overflow = page.evaluate("() => document.documentElement.scrollWidth - window.innerWidth")
        letters = page.evaluate(
            "() => Math.min(...[...document.querySelectorAll('.chart')].map("
            "c => 12 * c.getBoundingClientRect().width / 360))"
        )
        browser.close()
    assert seconds == pytest.approx(1.0, abs=0.05)
    assert overflow <= 0
    assert letters >= 9
    assert said == []
    assert asked
    assert all(url.startswith(("file:", "data:")) for url in asked)


@pytest.mark.parametrize(
    ("value", "printed"),
    [(None, "–"), (float("nan"), "–"), (8.25, "8.2 s"), (754.2, "12 min 34 s"), (3720, "1 h 2 min")],
)
def test_durations_print_in_their_largest_units(value: float | None, printed: str) -> None:
    assert figures.duration(value) == printed


@pytest.mark.parametrize("value", [None, {}, {"value": None}, {"value": float("inf")}, "0.9", [1]])
def test_what_is_no_figure_has_no_score(value: object) -> None:
    assert figures.score(value) == {}


def test_a_score_without_a_whole_interval_keeps_its_value() -> None:
    assert figures.score({"value": 0.5, "ci": [0.1, None], "n": 3}) == {"value": 0.5, "low": None, "high": None, "n": 3}
    assert figures.score(0.5)["low"] is None
