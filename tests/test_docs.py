"""The examples of the documentation run as they stand."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.children import ROOT, environment

SLOW = ["exams.md", "expert.md", "compare.md", "describer.md"]
PAGES = ["rows.md", "steps.md", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", PAGES)
def test_the_blocks_of_a_page_run_in_order(name: str, tmp_path: Path) -> None:
    script = "\n".join(
        [
            "set -euo pipefail",
            f'luthier() {{ "{sys.executable}" -m luthier.cli "$@"; }}',
            *blocks(ROOT / "docs" / name),
        ]
    )
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=environment(LUTHIER_CACHE=str(tmp_path / ".cache")),
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout + done.stderr
