"""The words of `luthier collect`: what is brought from the web."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from luthier.cliwords import add_verb


def collect_parser(verbs: Any) -> None:
    """Add `collect` with its verbs to the command line."""
    text = "sources on the web: pictures"
    example = "example: luthier collect pictures recipes/describer.yaml --out products"
    collect = verbs.add_parser("collect", help=text, description=text, epilog=example)
    words = collect.add_subparsers(dest="collect_verb", required=True, metavar="WHAT")
    verb = add_verb(
        words,
        "pictures",
        _pictures,
        "a table with addresses of pictures becomes a local table, with a training and a validation side",
        "luthier collect pictures recipes/describer.yaml --out products --contact me@example.org",
    )
    verb.add_argument("table", type=Path, help="a recipe, or a table (parquet, csv, jsonl)")
    verb.add_argument("--out", type=Path, required=True, help="a new folder")
    verb.add_argument("--source", default="", help="which source of the recipe (default: the first)")
    verb.add_argument("--column", default="", help="the column with the addresses (default: imageurl and the like)")
    verb.add_argument("--group", default="", help="the column that names the product (default: product_code and such)")
    verb.add_argument("--validation", type=float, default=0.1, help="share of products set aside (default: 0.1)")
    verb.add_argument("--limit", type=int, default=0, help="the first so many rows (default: all)")
    verb.add_argument("--seconds-between", type=float, default=1.0, help="requests to one host (default: 1)")
    verb.add_argument("--contact", default="", help="an address that servers are told, to reach you")
    verb.add_argument("--resume", action="store_true", help="go on with the folder in --out")


def _pictures(options: argparse.Namespace) -> Any:
    from luthier import collectverbs

    return collectverbs.pictures(
        collectverbs.PicturesAsked(
            options.table,
            options.out,
            options.source,
            options.column,
            options.group,
            options.validation,
            options.limit,
            options.seconds_between,
            options.contact,
        ),
        options.resume,
    )
