"""One exam put to one base by Luthier's own parts, timed from the questions' words to their log-likelihoods.

    .venv/bin/python benchmarks/exam/ours.py FILES BASE CASE [--threads 2] [--answers FILE]

Prints one line of JSON; `--answers` keeps the log-likelihoods, one list a question, in the file's order.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "src")]

import torch  # noqa: E402
from cases import CASES  # noqa: E402
from meter import Clock, options, report  # noqa: E402

from luthier.data.exams.exam import Exam  # noqa: E402
from luthier.data.exams.reader import read_exam  # noqa: E402
from luthier.evaluate.exams import Examiner  # noqa: E402
from luthier.models.chat import ChatTemplate  # noqa: E402
from luthier.models.text_base import load_text_base  # noqa: E402
from luthier.recipe_exam import ExamSettings  # noqa: E402
from luthier.recipe_model import ModelConfig  # noqa: E402
from luthier.runtime.devices import Devices  # noqa: E402

LIBRARIES = ("torch", "transformers", "peft")


def main() -> int:
    given = options(__doc__)
    torch.set_num_threads(given.threads)
    case, exams = CASES[given.case], given.files / "exams"
    exam = read_exam(exams / case.exam, "exam")
    if given.questions:
        exam = Exam("exam", exam.items[: given.questions], exam.digest, exam.shape, exam.answers)
    pool = read_exam(exams / "pool.jsonl", "pool")
    devices = Devices("float32")
    base = load_text_base(ModelConfig(base=str(given.files / given.base)), devices.device)
    settings = ExamSettings(
        method=case.method,
        chat_template=False,
        both_orders=False,
        shots=case.shots,
        pool="pool" if case.shots else "",
    )
    template = ChatTemplate.of(base.tokenizer)
    first = Exam("first", exam.items[:1], exam.digest, exam.shape, exam.answers)
    Examiner.of(first, settings, template, pool).examine(base.model, devices)
    clock = Clock()
    found = Examiner.of(exam, settings, template, pool).examine(base.model, devices)
    spent = clock.spent()
    report(
        given,
        spent,
        [prediction.logprobs for prediction in found.predictions],
        prompt_tokens=found.prompt_tokens,
        read_tokens=found.read_tokens,
        versions={name: version(name) for name in LIBRARIES},
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
