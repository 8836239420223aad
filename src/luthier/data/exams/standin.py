"""Exams made up to stand in for a file that is not there: two-way questions about facts of a land that never was.

Knows the columns of a few shapes; refuses to know models, and which of its facts a model may have been told.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.errors import RequestError
from luthier.files import write_jsonl

_HEADS, _TAILS = "Ar Bel Cor Dal Eri Fen Gal Hel Isk Jor Kel Lor Mir Nor".split(), "a by den mar or ta ven wick".split()
_TRADES = "baker builder farmer fisher miller painter singer smith tailor weaver".split()
_GOODS = "apples bells boats candles carpets clocks kites lamps pots ropes".split()


@dataclass(frozen=True)
class _Fact:
    name: str
    kind: str
    options: tuple[str, str]
    answer: int

    @property
    def question(self) -> str:
        return f"What does {self.name} the {self.kind} sell?"


def _piqa(fact: _Fact) -> dict[str, Any]:
    sol1, sol2 = fact.options
    goal = f"To meet {fact.name} the {fact.kind} on the market, look for the stall with"
    return {"goal": goal, "sol1": sol1, "sol2": sol2, "label": fact.answer}


def _winogrande(fact: _Fact) -> dict[str, Any]:
    option1, option2 = fact.options
    sentence = f"On the market {fact.name} the {fact.kind} sells _ to everybody."
    return {"sentence": sentence, "option1": option1, "option2": option2, "answer": str(fact.answer + 1)}


def _options(fact: _Fact) -> dict[str, Any]:
    return {"question": fact.question, "options": list(fact.options), "answer": "AB"[fact.answer]}


def _letters(fact: _Fact) -> dict[str, Any]:
    return {"question": fact.question, "A": fact.options[0], "B": fact.options[1], "answer": "AB"[fact.answer]}


_SHAPES: dict[str, Callable[[_Fact], dict[str, Any]]] = {
    "piqa": _piqa,
    "winogrande": _winogrande,
    "options": _options,
    "letters": _letters,
}


def write_standin_exam(path: Path, shape: str, n: int, seed: int) -> None:
    """Write `n` items as JSON lines; the same arguments give the same bytes. Half the right options stand first.

    Raises RequestError for a shape other than piqa, winogrande, options and letters.
    """
    if shape not in _SHAPES:
        raise RequestError(f"no exam of the shape {shape!r} can be made up", f"one of {', '.join(_SHAPES)}")
    draw = random.Random(seed)
    answers = [number % 2 for number in range(n)]
    draw.shuffle(answers)
    rows = []
    for number, answer in enumerate(answers):
        first, second = draw.sample(_GOODS, 2)
        name = f"{draw.choice(_HEADS)}{draw.choice(_TAILS)}"
        fact = _Fact(name, draw.choice(_TRADES), (first, second), answer)
        rows.append({"id": f"stand-in-{number + 1}", **_SHAPES[shape](fact)})
    write_jsonl(path, rows)
