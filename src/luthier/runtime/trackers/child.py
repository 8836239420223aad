"""The process of one tracker: `python -m luthier.runtime.trackers.child NAME`, spoken to by `luthier.runtime.tracking`.

It reads one JSON message a line (open, then log and table, then close) and answers each with one: `{"note": ...}`, or
`{"failed": ...}` and its end. Where the messages stop without a close, the run was killed, and is closed as such.

`NAME.json` in the tracker's folder keeps the id of the run and the last step that was sent. It is written before the
step is sent: a kill in between leaves a line out of the mirror, and never one twice.
"""

from __future__ import annotations

import base64
import json
import os
import sys
from pathlib import Path
from typing import IO, Any

from luthier.runtime.trackers.mirrors import MIRRORS, Mirror, Opening, Tables


class Session:
    """An open mirror and the steps that it has."""

    def __init__(self, tracker: str, message: dict[str, Any]) -> None:
        folder = Path(message["folder"])
        folder.mkdir(parents=True, exist_ok=True)
        self._state = folder / f"{message['name']}.json"
        known = json.loads(self._state.read_text(encoding="utf-8")) if self._state.is_file() else {}
        opening = Opening(
            project=message["project"],
            name=message["name"],
            folder=folder,
            about=message["about"],
            id=known.get("id", ""),
            step=message["step"],
        )
        self.mirror: Mirror = MIRRORS[tracker](opening)
        self._sent = 0 if self.mirror.rewinds else known.get("step", 0)
        self._keep(known.get("step", 0))

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Send one line, unless the tracker has its step from before a kill."""
        if step > self._sent:
            self._keep(step)
            self.mirror.log(metrics, step)

    def table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        """Send a table; a cell `{"jpeg": BASE64}` is a picture."""
        if not isinstance(self.mirror, Tables):
            return
        cells = [[base64.b64decode(cell["jpeg"]) if isinstance(cell, dict) else cell for cell in row] for row in rows]
        self.mirror.table(name, columns, cells)

    def _keep(self, step: int) -> None:
        beside = self._state.with_suffix(".tmp")
        beside.write_text(json.dumps({"id": self.mirror.id, "step": step}), encoding="utf-8")
        beside.replace(self._state)


def serve(tracker: str, messages: IO[str], answers: IO[str]) -> None:
    """Carry out the messages until one closes the run or they end."""
    session: Session | None = None
    try:
        for line in messages:
            message = json.loads(line)
            note = ""
            if message["do"] == "open":
                session = Session(tracker, message)
                note = session.mirror.note
            elif session is not None and message["do"] == "log":
                session.log(message["metrics"], message["step"])
            elif session is not None and message["do"] == "table":
                session.table(message["name"], message["columns"], message["rows"])
            elif session is not None:
                mirror, session = session.mirror, None
                mirror.close(message["status"])
            answers.write(json.dumps({"note": note}) + "\n")
            answers.flush()
        if session is not None:
            session.mirror.close("killed")
    except Exception as error:  # whatever a library raises is an answer, and the end of this mirror
        answers.write(json.dumps({"failed": f"{type(error).__name__}: {error}"}) + "\n")
        answers.flush()


def main() -> None:
    """Keep the two pipes to ourselves: what a library reads, prints or starts gets the null device."""
    messages, answers = os.fdopen(os.dup(0), "r", encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    serve(sys.argv[1], messages, answers)


if __name__ == "__main__":
    main()
