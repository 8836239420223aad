"""The words of `luthier compare`: runs side by side, a probe, answers, blind votes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from luthier.cliwords import add_verb


def compare_parser(verbs: Any) -> None:
    """Add `compare` to the command line."""
    verb = add_verb(
        verbs,
        "compare",
        _compare,
        "runs side by side on the same items; what is not comparable is refused with its reason",
        "luthier compare runs/a runs/b --out compare.html",
    )
    verb.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folders of finished runs, two or more")
    verb.add_argument("--stage", default="", help="which stage (default: the last finished one of each run)")
    verb.add_argument("--out", type=Path, help="the page to write (default: compare.html, or the next free name)")
    verb.add_argument(
        "--probe",
        type=Path,
        metavar="FILE",
        help="chats: a file of rows, or a table, to score in place of the rows that the runs held out",
    )
    verb.add_argument("--prompts", type=Path, metavar="FILE", help="chats: a text or .jsonl that every run answers")
    verb.add_argument("--blind", action="store_true", help="put the answers on a page of ballots without names")
    verb.add_argument("--swap", action="store_true", help="with --blind: every ballot once in each order")
    verb.add_argument(
        "--votes", type=Path, action="append", default=[], metavar="FILE", help="votes saved from such a page"
    )
    verb.add_argument("--key", type=Path, metavar="FILE", help="the key that was written beside that page")
    verb.add_argument("--seed", type=int, default=17, help="of resampling and of the order of ballots (default: 17)")


def _compare(options: argparse.Namespace) -> Any:
    from luthier.compareverbs import CompareRequest, compare

    names = ("runs", "stage", "out", "probe", "prompts", "blind", "swap", "votes", "key", "seed")
    return compare(CompareRequest(**{name: getattr(options, name) for name in names}))
