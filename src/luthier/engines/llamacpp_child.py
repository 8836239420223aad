"""A GGUF model in a process of its own, through llama-cpp-python: the part of llama-server's protocol that we speak.

A crash of llama.cpp ends this process and not the server that asked; its memory goes back with it. Served are
GET /health, POST /tokenize and POST /completion (ids in; server-sent events, or one object, out), on the loopback
alone and with the key in $LLAMA_API_KEY. Templates never come here: they are other people's code, and are rendered in
the sandbox of transformers before. The process ends when its standard input does, so it never outlives who started it.

`python -m luthier.engines.llamacpp_child serve --model FILE --port N ...` and `... quantize IN OUT KIND`.
"""

from __future__ import annotations

import argparse
import ctypes
import hmac
import json
import os
import sys
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain
from pathlib import Path
from typing import Any

from luthier.engines.llamacpp_model import Model, answer, quiet
from luthier.engines.llamaserver import MOST_BYTES


class _Handler(BaseHTTPRequestHandler):
    """One request. The server holds `model`, `key` and `turn`, a lock: llama.cpp's context has room for one."""

    server: Any

    def log_message(self, format: str, *args: Any) -> None:
        """Prompts are nobody's business, and nobody reads this process's output."""

    def do_GET(self) -> None:
        self._reply(200, {"status": "ok"}) if self.path == "/health" else self._fail(404, "no such path")

    def do_POST(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        given = self.headers.get("Authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {self.server.key}".encode()):
            return self._fail(401, "another key")
        if not 0 < size <= MOST_BYTES:
            return self._fail(413, f"a request has 1 to {MOST_BYTES:,} bytes")
        try:
            ask = json.loads(self.rfile.read(size))
            with self.server.turn:
                if self.path == "/tokenize":
                    ids = self.server.model.tokenize(
                        ask["content"], ask.get("add_special", False), ask.get("parse_special", True)
                    )
                    self._reply(200, {"tokens": ids})
                elif self.path == "/completion":
                    self._complete(ask)
                else:
                    self._fail(404, "no such path")
        except (ValueError, KeyError, TypeError) as error:
            self._fail(400, str(error))
        except RuntimeError as error:
            self._fail(500, str(error))
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # who asked has gone: the answer ends here

    def _complete(self, ask: dict[str, Any]) -> None:
        events = answer(self.server.model, ask)
        if not ask.get("stream"):
            parts = list(events)
            whole = {"content": "".join(part["content"] for part in parts)}
            return self._reply(200, parts[-1] | whole | {"tokens": [id for part in parts for id in part["tokens"]]})
        first = next(events)  # before the headers, so that a refusal is an error and not half an answer
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for event in chain((first,), events):
            self._event(event)

    def _event(self, event: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        self.wfile.flush()

    def _reply(self, status: int, value: dict[str, Any]) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _fail(self, status: int, message: str) -> None:
        self._reply(status, {"error": {"code": status, "message": message}})


def serve(arguments: argparse.Namespace) -> None:
    """Load, then answer until standard input ends."""
    model = Model(
        arguments.model,
        arguments.ctx_size,
        arguments.threads,
        arguments.lora,
        vocab_only=arguments.vocab_only,
        exact=arguments.exact,
    )
    server: Any = ThreadingHTTPServer(("127.0.0.1", arguments.port), _Handler)
    server.model, server.key, server.turn = model, os.environ["LLAMA_API_KEY"], threading.Lock()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.buffer.read()
    os._exit(0)  # a thread may be in the middle of an answer; llama.cpp leaves nothing behind


def quantize(source: Path, out: Path, kind: str) -> None:
    """Write `source` with its matrices as `kind`, by llama.cpp's own quantiser. Raises RuntimeError."""
    from llama_cpp import llama_cpp as api

    settings = api.llama_model_quantize_default_params()
    log = quiet(api)
    settings.ftype = getattr(api, f"LLAMA_FTYPE_MOSTLY_{kind.upper()}")
    if api.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(settings)) and log:
        raise RuntimeError(f"{source}: llama.cpp could not write it as {kind}")


def main(words: Sequence[str] | None = None) -> None:
    """The two things this process does."""
    parser = argparse.ArgumentParser(prog="luthier.engines.llamacpp_child")
    verbs = parser.add_subparsers(required=True)
    serving = verbs.add_parser("serve")
    serving.add_argument("--model", type=Path, required=True)
    serving.add_argument("--port", type=int, required=True)
    serving.add_argument("--threads", type=int, default=1)
    serving.add_argument("--ctx-size", type=int, default=0)
    serving.add_argument("--lora", type=Path, action="append", default=[])
    serving.add_argument("--vocab-only", action="store_true")
    serving.add_argument("--exact", action="store_true")
    serving.set_defaults(run=serve)
    writing = verbs.add_parser("quantize")
    writing.add_argument("source", type=Path)
    writing.add_argument("out", type=Path)
    writing.add_argument("kind")
    writing.set_defaults(run=lambda given: quantize(given.source, given.out, given.kind))
    arguments = parser.parse_args(words)
    try:
        arguments.run(arguments)
    except RuntimeError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
