"""The examples of the documentation run as they stand."""

import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from luthier.data.drawing import Look, draw_card
from support import films
from support.children import ROOT, environment

SLOW = ["exams.md", "expert.md", "compare.md", "describer.md", "media.md"]
PAGES = ["rows.md", "steps.md", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def put_media(folder: Path) -> None:
    """The files that media.md says are there."""
    draw_card(Look("Coat", "Blue", "Striped", "$2140"), random.Random(1)).save(folder / "coat.png")
    draw_card(Look("Bag", "Beige", "Checked", "$1980"), random.Random(2)).save(folder / "bag.jpg")
    (folder / "gone.jpg").write_text("<html>Not found</html>", encoding="utf-8")
    (folder / "shop.mp4").write_bytes(films.film(40))
    noise = np.random.default_rng(0).normal(0, 0.1, 16000)
    soundfile.write(folder / "talk.wav", noise, 16000)


@pytest.mark.parametrize("name", PAGES)
def test_the_blocks_of_a_page_run_in_order(name: str, tmp_path: Path) -> None:
    if name == "media.md":
        put_media(tmp_path)
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
