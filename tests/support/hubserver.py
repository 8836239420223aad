"""The HTTP side of the loopback hub: routes, tokens, planned faults, cut connections."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from support.hub import TOKEN, Hub, Refused

_NAME = r"(?P<name>[^/]+/[^/]+)"
ROUTES = [
    (method, name, re.compile(f"^{pattern}$"))
    for method, name, pattern in (
        ("POST", "create", "/api/repos/create"),
        ("POST", "validate", "/api/validate-yaml"),
        ("GET", "whoami", "/api/whoami-v2"),
        ("GET", "info", f"/api/models/{_NAME}(?:/revision/(?P<rest>.+))?"),
        ("POST", "preupload", f"/api/models/{_NAME}/preupload/(?P<rest>.+)"),
        ("POST", "commit", f"/api/models/{_NAME}/commit/(?P<rest>.+)"),
        ("POST", "branch", f"/api/models/{_NAME}/branch/(?P<rest>.+)"),
        ("DELETE", "unbranch", f"/api/models/{_NAME}/branch/(?P<rest>.+)"),
        ("GET", "tree", f"/api/models/{_NAME}/tree/(?P<rest>.+)"),
        ("POST", "paths", f"/api/models/{_NAME}/paths-info/(?P<rest>.+)"),
        ("GET", "refs", f"/api/models/{_NAME}/refs"),
        ("POST", "batch", rf"/{_NAME}\.git/info/lfs/objects/batch"),
        ("PUT", "put", "/lfs/(?P<rest>.+)"),
        ("POST", "complete", "/lfs-complete/(?P<rest>.+)"),
        ("POST", "verify", "/lfs-verify/(?P<rest>.+)"),
        ("GET", "resolve", f"/{_NAME}/resolve/(?P<rest>.+)"),
        ("HEAD", "resolve", f"/{_NAME}/resolve/(?P<rest>.+)"),
    )
]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are written apart, and would wait 40 ms for each other
    hub: Hub

    def log_message(self, format: str, *words: Any) -> None:
        pass

    def do_ANY(self) -> None:
        place = urlsplit(self.path)
        for method, route, pattern in ROUTES:
            match = pattern.match(place.path)
            if method == self.command and match:
                found = match.groupdict()
                name, rest = unquote(found.get("name") or ""), unquote(found.get("rest") or "")
                self._serve(route, name, rest)
                return
        self._body()
        self._answer(404, b"{}")

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = do_ANY

    def _serve(self, route: str, name: str, rest: str) -> None:
        self.hub.tick(route)
        fault = self.hub.fault(route)
        if fault is not None and fault.kind == "reset":
            self._body(fault.after, rest if route == "put" else "")
            self._cut()
            return
        content = self._body(oid=rest if route == "put" else "")
        if fault is not None and isinstance(fault.kind, int):
            self._answer(fault.kind, b'{"error":"planned"}', dict(fault.headers))
            return
        if fault is not None and fault.kind == "stall":
            time.sleep(self.hub.stall)
            self._cut()
            return
        kind = fault.kind if fault is not None else ""
        try:
            status, headers, answer = self._done(route, name, rest, content, kind == "wrong")
        except Refused as refused:
            code = {"X-Error-Code": refused.code} if refused.code else {}
            status, headers, answer = refused.status, code, refused.text.encode()
        if kind == "lost":
            self._cut()
            return
        self._answer(status, answer, headers, half=kind == "half")

    def _done(self, route: str, name: str, rest: str, content: bytes, wrong: bool) -> tuple[int, dict[str, str], bytes]:
        """What the hub does with a request: status, headers and body."""
        self._allow(route)
        if route == "put":
            self._put(rest, content, wrong)
            return 200, {"ETag": hashlib.md5(content).hexdigest()}, b""
        if route == "resolve":
            commit, file, answer = self.hub.resolve(name, rest, None, {})
            kind = {"Content-Type": "application/octet-stream"}
            return 200, {"X-Repo-Commit": commit, "ETag": f'"{file.oid}"', **kind}, answer
        return 200, {}, json.dumps(getattr(self.hub, route)(name, rest, self._read(content), {})).encode()

    def _allow(self, route: str) -> None:
        said = self.headers.get("Authorization")
        if route == "put":
            if said:
                self.hub.stolen.append(route)
        elif route != "complete" and said != f"Bearer {TOKEN}":  # complete is signed by its address
            raise Refused(401, "Invalid credentials in Authorization header")

    def _put(self, rest: str, content: bytes, wrong: bool) -> None:
        oid, _, part = rest.partition("/")
        if part:
            self.hub.parts[oid, int(part)] = content
        else:
            self.hub.keep(oid, content, wrong)

    def _read(self, content: bytes) -> Any:
        kind = self.headers.get("Content-Type", "")
        if "x-ndjson" in kind:
            return content.decode()
        if "x-www-form-urlencoded" in kind:
            return parse_qs(content.decode())
        return json.loads(content or b"{}")

    def _body(self, most: int | None = None, oid: str = "") -> bytes:
        """The request's body, or its first bytes; those of a large file are counted as they come."""
        left = int(self.headers.get("Content-Length") or 0)
        left = left if most is None else min(left, most)
        blocks = []
        while left:
            block = self.rfile.read1(min(left, 65_536))
            if not block:
                break
            if oid:
                self.hub.received[oid.partition("/")[0]] += len(block)
                self.hub.tick("body")
            blocks.append(block)
            left -= len(block)
        return b"".join(blocks)

    def _answer(self, status: int, content: bytes, headers: dict[str, str] | None = None, half: bool = False) -> None:
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if half else content)
        if half:
            self.close_connection = True

    def _cut(self) -> None:
        """Reset the connection: with no linger, closing sends RST."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub that serves while the block lasts."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    server.handle_error = lambda request, address: None  # type: ignore[method-assign]
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
