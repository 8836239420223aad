"""A loopback host of pictures that can misbehave: what each path does is told beforehand."""

from __future__ import annotations

import io
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image

Answer = tuple[int, dict[str, str], bytes]


def picture(number: int = 0, size: tuple[int, int] = (40, 30), kind: str = "PNG") -> bytes:
    """A small picture of a colour of its own."""
    out = io.BytesIO()
    Image.new("RGB", size, (number * 37 % 256, number * 91 % 256, number % 256)).save(out, kind)
    return out.getvalue()


@dataclass
class Host:
    """What was asked, and when; `paths` says what each answers (bytes: a picture; a function is called)."""

    paths: dict[str, bytes | Answer | Callable[[BaseHTTPRequestHandler], Answer]] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)
    times: list[float] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    port: int = 0

    def url(self, path: str) -> str:
        return f"http://shop.example:{self.port}{path}"


@contextmanager
def picture_host() -> Iterator[Host]:
    host = Host()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            host.asked[path] += 1
            if path != "/robots.txt":
                host.times.append(time.monotonic())
            host.headers.append(dict(self.headers))
            found = host.paths.get(path, (404, {}, b""))
            found = found(self) if callable(found) else found
            status, headers, body = (200, {"Content-Type": "image/png"}, found) if isinstance(found, bytes) else found
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), "Connection": "close", **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    host.port = server.server_port
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield host
    finally:
        server.shutdown()
        server.server_close()
