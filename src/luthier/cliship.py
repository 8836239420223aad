"""The words of `luthier export` and `luthier publish`: a finished stage as a folder, and on the hub."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from luthier.cliwords import add_verb
from luthier.exporting.kinds import GGUF_TYPES, KINDS, PARTS
from luthier.recipe_model import DTYPES

_EXPORT_EXAMPLES = """luthier export runs/a --to adapter
         luthier export runs/a --to gguf --type q4_k_m --out a-gguf
         luthier export runs/a --to space --with runs/b --zero-gpu"""
_PUBLISH_EXAMPLES = """luthier publish runs/a
         luthier publish runs/a --stage main --repo NAME/my-model --public"""


def export_parser(verbs: Any) -> None:
    """Add `export` to the command line."""
    verb = add_verb(
        verbs,
        "export",
        _export,
        "a finished stage as a folder: adapter, merged model, GGUF, Ollama, or a Space",
        _EXPORT_EXAMPLES,
    )
    verb.add_argument("run", type=Path, metavar="RUN", help="the folder of a finished run")
    verb.add_argument("--to", required=True, choices=KINDS, help="what is made")
    verb.add_argument("--stage", default="", help="which stage (default: the last finished one)")
    verb.add_argument("--checkpoint", default="", metavar="STEP", help="such as step-000050, not the final adapter")
    verb.add_argument("--out", type=Path, metavar="DIR", help="a new folder (default: exports/RUN-STAGE-KIND)")
    verb.add_argument("--base-name", default="", metavar="ID", help="the base on the hub, if it was read from a folder")
    verb.add_argument("--no-receipt", action="store_true", help="do not put the same prompts to every form")
    whole = verb.add_argument_group("merged, gguf and ollama")
    whole.add_argument("--dtype", choices=DTYPES, default="", help="of merged weights (default: that of the run)")
    whole.add_argument("--allow-gap", type=float, metavar="X", help="the largest gap of a merge, in place of the limit")
    whole.add_argument("--type", choices=GGUF_TYPES, default="", help="of a GGUF (default: q8_0; of an adapter's: f16)")
    whole.add_argument("--what", choices=PARTS, default="merged", help="of a GGUF: the whole model, or the adapter")
    whole.add_argument("--template", type=Path, metavar="FILE", help="ollama: a Go template for the Modelfile")
    whole.add_argument("--llama-cpp", type=Path, metavar="DIR", help="a checkout of llama.cpp, for its converter")
    space = verb.add_argument_group("space")
    space.add_argument(
        "--with",
        dest="beside",
        action="append",
        default=[],
        metavar="RUN[:STAGE]",
        help="another model on the same base, to choose and to compare; may be given many times",
    )
    space.add_argument(
        "--from-hub",
        action="append",
        default=[],
        metavar="REPO",
        help="where a model is published; its files are then not put into the Space; one for each model, in order",
    )
    space.add_argument("--zero-gpu", action="store_true", help="for a host that lends a GPU by the minute")
    space.add_argument("--title", default="", help="of the page (default: the recipe's name)")


def publish_parser(verbs: Any) -> None:
    """Add `publish` to the command line."""
    verb = add_verb(
        verbs, "publish", _publish, "upload a finished stage's adapter, with its card, to the hub", _PUBLISH_EXAMPLES
    )
    verb.add_argument("run", type=Path, metavar="RUN", help="the folder of a finished run")
    verb.add_argument("--stage", default="", help="which stage (default: every finished one, each to its repository)")
    verb.add_argument("--repo", default="", metavar="NAME/REPO", help="the repository (default: publish.repo)")
    seen = verb.add_mutually_exclusive_group()
    seen.add_argument("--private", dest="private", action="store_true", default=None, help="for its owners alone")
    seen.add_argument("--public", dest="private", action="store_false", help="for everybody (default: publish.private)")
    verb.add_argument("--update", action="store_true", help="replace what another run has put there")
    verb.add_argument("--revision", default="main", metavar="BRANCH", help="the branch that shows it (default: main)")
    verb.add_argument("--token-env", default="", metavar="NAME", help="the environment variable that holds the token")
    verb.add_argument("--receipt", type=Path, metavar="FILE", help="receipt.json of an export, to go along")


def _export(options: argparse.Namespace) -> Any:
    from luthier.exporting.kinds import ExportRequest
    from luthier.shipverbs import export

    return export(
        ExportRequest(
            run=options.run,
            to=options.to,
            stage=options.stage,
            checkpoint=options.checkpoint,
            out=options.out,
            base_name=options.base_name,
            dtype=options.dtype,
            allow_gap=options.allow_gap,
            receipt=not options.no_receipt,
            type=options.type,
            what=options.what,
            template=options.template,
            llama_cpp=options.llama_cpp,
            beside=tuple(options.beside),
            from_hub=tuple(options.from_hub),
            zero_gpu=options.zero_gpu,
            title=options.title,
        )
    )


def _publish(options: argparse.Namespace) -> Any:
    from luthier.shipverbs import PublishOptions, publish

    return publish(
        PublishOptions(
            run=options.run,
            stage=options.stage,
            repo=options.repo,
            private=options.private,
            update=options.update,
            revision=options.revision,
            token_env=options.token_env,
            receipt=options.receipt,
        )
    )
