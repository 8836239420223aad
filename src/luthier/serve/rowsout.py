"""Votes and corrected transcripts as rows for training: a folder that `luthier data build` reads, every record counted.

    votes.jsonl         messages up to the preferred answer, and the `rejected` one beside it (format `messages`)
    transcripts.jsonl   audio, the corrected text and what was heard (format `image_caption`)
    media/              recordings as FLAC, named by their sha256
    manifest.json       in = exported + left out, by reason

Only what people agreed to leaves the store. Refuses to know pages and models.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from luthier import files
from luthier.serve.store import Store

Row = dict[str, Any]
_LOSER = {"first": "second", "second": "first"}


def vote_rows(store: Store, left_out: Counter[str], owner: str = "") -> Iterator[Row]:
    """A row for each vote that prefers one answer; `left_out` counts the others by reason. `owner`: theirs alone."""
    for vote in store.votes(owner):
        winner = vote["choice"]
        if not vote["consent"]:
            left_out["no consent"] += 1
        elif winner not in _LOSER:
            left_out["a tie" if winner == "tie" else "both bad"] += 1
        elif not vote[f"{winner}_answer"].strip():
            left_out["the preferred answer is empty"] += 1
        else:
            loser = _LOSER[winner]
            turns = [{"role": turn["role"], "content": _text(turn)} for turn in json.loads(vote["messages"])]
            yield {
                "messages": [*turns, {"role": "assistant", "content": vote[f"{winner}_answer"]}],
                "rejected": vote[f"{loser}_answer"],
                "chosen_model": vote[f"{winner}_model"],
                "rejected_model": vote[f"{loser}_model"],
                "shown_first": winner == "first",
                "reason": vote["reason"],
                "time": _time(vote["voted"]),
                "origin": f"vote:{vote['id']}",
            }


def transcript_rows(store: Store, left_out: Counter[str], owner: str = "") -> Iterator[Row]:
    """A row for each transcript with consent, its sound named `media/<sha256>`; `left_out` counts the others."""
    for found in store.transcripts(owner):
        if not found["consent"]:
            left_out["no consent"] += 1
        elif not found["corrected"].strip():
            left_out["the corrected text is empty"] += 1
        else:
            yield {
                "audio": f"media/{found['sound']}",
                "text": found["corrected"],
                "heard": found["heard"],
                "engine": found["engine"],
                "language": found["language"],
                "seconds": found["seconds"],
                "time": _time(found["time"]),
                "origin": f"transcript:{found['id']}",
            }


def write_rows(store: Store, folder: Path, owner: str = "") -> Row:
    """Fill a new folder with what the store may give away, and return its manifest's counts.

    Raises ExistsError where the folder exists, DiskError where it cannot be written.
    """
    about: Row = {"kind": "rows of luthier serve", "consent": "given for each row"}
    with files.atomic_folder(folder, about, manifest="manifest.json") as place:
        for name, make in (("votes", vote_rows), ("transcripts", transcript_rows)):
            left_out = Counter[str]()
            rows = list(make(store, left_out, owner))
            for row in rows:
                if "audio" in row:
                    files.write_bytes(place / row["audio"], store.media(row["audio"].removeprefix("media/")))
            files.write_jsonl(place / f"{name}.jsonl", rows)
            about[name] = {"in": len(rows) + left_out.total(), "exported": len(rows), "left out": dict(left_out)}
    return about


def _text(turn: Row) -> str:
    return "\n".join(part["text"] for part in turn["content"])


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat("T", "seconds")
