"""A process of our own for work that may crash, hang or hold the interpreter: `python -m MODULE`, one question a time.

A message is a JSON header and a body of bytes, each with its length before it. Nothing that a child says is unpickled
or believed longer than its asker allows. Knows no sound, no picture and no page.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Event, Timer
from typing import IO, Any

from luthier.errors import LuthierError

_SIZES = struct.Struct(">II")
HEAD_BYTES = 64 * 2**10
_PIPE_BYTES = 2**20
START_SECONDS = 60.0
"""Imports on a machine whose cores are all taken; on a free one it is half a second."""
# No token, key or address of the server goes along.
_ENVIRONMENT = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR", "POCKETSPHINX_PATH")
# One arena and one thread: the memory that a child may take is counted in addresses.
_QUIET = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}


class ChildFailed(LuthierError):
    """A child that ended, hung or broke the protocol. `late`: it was killed for taking too long."""

    def __init__(self, message: str, late: bool = False) -> None:
        super().__init__(message, "ask again: the next question gets a new process")
        self.late = late


def write_message(stream: IO[bytes], head: dict[str, Any], body: bytes = b"") -> None:
    """One message, flushed."""
    words = json.dumps(head).encode()
    stream.write(_SIZES.pack(len(words), len(body)) + words)
    stream.write(body)
    stream.flush()


def read_message(stream: IO[bytes], most: int) -> tuple[dict[str, Any], bytes] | None:
    """The next message, None where the stream ends. Raises ValueError for one that is torn or has more than `most`
    bytes of body."""
    sizes = stream.read(_SIZES.size)
    if not sizes:
        return None
    if len(sizes) < _SIZES.size:
        raise ValueError("a torn message")
    words_size, body_size = _SIZES.unpack(sizes)
    if words_size > HEAD_BYTES or body_size > most:
        raise ValueError(f"a message of {words_size} + {body_size} bytes, the most is {HEAD_BYTES} + {most}")
    words, body = stream.read(words_size), stream.read(body_size)
    if len(words) < words_size or len(body) < body_size:
        raise ValueError("a torn message")
    head = json.loads(words)
    if not isinstance(head, dict):
        raise ValueError("a header that is no object")
    return head, body


Answer = Callable[[dict[str, Any], bytes], tuple[dict[str, Any], bytes]]


def answer_all(prepare: Callable[[], Answer], most: int) -> None:
    """The child's side: prepare, say so, then answer each question (bodies of at most `most` bytes) until they end.

    What libraries read, print or start gets the null device. An answer whose header has "last" is the last one.
    """
    with own_pipes() as (questions, answers):
        answer = prepare()
        write_message(answers, {"ready": True})
        while (question := read_message(questions, most)) is not None:
            head, body = answer(*question)
            write_message(answers, head, body)
            if head.get("last"):
                return


@contextmanager
def own_pipes() -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """Standard input and output for ourselves alone; in their place, and for errors, the null device."""
    with os.fdopen(os.dup(0), "rb") as questions, os.fdopen(os.dup(1), "wb") as answers:
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nothing, descriptor)
        yield questions, answers


class Child:
    """The asker's side, for one thread at a time. Raises ChildFailed where the process cannot be started."""

    def __init__(self, module: str) -> None:
        self.uses = 0
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ} | _QUIET,
            start_new_session=True,  # ctrl-C is for the server, which then closes its children
        )
        if sys.platform == "linux":
            # A picture of 12 megapixels comes back in half the time; a user who has many pipes is not granted more.
            with suppress(PermissionError):
                for pipe in (self._process.stdin, self._process.stdout):
                    assert pipe is not None
                    fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self._exchange(None, START_SECONDS, 0)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, head: dict[str, Any], body: bytes, seconds: float, most: int) -> tuple[dict[str, Any], bytes]:
        """The answer's header and body, of at most `most` bytes. Raises ChildFailed; the process is gone then."""
        self.uses += 1
        return self._exchange((head, body), seconds, most)

    def kill(self) -> None:
        """End it at once; from any thread, and as often as one likes."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """End it and give its pipes back; by the thread that asks."""
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):  # a question that a dead child never read
                pipe.close()

    def _exchange(
        self, question: tuple[dict[str, Any], bytes] | None, seconds: float, most: int
    ) -> tuple[dict[str, Any], bytes]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        late = Event()

        def expire() -> None:
            late.set()
            self.kill()  # which ends whatever read or write waits for it

        watch = Timer(seconds, expire)
        watch.daemon = True
        watch.start()
        try:
            if question is not None:
                write_message(self._process.stdin, *question)
            answer = read_message(self._process.stdout, most)
            reason = "it ended without an answer"
        except (OSError, ValueError, RecursionError) as error:
            answer, reason = None, str(error)
        except BaseException:
            self.close()  # or the next asker would get this one's answer
            raise
        finally:
            watch.cancel()
        if answer is None or answer[0].get("last"):
            self.close()
        if answer is not None:
            return answer
        if late.is_set():
            raise ChildFailed(f"a process of the server took longer than {seconds:g} s and was ended", late=True)
        raise ChildFailed(f"a process of the server broke down: {reason}")
