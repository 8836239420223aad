"""A loopback hub, and a package that is quick to make."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from luthier.publishing.package import Package
from support.hub import Hub
from support.hubserver import running_hub
from support.packages import fill, sealed


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """Huggingface_hub of this process speaks to it, with a home of its own."""
    from huggingface_hub import constants

    with running_hub() as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        yield found


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Package]:
    """Packages; equal words give equal bytes."""

    def package(words: str = "one", owner: str = "me", large: int = 40_000) -> Package:
        folder = tmp_path / f"{words}-{owner}-{large}"
        if not folder.exists():
            fill(folder, words, owner, large)
        return sealed(folder, owner)

    return package
