"""How much and how often: bodies counted while they are read, bytes held at once, events in a minute.

For the guard. Refuses to know routes, hosts and keys.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass

from starlette.types import Message, Receive, Send


@dataclass(frozen=True)
class Refusal:
    """What a request is answered with that does not come in: `reason` is a word for programs and metrics."""

    status: int
    reason: str
    message: str
    headers: tuple[tuple[str, str], ...] = ()


def too_large(cap: int) -> Refusal:
    """The refusal of a body of more than `cap` bytes."""
    return Refusal(413, "size", f"The request is larger than {cap / 2**20:.0f} MiB.", (("connection", "close"),))


class Pace:
    """Events of an address within the running minute."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._began = time.monotonic()
        self._seen: Counter[str] = Counter()

    def wait(self, address: str) -> int:
        """Count one event; the seconds until another is taken, 0 where this one is."""
        past = time.monotonic() - self._began
        if past >= 60:
            self._began, past = time.monotonic(), 0.0
            self._seen.clear()
        self._seen[address] += 1
        return 0 if self._seen[address] <= self._most else int(60 - past) + 1


@dataclass
class Room:
    """Bytes that are held, and may be held, at once."""

    most: int
    bytes: int = 0


class Body:
    """A body that is counted while it is read, for clients that do not say its length. What the application makes of
    one that was cut is not sent."""

    def __init__(self, receive: Receive, send: Send, cap: int, room: Room) -> None:
        self.begun = False
        self.refusal: Refusal | None = None
        self.bytes = 0
        self.room = room
        self._cap = cap
        self._receive = receive
        self._send = send

    async def receive(self) -> Message:
        if self.refusal is None:
            message = await self._receive()
            arrived = len(message.get("body", b""))
            self.bytes += arrived
            self.room.bytes += arrived
            if self.bytes > self._cap:
                self.refusal = too_large(self._cap)
            elif self.room.bytes > self.room.most:
                words = "Too much is being sent to this server at once: try again in 5 s."
                self.refusal = Refusal(503, "memory", words, (("retry-after", "5"), ("connection", "close")))
        return {"type": "http.disconnect"} if self.refusal else message

    async def send(self, message: Message) -> None:
        if self.refusal is None or self.begun:
            self.begun = True
            await self._send(message)
