"""Shared by the end-to-end tests: simulated tables, a small recipe over them, one finished run, the command line."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.children import ROOT, Luthier, environment


@pytest.fixture(autouse=True)
def products_as_found() -> Iterator[None]:
    """What a test makes of this process's float32 products ends with it: tests compare bits with other processes."""
    yield
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.backends.mkldnn.matmul.fp32_precision = "none"


@pytest.fixture(scope="session", autouse=True)
def home_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test counts its looks at exams in the user's own ledger."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("home")
        patch.setenv("LUTHIER_HOME", str(home))
        yield home


@pytest.fixture(scope="session")
def luthier() -> Luthier:
    """The command line in a process of its own."""

    def call(*words: Any, **options: Any) -> subprocess.CompletedProcess[str]:
        more = options.pop("env", {})
        return subprocess.run(
            [sys.executable, "-m", "luthier.cli", *map(str, words)],
            capture_output=True,
            text=True,
            timeout=120,
            env=environment(**more),
            **options,
        )

    return call


@pytest.fixture(scope="session")
def forms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four tables of simulated answers."""
    from luthier.data.simulate import write_forms

    folder = tmp_path_factory.mktemp("forms") / "data"
    write_forms(folder, sizes={"1764": (48, 24), "1964": (32, 24)})
    return folder


@pytest.fixture(scope="session")
def small(forms: Path) -> Path:
    """The quickstart's recipe over these tables, cut to one epoch."""
    text = (ROOT / "recipes" / "quickstart.yaml").read_text(encoding="utf-8")
    for old, new in (("path: data/", f"path: {forms}/"), ("epochs: 8", "epochs: 1"), ("log_every: 5", "log_every: 1")):
        assert old in text
        text = text.replace(old, new)
    path = forms.parent / "small.yaml"
    path.write_text(text + "\nevaluate: {resamples: 50}\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def finished(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two stages. Tests that change it work on a copy."""
    from luthier import verbs

    folder = tmp_path_factory.mktemp("finished") / "run"
    verbs.run(small, folder)
    return folder
