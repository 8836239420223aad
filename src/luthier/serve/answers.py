"""Answers being written: each in a thread of its own, so that a page can be reloaded, or left, without losing one.

A page follows an answer; whoever comes back follows it again. What nobody has followed for a while is stopped. Knows
iterators of pieces; refuses to know models, pages and where an answer is kept.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from threading import Event

from luthier.engines.base import Piece
from luthier.errors import LuthierError
from luthier.serve.waiting import Held

ABANDONED_SECONDS = 20.0
_GLANCE_SECONDS = 0.05
"""How often a page is sent what is new: 20 times a second reads as a flow."""
_FAULT = ("the model failed while it answered", "look into the server's log, or ask again")

Make = Callable[[Event], Held[Piece]]
"""Asks for a place in the queue and begins an answer there, which ends soon after the event is set."""


@dataclass
class Answer:
    """One or more texts, written one after another. `error`: what ended it before its time."""

    texts: list[str]
    finishes: list[str]
    error: LuthierError | None = None
    held: Held[Piece] | None = None
    cancel: Event = field(default_factory=Event)
    done: Event = field(default_factory=Event)
    seen: float = field(default_factory=time.monotonic)


class Answers:
    """Those being written, by key: at most one a key."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._writing: dict[str, Answer] = {}

    def begin(self, key: str, makers: Sequence[Make], keep: Callable[[Answer], None]) -> Answer | None:
        """Begin an answer of as many texts as there are makers; None where one of this key is still being written.

        `keep` is called once with what was written, whole or cut short, before the answer counts as done.
        """
        answer = Answer([""] * len(makers), [""] * len(makers))
        with self._lock:
            if key in self._writing:
                return None
            self._writing[key] = answer
        threading.Thread(target=self._write, args=(key, answer, makers, keep), daemon=True).start()
        return answer

    def find(self, key: str) -> Answer | None:
        """The answer of this key that is being written now."""
        with self._lock:
            return self._writing.get(key)

    def stop(self, key: str) -> None:
        """End an answer where it is, or give up its place in the queue."""
        answer = self.find(key)
        if answer is not None:
            answer.cancel.set()
            if answer.held is not None:
                answer.held.close()

    def _write(self, key: str, answer: Answer, makers: Sequence[Make], keep: Callable[[Answer], None]) -> None:
        try:
            for place, make in enumerate(makers):
                if not answer.cancel.is_set():
                    _write_one(answer, place, make)
            keep(answer)
        except LuthierError as error:
            answer.error = error
        except Exception:
            # The thread's end: a fault of an engine becomes a sentence on the page, and its traceback the log's.
            logging.getLogger(__name__).exception("an answer failed")
            answer.error = LuthierError(*_FAULT)
        finally:
            with self._lock:
                del self._writing[key]
            answer.done.set()


def follow(answer: Answer) -> Iterator[Answer]:
    """The answer each time that something was added to it, and once more when it is done."""
    shown: list[str] | None = None
    while not answer.done.wait(_GLANCE_SECONDS):
        answer.seen = time.monotonic()
        if answer.texts != shown:
            shown = list(answer.texts)
            yield answer
    yield answer


def _write_one(answer: Answer, place: int, make: Make) -> None:
    answer.held = make(answer.cancel)
    if answer.cancel.is_set():  # stopped before there was anything to close
        answer.held.close()
    for piece in answer.held:
        answer.texts[place] += piece.text
        answer.finishes[place] = piece.finish or answer.finishes[place]
        if time.monotonic() - answer.seen > ABANDONED_SECONDS:
            answer.cancel.set()
    if answer.cancel.is_set():
        answer.finishes[place] = "cancelled"
