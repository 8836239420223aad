"""The benchmark of the rows runs at a small size: both sides keep the same conversations, and the table is printed."""

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
