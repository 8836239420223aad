"""A polite client: it says who it is, keeps to robots.txt, waits between requests and within bounds.

One request to a host at a time, `seconds_between` apart. The name of a host is looked up once a request, its number is
checked, and that number is connected to, with the name kept for TLS and the Host header; each redirect anew. Bodies are
counted while they come and cut off at their bounds; none is unpacked. No cookies, no credentials. Thread-safe: each
host waits for itself alone. Knows no files and no pictures.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpcore2
from protego import Protego

from luthier.collect.addresses import Address, Resolver, follow, machine, parse, resolve_host
from luthier.collect.trouble import FetchError

_REDIRECTS = (301, 302, 303, 307, 308)
_PASSING = (408, 425, 429, 500, 502, 503, 504)
_ROBOTS_BYTES = 500 * 1024
"""What RFC 9309 asks a reader of robots.txt to read at least."""
_OPT_OUT = ("noai", "noimageai")


@dataclass(frozen=True)
class Politeness:
    """How a client behaves. Times in seconds, sizes in bytes."""

    contact: str = ""
    """An address of mail or the web that is told to servers."""
    seconds_between: float = 1.0
    """Between the beginnings of two requests to one host; robots.txt may ask for more (Crawl-delay)."""
    retries: int = 3
    """Further tries after passing trouble."""
    connect_seconds: float = 10.0
    silent_seconds: float = 20.0
    """The longest silence of a server."""
    total_seconds: float = 120.0
    """The longest time of one answer."""
    longest_wait: float = 120.0
    """A server that asks to be left alone for longer is given up."""
    most_bytes: int = 20 * 2**20
    """Of one answer."""
    host_bytes: int = 8 * 2**30
    """Of all answers of one host."""
    redirects: int = 3

    @property
    def agent(self) -> str:
        """The User-Agent."""
        from luthier import __version__

        return f"luthier/{__version__}" + (f" ({self.contact})" if self.contact else "")


@dataclass(frozen=True, slots=True)
class Fetched:
    """An answer."""

    data: bytes
    url: str
    """Where the redirects led."""


@dataclass
class _Host:
    """What is known of one host."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    next_at: float = 0.0
    bytes: int = 0
    robots: Protego | None = None
    known: bool = False


class PoliteClient:
    """Fetches addresses. `resolve` and `allow_private` are for tests: no recipe and no environment reaches them."""

    def __init__(self, settings: Politeness, resolve: Resolver = resolve_host, *, allow_private: bool = False) -> None:
        self.settings = settings
        self._resolve, self._allow_private = resolve, allow_private
        self._hosts: dict[str, _Host] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()

    def fetch(self, url: str) -> Fetched:
        """The body behind an address. Raises FetchError."""
        address = parse(url)
        for attempt in range(self.settings.retries + 1):
            try:
                return self._followed(address)
            except FetchError as error:
                wait = error.wait or min(2.0**attempt * (0.5 + random.random()), 30.0)
                if not error.passing or attempt == self.settings.retries or wait > self.settings.longest_wait:
                    raise
                if self._closing.wait(wait):
                    raise
        raise AssertionError("the last try returns or raises")

    def close(self) -> None:
        """Wake whoever waits; they give up."""
        self._closing.set()

    def _followed(self, address: Address) -> Fetched:
        for _ in range(self.settings.redirects + 1):
            host = self._host(address)
            with host.lock:
                if not self._allowed(host, address):
                    raise FetchError("robots", f"{address.origin}/robots.txt does not allow {address.target[:200]}")
                status, headers, data = self._request(host, address, self.settings.most_bytes)
            if status not in _REDIRECTS:
                return _answer(address, status, headers, data)
            address = follow(address, headers.get("location", ""))
        raise FetchError("too_many_redirects", f"more than {self.settings.redirects}, the last to {address}")

    def _host(self, address: Address) -> _Host:
        with self._lock:
            return self._hosts.setdefault(address.origin, _Host())

    def _allowed(self, host: _Host, address: Address) -> bool:
        """By robots.txt (RFC 9309): none (4xx) allows all, one that cannot be had (5xx) allows nothing for now."""
        if not host.known:
            where, seen = Address(address.scheme, address.host, address.port, "/robots.txt"), 0
            status, headers, data = self._request(host, where, _ROBOTS_BYTES, cut=True)
            while status in _REDIRECTS and seen < 5:  # as RFC 9309 has it
                where, seen = follow(where, headers.get("location", "")), seen + 1
                status, headers, data = self._request(host, where, _ROBOTS_BYTES, cut=True)
            if status >= 500 or status == 429:
                raise FetchError(
                    "robots", f"{address.origin}/robots.txt answers {status}", passing=True, wait=_asked_wait(headers)
                )
            host.robots = Protego.parse(data.decode("utf-8", errors="replace")) if status == 200 else None
            host.known = True
        return host.robots is None or bool(host.robots.can_fetch(str(address), "luthier"))

    def _request(
        self, host: _Host, address: Address, most: int, cut: bool = False
    ) -> tuple[int, dict[str, str], bytes]:
        """One request in the host's turn: status, headers (the names in small letters) and body."""
        number = machine(address, self._resolve, self._allow_private)
        self._wait(host)
        if host.bytes >= self.settings.host_bytes:
            raise FetchError("host_budget", f"{address.origin} has given {host.bytes:,} bytes, which is its share")
        sent = {"Host": address.origin.partition("://")[2], "User-Agent": self.settings.agent, "Accept": "*/*"}
        sent["Accept-Encoding"] = "identity"
        settings = self.settings
        waits = {"connect": settings.connect_seconds, "read": settings.silent_seconds, "write": settings.silent_seconds}
        to = _To(number, time.monotonic() + settings.total_seconds)
        with (
            _in_our_words(address),
            httpcore2.ConnectionPool(network_backend=to, max_connections=1) as pool,
            pool.stream("GET", str(address), headers=list(sent.items()), extensions={"timeout": waits}) as answer,
        ):
            headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in answer.headers}
            if headers.get("content-encoding", "identity").lower() not in ("identity", ""):
                raise FetchError(
                    "torn", f"{address} is packed ({headers['content-encoding']}), which was not asked for"
                )
            if answer.status != 200:
                return answer.status, headers, b""
            return answer.status, headers, self._body(host, address, answer, most, cut)

    def _body(self, host: _Host, address: Address, answer: Any, most: int, cut: bool) -> bytes:
        pieces: list[bytes] = []
        size = 0
        for piece in answer.iter_stream():
            size += len(piece)
            host.bytes += len(piece)
            pieces.append(piece)
            if size > most:
                if cut:
                    break
                raise FetchError("too_large", f"{address}: more than {most:,} bytes")
        return b"".join(pieces)[:most]

    def _wait(self, host: _Host) -> None:
        delay = host.robots.crawl_delay("luthier") if host.robots is not None else None
        between = max(self.settings.seconds_between, min(float(delay or 0.0), self.settings.longest_wait))
        now = time.monotonic()
        if host.next_at > now and self._closing.wait(host.next_at - now):
            raise FetchError("busy", "the client was closed", passing=True)
        host.next_at = max(now, host.next_at) + between


