"""Which troubles of a hub pass, and how long one waits for them. Knows HTTP, not what is sent.

huggingface_hub repeats some requests by itself and not others, and waits for an answer for ever. While a `hub_session`
is open, its client turns every trouble that passes (too many requests, a server's 5xx, a cut connection, silence, half
an answer) into `Passing`, which the library's own repetitions let through; `Patience` then repeats the whole call.
Every call that is made through it must be one that can be repeated.
"""

from __future__ import annotations

import email.utils
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx2

from luthier.console import say
from luthier.errors import HubError

Result = TypeVar("Result")
PASSING = (408, 425, 429, 500, 502, 503, 504)
_CONFLICT = "another conflicting operation is in progress"


class Passing(Exception):
    """A trouble that may be gone at the next try. `seconds`: how long the hub asks us to wait, if it does."""

    def __init__(self, reason: str, seconds: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.seconds = seconds


@dataclass
class Patience:
    """How often and how long: waits double from `first` to `longest` seconds, each drawn from its upper half.

    `total` bounds all waiting together, over all calls; a hub that asks for more is left at once.
    """

    tries: int = 6
    first: float = 1.0
    longest: float = 60.0
    total: float = 900.0
    sleep: Callable[[float], None] = time.sleep
    drawn: Callable[[], float] = random.random
    waited: float = field(default=0.0, init=False)

    def repeat(self, what: str, call: Callable[[], Result]) -> Result:
        """The result of `call`, tried again while the trouble passes. Raises HubError when patience ends."""
        tried = 0
        while True:
            try:
                return call()
            except (Passing, RuntimeError) as error:  # the library wraps what befell one file in a RuntimeError
                trouble = _passing(error)
                if trouble is None:
                    raise
                tried += 1
                self._wait(what, trouble, tried)

    def _wait(self, what: str, trouble: Passing, tried: int) -> None:
        again = "run the same line again later: what has arrived is not sent twice"
        if tried >= self.tries:
            raise HubError(f"{what}: {trouble.reason} ({tried} times in a row)", again) from trouble
        seconds = min(self.longest, self.first * 2 ** (tried - 1)) * (0.5 + self.drawn() / 2)
        if trouble.seconds is not None:
            seconds = trouble.seconds + 1  # hubs round down
        if self.waited + seconds > self.total:
            raise HubError(f"{what}: {trouble.reason}; the hub would be asked again in {seconds:.0f} s", again)
        self.waited += seconds
        say(f"{what}: {trouble.reason}; again in {seconds:.0f} s")
        self.sleep(seconds)


def _passing(error: BaseException | None) -> Passing | None:
    while error is not None and not isinstance(error, Passing):
        error = error.__cause__
    return error


@dataclass
class Traffic:
    """Bytes that left in the bodies of requests, those of tries that failed included; `told` of each block."""

    sent: int = 0
    told: Callable[[int], None] = lambda count: None

    def add(self, count: int) -> None:
        self.sent += count
        self.told(count)


class _Counted(httpx2.SyncByteStream):
    def __init__(self, stream: httpx2.SyncByteStream, traffic: Traffic) -> None:
        self._stream = stream
        self._traffic = traffic

    def __iter__(self) -> Iterator[bytes]:
        for block in self._stream:
            self._traffic.add(len(block))
            yield block

    def close(self) -> None:
        self._stream.close()


class _Client(httpx2.Client):
    """Sends the token to its hub alone, and tells troubles that pass from those that stay."""

    def __init__(self, endpoint: str, seconds: float, traffic: Traffic) -> None:
        super().__init__(follow_redirects=True, timeout=seconds)
        self._origin = _origin(httpx2.URL(endpoint))
        self._traffic = traffic

    def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        if isinstance(request.stream, httpx2.SyncByteStream):
            request.stream = _Counted(request.stream, self._traffic)
        if _origin(request.url) != self._origin:  # stores of large files are elsewhere, and have signed addresses
            request.headers.pop("authorization", None)
        try:
            response = super().send(request, **options)
            if response.status_code in PASSING:
                raise Passing(f"the hub answered {response.status_code}", asked_to_wait(response.headers))
            if response.status_code == 409 and _CONFLICT in response.text:
                raise Passing("the hub is busy with another change")
            if response.status_code == 200 and response.content and "json" in response.headers.get("content-type", ""):
                response.json()
        except httpx2.TimeoutException as error:
            raise Passing("no answer in time") from error
        except httpx2.RequestError as error:
            raise Passing(f"the connection was lost ({type(error).__name__})") from error
        except ValueError as error:
            raise Passing("half an answer came") from error
        return response


def _origin(url: httpx2.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def asked_to_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds that a hub asks for: RateLimit's time to reset where nothing remains, else Retry-After."""
    from huggingface_hub.utils import parse_ratelimit_headers

    limit = parse_ratelimit_headers(headers)
    if limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    said = next((value.strip() for name, value in headers.items() if name.lower() == "retry-after"), "")
    if said.isdigit():
        return float(said)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(said).timestamp() - time.time())
    except ValueError:  # neither a number nor a date: as if nothing had been said
        return None


@contextmanager
def hub_session(endpoint: str, seconds: float = 120.0) -> Iterator[Traffic]:
    """While it is open, huggingface_hub speaks through a client of ours, waits so long for an answer, and is quiet."""
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
        logging,
        set_client_factory,
    )
    from huggingface_hub.utils._http import default_client_factory  # no public name puts it back

    level, silent = logging.get_verbosity(), are_progress_bars_disabled()
    traffic = Traffic()
    set_client_factory(lambda: _Client(endpoint, seconds, traffic))
    logging.set_verbosity_error()
    disable_progress_bars()
    try:
        yield traffic
    finally:
        set_client_factory(default_client_factory)
        logging.set_verbosity(level)
        if not silent:
            enable_progress_bars()
