"""Real servers on a free port of the loopback: in a thread of the test's process, or as the verb in its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from luthier.serve.server import listen
from support.children import ROOT, environment


@contextmanager
def running(app: Any) -> Iterator[str]:
    """Serve an ASGI app while the block lasts; its address, as http://127.0.0.1:PORT."""
    listening = listen("127.0.0.1", 0)
    config = uvicorn.Config(app, log_level="critical", access_log=False, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        end = time.monotonic() + 20
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            assert time.monotonic() < end, "the server took longer than 20 s to start"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listening.close()


class Served:
    """`luthier serve` in a process of its own. `about` is what it printed once it was ready. `fakes`: a folder, for
    the verb over stand-ins (support/fakeserver.py)."""

    def __init__(self, *words: object, fakes: Path | None = None, **more: str) -> None:
        start = ["luthier.cli", "serve"] if fakes is None else ["support.fakeserver", str(fakes)]
        env = environment(**more)
        env["PYTHONPATH"] += f":{ROOT / 'tests'}"
        self.process = subprocess.Popen(
            [sys.executable, "-m", *start, *map(str, words), "--port", "0", "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(f"luthier serve ended with {self.process.wait()}: {self.process.communicate()[1]}")
        self.about: dict[str, Any] = json.loads(line)
        self.url: str = self.about["url"]

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Ask it to stop; its exit code, and what it said on standard error."""
        self.process.send_signal(number)
        try:
            _, said = self.process.communicate(timeout=20)
        finally:
            self.process.kill()
        return self.process.returncode, said
