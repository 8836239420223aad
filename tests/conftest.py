"""Shared by the end-to-end tests: simulated tables, a small recipe over them, one finished run, the command line."""

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from support.children import OFFLINE, ROOT, Luthier, environment

# Sums depend on how many threads share them, and tests compare bits with children, which have one. torch reads this
# when it is imported, which is after this file.
os.environ["OMP_NUM_THREADS"] = OFFLINE["OMP_NUM_THREADS"]
# A shell has what it starts in the background ignore ctrl-C, and children of tests would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says who else had the processor. The quick tests try the same examples each time, so that a
# change is judged by itself; `make test-all` draws new ones.
settings.register_profile("same", deadline=None, derandomize=True)
settings.register_profile("new", deadline=None)
settings.load_profile("same")


def _as_found() -> None:
    """Put this process's arithmetic back: tests compare bits with other processes, in whatever order they run."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.backends.mkldnn.matmul.fp32_precision = "none"
        torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """All modules are there and stay: no collection of garbage need look through them again (0.6 s each time)."""
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """No test begins with what another one, or a module at its import, has left."""
    _as_found()


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> Generator[None, Any, Any]:
    """What a shared fixture leaves would else be there for its first test alone."""
    try:
        return (yield)
    finally:
        if fixturedef.scope != "function":
            _as_found()


@pytest.fixture(autouse=True)
def process_as_found(home_of_its_own: Path) -> Iterator[None]:
    """The command line, called within this process, sets variables that children inherit, and handlers of signals."""
    variables = dict(os.environ)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for name in os.environ.keys() - variables.keys():
        del os.environ[name]
    os.environ.update({name: value for name, value in variables.items() if os.environ.get(name) != value})
    for number, handler in handlers.items():
        signal.signal(number, handler)


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
