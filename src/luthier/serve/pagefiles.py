"""Files that pages hand over: only those that were uploaded to this server, and no address of anywhere else.

Gradio 6.31 checks where a file lies only in an app that was started by `launch()`; in one that is mounted it reads any
path that a client names, copies it where the client can fetch it, and downloads any web address. Both are refused here,
before Gradio sees the event. Refuses to know what the files are.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

from gradio.utils import get_upload_folder
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from luthier.errors import RequestError

_EVENTS = "/gradio_api/queue/join"
PLAYED_SECONDS = 10.0
"""The page's own player fetches a recording once more; then nobody needs it."""
_REFUSAL = "An event may name only files that were uploaded to this server."


def taken(path: str) -> bytes:
    """The bytes of an uploaded file, which is removed soon: it could be read by whoever learns its address.

    Raises RequestError, and touches nothing, for a path that is no upload.
    """
    if not _uploaded(path):
        raise RequestError("that file was not uploaded to this server", "choose it again")
    file = Path(path)
    data = file.read_bytes()
    soon = threading.Timer(PLAYED_SECONDS, file.unlink, kwargs={"missing_ok": True})
    soon.daemon = True
    soon.start()
    return data


class UploadsOnly:
    """ASGI middleware in front of Gradio: 403 for an event that names a file elsewhere."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or not scope["path"].startswith(_EVENTS):
            await self._app(scope, receive, send)
            return
        body, messages = b"", list[Message]()
        while True:  # the guard in front caps the length
            message = await receive()
            messages.append(message)
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        if not _all_uploaded(body):
            await PlainTextResponse(_REFUSAL, 403)(scope, receive, send)
            return

        async def again() -> Message:
            return messages.pop(0) if messages else await receive()

        await self._app(scope, again, send)


def _all_uploaded(body: bytes) -> bool:
    """Whether every file that a body names is an upload. What is no JSON names none, and Gradio refuses it."""
    try:
        waiting: list[Any] = [json.loads(body)]
    except (ValueError, RecursionError):
        return b"path" not in body
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            # Whatever has a path counts, so that it does not matter by which mark Gradio knows its files.
            if "path" in item and item["path"] is not None and not _uploaded(item["path"]):
                return False
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)
    return True


def _uploaded(path: Any) -> bool:
    if not isinstance(path, str) or "\0" in path:
        return False
    found = Path(path)
    return found.is_absolute() and found.resolve().is_relative_to(Path(get_upload_folder()).resolve())
