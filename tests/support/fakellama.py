"""A stand-in for llama-server: the same flags and the same words over HTTP/1.1, in chunks, without a model.

It answers a prompt of ids with the words `one two three`, or fails as its $FAKE_LLAMA says: `refuse`, `die`, `tear` or
`halt`. Run as a program; what it was asked is appended to the file in $FAKE_LLAMA_LOG.
"""

from __future__ import annotations

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HOW = os.environ.get("FAKE_LLAMA", "")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        loaded = getattr(self.server, "asked", 0)
        self.server.asked = loaded + 1  # type: ignore[attr-defined]
        self.reply(200 if loaded else 503, {"status": "ok"} if loaded else {"error": {"message": "Loading model"}})

    def do_POST(self) -> None:
        ask = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.headers["Authorization"] != f"Bearer {os.environ['LLAMA_API_KEY']}":
            return self.reply(401, {"error": {"message": "Invalid API Key"}})
        with open(os.environ["FAKE_LLAMA_LOG"], "a") as log:
            log.write(json.dumps({"path": self.path, **ask}) + "\n")
        if self.path == "/tokenize":
            return self.reply(200, {"tokens": [ord(letter) for letter in ask["content"]]})
        if HOW == "refuse":
            return self.reply(400, {"error": {"message": "the request exceeds the available context size"}})
        if not ask.get("stream"):
            return self.reply(200, {"content": "one two three", "tokens": [1, 2, 3], "stop": True, "stop_type": "eos"})
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.chunk(": ping\n\n")
        for number, word in enumerate(("one", " two", " three")):
            if HOW == "die" and number == 1:
                os._exit(7)
            if HOW == "tear" and number == 1:
                self.chunk('data: {"content": "t')
                os._exit(7)
            if HOW == "halt" and number == 1:
                return self.event({"error": {"message": "out of memory", "code": 500}})
            self.event({"content": word, "tokens": [number], "stop": False, "tokens_predicted": number + 1})
        last = {"content": "", "tokens": [], "stop": True, "stop_type": "eos"}
        self.event({**last, "tokens_predicted": 4, "tokens_evaluated": len(ask["prompt"])})
        self.chunk("")

    def event(self, value: dict[str, Any]) -> None:
        self.chunk(f"data: {json.dumps(value)}\n\n")

    def chunk(self, text: str) -> None:
        data = text.encode()
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def reply(self, status: int, value: dict[str, Any]) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


if __name__ == "__main__":
    words = sys.argv[1:]
    with open(os.environ["FAKE_LLAMA_LOG"], "a") as log:
        log.write(json.dumps({"words": words, "pid": os.getpid()}) + "\n")
    if HOW == "unloadable":
        sys.exit("error: failed to load model")
    ThreadingHTTPServer(("127.0.0.1", int(words[words.index("--port") + 1])), Handler).serve_forever()
