"""The command line: words in, a verb called, an exit code out. Loads no heavy library to show its help."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from luthier import __version__
from luthier.clicollect import collect_parser
from luthier.clicompare import compare_parser
from luthier.clidata import data_parser
from luthier.cliexam import exam_parser
from luthier.cliserve import serve_parser
from luthier.cliship import export_parser, publish_parser
from luthier.clisweep import sweep_parser
from luthier.cliwords import add_recipe, add_verb
from luthier.errors import LuthierError, RequestError
from luthier.quickstart import QUICKSTARTS


def quiet_libraries() -> None:
    """Leave standard error to us: libraries tell developers what will be renamed, and which kernels are absent."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns its exit code: 0 done, 1 failed, 2 wrong request, 130 interrupted."""
    quiet_libraries()
    options = parser().parse_args(argv)
    signal.signal(signal.SIGTERM, _as_interrupt)
    try:
        figures = options.call(options)
        if options.json and figures is not None:
            print(json.dumps(figures, ensure_ascii=False), flush=True)
    except LuthierError as error:
        if os.environ.get("LUTHIER_DEBUG"):
            raise
        print(f"luthier: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"luthier: interrupted; resume with:\n  {_resume_line(argv)}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it ends
        return 0
    except Exception as error:
        if os.environ.get("LUTHIER_DEBUG"):
            raise
        print(
            f"luthier: {type(error).__name__}: {error}\n  mend: this is unexpected; LUTHIER_DEBUG=1 shows where",
            file=sys.stderr,
        )
        return 1
    return 0


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    root = argparse.ArgumentParser(
        prog="luthier",
        description="From raw domain data to a fine-tuned multimodal model "
        "that is measured and deployed: one recipe, one command.",
    )
    root.add_argument("--version", action="version", version=f"luthier {__version__}")
    verbs = root.add_subparsers(dest="verb", required=True, metavar="VERB")

    verb = add_verb(
        verbs,
        "quickstart",
        _quickstart,
        "data made on the spot, a toy model, its scores, a report",
        "luthier quickstart --kind expert --out my-first-run",
    )
    verb.add_argument(
        "--kind",
        choices=sorted(QUICKSTARTS),
        default="speaking",
        help="speaking: answers with a known truth, two stages; expert: a made-up encyclopedia and exams on it; "
        "describer: drawn product cards, read by a toy that sees",
    )
    verb.add_argument("--out", type=Path, help="a new folder (default: quickstart-run, or the next free number)")
    _recipe_parsers(verbs)
    verb = add_verb(
        verbs,
        "predict",
        _predict,
        "judge recordings and pictures, or answer questions about them, with a finished run",
        "luthier predict runs/a answer.wav --question 'Describe the picture.'",
    )
    verb.add_argument("run", type=Path)
    verb.add_argument(
        "inputs",
        type=Path,
        nargs="*",
        metavar="INPUT",
        help="recordings, pictures, videos; for chats texts or .jsonl too",
    )
    verb.add_argument(
        "--question", default="", help="what is asked about inputs; a chat run answers it without one too"
    )
    verb.add_argument("--stage", default="", help="which stage (default: the last finished one)")
    _score_parser(verbs)
    exam_parser(verbs)
    compare_parser(verbs)
    sweep_parser(verbs)
    serve_parser(verbs)
    data_parser(verbs)
    collect_parser(verbs)
    export_parser(verbs)
    publish_parser(verbs)
    add_verb(verbs, "doctor", _doctor, "versions, devices, and what is missing", "luthier doctor --json")
    verb = add_verb(verbs, "report", _report, "write report.html of a run or an exam again", "luthier report runs/a")
    verb.add_argument("run", type=Path, help="the folder of a run or of an exam")
    return root


def _recipe_parsers(verbs: Any) -> None:
    """Add what is done with recipes to the command line."""
    verb = add_verb(verbs, "new", _new, "write a commented recipe", "luthier new speaking my-folder")
    verb.add_argument("kind", help="speaking, expert, describer, assistant, voice; cards, encyclopedia or quickstart")
    verb.add_argument("folder", type=Path, nargs="?", default=Path(), help="where (default: here)")
    verb = add_verb(
        verbs, "check", _check, "everything that can be known before training", "luthier check recipes/speaking.yaml"
    )
    add_recipe(verb)
    verb = add_verb(
        verbs,
        "rehearse",
        _rehearse,
        "the recipe end to end at toy size, offline",
        "luthier rehearse recipes/speaking.yaml",
    )
    add_recipe(verb)
    verb.add_argument("--out", type=Path, help="a new folder (default: a temporary one)")
    verb = add_verb(
        verbs,
        "run",
        _run,
        "data, stages, evaluation, report",
        "luthier run recipes/speaking.yaml --out runs/a --set train.epochs=3",
    )
    add_recipe(verb)
    verb.add_argument("--out", type=Path, help="a new folder (default: runs/NAME)")
    verb.add_argument("--resume", action="store_true", help="go on with the run in --out")
    verb.add_argument("--verify", action="store_true", help="with --resume: first prove, on this run, that it is exact")


def _score_parser(verbs: Any) -> None:
    """Add `score` to the command line."""
    verb = add_verb(
        verbs,
        "score",
        _score,
        "metrics of a file of predictions",
        "luthier score predictions.jsonl --labels labels.csv",
    )
    verb.add_argument("predictions", type=Path)
    verb.add_argument("--labels", type=Path, help="a second file with the labels, matched by id or by order")
    verb.add_argument("--pass-mark", type=float, default=4.0, help="the grade at which an answer passes (default: 4)")
    verb.add_argument(
        "--event",
        choices=("panel", "rater", "latent"),
        help="what log loss and Brier are held against (default: the file's own event, else panel)",
    )


def _quickstart(options: argparse.Namespace) -> Any:
    from luthier import verbs

    return verbs.quickstart(options.out, options.kind)


def _new(options: argparse.Namespace) -> Any:
    from luthier import verbs

    return verbs.new(options.kind, options.folder)


def _check(options: argparse.Namespace) -> Any:
    from luthier import verbs

    return verbs.check(options.recipe, options.overrides)


def _rehearse(options: argparse.Namespace) -> Any:
    from luthier import verbs

    return verbs.rehearse(options.recipe, options.out, options.overrides)


def _run(options: argparse.Namespace) -> Any:
    from luthier import verbs

    return verbs.run(options.recipe, options.out, options.overrides, resume=options.resume, verify=options.verify)


def _predict(options: argparse.Namespace) -> Any:
    from luthier import verbs

    failed = lines = 0
    for verdict in verbs.predict(options.run, options.inputs, options.question, options.stage):
        print(json.dumps(verdict, ensure_ascii=False), flush=True)
        failed += "error" in verdict
        lines += 1
    if failed == lines:
        raise RequestError(
            "nothing could be judged or answered; each line above says why", "give inputs that can be read"
        )


def _score(options: argparse.Namespace) -> Any:
    from luthier import verbs

    return verbs.score(options.predictions, options.labels, options.pass_mark, options.event)


def _doctor(options: argparse.Namespace) -> Any:
    from luthier import verbs

    return verbs.doctor()


def _report(options: argparse.Namespace) -> Any:
    from luthier import verbs

    path = verbs.report(options.run)
    print(path, file=sys.stderr)
    return {"report": str(path)}


def _as_interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _resume_line(argv: Sequence[str] | None) -> str:
    import shlex

    words = list(sys.argv[1:] if argv is None else argv)
    return shlex.join(["luthier", *words, *([] if "--resume" in words or words[:1] != ["run"] else ["--resume"])])


if __name__ == "__main__":
    sys.exit(main())
