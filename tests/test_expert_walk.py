"""The quickstart of the domain expert: a toy learns a made-up encyclopedia, and exams show it from chance to 0.9."""

from __future__ import annotations

import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from luthier.data.exams import read_exam
from luthier.files import read_json, read_jsonl
from luthier.quickstart import lay_out
from luthier.recipefile import load_recipe, stage_recipes
from luthier.rundir import ExamDir, RunDir
from support.children import environment

CHOOSING, REPORT = "encyclopedia-dev", "encyclopedia-test"


def test_what_is_laid_out_is_a_recipe_with_nothing_to_mend_over_files_that_are_there(tmp_path: Path) -> None:
    path = lay_out(tmp_path / "made", "expert")
    stage = stage_recipes(load_recipe(path))["main"]
    assert stage.problems() == []
    assert all(Path(source.path).is_file() for source in stage.data.sources.values())
    assert stage.evaluate.choose_by == CHOOSING
    exams = [read_exam(stage.data.sources[name], name) for name in stage.evaluate.exams]
    assert [len(exam.items) for exam in exams] == [144, 144]
    assert len({exam.digest for exam in exams}) == 2


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDir, float]:
    """A finished quickstart, and the seconds that it took with all that belongs to it."""
    out = tmp_path_factory.mktemp("expert") / "quickstart"
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "luthier.cli", "quickstart", "--kind", "expert", "--out", str(out)],
        env=environment(LUTHIER_CACHE=str(out.parent / "cache")),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert CHOOSING in done.stderr
    assert REPORT in done.stderr
    return RunDir.open(out / "run"), time.monotonic() - begin


def candidates(place: ExamDir) -> list[dict[str, Any]]:
    return list(read_json(place.table)["candidates"])


@pytest.mark.slow
def test_accuracy_climbs_from_chance_to_above_nine_tenths_in_time(finished: tuple[RunDir, float]) -> None:
    run, seconds = finished
    for exam in (CHOOSING, REPORT):
        base, *steps = [row["scores"]["accuracy"] for row in candidates(run.stage("main").exam(exam))]
        assert len(steps) == 12
        assert base["n"] == 144
        assert base["ci"][0] < 0.5 < base["ci"][1]
        assert steps[-1]["value"] > 0.9
        assert steps[-1]["ci"][0] > 0.8
        # A climb, not a jump: no checkpoint loses more than its neighbours' noise.
        assert all(after["value"] > before["value"] - 0.05 for before, after in pairwise(steps))
    assert seconds < 180


@pytest.mark.slow
def test_the_earliest_checkpoint_that_cannot_be_told_from_the_best_is_kept(finished: tuple[RunDir, float]) -> None:
    stage = finished[0].stage("main")
    table = read_json(stage.exam(CHOOSING).table)
    rows = {row["name"]: row for row in table["candidates"]}
    assert set(rows[table["chosen"]]["group"]) & set(rows[table["best"]]["group"])
    chosen = stage.checkpoints / table["chosen"] / "adapter_model.safetensors"
    assert (stage.adapter / "adapter_model.safetensors").read_bytes() == chosen.read_bytes()
    again = read_json(stage.exam(REPORT).candidate(table["chosen"]).scores)["accuracy"]
    assert again["value"] > 0.85


@pytest.mark.slow
def test_every_answer_is_kept_and_no_question_stood_in_the_training_rows(finished: tuple[RunDir, float]) -> None:
    stage = finished[0].stage("main")
    for exam in (CHOOSING, REPORT):
        place = stage.exam(exam)
        ids = [item["id"] for item in read_jsonl(place.items)]
        assert read_json(place.exam)["overlap"] == []
        for name in place.candidates():
            answers = list(read_jsonl(place.candidate(name).predictions))
            assert [answer["id"] for answer in answers] == ids
            assert all(len(answer["logprobs"]) == 2 for answer in answers)
    assert finished[0].report.is_file()
