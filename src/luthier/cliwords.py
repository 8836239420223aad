"""What every verb of the command line has: help with an example, --json, and a recipe where it takes one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_verb(verbs: Any, name: str, call: Any, text: str, example: str) -> argparse.ArgumentParser:
    """A verb with its help, an example and --json."""
    verb: argparse.ArgumentParser = verbs.add_parser(
        name,
        help=text,
        description=text,
        epilog=f"example: {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verb.add_argument(
        "--json", action="store_true", help="print the figures as one JSON object, last on standard output"
    )
    verb.set_defaults(call=call)
    return verb


def add_recipe(verb: argparse.ArgumentParser) -> None:
    """A recipe file and the keys to override in it."""
    verb.add_argument("recipe", type=Path, help="a recipe file")
    verb.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="a.b=c",
        help="override a key; may be given many times",
    )
