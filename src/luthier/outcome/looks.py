"""The ledger of looks: how often an exam's answers were used to judge a model, over all runs on this machine.

An exam that was looked at twenty times has helped to choose, whatever it was meant for; the count stands on the card.
One look is one candidate's score on one exam; the same candidate again is no new look. The module refuses to know
scores. The ledger lies with the user's data, as caches are thrown away.
"""

from __future__ import annotations

import functools
import os
from datetime import UTC, datetime
from pathlib import Path

from luthier.console import say
from luthier.errors import DataError, DiskError
from luthier.files import append_jsonl, read_jsonl


def default_ledger() -> Path:
    """looks under `$LUTHIER_HOME`, else under the user's data folder (`$XDG_DATA_HOME` or ~/.local/share)."""
    named = os.environ.get("LUTHIER_HOME")
    shared = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return (Path(named) if named else Path(shared) / "luthier") / "looks"


def record_look(digest: str, who: str, purpose: str, ledger: Path | None = None) -> int:
    """Count a look of the candidate `who` (its key) at the exam of this digest, and return the looks so far.

    `purpose` says what the score was for: choose, report, compare. A ledger that cannot be written is said once and
    stops nothing: the look is then counted in what is returned and forgotten.
    """
    path = _ledger_of(digest, ledger)
    known = _seen(path)
    if who not in known:
        try:
            append_jsonl(path, {"who": who, "purpose": purpose, "time": datetime.now(UTC).isoformat("T", "seconds")})
        except DiskError:
            _say_once(path)
    return len(known | {who})


def count_looks(digest: str, ledger: Path | None = None) -> int:
    """How many candidates were looked at on the exam of this digest."""
    return len(_seen(_ledger_of(digest, ledger)))


def _ledger_of(digest: str, ledger: Path | None) -> Path:
    return (ledger or default_ledger()) / f"{digest.replace(':', '-')}.jsonl"


def _seen(path: Path) -> set[str]:
    try:
        return {row["who"] for row in read_jsonl(path)}
    except FileNotFoundError:
        return set()
    except OSError:
        _say_once(path)
        return set()
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a ledger of looks: {error}", "mend the line, or move the file away") from error


@functools.cache
def _say_once(path: Path) -> None:
    say(f"looks at exams are not counted: {path} cannot be read or written (set LUTHIER_HOME to a folder of yours)")
