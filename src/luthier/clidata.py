"""The words of `luthier data`: tables built, shown, explained, audited and exported."""

from __future__ import annotations

import argparse
import sys
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

from luthier.cliwords import add_recipe, add_verb


def data_parser(verbs: Any) -> None:
    """Add `data` with its verbs to the command line."""
    text = "tables: build, show, why, audit, export"
    data = verbs.add_parser("data", help=text, description=text, epilog="example: luthier data build RECIPE --out DIR")
    words = data.add_subparsers(dest="data_verb", required=True, metavar="VERB")

    verb = add_verb(
        words,
        "build",
        _build,
        "a table from the data part of a recipe",
        "luthier data build recipes/assistant.yaml --set data.sources.finetome.path=finetome.jsonl",
    )
    add_recipe(verb)
    verb.add_argument("--out", type=Path, help="a new folder, or one that is already up to date (default: tables/NAME)")
    verb.add_argument("--cache", type=Path, help="where finished stages are kept (default: $LUTHIER_CACHE, or yours)")
    verb = add_verb(
        words, "show", _show, "a table, and some of its rows", "luthier data show tables/assistant --rows 5"
    )
    verb.add_argument("table", type=Path)
    verb.add_argument("name", nargs="?", default="", metavar="ID", help="one row, by id or FILE#N")
    verb.add_argument("--rows", type=int, default=3, help="how many (default: 3)")
    verb.add_argument("--split", default="", help="rows of this split")
    verb.add_argument("--source", default="", help="rows of this source")
    verb = add_verb(
        words, "why", _why, "a row's way: why it is in, or why not", "luthier data why tables/assistant train.jsonl#17"
    )
    verb.add_argument("table", type=Path)
    verb.add_argument("name", metavar="ID", help="a row's id, or where it is from: FILE#N or SOURCE:FILE#N")
    verb = add_verb(
        words,
        "audit",
        _audit,
        "leaks between a table and an exam or another table",
        "luthier data audit tables/assistant --against exam.json --out audit.html",
    )
    verb.add_argument("table", type=Path)
    verb.add_argument("--against", type=Path, required=True, help="an exam file, a file of rows, or another table")
    verb.add_argument("--split", default="train", help="the table's rows that are looked at (default: train)")
    verb.add_argument("--against-split", default="", help="of another table: the rows that are looked at")
    verb.add_argument("--ngram", type=int, default=13, help="words in a row that two texts may not share (default: 13)")
    verb.add_argument("--near", type=float, default=0.8, help="Jaccard similarity of a near copy (default: 0.8)")
    verb.add_argument("--out", type=Path, help="a page that shows each hit with both texts; hits also go beside it")
    verb = add_verb(
        words,
        "export",
        _export,
        "rows as JSON lines in another format",
        "luthier data export tables/assistant --to sharegpt --out assistant.jsonl",
    )
    verb.add_argument("table", type=Path)
    verb.add_argument("--to", required=True, metavar="FORMAT", help="sharegpt, messages, ultrachat, alpaca, ...")
    verb.add_argument("--out", type=Path, required=True, help="a new file")
    verb.add_argument("--split", default="", help="rows of this split (default: all)")


def _told(options: argparse.Namespace) -> AbstractContextManager[Any]:
    """Answers go to standard output, but for --json, which has it to itself."""
    return redirect_stdout(sys.stderr) if options.json else nullcontext()


def _build(options: argparse.Namespace) -> Any:
    from luthier import dataverbs

    with _told(options):
        return dataverbs.build(options.recipe, options.out, options.overrides, options.cache)


def _show(options: argparse.Namespace) -> Any:
    from luthier import dataverbs

    where = {key: value for key, value in (("split", options.split), ("source", options.source)) if value}
    with _told(options):
        return dataverbs.show(options.table, options.name, where, options.rows)


def _why(options: argparse.Namespace) -> Any:
    from luthier import dataverbs

    with _told(options):
        return dataverbs.why(options.table, options.name)


def _audit(options: argparse.Namespace) -> Any:
    from luthier import dataverbs
    from luthier.data.leaks.auditresult import AuditSettings

    settings = AuditSettings(options.split, options.against_split, options.ngram, options.near)
    with _told(options):
        return dataverbs.audit(options.table, options.against, settings, options.out)


def _export(options: argparse.Namespace) -> Any:
    from luthier import dataverbs

    with _told(options):
        return dataverbs.export(options.table, options.to, options.out, options.split)
