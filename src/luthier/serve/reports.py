"""Offline pages of runs, shown by the server: only those named here, each under a word that cannot be guessed.

They are sealed off: a page opened from here belongs to no origin, runs no script and asks nobody. Refuses to know what
is on a page, and opens no path that a client names.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from pathlib import Path
from threading import Lock

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.responses import HTMLResponse, PlainTextResponse, Response

_MOST_MADE = 32
"""Pages that were made on request and are kept in memory; the oldest goes first."""
_SEALED = {
    "content-security-policy": (
        "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
    ),
    "cache-control": "no-store",
}
_GONE = "This page is not, or no longer, here. Open it again from the page Runs."


class Reports:
    """Which pages may be seen, by token. May be asked from any thread."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._files: dict[Path, str] = {}
        self._shown: dict[str, Path] = {}
        self._made: OrderedDict[str, bytes] = OrderedDict()

    def address(self, file: Path) -> str:
        """Where a page of the disk is shown from now on; the same each time."""
        with self._lock:
            token = self._files.setdefault(file, secrets.token_urlsafe(16))
            self._shown[token] = file
        return f"/reports/{token}"

    def keep(self, page: bytes) -> str:
        """Where a page that was just made is shown, until some others were made."""
        token = secrets.token_urlsafe(16)
        with self._lock:
            self._made[token] = page
            while len(self._made) > _MOST_MADE:
                self._made.popitem(last=False)
        return f"/reports/{token}"

    def page(self, token: str) -> bytes | None:
        """The page as it is now; None for a token that was never given, and where the page has gone."""
        with self._lock:
            made, file = self._made.get(token), self._shown.get(token)
        if made is not None or file is None:
            return made
        try:
            return file.read_bytes()
        except OSError:
            return None


def report_routes(reports: Reports) -> APIRouter:
    """GET /reports/TOKEN."""
    router = APIRouter()

    async def report(token: str) -> Response:
        page = await run_in_threadpool(reports.page, token)
        if page is None:
            return PlainTextResponse(_GONE, 404, headers=_SEALED)
        return HTMLResponse(page, headers=_SEALED)

    router.add_api_route("/reports/{token}", report, methods=["GET"], response_model=None)
    return router
