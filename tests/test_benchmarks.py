"""The benchmarks run at a small size: both sides do the same work, and the table is printed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support.children import ROOT, environment


@pytest.mark.slow
def test_the_benchmark_of_rows_compares_equal_outputs(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    out = tmp_path / "results.json"
    command = [sys.executable, ROOT / "benchmarks" / "data" / "run.py", "--rows", "900", "--repeats", "1"]
    done = subprocess.run(
        [*map(str, command), "--jobs", "build", "rates", "--out", str(out)],
        env=environment(TMPDIR=str(tmp_path)),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "datasets" in done.stdout + done.stderr
    figures = json.loads(out.read_text())
    assert "build | ours" in json.dumps(figures)


@pytest.mark.slow
def test_the_benchmark_of_pictures_compares_equal_losses_and_values(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    command = [sys.executable, ROOT / "benchmarks" / "vision" / "run.py", "--jobs", "toy", "decode", "--toy", "12"]
    done = subprocess.run(
        [*map(str, command), *"--decode 1 --repeats 1 --threads 1 --sides live --out".split(), str(out)],
        env=environment(TMPDIR=str(tmp_path)),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Phi-3-vision" in done.stdout
    figures = json.loads(out.read_text())["figures"]
    [stored], [live] = figures["toy | stored"], figures["toy | live"]
    assert stored["kept"]
    assert not live["kept"]
    assert stored["losses"] == pytest.approx(live["losses"], abs=1e-5)
    assert stored["losses"][-1] < stored["losses"][0]
