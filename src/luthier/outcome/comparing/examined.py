"""Exams that runs sat: the same questions, put in the same way, answered by the final adapter of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from luthier.exam_records import ExamPrediction
from luthier.files import read_json, read_jsonl
from luthier.outcome.comparing.flips import flips, item_text, letter
from luthier.outcome.comparing.items import match_exam
from luthier.outcome.comparing.pairs import Drawing, judge
from luthier.outcome.comparing.runrecords import Json, RunStage
from luthier.rundir import ExamDir

_ASKED = ("method", "normalization", "chat_template", "prompts", "shots", "pool", "max_new_tokens")
"""Settings that change what is asked or how an answer is read."""


def exams(runs: Sequence[RunStage], drawing: Drawing) -> tuple[list[Json], list[str]]:
    """Each exam that all runs sat alike, judged, with flips; and a sentence on each that cannot be compared."""
    found, refused = list[Json](), list[str]()
    for name in sorted({name for run in runs for name in run.stage.exams()}):
        absent = [run.label for run in runs if name not in run.stage.exams()]
        reason = f"{', '.join(absent)} did not sit it" if absent else _differing(runs, name)
        finals = [] if reason else [final_candidate(run, run.stage.exam(name)) for run in runs]
        if not reason and None in finals:
            reason = f"{runs[finals.index(None)].label} has no finished answers"
        if reason:
            refused.append(f"The exam {name} is not compared: {reason}.")
        else:
            found.append(_exam(runs, name, [str(final) for final in finals], drawing))
    return found, refused


def final_candidate(run: RunStage, exam: ExamDir) -> str | None:
    """The checkpoint that became the run's adapter; of a record that does not say which, the last one examined."""
    steps = [name for name in exam.candidates() if name.startswith("step-")]
    kept = f"step-{run.trained['kept_step']:06d}" if run.trained.get("kept_step") else ""
    return kept if kept in steps else max(steps, default=None)


def _differing(runs: Sequence[RunStage], name: str) -> str:
    """Why answers to exams of one name are answers to different questions; "" where they are not."""
    records = [read_json(run.stage.exam(name).exam) for run in runs]
    if len({record["digest"] for record in records}) > 1:
        shown = (f"{record['digest'][:12]} in {run.label}" for record, run in zip(records, runs, strict=True))
        return f"the questions differ ({', '.join(shown)})"
    for key in _ASKED:
        values = [_asked(record["settings"], key) for record in records]
        if any(value != values[0] for value in values):
            shown = (f"{value} in {run.label}" for value, run in zip(values, runs, strict=True))
            return f"it was put in different ways ({key}: {', '.join(shown)})"
    return ""


def _asked(settings: Json, key: str) -> Any:
    """Of several wordings the first alone gives the score."""
    value = settings.get(key)
    return value[:1] if key == "prompts" and isinstance(value, list) else value


def _exam(runs: Sequence[RunStage], name: str, finals: Sequence[str], drawing: Drawing) -> Json:
    folders = [run.stage.exam(name) for run in runs]
    labels = [run.label for run in runs]
    sat = [
        [ExamPrediction.from_json(line) for line in read_jsonl(folder.candidate(final).predictions)]
        for folder, final in zip(folders, finals, strict=True)
    ]
    matched = match_exam(labels, sat)
    record, items = read_json(folders[0].exam), folders[0].items
    known = {str(item["id"]): item_text(item) for item in read_jsonl(items)} if items.is_file() else {}
    answers = [{one.id: one for one in answers} for answers in sat]
    flattered = [
        run.label for run in runs if run.recipe.train.select == "exam" and run.recipe.evaluate.choose_by == name
    ]
    if flattered:
        matched.notes.append(f"This exam chose the checkpoint of {', '.join(flattered)}: it flatters them.")

    def said(item: str, place: int) -> str:
        one = answers[place][item]
        return one.text or letter(one.choice)

    return {
        "name": name,
        "digest": record["digest"],
        "chance": record["chance"],
        "majority": record["majority"],
        "candidates": dict(zip(labels, finals, strict=True)),
        **judge(matched, drawing),
        "flips": flips(matched, lambda ids: {item: known.get(item, "") for item in ids}, said),
    }
