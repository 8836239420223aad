"""An upload is killed at any request, and run again: the files are whole, and only the one that was cut went twice."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from luthier.publishing.package import Package
from luthier.publishing.patience import Patience
from luthier.publishing.request import PublishRequest
from support.children import ROOT, environment
from support.hub import Hub
from support.packages import LARGE_FILES, send

REPO = "group/model"
LARGE = 2_000_000
REQUESTS = 22
"""Of an upload that nothing disturbs (its first test counts them)."""


def killed_at(hub: Hub, package: Package, point: int | str) -> bool:
    """Upload in a child, and kill it at a request (from 1), or as the bytes of a large file come in."""
    words = [sys.executable, "-m", "support.packages", str(package.folder), hub.url, REPO]
    path = f"{ROOT / 'src'}:{ROOT / 'tests'}"
    child = subprocess.Popen(words, env=environment(PYTHONPATH=path, HF_HUB_OFFLINE="0", HF_ENDPOINT=hub.url))
    seen = []

    def tick(route: str) -> None:
        with hub.lock:
            seen.append(route)
            here = route == point if isinstance(point, str) else len([one for one in seen if one != "body"]) == point
            if here and child.poll() is None:
                child.send_signal(signal.SIGKILL)

    hub.tick = tick
    code = child.wait(60)
    hub.tick = lambda route: None
    return code == -signal.SIGKILL


def whole_after(hub: Hub, package: Package) -> None:
    """What must hold once the line was run again."""
    repo = hub.repos[REPO]
    assert hub.main(REPO) == {name: file.sha256 for name, file in package.files.items()}
    assert list(repo.branches) == ["main"]
    assert len(repo.shown) == 2
    assert sum(hub.received.values()) <= (len(LARGE_FILES) + 1) * LARGE


@pytest.mark.parametrize("point", ["body", "commit", "unbranch"])
def test_a_killed_upload_is_whole_after_the_same_line_again(hub: Hub, make: Callable[..., Package], point: str) -> None:
    package = make(large=LARGE)
    assert killed_at(hub, package, point)
    send(package, hub.url, PublishRequest(REPO), Patience())
    whole_after(hub, package)


@pytest.mark.slow
@pytest.mark.parametrize("point", range(1, REQUESTS + 1))
def test_an_upload_can_be_killed_at_every_request(hub: Hub, make: Callable[..., Package], point: int) -> None:
    package = make(large=LARGE)
    assert killed_at(hub, package, point)
    send(package, hub.url, PublishRequest(REPO), Patience())
    whole_after(hub, package)


def test_the_points_are_all_that_there_are(hub: Hub, make: Callable[..., Package]) -> None:
    send(make(large=LARGE), hub.url, PublishRequest(REPO), Patience())
    assert sum(hub.requests.values()) == REQUESTS
