"""`luthier exam`: bases and adapters sit exams in one process, and what their answers bear is said with care.

Before the first question stands what the number of questions can show at all; after the last one a table with
intervals, and groups in the place of ranks. Everything is in one folder, from which a cut examination goes on.
"""

from __future__ import annotations

import datetime
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from luthier.console import WIDTH, say
from luthier.data.exams import Exam, read_exam, touched_items
from luthier.errors import Interrupted, LuthierError, RequestError
from luthier.evaluate.journal import AnswerCache, answer_cache
from luthier.evaluate.sweep import Candidate, Paper, sweep
from luthier.examrequest import ExamRequest
from luthier.files import json_text, read_json, sha256_bytes, write_json, write_text
from luthier.models.chat import ChatTemplate, load_tokenizer
from luthier.models.text_base import load_text_base
from luthier.outcome.exampage import write_exam_page
from luthier.outcome.exams.examined import conclude, write_scores
from luthier.outcome.exams.tables import for_csv, for_markdown, for_terminal
from luthier.outcome.exams.view import ExamView, read
from luthier.outcome.exams.words import counted
from luthier.outcome.looks import record_look
from luthier.outcome.pagerecords import Records
from luthier.outcome.statistics.power import minimum_detectable_effect, smallest_gap
from luthier.quickstart import free_folder
from luthier.recipe_model import ModelConfig
from luthier.rundir import ExamDir, RunDir, refuse_existing
from luthier.runtime.devices import Devices, describe
from luthier.verbs import versions

RECORD = "exam-run.json"
DISCORDANCES = (0.05, 0.1, 0.2, 0.3)
"""Shares of items that exactly one of two has right: neighbouring checkpoints have low ones, other bases high ones."""
SHOWN = 3
"""Items left out that are shown."""

Examined = list[tuple[ModelConfig, list[Candidate]]]


def exam(request: ExamRequest) -> dict[str, Any]:
    """Examine everyone, write the folder and show the tables. Returns folder, report and the tables by exam.

    Raises RequestError before anything is examined, and Interrupted with the line that goes on.
    """
    request.refuse()
    out = request.out or free_folder(f"exams/{request.exams[0].stem}")
    request = replace(request, out=out)
    examined = request.examined()
    if not request.resume:
        refuse_existing(out)
    papers = _papers(request, out)
    _refuse_bases(examined, papers)
    chooser = _chooser(examined, papers)
    sat = _Sat(len(papers) * sum(len(candidates) for _, candidates in examined), chooser)
    devices = [Devices(config.dtype) for config, _ in examined]
    with _recorded(request, examined, papers):
        for paper in papers:
            say(_bears(paper.exam))
        cache = AnswerCache(answer_cache() if request.cache else None)
        for (config, candidates), device in zip(examined, devices, strict=True):
            held = replace(config, dtype=str(device.precision.dtype).removeprefix("torch."))
            sweep(
                partial(load_text_base, held, device.device), candidates, papers, device, cache, out / "features", sat
            )
        tables = {paper.exam.name: _concluded(paper, paper is chooser) for paper in papers}
    return {"out": str(out), "report": str(_pages(request, out, papers)), "exams": tables}


def _papers(request: ExamRequest, out: Path) -> list[Paper]:
    """The exams, read. Raises SourceError and DataError of the files, RequestError for a pool that is an exam."""
    settings, found = request.settings, list[Paper]()
    pool = read_exam(Path(settings.pool), "pool") if settings.pool else None
    for path in request.exams:
        if any(path.stem == paper.exam.name for paper in found):
            raise RequestError(f"{path}: two exams are named {path.stem}", "name the files differently")
        read = read_exam(path, path.stem, settings.labels, settings.answers)
        if pool is not None and pool.digest == read.digest:
            raise RequestError(f"--pool {settings.pool}: is the exam itself", "give solved questions of another file")
        overlap = touched_items(request.table, path, read) if request.table else None
        _tell(read, overlap)
        found.append(Paper(read, settings, ExamDir(out / "exams" / read.name), pool, overlap or []))
    return found


def _tell(read: Exam, overlap: Sequence[str] | None) -> None:
    """`overlap` is None where no training table was named."""
    say(f"exam {read.name}: {len(read.items):,} questions, read as {read.shape}, answers {counted(read.answers)}")
    for note in read.notes:
        say(textwrap.fill(note, WIDTH, initial_indent="  ", subsequent_indent="  "))
    for drop in read.unreadable[1:SHOWN]:  # the first is in the notes
        say(f"  left out as well: {drop.origin}: {drop.reason} {drop.detail}".rstrip())
    if overlap is not None:
        rest = ": scores come with and without them" if overlap else ""
        say(f"  the training table touches {len(overlap):,} of {len(read.items):,} items{rest}")


def _refuse_bases(examined: Examined, papers: Sequence[Paper]) -> None:
    """Raise RequestError with every base whose tokenizer cannot put these questions, before weights are loaded."""
    problems = []
    for config, _ in examined:
        try:
            template = ChatTemplate.of(load_tokenizer(config.base, config.revision))
        except LuthierError as error:
            said = error.message.removeprefix("model.base: ").removeprefix(f"{config.base}: ")
            toy = config.base.startswith("toy:")
            mend = error.mend if toy else "check the name and the network, or name a local folder"
            problems.append(f"  - --model {config.base}: {said} ({mend})")
            continue
        if any(paper.settings.chat_template for paper in papers) and not template.chats:
            problems.append(f"  - --model {config.base}: has no chat template (put the questions to all with --plain)")
    if problems:
        raise RequestError(
            "\n".join(["exam: these bases cannot be examined so", *problems]), "mend them, or leave them out"
        )