class _To(httpcore2.SyncBackend):
    """Connects to one number, whatever name the request has: TLS and the Host header keep the name."""

    def __init__(self, number: str, end: float) -> None:
        super().__init__()
        self._number, self._end = number, end

    def connect_tcp(self, host: str, port: int, *args: Any, **more: Any) -> Any:
        return _Until(super().connect_tcp(self._number, port, *args, **more), self._end)


class _Until(httpcore2.NetworkStream):
    """A stream that may be read until a moment: a server that sends a byte now and then would hold it for hours."""

    def __init__(self, stream: Any, end: float) -> None:
        self._stream, self._end = stream, end

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        left = self._end - time.monotonic()
        if left <= 0:
            raise httpcore2.ReadTimeout("the answer is not whole in its time")
        found: bytes = self._stream.read(max_bytes, min(left, timeout or left))
        return found

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, timeout)

    def close(self) -> None:
        self._stream.close()

    def start_tls(self, *args: Any, **more: Any) -> Any:
        return _Until(self._stream.start_tls(*args, **more), self._end)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


@contextmanager
def _in_our_words(address: Address) -> Iterator[None]:
    """What the library raises, as FetchError."""
    try:
        yield
    except httpcore2.TimeoutException as error:
        raise FetchError("timeout", f"{address}: {_said(error)}", passing=True) from error
    except httpcore2.ConnectError as error:
        raise FetchError("unreachable", f"{address}: {_said(error)}", passing=True) from error
    except (httpcore2.NetworkError, httpcore2.ProtocolError) as error:
        raise FetchError("torn", f"{address}: {_said(error)}", passing=True) from error


def _said(error: Exception) -> str:
    return str(error)[:200] or type(error).__name__


def _answer(address: Address, status: int, headers: Mapping[str, str], data: bytes) -> Fetched:
    if status == 200:
        told = headers.get("x-robots-tag", "").lower().replace(";", ",")
        words = {word.rpartition(":")[2].strip() for word in told.split(",")}
        if words.intersection(_OPT_OUT):
            raise FetchError("opted_out", f"{address}: X-Robots-Tag says {headers['x-robots-tag'][:100]}")
    else:
        raise FetchError(f"http_{status}", str(address), status in _PASSING, _asked_wait(headers))
    return Fetched(data, str(address))


def _asked_wait(headers: Mapping[str, str]) -> float:
    """Seconds of Retry-After, a number or a date; 0 where there is none that can be read."""
    told = headers.get("retry-after", "").strip()
    if told.isascii() and told.isdigit():
        return float(told)
    try:
        return max(0.0, (parsedate_to_datetime(told) - datetime.now(UTC)).total_seconds()) if told else 0.0
    except (ValueError, TypeError):
        return 0.0
