"""Trackers mirror our own records: metrics.jsonl is written first, and stays the record.

Each tracker lives in a process of its own (`trackers.child`), with an environment that holds only what it needs, and
is fed by a thread: training never waits for one, a library that breaks or hangs takes nothing with it, and what it
prints or starts is out of the way. A tracker that fails is named once and no longer fed. This module knows no library.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import math
import os
import queue
import re
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from luthier.console import say
from luthier.errors import RequestError
from luthier.recipe import TrackConfig
from luthier.records import StepRecord
from luthier.runtime.trackers.told import Scrubber, told_about

CLOSING_SECONDS = 60.0
_LEAVING_SECONDS = 10.0
PACKAGES = {
    "tensorboard": ("tensorboardX",),
    "wandb": ("wandb",),
    "trackio": ("trackio",),
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),
}
"""What each tracker imports."""
_PASSED_ON = "HOME PATH LANG LC_ALL TZ TMPDIR PYTHONPATH PYTHONHOME LD_LIBRARY_PATH SSL_CERT_FILE SSL_CERT_DIR".split()
_NETWORK = "HTTP_PROXY HTTPS_PROXY NO_PROXY http_proxy https_proxy no_proxy REQUESTS_CA_BUNDLE CURL_CA_BUNDLE".split()
_ITS_OWN = {
    "wandb": [*_NETWORK, *"WANDB_API_KEY WANDB_MODE WANDB_BASE_URL WANDB_ENTITY".split()],
    "mlflow": [
        *_NETWORK,
        *"MLFLOW_TRACKING_URI MLFLOW_TRACKING_USERNAME MLFLOW_TRACKING_PASSWORD MLFLOW_TRACKING_TOKEN".split(),
        *"MLFLOW_TRACKING_INSECURE_TLS MLFLOW_TRACKING_SERVER_CERT_PATH MLFLOW_TRACKING_CLIENT_CERT_PATH".split(),
    ],
}
_SWITCHES = {
    "DO_NOT_TRACK": "true",
    "WANDB_ERROR_REPORTING": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
}


def missing_trackers(names: Sequence[str]) -> list[str]:
    """One line for each tracker whose library is not installed, with the line that installs it."""
    found = []
    for name in names:
        absent = [package for package in PACKAGES[name] if importlib.util.find_spec(package) is None]
        if absent:
            found.append(
                f"track.trackers: {name} needs {', '.join(absent)} (pip install 'luthier[{name}]', or take it out)"
            )
    return found


class Trackers:
    """The trackers of one run, or of one stage of it. Only the main process of a run opens them."""

    def __init__(self, feeds: Sequence[Feed], scrub: Scrubber) -> None:
        self._feeds = list(feeds)
        self._scrub = scrub

    @classmethod
    def open(
        cls, settings: TrackConfig, run_name: str, run_folder: Path, about: Mapping[str, Any], step: int = 0
    ) -> Trackers:
        """Start each tracker of the recipe; it goes on with the run of this name that it has in this folder, if any.

        run_name: may be shared by no other stage of the run. about: `recipe`, `versions` and `hashes`, each a mapping;
        see `told_about`. step: the last one that metrics.jsonl has kept. Raises RequestError where a library is
        missing. It does not wait for the libraries: what goes wrong with one later is said, and stops nothing.
        """
        if absent := missing_trackers(settings.trackers):
            raise RequestError("\n".join(absent), "install what is named, or empty track.trackers")
        environment = dict(os.environ)
        scrub = Scrubber({**environment, **about.get("recipe", {}).get("vars", {})})
        opening = {
            "do": "open",
            "project": scrub.text(settings.project),
            "name": re.sub(r"[^\w.=+-]+", "-", scrub.text(run_name)).strip("-.") or "run",
            "about": told_about(about, environment),
            "step": step,
        }
        feeds = []
        for name in dict.fromkeys(settings.trackers):
            folder = run_folder.resolve() / "track" / name
            folder.mkdir(parents=True, exist_ok=True)
            feeds.append(Feed(name, {**opening, "folder": str(folder)}, environment, scrub))
        return cls(feeds, scrub)

    def log(self, record: StepRecord | Mapping[str, Any], step: int) -> None:
        """Pass on the finite numbers of a record; it returns at once."""
        values = record.to_json() if isinstance(record, StepRecord) else record
        metrics = {
            name: value
            for name, value in values.items()
            if name != "step" and isinstance(value, int | float) and math.isfinite(value)
        }
        for feed in self._feeds:
            feed.put({"do": "log", "metrics": metrics, "step": step})

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Show a table where a tracker has tables (wandb); the others pass over it. Cells are texts, numbers and the
        bytes of JPEGs; texts lose what is secret."""

        def cell(value: Any) -> Any:
            if isinstance(value, bytes):
                return {"jpeg": base64.b64encode(value).decode()}
            return self._scrub.text(value) if isinstance(value, str) else value

        lines = [[cell(value) for value in row] for row in rows]
        for feed in self._feeds:
            feed.put({"do": "table", "name": name, "columns": list(columns), "rows": lines})

    def close(self, status: str) -> None:
        """End the runs as finished, failed or interrupted, and wait a minute at most for what is still to be sent."""
        for feed in self._feeds:
            feed.put({"do": "close", "status": status})
        for feed in self._feeds:
            feed.end(CLOSING_SECONDS)
        self._feeds = []