@contextmanager
def _recorded(request: ExamRequest, examined: Examined, papers: Sequence[Paper]) -> Iterator[None]:
    """The folder is locked, and exam-run.json says what was asked and how far it is, while the block lasts."""
    out, line = request.out or Path(), request.line()
    record = out / RECORD
    asked = {"request": _digest(request, examined, papers)}
    if request.resume and not record.is_file():
        raise RequestError(f"{out}: no examination was begun there (no {RECORD} in it)", "leave --resume out")
    if request.resume and (begun := read_json(record))["hashes"] != asked:
        raise RequestError(
            f"{out}: was begun with other exams, settings, models or adapters: {begun['command']}",
            "go on with just that line and --resume, or name another --out without it",
        )
    run = RunDir(out) if request.resume else RunDir.create(out)
    known = read_json(record) if request.resume else _begin(line, examined, papers, asked)
    with run.lock():
        write_json(record, {**known, "status": "running"})
        try:
            yield
        except KeyboardInterrupt as error:
            write_json(record, {**known, "status": "interrupted"})
            raise Interrupted("interrupted; every answer so far is kept", f"{line} --resume") from error
        except Exception as error:
            write_json(record, {**known, "status": "failed"})
            nobody = not any(paper.place.candidates() for paper in papers)
            if isinstance(error, RequestError) and not request.resume and nobody:
                run.clear()  # the mended request may want the same folder
            raise
        write_json(record, {**known, "status": "finished", "finished": _now()})


def _begin(line: str, examined: Examined, papers: Sequence[Paper], hashes: dict[str, str]) -> dict[str, Any]:
    return {
        "command": line,
        "created": _now(),
        "versions": versions(),
        "machine": describe(),
        "exams": [paper.exam.name for paper in papers],
        "models": [
            {
                "name": config.base,
                "revision": config.revision,
                "dtype": config.dtype,
                "quantization": config.quantization,
                "candidates": [candidate.name for candidate in candidates],
            }
            for config, candidates in examined
        ],
        "hashes": hashes,
    }


def _digest(request: ExamRequest, examined: Examined, papers: Sequence[Paper]) -> str:
    """Of what decides the records: a folder goes on only with the same."""
    asked = [
        asdict(request.settings),
        [paper.exam.digest for paper in papers],
        [[config.base, config.revision, config.dtype, config.quantization] for config, _ in examined],
        [[(one.name, str(one.adapter)) for one in candidates] for _, candidates in examined],
    ]
    return sha256_bytes(json_text(asked).encode())


def _bears(read: Exam) -> str:
    """What so many questions can show, before anything is measured."""
    count = len(read.items)
    least = smallest_gap(count)
    lines = [f"exam {read.name}: guessing gives {read.chance:.1%}, always the same place at most {read.majority:.1%}"]
    if least is None:
        return f"{lines[0]}; {count} questions can tell nobody from anybody"
    gaps = []
    for share in DISCORDANCES:
        gap = minimum_detectable_effect(count, share)
        gaps.append(f"{share:.0%}: " + ("none" if gap is None else f"{100 * gap:.1f}"))
    lines += [
        f"{count:,} questions can never show a gap under {100 * least:.1f} points. Smallest gap, in points, that is",
        f"found in four of five tries, by the share of questions that only one of two has right: {', '.join(gaps)}",
    ]
    return textwrap.fill(". ".join([lines[0], " ".join(lines[1:])]), WIDTH)


def _chooser(examined: Examined, papers: Sequence[Paper]) -> Paper | None:
    """The exam that chooses among the checkpoints of one training: the first; the others report on the choice."""
    steps = [one.step for _, candidates in examined for one in candidates if one.step is not None]
    return papers[0] if len(set(steps)) == len(steps) > 1 else None


class _Sat:
    """Told each finished sitting: writes its scores, counts the look, and says how far things are."""

    def __init__(self, total: int, chooser: Paper | None) -> None:
        self.total, self.chooser, self.done, self.begin = total, chooser, 0, time.monotonic()

    def __call__(self, candidate: Candidate, paper: Paper) -> None:
        scores = write_scores(paper.place, candidate.name)
        key = read_json(paper.place.candidate(candidate.name).record)["key"]
        record_look(paper.exam.digest, key, "choose" if paper is self.chooser else "report")
        self.done += 1
        seconds = (time.monotonic() - self.begin) / self.done * (self.total - self.done)
        left = f", {datetime.timedelta(seconds=round(seconds))} left" if seconds >= 1 else ""
        accuracy = scores["accuracy"]["value"]
        say(f"{candidate.name} ({self.done} of {self.total}{left}): {accuracy:.1%} of {paper.exam.name} right")


def _concluded(paper: Paper, choose: bool) -> dict[str, Any]:
    found = conclude(paper.place, choose=choose)
    say("\n" + for_terminal(_view(paper)))
    return found


def _view(paper: Paper) -> ExamView:
    folder = paper.place.path
    return read(Records(folder.parents[1]), f"exams/{folder.name}", folder.name)


def _pages(request: ExamRequest, out: Path, papers: Sequence[Paper]) -> Path:
    """table.md, table.csv and the report with its pictures."""
    views = [_view(paper) for paper in papers]
    write_text(out / "table.md", for_markdown(views, request.line()))
    write_text(out / "table.csv", for_csv(views))
    page = write_exam_page(out)
    say(f"\nreport: {page}; table.md and table.csv stand beside it")
    return page


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
