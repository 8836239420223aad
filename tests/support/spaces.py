"""A Space's folder at work in processes of its own: one engine asked, or the whole app started and reached."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.children import environment


def space_environment(**more: str) -> dict[str, str]:
    """As a host has it: offline here, one processor, and nothing of this checkout in reach."""
    found = environment(CPU_CORES="1", **more)
    del found["PYTHONPATH"]
    return found


def in_space(folder: Path, code: str, *words: str) -> Any:
    """Run `code` in the Space's folder; it prints JSON last. Raises AssertionError with what went wrong."""
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        env=space_environment(),
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@contextmanager
def started(folder: Path, python: Path | str = sys.executable, seconds: float = 180.0) -> Iterator[Any]:
    """`python app.py`, and a client of it."""
    from gradio_client import Client

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = space_environment(GRADIO_SERVER_PORT=str(port), GRADIO_SERVER_NAME="127.0.0.1")
    with (folder.parent / f"{folder.name}.log").open("w") as log:
        process = subprocess.Popen([str(python), "app.py"], cwd=folder, env=place, stdout=log, stderr=log)
    deadline = time.monotonic() + seconds
    try:
        while True:
            said = (folder.parent / f"{folder.name}.log").read_text()
            assert process.poll() is None, said
            assert time.monotonic() < deadline, said
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.3)
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        yield Client(f"http://127.0.0.1:{port}", verbose=False)
    finally:
        process.terminate()
        process.wait(timeout=30)
