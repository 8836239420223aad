"""Who may come in: hosts, origins, the key, how much, how often. ASGI middleware in front of pages and API alike.

Refuses to know what a request is for. A refusal is a status and a sentence, sent before the body is read.
- Host: IP addresses, localhost and the names that the server was told. A page of another name that resolves to this
  machine (DNS rebinding) carries its own name here.
- Origin or Sec-Fetch-Site of everything but GET, HEAD and OPTIONS: this server's pages and the origins it was told.
  Programs send neither.
- The key, where there is one: as bearer, or as the password that a browser asks for. /healthz needs none.
- Bodies by size, and pages' events by number in a minute.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from luthier.errors import RequestError
from luthier.serve.bounds import Body, Pace, Refusal, Room, too_large
from luthier.serve.openai_words import error_body
from luthier.serve.settings import Limits, ServeSettings

OPEN_PATHS = ("/healthz",)
EVENTS_A_MINUTE = 1200
"""Of one address, the API left out. A page that polls twice a second uses 120 of them."""
BYTES_AT_ONCE = 256 * 2**20
"""Of all bodies that are being worked on; the pages' uploads go to the disk and are left out."""
_PAGE_BODY = 4 * 2**20
_READING = ("GET", "HEAD", "OPTIONS")
_SHORTEST_KEY = 16


def is_loopback(host: str) -> bool:
    """Whether a name or address to bind to is this machine's alone."""
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_exposure(settings: ServeSettings, key: str) -> None:
    """Raise RequestError for a server that others can reach and that asks them for no key."""
    if is_loopback(settings.host) or len(key) >= _SHORTEST_KEY:
        return
    what = f"a key of {len(key)} characters" if key else "no API key"
    raise RequestError(
        f"serve: --host {settings.host} can be reached from other machines, with {what}",
        f"put a key of at least {_SHORTEST_KEY} characters in the environment as {settings.api_key_env}, "
        "or leave --host out and reach it through a tunnel (ssh -L)",
    )


@dataclass(frozen=True)
class Rules:
    """What the guard holds requests against."""

    names: frozenset[str]
    """Host names besides localhost and IP addresses."""
    origins: frozenset[str]
    """Origins besides the server's own."""
    limits: Limits
    key: str = field(default="", repr=False)

    @classmethod
    def of(cls, settings: ServeSettings, key: str) -> Rules:
        origins = frozenset(origin.rstrip("/").lower() for origin in settings.allowed_origins)
        names = {settings.host.lower(), *(urlsplit(origin).hostname or "" for origin in origins)}
        if not is_loopback(settings.host):
            names.add(socket.gethostname().lower())
        return cls(frozenset(names - {""}), origins, settings.limits, key)

    def body_cap(self, path: str) -> int:
        """Bytes of the largest body that this path takes."""
        picture, audio = self.limits.picture_bytes, self.limits.audio_bytes
        if path == "/v1/chat/completions":
            return 2 * (picture + audio)  # base64 takes a third more
        if path == "/v1/audio/transcriptions":
            return audio + 2**20
        if path == "/v1/verdicts":
            return 4 * audio
        if path.endswith("/upload"):
            return 20 * audio  # a batch; each file alone has its own cap
        return _PAGE_BODY


