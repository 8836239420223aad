"""The queue in front of the models: first come, first served, one at a time, and no more than a bounded number wait.

One thread does all the work. Models, judges and ears share the processor's cores, and two that work at once are slower
than one after the other (spin barriers of busy cores cost more than they win); and state that belongs to a thread, as
torch's inference mode, stays right when an answer is read by many threads. A client that reads slowly holds nobody up:
pieces are kept for it. Refuses to know what the work is, and who a session is.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from threading import Event
from typing import Any, Generic, TypeVar

from luthier.errors import RequestError

T = TypeVar("T")

_FIRST_GUESS_SECONDS = 2.0
_WEIGHT_OF_NEWEST = 0.2
_END = object()


class Busy(RequestError):
    """The queue is full, or this session has enough in it. `retry_after`: whole seconds, at least 1."""

    def __init__(self, message: str, reason: str, retry_after: int) -> None:
        super().__init__(message, f"try again in {retry_after} s")
        self.reason = reason
        """full, session or stopping."""
        self.retry_after = retry_after


@dataclass(frozen=True)
class Counts:
    """What the queue did so far, and holds now."""

    waiting: int = 0
    working: int = 0
    done: int = 0
    """Ended by themselves, failures included."""
    left: int = 0
    """Ended because the client went away, while waiting or while being worked on."""
    refused_full: int = 0
    refused_session: int = 0


@dataclass(frozen=True)
class _Failed:
    error: BaseException


@dataclass(eq=False)
class _Job:
    session: str
    make: Callable[[], Iterable[Any]]
    gone: Event
    out: SimpleQueue[Any] = field(default_factory=SimpleQueue)


class Waiting:
    """The queue. `size`: how many may wait besides the one that is worked on; `per_session`: how many of one session
    may wait or be worked on; the session "" (programs that call the API) has no limit of its own."""

    def __init__(self, size: int, per_session: int) -> None:
        self.size = size
        self.per_session = per_session
        self._changed = threading.Condition()
        self._jobs: deque[_Job] = deque()
        self._working: _Job | None = None
        self._of_session: Counter[str] = Counter()
        self._counts = Counts()
        self._average_seconds = _FIRST_GUESS_SECONDS
        self._thread: threading.Thread | None = None
        self._closed = False

    def call(self, session: str, function: Callable[[], T]) -> T:
        """What the function returns, once its turn has come. Raises Busy at once, or what the function raises; Busy
        too where the queue is closed meanwhile."""
        with closing(self.stream(session, lambda: [function()])) as held:
            values = list(held)  # to its end: the place is free when this returns
        if not values:
            raise Busy("the server is stopping", "stopping", 1)
        return values[0]

    def stream(self, session: str, make_iterator: Callable[[], Iterable[T]], gone: Event | None = None) -> Held[T]:
        """What the iterator yields, once its turn has come; its place is held until it ends or is closed or dropped.

        The iterator is made, read and closed in the queue's own thread. `gone` is set when the client goes away, so
        that the maker can stop between two pieces. Raises Busy at once; what the maker raises comes with a later piece.
        """
        job = _Job(session, make_iterator, gone or Event())
        with self._changed:
            self._admit(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="luthier-models", daemon=True)
                self._thread.start()
            self._changed.notify()
        return Held(self, job)

    def counts(self) -> Counts:
        """As of now."""
        with self._changed:
            return replace(self._counts, waiting=len(self._jobs), working=int(self._working is not None))

    def close(self) -> None:
        """Let nobody in any more, end what is worked on at its next piece, and wait for that for a few seconds."""
        with self._changed:
            self._closed = True
            jobs = [*self._jobs, *([self._working] if self._working else [])]
            self._changed.notify()
        for job in jobs:
            self._leave(job)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=5.0)

    def _admit(self, job: _Job) -> None:
        """Append the job, or raise. Called with the lock held."""
        if self._closed:
            raise Busy("the server is stopping", "stopping", self._retry_after())
        if self._thread is threading.current_thread():
            raise RuntimeError("work in the queue asked for a place in the queue: it would wait for itself")
        if job.session and self._of_session[job.session] >= self.per_session:
            self._count("refused_session")
            raise Busy("this session has enough questions waiting already", "session", self._retry_after())
        if len(self._jobs) >= self.size + (self._working is None):
            self._count("refused_full")
            raise Busy(f"{len(self._jobs)} requests are waiting already", "full", self._retry_after())
        self._of_session[job.session] += 1
        self._jobs.append(job)

    def _retry_after(self) -> int:
        """Until those who are here now are done, by a moving average of how long one takes."""
        ahead = len(self._jobs) + int(self._working is not None)
        return max(1, math.ceil(self._average_seconds * ahead))

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._jobs and not self._closed:
                    self._changed.wait()
                if not self._jobs:
                    return
                job = self._working = self._jobs.popleft()
            began = time.monotonic()
            _run(job)
            with self._changed:
                self._working = None
                self._forget(job)
                taken = time.monotonic() - began
                self._average_seconds += _WEIGHT_OF_NEWEST * (taken - self._average_seconds)
                self._count("left" if job.gone.is_set() else "done")
            job.out.put(_END)
            del job  # or the last answer would be kept until the next one

    def _leave(self, job: _Job) -> None:
        """The client of this job has gone: it loses its place, or its answer ends at the next piece."""
        job.gone.set()
        with self._changed:
            if job not in self._jobs:
                return
            self._jobs.remove(job)
            self._forget(job)
            self._count("left")
        job.out.put(_END)

    def _count(self, name: str) -> None:
        self._counts = replace(self._counts, **{name: getattr(self._counts, name) + 1})

    def _forget(self, job: _Job) -> None:
        self._of_session[job.session] -= 1
        if not self._of_session[job.session]:
            del self._of_session[job.session]


class Held(Iterator[T], Generic[T]):
    """A place in the queue, and what comes of it. May be closed from any thread, also while another waits in it; one
    that is dropped is closed."""

    def __init__(self, waiting: Waiting, job: _Job) -> None:
        self._waiting = waiting
        self._job = job
        self._ended = False

    def __next__(self) -> T:
        if self._ended:
            raise StopIteration
        item = self._job.out.get()
        if item is _END:
            self._ended = True
            raise StopIteration
        if isinstance(item, _Failed):
            self._ended = True
            raise item.error
        found: T = item
        return found

    def close(self) -> None:
        """Give the place back; whoever waits for the next piece gets the end."""
        if not self._ended:
            self._ended = True
            self._waiting._leave(self._job)
            self._job.out.put(_END)

    def __del__(self) -> None:
        self.close()


def _run(job: _Job) -> None:
    """Put what the job yields, or its failure, where its client reads it."""
    try:
        iterator = iter(job.make())
        try:
            for item in iterator:
                if job.gone.is_set():
                    break
                job.out.put(item)
        finally:
            close = getattr(iterator, "close", None)
            if close is not None:
                close()
    except BaseException as error:  # whoever asked is told; the thread lives on for the others
        job.out.put(_Failed(error))
