"""Blind votes: which of two answers to a prompt is better, asked without saying whose they are, and what came of it.

A page shows ballots; a key, in a file of its own, says whose answers they were; votes are JSON lines that name the
page, the ballot and the choice. Whoever votes never needs the key. Knows nothing of models and HTML.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from luthier import files
from luthier.errors import DataError, RequestError
from luthier.outcome.comparing.runrecords import Json
from luthier.outcome.statistics import Vote, bradley_terry, first_position
from luthier.schema import canonical

CHOICES = ("first", "second", "tie")


@dataclass(frozen=True)
class Asked:
    """One prompt and what each run answered, by label; a run without an answer is not there."""

    name: str
    question: str
    answers: dict[str, str]


@dataclass(frozen=True)
class Ballot:
    """Two answers to one prompt in the order in which they are shown, and whose they are."""

    id: str
    prompt: str
    question: str
    first: str
    second: str
    first_run: str
    second_run: str


@dataclass(frozen=True)
class Ballots:
    """All ballots of one page. `equal` are (prompt, run, run) whose answers are the same: ties without a vote."""

    page: str
    ballots: list[Ballot]
    equal: list[tuple[str, str, str]]

    def key(self) -> Json:
        """What the key file holds."""
        shown = [
            {k: v for k, v in asdict(one).items() if k not in ("question", "first", "second")} for one in self.ballots
        ]
        return {"page": self.page, "ballots": shown, "equal": [list(pair) for pair in self.equal]}


def make_ballots(asked: Sequence[Asked], seed: int, swap: bool) -> Ballots:
    """Every pair of runs on every prompt, once, or with `swap` once in each order, in an order that says nothing.

    Raises RequestError where no two answers differ.
    """
    rng = np.random.default_rng(seed)
    pairs, equal = list[tuple[Asked, str, str]](), list[tuple[str, str, str]]()
    for one in asked:
        for a, b in combinations(one.answers, 2):
            if one.answers[a].strip() == one.answers[b].strip():
                equal.append((one.name, a, b))
            else:
                pairs.append((one, a, b) if rng.random() < 0.5 else (one, b, a))
    if not pairs:
        raise RequestError(
            f"--blind: of {len(asked)} prompts none has two answers that differ", "give other --prompts, or other runs"
        )
    rounds = [pairs, [(one, b, a) for one, a, b in pairs]] if swap else [pairs]
    shown = [part[place] for part in rounds for place in rng.permutation(len(part)).tolist()]
    ballots = [
        Ballot(f"b{number:04d}", one.name, one.question, one.answers[a], one.answers[b], a, b)
        for number, (one, a, b) in enumerate(shown, 1)
    ]
    content = canonical([asdict(ballot) for ballot in ballots])
    return Ballots(hashlib.sha256(content.encode()).hexdigest()[:16], ballots, equal)


def standings(votes: Sequence[Path], key: Path, seed: int) -> Json:
    """Standings of the runs by Bradley and Terry, from files of votes and the key of their page.

    {"votes", "equal", "standings": {run: {value, ci, n}}, "first": {value, ci, n} or None}. A voter who changed their
    mind counts by the last line of a file. Raises DataError for votes of another page.
    """
    try:
        known = files.read_json(key)
        ballots = {ballot["id"]: ballot for ballot in known["ballots"]}
        page, equal = str(known["page"]), [tuple(map(str, pair)) for pair in known["equal"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RequestError(
            f"{key}: is not the key of a page of ballots ({error})", "give --key OUT.key.json"
        ) from error
    cast = list[Vote]()
    for path in votes:
        last = dict(_choices(path, page))
        unknown = sorted(last.keys() - ballots.keys())
        if unknown:
            raise DataError(f"{path}: there is no ballot {unknown[0]} in {key}", "give the key of that page")
        cast += [_vote(ballots[name], choice) for name, choice in last.items()]
    ties = [Vote(prompt, a, b, "") for prompt, a, b in equal]
    if not cast:
        raise DataError("no vote in the files that were given", "cast some on the page, and save them")
    return {
        "votes": len(cast),
        "equal": len(ties),
        "standings": {name: {**found} for name, found in bradley_terry([*cast, *ties], seed=seed).items()},
        "first": first_position(cast, seed=seed),
    }


def _vote(ballot: Json, choice: str) -> Vote:
    winner = {"first": ballot["first_run"], "second": ballot["second_run"], "tie": ""}[choice]
    return Vote(ballot["prompt"], ballot["first_run"], ballot["second_run"], winner)


def _choices(path: Path, page: str) -> Iterator[tuple[str, str]]:
    try:
        lines = files.read_jsonl(path)
    except (OSError, ValueError) as error:
        raise RequestError(f"{path}: votes cannot be read: {error}", "give the file that the page saved") from error
    for number, line in enumerate(lines, 1):
        if not isinstance(line, dict) or line.get("choice") not in CHOICES or not isinstance(line.get("ballot"), str):
            raise DataError(f"{path}:{number}: is not a vote: {line}", f"a choice is one of {', '.join(CHOICES)}")
        if line.get("page") != page:
            raise DataError(
                f"{path}:{number}: is a vote on page {line.get('page')}, and the key is of page {page}",
                "give the key that was written beside the page",
            )
        yield line["ballot"], line["choice"]
