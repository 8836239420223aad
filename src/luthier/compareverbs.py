"""`luthier compare`: runs side by side on the same items, on one page; models are loaded only where records do not do.

Runs of different data get a probe that none of them was trained on. With prompts each run answers; with --blind the
answers go on a page of ballots that does not say whose they are.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from luthier.console import say
from luthier.data.building.rows import SCHEMA, TableRow, from_record
from luthier.data.mediasource import DecodedMedia, MediaSource
from luthier.errors import ExistsError, RequestError
from luthier.files import write_json
from luthier.outcome.compare import Scored, table_text
from luthier.outcome.compare import compare as compare_records
from luthier.outcome.comparepage import write_ballots, write_comparison
from luthier.outcome.comparing.ballots import Asked, make_ballots, standings
from luthier.outcome.comparing.pairs import Drawing
from luthier.outcome.comparing.probe import Probe, default_probe, recorded_losses, untrained
from luthier.outcome.comparing.runrecords import Json, RunStage, open_runs, spoken
from luthier.schema import Row

CACHE = "compare-probes"
"""The folder beside the page that keeps losses of probes."""


@dataclass(frozen=True)
class CompareRequest:
    """What is compared, and what is written."""

    runs: list[Path]
    stage: str = ""
    """Of which stage; empty: the last finished one of each run."""
    out: Path | None = None
    """The page; None: compare.html, or the next free name."""
    probe: Path | None = None
    """Rows to score in place of those that the runs held out: a file of any format that recipes read, or a table."""
    prompts: Path | None = None
    blind: bool = False
    """Answers go on a page of ballots, and whose they are into a key beside it."""
    swap: bool = False
    """Every ballot twice, in both orders."""
    votes: list[Path] = field(default_factory=list)
    key: Path | None = None
    """The key of the page that the votes are from."""
    seed: int = 17

    def check(self) -> None:
        """Raise RequestError for words that do not go together, ExistsError for what would be overwritten."""
        for wrong, what, mend in (
            (self.blind and self.prompts is None, "--blind: there are no answers to hide", "give --prompts FILE"),
            (self.swap and not self.blind, "--swap: only ballots are shown twice", "give --blind"),
            (bool(self.votes) != (self.key is not None), "--votes and --key go together", "give OUT.key.json as --key"),
        ):
            if wrong:
                raise RequestError(what, mend)
        for path in filter(None, (self.probe, self.prompts, self.key, *self.votes)):
            if not path.exists():
                raise RequestError(f"{path}: is not there", "give a file that is")
        for path in [self.page, *((self.ballots, self.answers_key) if self.blind else ())]:
            if path.exists():
                raise ExistsError(
                    f"{path}: exists already, and nothing that exists is overwritten", "name another --out"
                )
        inside = [run for run in self.runs if run.resolve() in self.page.resolve().parents]
        if inside:
            raise RequestError(
                f"--out {self.page}: lies in the run {inside[0]}, to which nothing is added", "name a place outside"
            )

    @property
    def page(self) -> Path:
        return self.out or next(path for path in _names("compare", ".html") if not path.exists())

    @property
    def ballots(self) -> Path:
        return self.page.with_suffix(".blind.html")

    @property
    def answers_key(self) -> Path:
        return self.page.with_suffix(".key.json")


def _names(stem: str, suffix: str) -> Iterator[Path]:
    """`stem`, then `stem-2`, `stem-3` and so on."""
    return itertools.chain([Path(stem + suffix)], (Path(f"{stem}-{n}{suffix}") for n in itertools.count(2)))


def compare(request: CompareRequest) -> dict[str, Any]:
    """Compare, write the page, show the tables. Returns the comparison as one mapping, with the paths written."""
    request = replace(request, out=request.page)
    request.check()
    runs = open_runs(request.runs, request.stage)
    if runs[0].kind == "verdict" and (request.probe or request.prompts):
        raise RequestError(
            "--probe and --prompts: verdict runs write no text", "leave them out: held-out answers are compared by id"
        )
    voted = standings(request.votes, request.key, request.seed) if request.key else None
    scored, asked = _ask(runs, request) if runs[0].kind == "chat" else (None, [])
    found = compare_records(runs, scored, Drawing(seed=request.seed))
    found |= {"answers": [] if request.blind else [_answer_json(one) for one in asked], "votes": voted}
    found["page"] = str(request.page)
    if request.blind:
        ballots = make_ballots(asked, request.seed, request.swap)
        write_json(request.answers_key, ballots.key())
        write_ballots(request.ballots, ballots)
        found |= {"ballots": str(request.ballots), "key": str(request.answers_key)}
        say(f"{len(ballots.ballots)} ballots: {request.ballots} (whose answers they are: {request.answers_key})")
    write_comparison(request.page, found, runs)
    say(table_text(found))
    say(f"page: {request.page}")
    return found


def _ask(runs: Sequence[RunStage], request: CompareRequest) -> tuple[Scored, list[Asked]]:
    """The probe with every run's losses, and the answers to the prompts."""
    probe, rows = _probe(runs, request.probe)
    chats, media = _chats(request.prompts)
    if probe.recorded and not chats:
        return Scored(probe, recorded_losses(probe, runs)), []
    from luthier.comparemodels import Wanted, ask

    said = ask(runs, Wanted([] if probe.recorded else rows, chats, media, request.page.parent / CACHE))
    lines = recorded_losses(probe, runs) if probe.recorded else [one.losses for one in said]
    texts = {item.row.id: _text(item.row) for item in rows} if request.probe else {}
    asked = []
    for place, (name, chat) in enumerate(chats):
        given = {run.label: one.answers[place] for run, one in zip(runs, said, strict=True)}
        for label, answer in given.items():
            if "error" in answer:
                say(f"{label}: {name}: {answer['error']}")
        asked.append(Asked(name, _text(chat), {k: v["answer"] for k, v in given.items() if "answer" in v}))
    return Scored(probe, lines, texts), asked


