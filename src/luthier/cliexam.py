"""The words of `luthier exam`: questions with options, put to bases and to any number of adapters in one process."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from luthier.cliwords import add_verb
from luthier.recipe_exam import ANSWER_BASES, METHODS, NORMALIZATIONS, PROMPTS
from luthier.recipe_model import DTYPES, QUANTIZATIONS


def exam_parser(verbs: Any) -> None:
    """Add `exam` to the command line."""
    verb = add_verb(
        verbs,
        "exam",
        _exam,
        "questions with options: every base and adapter in one process, and what the scores can bear",
        "luthier exam piqa.jsonl --model toy:llama --adapter runs/a/stages/main/checkpoints",
    )
    verb.add_argument("exams", type=Path, nargs="+", metavar="EXAM", help="files of questions, of any known shape")
    verb.add_argument("--model", action="append", default=[], metavar="BASE", help="a base; may be given many times")
    verb.add_argument(
        "--adapter",
        action="append",
        default=[],
        type=Path,
        metavar="DIR",
        help="an adapter of that base, or a folder of checkpoints; may be given many times",
    )
    verb.add_argument("--run", default="", metavar="RUN[:STAGE]", help="the base and all checkpoints of a run's stage")
    _add_wording(verb)
    verb.add_argument("--quantization", choices=[name for name in QUANTIZATIONS if name], default="")
    verb.add_argument(
        "--dtype", choices=DTYPES, default="", help="how weights are held (default: float32, or the run's)"
    )
    verb.add_argument("--table", type=Path, help="a training table: items that its rows touch are scored apart")
    verb.add_argument("--out", type=Path, help="a new folder (default: exams/NAME, or the next free number)")
    verb.add_argument("--resume", action="store_true", help="go on with the examination in --out")
    verb.add_argument("--no-cache", action="store_true", help="ask again what the same weights answered before")


def _add_wording(verb: argparse.ArgumentParser) -> None:
    """How questions are put."""
    verb.add_argument(
        "--method",
        choices=METHODS,
        default="letters",
        help="letters: likelihood of the option's letter (default); text: of its whole text; generate: it writes",
    )
    verb.add_argument(
        "--normalization", choices=NORMALIZATIONS, default="none", help="with text: divide by bytes or tokens"
    )
    verb.add_argument("--plain", action="store_true", help="as plain text, without the base's chat template")
    verb.add_argument(
        "--prompts", default="question", metavar="A,B", help=f"wordings, of {', '.join(PROMPTS)}; the first one counts"
    )
    verb.add_argument("--one-order", action="store_true", help="do not ask again with the options in reverse order")
    verb.add_argument("--shots", type=int, default=0, metavar="N", help="solved questions before each, from --pool")
    verb.add_argument("--pool", default="", metavar="FILE", help="where solved questions come from; never the exam")
    verb.add_argument("--labels", default="", metavar="FILE", help="the answers, where the exam's file has none")
    verb.add_argument("--answers", choices=[name for name in ANSWER_BASES if name], default="", help="how they count")


def _exam(options: argparse.Namespace) -> Any:
    from luthier.examrequest import ExamRequest
    from luthier.examverbs import exam
    from luthier.recipe_exam import ExamSettings

    settings = ExamSettings(
        method=options.method,
        normalization=options.normalization,
        chat_template=not options.plain,
        prompts=options.prompts.split(","),
        both_orders=not options.one_order,
        shots=options.shots,
        pool=options.pool,
        labels=options.labels,
        answers=options.answers,
    )
    request = ExamRequest(
        exams=options.exams,
        models=options.model,
        adapters=options.adapter,
        run=options.run,
        settings=settings,
        dtype=options.dtype,
        quantization=options.quantization,
        table=options.table,
        out=options.out,
        resume=options.resume,
        cache=not options.no_cache,
    )
    return exam(request)
