"""`luthier exam` beside lm-evaluation-harness on one model and one file: equal item by item, where it is installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.files import read_json, read_jsonl
from support.children import ROOT, Luthier, environment

BENCH = ROOT / "benchmarks" / "exam"
PEER = ROOT / ".venv-lm-eval" / "bin" / "python"
QUESTIONS = 24

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PEER.is_file(), reason="lm-evaluation-harness is not installed (make .venv-lm-eval/ready)"),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy in a folder, and exams in the shapes of binary choices, PIQA and WinoGrande."""
    folder = tmp_path_factory.mktemp("harness") / "files"
    make = [sys.executable, BENCH / "generate.py", folder, "--questions", QUESTIONS, "--adapters", 0, "--bases", "toy"]
    subprocess.run(list(map(str, make)), check=True, env=environment(), capture_output=True, timeout=120)
    return folder


@pytest.mark.parametrize(
    ("case", "exam", "words"),
    [
        ("letters", "questions", ["--method", "letters", "--one-order"]),
        ("letters-5", "questions", ["--method", "letters", "--one-order", "--shots", 5, "--pool", "POOL"]),
        ("piqa", "piqa", ["--method", "text"]),
        ("winogrande", "winogrande", ["--method", "text"]),
    ],
)
def test_every_item_has_the_harness_answer(
    files: Path, tmp_path: Path, luthier: Luthier, case: str, exam: str, words: list[str | int]
) -> None:
    kept = tmp_path / "theirs.json"
    command = [PEER, BENCH / "theirs.py", files, "toy", case, "--threads", 1, "--batch", 4, "--answers", kept]
    peer = subprocess.run(
        list(map(str, command)), env=environment(), capture_output=True, text=True, timeout=300, check=False
    )
    assert peer.returncode == 0, peer.stderr[-2000:]
    theirs = json.loads(kept.read_text())
    pool = files / "exams" / "pool.jsonl"
    given = [pool if word == "POOL" else word for word in words]
    out = tmp_path / "ours"
    done = luthier(
        *("exam", files / "exams" / f"{exam}.jsonl", "--model", files / "toy", "--plain", "--no-cache", "--out", out),
        *given,
    )
    assert done.returncode == 0, done.stderr
    place = out / "exams" / exam
    ours = list(read_jsonl(place / "base" / "predictions.jsonl"))
    assert len(ours) == len(theirs) == QUESTIONS
    for mine, other in zip(ours, theirs, strict=True):
        # The harness sums in float32: over 100 nats its last places alone are more than the 2e-5 that are asked for.
        assert mine["logprobs"] == pytest.approx(other, abs=2e-5, rel=2e-7)
        assert mine["choice"] == max(range(2), key=other.__getitem__)
    right = [max(range(2), key=other.__getitem__) == mine["answer"] for mine, other in zip(ours, theirs, strict=True)]
    assert read_json(place / "base" / "scores.json")["accuracy"]["value"] == pytest.approx(sum(right) / QUESTIONS)