def _probe(runs: Sequence[RunStage], given: Path | None) -> tuple[Probe, list[TableRow]]:
    """Which rows the runs are held against one another on, and these rows where models must score them."""
    if given is None:
        probe = default_probe(runs)
        if probe.recorded:
            return probe, []
        rows = {
            row["id"]: from_record(row)
            for run in runs
            for row in run.rows(SCHEMA.names, [("id", "in", set(probe.ids))])
        }
        say(f"the runs held out different rows: {len(rows)} that none was trained on are scored with every run's model")
        return probe, [rows[name] for name in probe.ids if name in rows]
    found = _read_probe(given)
    ids, left_out = untrained(runs, [(item.row.id, item.row.group) for item in found])
    if not ids:
        raise RequestError(
            f"{given}: every row of it, or of its group, is among the training rows of a run", "give other rows"
        )
    kept = set(ids)
    return Probe(str(given), ids, False, left_out), [item for item in found if item.row.id in kept]


def _read_probe(path: Path) -> list[TableRow]:
    """A table's rows that are not for training (all, where there are no others), or the rows of a file."""
    from luthier.data.building.build import build
    from luthier.data.building.request import TableRequest
    from luthier.data.table import iter_rows
    from luthier.recipe_data import Source

    if (path / "manifest.json").is_file():
        rows = list(iter_rows(path))
        return [item for item in rows if item.row.split != "train"] or rows
    with tempfile.TemporaryDirectory(prefix="luthier-probe-") as scratch:
        source = Source(name="probe", path=str(path))
        # A table of chats is made of training rows; what these are for is decided here.
        folder = build(TableRequest(((source, "train"),), graded=False), Path(scratch) / "table").folder
        return list(iter_rows(folder))


def _chats(path: Path | None) -> tuple[list[tuple[str, Row]], MediaSource]:
    """The prompts of a file, by name, and their media. Raises RequestError where none can be read."""
    if path is None:
        return [], DecodedMedia.of({})
    from luthier.predict_chat import Inputs

    inputs, found = Inputs(), list[tuple[str, Row]]()
    for name, chat in inputs.questions([path]):
        if isinstance(chat, str):
            say(f"{name}: left out: {chat}")
        else:
            found.append((name, chat))
    if not found:
        raise RequestError(f"{path}: no prompt in it can be read", "give a text, or a .jsonl of prompts or chats")
    return found, inputs.source


def _text(row: Row) -> str:
    """A chat as it is read; a lone question without saying who asks it."""
    if len(row.messages) == 1:
        return row.messages[0].text
    return spoken([message.to_json() for message in row.messages])


def _answer_json(one: Asked) -> Json:
    return {"name": one.name, "question": one.question, "answers": one.answers}