class Feed:
    """One tracker's process, and the thread that passes messages to it, one at a time."""

    def __init__(self, name: str, opening: dict[str, Any], environment: Mapping[str, str], scrub: Scrubber) -> None:
        self._name = name
        self._scrub = scrub
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "luthier.runtime.trackers.child", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=opening["folder"],
            env=_environment_for(name, environment),
            start_new_session=True,  # ctrl-C is for the run, which then closes its trackers
            text=True,
            encoding="utf-8",
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._pipes = (self._process.stdin, self._process.stdout)
        self._messages: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._failed = False
        self._thread = threading.Thread(target=self._pass_on, name=f"track-{name}", daemon=True)
        self.put(opening)
        self._thread.start()

    def put(self, message: dict[str, Any]) -> None:
        """Line a message up, unless the tracker has failed."""
        if not self._failed:
            self._messages.put(message)

    def end(self, seconds: float) -> None:
        """Wait for the last answer, then for the process."""
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._stop_feeding(f"no answer for {seconds:.0f} s")
            self._process.kill()
            self._thread.join()
        stdin, stdout = self._pipes
        with suppress(BrokenPipeError):  # it is gone, and was named
            stdin.close()
        try:
            self._process.wait(_LEAVING_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        stdout.close()

    def _pass_on(self) -> None:
        message = {"do": ""}
        while message["do"] != "close" and not self._failed:
            message = self._messages.get()
            try:
                answer = self._ask(message)
            except (OSError, ValueError) as error:  # the pipe is closed, or the answer is torn
                answer = {"failed": f"its process ended ({error})"}
            if reason := answer.get("failed"):
                self._stop_feeding(reason)
            elif note := answer.get("note"):
                say(f"track: {self._name}: {' '.join(self._scrub.text(note).split())}")

    def _ask(self, message: dict[str, Any]) -> dict[str, str]:
        stdin, stdout = self._pipes
        stdin.write(json.dumps(message) + "\n")
        stdin.flush()
        answer: dict[str, str] = json.loads(stdout.readline())
        return answer

    def _stop_feeding(self, reason: str) -> None:
        if not self._failed:
            self._failed = True
            reason = " ".join(self._scrub.text(reason).split())[:300]
            say(f"track: {self._name} failed and is no longer fed; what it misses is in metrics.jsonl ({reason})")


def _environment_for(name: str, environment: Mapping[str, str]) -> dict[str, str]:
    """What the tracker needs of our environment, and the switches that keep libraries from calling home."""
    kept = {key: environment[key] for key in [*_PASSED_ON, *_ITS_OWN.get(name, [])] if key in environment}
    return {**kept, **_SWITCHES}