class Guard:
    """The middleware. `refused` is told the reason of each refusal: host, origin, key, size, pace, memory."""

    def __init__(self, app: ASGIApp, rules: Rules, refused: Callable[[str], None]) -> None:
        self._app = app
        self._rules = rules
        self._refused = refused
        self._pace = Pace(EVENTS_A_MINUTE)
        self._room = Room(BYTES_AT_ONCE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # nothing here speaks by WebSocket
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = Headers(scope=scope)
        guarded = _with_headers(send, self._rules)
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await self._refuse(refusal, scope["path"], guarded)
            return
        cap = self._rules.body_cap(scope["path"])
        body = Body(receive, guarded, cap, Room(cap) if scope["path"].endswith("/upload") else self._room)
        try:
            await self._app(scope, body.receive, body.send)
        except ClientDisconnect:
            if body.refusal is None:
                raise
        finally:
            body.room.bytes -= body.bytes
        if body.refusal is not None and not body.begun:
            await self._refuse(body.refusal, scope["path"], guarded)

    def _refusal(self, scope: Scope, headers: Headers) -> Refusal | None:
        path, method, rules = scope["path"], scope["method"], self._rules
        if not _host_known(headers.get("host", ""), rules.names):
            return Refusal(421, "host", "This server does not go by that name; use the address that it printed.")
        if method not in _READING and not _own_origin(headers, rules.origins):
            return Refusal(403, "origin", "A page of another site may not call this server.")
        if rules.key and path not in OPEN_PATHS and method != "OPTIONS" and not _has_key(headers, rules.key):
            ask = () if path.startswith("/v1/") else (("www-authenticate", 'Basic realm="luthier", charset="UTF-8"'),)
            return Refusal(401, "key", "This server asks for its API key.", ask)
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > rules.body_cap(path):
            return too_large(rules.body_cap(path))
        if method not in _READING and not path.startswith("/v1/"):
            wait = self._pace.wait((scope.get("client") or ("",))[0])
            if wait:
                return Refusal(429, "pace", f"Too many requests: try again in {wait} s.", (("retry-after", str(wait)),))
        return None

    async def _refuse(self, refusal: Refusal, path: str, send: Send) -> None:
        self._refused(refusal.reason)
        if path.startswith("/v1/"):
            kind, text = (
                "application/json",
                json.dumps(error_body(refusal.status, refusal.message, code=refusal.reason)),
            )
        else:
            kind, text = "text/plain; charset=utf-8", refusal.message
        body = text.encode()
        headers = [("content-type", kind), ("content-length", str(len(body))), *refusal.headers]
        raw = [(name.encode(), value.encode()) for name, value in headers]
        await send({"type": "http.response.start", "status": refusal.status, "headers": raw})
        await send({"type": "http.response.body", "body": body})


def _host_known(host: str, names: frozenset[str]) -> bool:
    name = host.rpartition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]
    name = name.lower()
    if name == "localhost" or name in names:
        return True
    try:
        ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def _own_origin(headers: Headers, origins: frozenset[str]) -> bool:
    origin = headers.get("origin")
    if origin is None:
        return headers.get("sec-fetch-site", "none") in ("same-origin", "none")
    origin = origin.lower()
    return origin in origins or origin.partition("://")[2] == headers.get("host", "").lower()


def _has_key(headers: Headers, key: str) -> bool:
    scheme, _, rest = headers.get("authorization", "").partition(" ")
    given = rest.encode("latin-1")
    if scheme.lower() == "basic":
        try:
            given = base64.b64decode(given, validate=True).partition(b":")[2]
        except binascii.Error:
            return False
    elif scheme.lower() != "bearer":
        return False
    return hmac.compare_digest(given, key.encode("utf-8", "surrogateescape"))  # takes as long for any wrong key


def _with_headers(send: Send, rules: Rules) -> Send:
    """Add to every answer what tells browsers to keep it apart; what a route says of itself stands."""
    framers = " ".join(["'self'", *sorted(rules.origins)])
    added = {
        "content-security-policy": (
            # Gradio's page is inline script and style, and makes functions from strings.
            "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; worker-src 'self' blob:; "
            "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' data: blob:; "
            "font-src 'self' data:; connect-src 'self' data: blob:; frame-src 'self'; object-src 'none'; "
            f"base-uri 'self'; form-action 'self'; frame-ancestors {framers}"
        ),
        "x-content-type-options": "nosniff",
        "referrer-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
        "cross-origin-opener-policy": "same-origin",
        "permissions-policy": "microphone=(self), camera=(), geolocation=()",
    }
    if not rules.origins:
        added["x-frame-options"] = "SAMEORIGIN"

    async def guarded(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in added.items():
                headers.setdefault(name, value)
        await send(message)

    return guarded
