"""A llama.cpp process on a loopback port: started, asked, ended.

A `llama-server` that is there ($LLAMA_SERVER, or on the path) is preferred: one native program. Without it,
llama-cpp-python runs in `luthier.engines.llamacpp_child`, which speaks the same protocol. Either way llama.cpp has a
process of its own: a crash costs one answer, and its memory goes back. Knows ids and texts, no chats.
"""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from luthier.errors import LuthierError, RequestError

_START_SECONDS = 600.0
_LOOK_SECONDS = 5.0
_SILENCE_SECONDS = 600.0
"""Longest silence of an answer: a long prompt on a slow processor."""
MOST_BYTES = 8 * 2**20
"""Of one request: the ids of a million tokens."""
INSTALL = (
    "install llama.cpp so that `llama-server` is on the path (or name it in LLAMA_SERVER), "
    "or: pip install 'luthier[llamacpp]'"
)


@dataclass(frozen=True)
class Loading:
    """What a process is started with. `context` 0: as long as the model was made for."""

    gguf: Path
    adapters: tuple[Path, ...] = ()
    threads: int = 1
    context: int = 0
    vocab_only: bool = False
    """For texts to ids alone; llama-server knows no such thing and loads the weights too."""
    exact: bool = False
    """Keys, values and attention in float32, for comparisons with other engines."""


def has_llamacpp() -> bool:
    """Whether there is a llama.cpp here to run a GGUF with."""
    return bool(_binary()) or importlib.util.find_spec("llama_cpp") is not None


def _binary() -> str | None:
    named = os.environ.get("LLAMA_SERVER", "")
    if named and not shutil.which(named):
        raise RequestError(f"LLAMA_SERVER: {named}: is no program", "name the llama-server binary, or unset it")
    return shutil.which(named or "llama-server")


