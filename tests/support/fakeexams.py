"""Records of exams as a sweep leaves them, made from a seed without a model; the statistics on them are the real ones.

Answers follow a margin model: each item has a difficulty, each candidate a skill, and candidates agree as checkpoints
of one run do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from luthier import files
from luthier.exam_records import ExamAsked, ExamPrediction, ExamRecord, SatRecord
from luthier.outcome.exams.examined import conclude, write_scores
from luthier.rundir import ExamDir

ATTACK = "<script>alert('x')</script> Which town & river?"
Json = dict[str, Any]


@dataclass
class FakeExam:
    """One exam: candidates as (name, step, skill); with several bases no candidate is called base."""

    name: str = "trivia"
    items: int = 162
    options: int = 2
    seed: int = 7
    candidates: list[tuple[str, int | None, float]] = field(default_factory=list)
    overlap: int = 0
    same: str = ""
    """A candidate whose answers equal the base's, as an adapter without effect has them."""
    method: str = "letters"
    chooses: bool = True


def checkpoints(count: int = 11, every: int = 50, skill: float = 1.2) -> list[tuple[str, int | None, float]]:
    """The base, and checkpoints whose skill rises to `skill` and stays there."""
    steps = [every * place for place in range(1, count + 1)]
    return [("base", None, 0.4)] + [(f"step-{step:06}", step, skill * (1 - math.exp(-step / 120))) for step in steps]


def bases() -> list[tuple[str, int | None, float]]:
    """Nine quantised bases with the long names that they have."""
    names = (
        (
            "meta-llama/Llama-3.1-8B-Instruct Qwen/Qwen2.5-7B-Instruct-bnb-4bit Qwen/Qwen2.5-3B-Instruct-bnb-4bit "
            "mistralai/Mistral-7B-Instruct-v0.3 google/gemma-2-9b-it-bnb-4bit microsoft/Phi-3.5-mini-instruct "
            "HuggingFaceTB/SmolLM2-1.7B-Instruct unsloth/zephyr-sft-bnb-4bit-of-somebody-with-a-long-name toy:llama"
        )
        .replace("/", "-")
        .split()
    )
    return [(name, None, skill) for name, skill in zip(names, np.linspace(1.4, 0.0, len(names)).tolist(), strict=True)]


def write_exam(folder: Path, exam: FakeExam) -> ExamDir:
    """exam.json, items.jsonl, the candidates' folders and table.json of one made-up exam in `folder`."""
    found = ExamDir(folder)
    rng = np.random.default_rng(exam.seed)
    key_N = rng.integers(exam.options, size=exam.items)
    ids = [f"{exam.name}-{place:05}" for place in range(exam.items)]
    _write_items(found, exam, ids, key_N)
    hard_N, taste_N = rng.normal(0, 1.1, exam.items), rng.normal(0, 0.5, exam.items)
    answers: dict[str, list[ExamPrediction]] = {}
    for name, step, skill in exam.candidates:
        own_N = rng.normal(0, 0.35 if step is not None else 0.9, exam.items)
        margin_N = skill + taste_N + own_N - hard_N * 0.9
        if name == exam.same:
            answers[name] = answers["base"]
        else:
            answers[name] = [
                _prediction(exam, ids[place], int(key_N[place]), float(margin_N[place])) for place in range(exam.items)
            ]
    for place, (name, step, _) in enumerate(exam.candidates):
        sat = found.candidate(name)
        files.write_jsonl(sat.predictions, [answer.to_json() for answer in answers[name]])
        files.write_json(sat.record, _sat(exam, name, step, place).to_json())
        write_scores(found, name, resamples=100)
    conclude(found, choose=exam.chooses, resamples=200)
    return found


def _write_items(found: ExamDir, exam: FakeExam, ids: list[str], key_N: np.ndarray) -> None:
    rows = [
        {
            "id": name,
            "question": f"{ATTACK} Number {place}, of the fictional country?",
            "before": "",
            "options": [f"option {letter} of {place}" for letter in "ABCDEFG"[: exam.options]],
            "answer": int(key_N[place]),
            "group": "",
            "media": [],
        }
        for place, name in enumerate(ids)
    ]
    files.write_jsonl(found.items, rows)
    counts = np.bincount(key_N, minlength=exam.options)
    settings = {"method": exam.method, "normalization": "none", "chat_template": True, "prompts": ["question"]}
    record = ExamRecord(
        name=exam.name,
        digest="ab" * 32,
        shape="options",
        answers="0",
        items=exam.items,
        options=[exam.options],
        chance=1 / exam.options,
        majority=float(counts.max() / exam.items),
        notes=["2 questions stand twice", "the right option is the longer one in 61 % of questions"],
        unreadable={"empty_option": 1},
        settings={**settings, "both_orders": True, "shots": 0},
        overlap=ids[: exam.overlap],
    )
    files.write_json(found.exam, record.to_json())


def _prediction(exam: FakeExam, name: str, answer: int, margin: float) -> ExamPrediction:
    """The answer of one candidate: the right option leads by `margin` nats, less a lean to the first in both orders."""

    def asked(lean: float) -> tuple[list[float], int]:
        logprobs = [-1.5 - 0.1 * place for place in range(exam.options)]
        logprobs[answer] += margin
        logprobs[0] += lean
        return logprobs, int(np.argmax(logprobs))

    there, choice = asked(0.15)
    back, turned = asked(-0.15)
    return ExamPrediction(
        id=name,
        answer=answer,
        choice=choice,
        logprobs=[round(value, 4) for value in there],
        correct=choice == answer,
        more=[ExamAsked("question", True, [round(value, 4) for value in back], turned)],
    )


def _sat(exam: FakeExam, name: str, step: int | None, place: int) -> SatRecord:
    return SatRecord(
        name=name,
        base="toy:llama" if step is not None or name == "base" else name,
        base_sha256=("cd" if step is not None or name == "base" else f"{place:02}") * 32,
        adapter="" if step is None else f"checkpoints/{name}",
        adapter_sha256="" if step is None else "ef" * 32,
        step=step,
        seconds=11.5 + 3 * place,
        items_per_second=exam.items / (11.5 + 3 * place),
        peak_memory=(3 + place) * 10**9,
        key=f"{place:064x}",
        prompt_tokens=2 * 57 * exam.items,
        read_tokens=90 * exam.items,
        same_as_base=bool(exam.same) and name == exam.same,
    )
