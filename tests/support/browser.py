"""Headless Chromium for pages: a served app, a browser whose microphone plays a file, what a page asked for."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from support.servers import running

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
MICROPHONE = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
WIDTHS = {390: 844, 1440: 900}
"""A phone and a desk: width and height of the window."""
needs_chromium = pytest.mark.skipif(not CHROMIUM.exists(), reason="no Chromium at /usr/bin/chromium")


@dataclass
class Seen:
    """What a page did: addresses it asked for, and what its console said that was not mere news."""

    asked: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def outside(self, address: str) -> list[str]:
        """Requests beyond the server at `address`."""
        return [url for url in self.asked if not url.startswith((address, "data:", "blob:", "about:"))]


@contextmanager
def served(services: Any) -> Iterator[str]:
    """The whole server over these parts on a free port; its address. The parts are closed at the end."""
    from luthier.serve.server import create_server

    with running(create_server(services)) as address:
        yield address
    services.close()


@contextmanager
def chromium(microphone: Path | None = None) -> Iterator[Any]:
    """A browser; `microphone`: a WAV that it hears again and again."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=str(CHROMIUM), args=_flags(microphone))
        yield browser
        browser.close()


@contextmanager
def another(browser: Any, microphone: Path) -> Iterator[Any]:
    """One more browser beside one that is open, which hears another file: there is one Playwright a thread."""
    found = browser.browser_type.launch(executable_path=str(CHROMIUM), args=_flags(microphone))
    yield found
    found.close()


def _flags(microphone: Path | None) -> list[str]:
    return [*FLAGS, *MICROPHONE, f"--use-file-for-fake-audio-capture={microphone}"] if microphone else FLAGS


def open_page(
    browser: Any, address: str, width: int = 1440, ready: str = ".turns, .empty", **options: Any
) -> tuple[Any, Seen]:
    """A page in a browser profile of its own; `ready`: what is there once it was filled."""
    context = browser.new_context(viewport={"width": width, "height": WIDTHS[width]}, **options)
    context.grant_permissions(["microphone"])
    page, seen = context.new_page(), Seen()
    page.on("request", lambda request: seen.asked.append(request.url))
    page.on("console", lambda message: seen.said.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: seen.said.append(str(error)))
    page.set_default_timeout(15_000)
    page.goto(address)
    page.wait_for_selector(ready)
    return page, seen


def overflow(page: Any) -> int:
    """How many pixels the page is wider than its window."""
    return int(page.evaluate("() => document.documentElement.scrollWidth - window.innerWidth"))