def _command(loading: Loading, port: int) -> list[str]:
    binary = _binary()
    shared = ["--model", str(loading.gguf), "--port", str(port), "--threads", str(loading.threads)]
    shared += ["--ctx-size", str(loading.context)]
    for adapter in loading.adapters:
        shared += ["--lora", str(adapter)]
    if binary:
        exact = ["--cache-type-k", "f32", "--cache-type-v", "f32", "--flash-attn", "off"] if loading.exact else []
        lora = ["--lora-init-without-apply"] if loading.adapters else []
        leash = [sys.executable, "-m", "luthier.engines.leash", binary]
        return [*leash, "--host", "127.0.0.1", "--parallel", "1", "--no-slots", *shared, *exact, *lora]
    if not has_llamacpp():
        raise RequestError(f"{loading.gguf}: there is no llama.cpp here to run it", INSTALL)
    flags = ["--vocab-only"] * loading.vocab_only + ["--exact"] * loading.exact
    return [sys.executable, "-m", "luthier.engines.llamacpp_child", "serve", *shared, *flags]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _taken(port: int) -> bool:
    """Whether somebody listens there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what is left of old connections is nobody
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


class LlamaServer:
    """One running process. Raises RequestError where there is no llama.cpp or it refuses the file."""

    def __init__(self, loading: Loading) -> None:
        self.loading = loading
        self._key = secrets.token_urlsafe(24)
        for last in (False, False, True):
            self._port = _free_port()
            command = _command(loading, self._port)
            self._said = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=self._said,
                env=os.environ | {"LLAMA_API_KEY": self._key},
            )
            try:
                self._wait()
                return
            except RequestError:
                self.close()
                if last or not _taken(self._port):  # by somebody else, between our look and the process's
                    raise
            except BaseException:
                self.close()
                raise

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def tokenize(self, text: str, add_special: bool = False) -> list[int]:
        """The ids of a text, special tokens read as such."""
        reply = self._post("/tokenize", {"content": text, "add_special": add_special, "parse_special": True})
        return [int(token) for token in json.loads(reply.read())["tokens"]]

    def complete(
        self, ids: Sequence[int], settings: Mapping[str, Any], cancel: Event | None = None
    ) -> Iterator[dict[str, Any]]:
        """Events of an answer to a prompt of ids, the last one with `stop` true; ends early after `cancel`."""
        reply = self._post("/completion", {"prompt": list(ids), "stream": True, **settings})
        with reply:
            while (line := self._line(reply)).endswith(b"\n"):  # a torn line is none
                if cancel is not None and cancel.is_set():
                    return  # closing the reply tells the process to stop
                if not line.startswith(b"data: "):
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    raise LuthierError(f"{self.loading.gguf.name}: llama.cpp: {event['error'].get('message', '')}")
                yield event
                if event.get("stop"):
                    return
        raise LuthierError(
            f"{self.loading.gguf.name}: llama.cpp ended in the middle of an answer{self._why()}", "ask again"
        )

    def answer(self, ids: Sequence[int], settings: Mapping[str, Any]) -> list[int]:
        """The ids of a whole answer, the one that ends it included. A stream leaves some out, where a letter takes
        several."""
        asked = {"prompt": list(ids), "return_tokens": True, **settings}
        return [int(token) for token in json.loads(self._post("/completion", asked).read())["tokens"]]

    def close(self) -> None:
        """End the process."""
        if self._process.stdin:
            with suppress(OSError):
                self._process.stdin.close()
        if self.alive:
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._said.close()

    def _line(self, reply: http.client.HTTPResponse) -> bytes:
        try:
            return reply.readline()
        except (OSError, http.client.HTTPException):
            return b""

    def _post(self, path: str, value: Mapping[str, Any]) -> http.client.HTTPResponse:
        body = json.dumps(value)
        if len(body) > MOST_BYTES:
            raise RequestError(
                f"{len(body):,} bytes: longer than any text for {self.loading.gguf.name}", "ask for less"
            )
        try:
            reply = self._send(path, body, self._key, _SILENCE_SECONDS)
        except (OSError, http.client.HTTPException) as error:
            raise LuthierError(f"{self.loading.gguf.name}: llama.cpp has ended{self._why()}", "ask again") from error
        if reply.status != 200:
            raise RequestError(
                f"{self.loading.gguf.name}: llama.cpp refuses: {_message(reply.read())}", "ask for something shorter"
            )
        return reply

    def _send(self, path: str, body: str, key: str, seconds: float) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=seconds)
        head = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        connection.request("POST", path, body, head)
        return connection.getresponse()

    def _wait(self) -> None:
        """Until the model is loaded."""
        end = time.monotonic() + _START_SECONDS
        while time.monotonic() < end and self.alive:
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_LOOK_SECONDS)
            with suppress(OSError, http.client.HTTPException):
                connection.request("GET", "/health")
                if connection.getresponse().status == 200 and self._is_ours():
                    return
            connection.close()
            time.sleep(0.02)
        raise RequestError(
            f"{self.loading.gguf}: llama.cpp does not load it{self._why()}", "give a whole GGUF that fits into memory"
        )

    def _is_ours(self) -> bool:
        """Whether who answers there knows our key and takes no other: no text goes to a stranger on the port."""
        return self._status(self._key) == 200 and self._status("another") == 401

    def _status(self, key: str) -> int:
        reply = self._send("/tokenize", json.dumps({"content": ""}), key, _LOOK_SECONDS)
        reply.read()
        return reply.status

    def _why(self) -> str:
        """The last lines that the process wrote."""
        self._said.seek(max(0, self._said.seek(0, os.SEEK_END) - 2000))
        lines = self._said.read().decode(errors="replace").strip().splitlines()[-4:]
        return ": " + " | ".join(line[:200] for line in lines) if lines else ""


def _message(data: bytes) -> str:
    try:
        return str(json.loads(data)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return data[:200].decode(errors="replace")
