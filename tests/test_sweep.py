"""Sweeps: what is asked is checked first, a trial that fails ends alone, and the table says what may be compared."""

import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.errors import LuthierError, RecipeError, RequestError
from luthier.files import read_json
from luthier.sweep import SweepRequest, sweep
from luthier.sweeping import space
from support.children import ROOT, environment

FAKE = (sys.executable, str(ROOT / "tests/support/fakerun.py"))
RECIPE = """
model: {base: "toy:llama"}
data: {sources: {chats: {path: chats.jsonl}, others: {path: others.jsonl}}, train: [chats], validation_fraction: 0.1}
task: {kind: chat}
"""
RATES = "train.learning_rate=1e-4,2e-4,4e-4,1e-3"


@pytest.fixture
def request_(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SweepRequest:
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return SweepRequest(tmp_path / "recipe.yaml", tmp_path / "out")


def by_number(figures: dict[str, Any]) -> list[dict[str, Any]]:
    return sorted(figures["trials"], key=lambda trial: trial["number"])


def test_a_grid_of_eight_leaves_eight_runs_and_one_table_best_first(
    request_: SweepRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = sweep(replace(request_, grid=[RATES, "model.lora.r=8,16"], jobs=2), FAKE)
    assert read_json(request_.out / "sweep.json") == json.loads(json.dumps(figures))
    trials = by_number(figures)
    settings = [(trial["settings"]["train.learning_rate"], trial["settings"]["model.lora.r"]) for trial in trials]
    assert settings == [(rate, r) for rate in ("1e-4", "2e-4", "4e-4", "1e-3") for r in ("8", "16")]
    for trial in trials:
        run = request_.out / "trials" / trial["name"]
        assert read_json(run / "run.json")["status"] == trial["status"] == "finished"
        losses = [json.loads(line)["validation_loss"] for line in (run / "stages/main/metrics.jsonl").open()]
        assert trial["objective"] == trial["stages"]["main"]["validation"] == min(losses)
        assert trial["stages"]["main"]["tokens_per_second"] == 200
    assert figures["best"] == "005-learning_rate-4e-4_r-8"
    printed = capsys.readouterr().err.split("settings, in order:")[1].splitlines()
    assert max(map(len, printed[:-1])) <= 100, "all but the line with the folder"
    assert [line.split()[0] for line in printed[4:12]] == ["5", "6", "3", "4", "1", "2", "7", "8"]
    page = (request_.out / "sweep.md").read_text()
    assert "| trial | train.learning_rate | model.lora.r |" in page
    assert "seeds 1,2,3" in page


def test_a_trial_that_fails_or_is_killed_ends_alone_and_says_why(request_: SweepRequest) -> None:
    figures = sweep(replace(request_, grid=["model.lora.dropout=0.5,0,0.9"]), FAKE)
    first, second, third = by_number(figures)
    assert (first["status"], first["reason"]) == ("failed", "it cannot be\n  mend: do otherwise")
    assert second["status"] == "finished"
    assert (third["status"], third["reason"]) == ("failed", "killed by SIGKILL (out of memory?)")
    assert figures["best"] == second["name"]
    assert sum("failed" in note for note in figures["notes"]) == 2
    again = sweep(replace(request_, grid=["model.lora.dropout=0.5,0,0.9"], resume=True), FAKE)
    assert [trial["status"] for trial in by_number(again)] == ["failed", "finished", "failed"]
    assert by_number(again)[1] == second


def test_a_sweep_of_which_nothing_finishes_is_a_failure(request_: SweepRequest) -> None:
    with pytest.raises(LuthierError, match="none of 1 trials finished") as caught:
        sweep(replace(request_, grid=["model.lora.dropout=0.5"]), FAKE)
    assert caught.value.exit_code == 1
    assert read_json(request_.out / "sweep.json")["trials"][0]["status"] == "failed"


def test_everything_wrong_is_said_at_once_and_before_anything_starts(request_: SweepRequest) -> None:
    grid = ["train.learnig_rate=1,2", "model.lora.r=8,many", "train.epochs=", "seed=1,1.0", "model.tuning=lora,half"]
    with pytest.raises(RecipeError) as caught:
        sweep(replace(request_, grid=grid, overrides=["seed=2"], jobs=0, stage="late"), FAKE)
    text = str(caught.value)
    for part in ("did you mean learning_rate?", "'many'", "--grid train.epochs=", "seed: is set by --set", "--jobs 0"):
        assert part in text
    assert not request_.out.exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "nothing is varied"),
        ({"grid": ["seed"]}, "--grid seed: expected"),
        ({"grid": ["train.learning_rate=1e-4,0.0001"]}, "is the same run as"),
        ({"grid": ["model.lora.r=0,8"]}, "model.lora.r: 0 is below 1"),
        ({"grid": ["seed=1,2"], "seeds": "3,4"}, "seed: is varied twice"),
        ({"grid": ["seed=1,2"], "stage": "late"}, "there is no such stage"),
        ({"grid": ["seed=1,2"], "overrides": ["data.validation_fraction=0"]}, "no validation loss"),
        ({"search": ["train.learning_rate=1e-3..1e-4"]}, "must be below"),
        ({"search": ["train.learning_rate=0..1:log"]}, "begins above 0"),
        ({"search": ["train.learning_rate=low..high"]}, "are numbers"),
        ({"search": ["model.lora.r=0..8"]}, "model.lora.r: 0 is below 1"),
        ({"search": ["model.lora.r=8|16"], "seeds": "1,2", "trials": 0}, "--trials 0"),
        ({"grid": ["seed=1,2"], "resume": True}, "is not a sweep"),
    ],
    ids=str,
)
def test_a_wrong_request_is_refused(request_: SweepRequest, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError) as caught:
        sweep(replace(request_, **changes), FAKE)
    assert said in str(caught.value)
    assert caught.value.exit_code == 2
    assert not request_.out.exists()


def test_a_key_that_every_stage_overrides_is_refused_as_it_changes_nothing(request_: SweepRequest) -> None:
    request_.recipe.write_text(RECIPE + "stages: {a: {train: {learning_rate: 1.0e-3}}, b: {train: {learning_rate: 1}}}")
    with pytest.raises(RecipeError, match=r"vary stages\.NAME\.KEY"):
        sweep(replace(request_, grid=[RATES]), FAKE)
    figures = sweep(replace(request_, grid=["stages.a.train.learning_rate=1e-4,3e-4"], stage="a"), FAKE)
    assert figures["best"].startswith("002")
    assert set(figures["trials"][0]["stages"]) == {"a", "b"}


def test_what_exists_is_never_written_over(request_: SweepRequest) -> None:
    request_.out.mkdir()
    (request_.out / "mine").write_text("mine")
    with pytest.raises(RequestError, match="exists already"):
        sweep(replace(request_, grid=[RATES]), FAKE)
    assert [path.name for path in request_.out.iterdir()] == ["mine"]


def test_losses_over_different_rows_are_given_no_order(request_: SweepRequest) -> None:
    grid = ["data.train=[chats],[chats,others]"]
    figures = sweep(replace(request_, grid=grid), FAKE)
    assert [trial["status"] for trial in figures["trials"]] == ["finished", "finished"]
    assert figures["best"] is None
    assert not figures["comparable"]
    assert "No order and no best" in figures["notes"][0]
    shutil.rmtree(request_.out)
    test = ["data.test=[others]"]
    scored = sweep(
        replace(request_, grid=["data.steps=[repair_unicode],[]"], overrides=test, objective="accuracy"), FAKE
    )
    assert scored["best"] is None, "other steps make other test rows"
    shutil.rmtree(request_.out)
    scored = sweep(replace(request_, grid=[RATES], overrides=test, objective="accuracy"), FAKE)
    assert scored["best"] == "003-learning_rate-4e-4"
    assert scored["trials"][2]["objective"] == scored["trials"][2]["stages"]["main"]["scores"]["accuracy"]


def test_seeds_show_how_far_apart_chance_alone_puts_equal_settings(request_: SweepRequest) -> None:
    figures = sweep(replace(request_, grid=["train.learning_rate=1e-4,3e-4"], seeds="1,2,4"), FAKE)
    assert len(figures["trials"]) == 6
    first, second = figures["seeds"]
    assert first["settings"] == {"train.learning_rate": "3e-4"}
    spread = (statistics.variance(first["values"]) / 2 + statistics.variance(second["values"]) / 2) ** 0.5
    assert figures["seed_spread"] == pytest.approx(spread)
    assert f"{spread:.4g}" in figures["notes"][0]
    assert not any("One seed each" in note for note in figures["notes"])


def test_trials_of_the_same_rows_share_one_table(request_: SweepRequest) -> None:
    sweep(replace(request_, grid=["model.lora.r=8,16"], seeds="1,2"), FAKE)
    tables = sorted((request_.out / "trials").glob("*/data/manifest.json"))
    nodes = [path.stat().st_ino for path in tables]
    assert len(nodes) == 4
    assert nodes[0] == nodes[2]
    assert nodes[1] == nodes[3]
    assert nodes[0] != nodes[1], "another seed splits the rows otherwise"


def interrupted(request: SweepRequest, number: signal.Signals, after: str) -> subprocess.CompletedProcess[str]:
    """The sweep as a process that is sent a signal once `after` is there."""
    asked = f"grid={list(request.grid)!r}, search={list(request.search)!r}, trials={request.trials}"
    code = (
        "import signal; from pathlib import Path; from luthier import cli, sweep as s\n"
        "signal.signal(signal.SIGTERM, cli._as_interrupt)\n"
        f"s.sweep(s.SweepRequest(Path({str(request.recipe)!r}), Path({str(request.out)!r}), {asked}), {FAKE!r})"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], env=environment(FAKE_STEP_SECONDS="0.15"), stderr=subprocess.PIPE, text=True
    )
    limit = time.monotonic() + 30
    while not list(request.out.glob(after)) and time.monotonic() < limit:
        time.sleep(0.05)
    os.kill(child.pid, number)
    _, said = child.communicate(timeout=60)
    return subprocess.CompletedProcess([], child.returncode, "", said)


def test_ctrl_c_lets_the_child_save_and_resume_does_only_what_is_left(request_: SweepRequest) -> None:
    request = replace(request_, grid=[RATES])
    done = interrupted(request, signal.SIGINT, "trials/002*/stages/main/metrics.jsonl")
    assert "Interrupted: interrupted with 1 trials done" in done.stderr
    assert f"luthier sweep {request.recipe} --out {request.out} --grid {RATES} --resume" in done.stderr
    first, second, *rest = by_number(read_json(request.out / "sweep.json"))
    assert (first["status"], second["status"]) == ("finished", "interrupted")
    assert [trial["status"] for trial in rest] == ["waiting", "waiting"]
    before = (request.out / "trials" / first["name"] / "run.json").stat()
    kept = (request.out / "trials" / second["name"] / "stages/main/metrics.jsonl").read_text()
    assert 0 < len(kept.splitlines()) < 6
    with pytest.raises(RequestError, match="other settings"):
        sweep(replace(request, grid=["train.learning_rate=1e-4,2e-4"], resume=True), FAKE)
    figures = sweep(replace(request, resume=True), FAKE)
    assert {trial["status"] for trial in figures["trials"]} == {"finished"}
    assert (request.out / "trials" / first["name"] / "run.json").stat() == before
    metrics = (request.out / "trials" / second["name"] / "stages/main/metrics.jsonl").read_text()
    assert metrics.startswith(kept)
    assert len(metrics.splitlines()) == 6


SEARCH = ("train.learning_rate=1e-5..1e-2:log", "model.lora.r=8|16|32", "model.lora.alpha=16..64")


def test_a_search_that_was_killed_keeps_its_trials_and_takes_up_the_one_that_was_cut_off(
    request_: SweepRequest,
) -> None:
    pytest.importorskip("optuna")
    request = replace(request_, search=SEARCH, trials=4)
    interrupted(request, signal.SIGKILL, "trials/003*/stages/main/metrics.jsonl")
    time.sleep(1.5)  # the child of a killed sweep ends its run by itself
    cut = by_number(read_json(request.out / "sweep.json"))
    assert [trial["status"] for trial in cut] == ["finished", "finished", "running"]
    figures = by_number(sweep(replace(request, resume=True), FAKE))
    assert [trial["status"] for trial in figures] == ["finished"] * 4
    assert figures[:2] == cut[:2]
    assert figures[2]["settings"] == cut[2]["settings"]
    for trial in figures:
        assert 1e-5 <= float(trial["settings"]["train.learning_rate"]) <= 1e-2
        assert trial["settings"]["model.lora.r"] in ("8", "16", "32")
        assert int(trial["settings"]["model.lora.alpha"]) in range(16, 65)


def drawn(searcher: Any, number: int) -> Any:
    """Ask for a trial and end it: a parabola over the logarithm of the rate; bad ones are pruned halfway."""
    settings = searcher.ask(number)
    return end(searcher, number, settings)


def end(searcher: Any, number: int, settings: dict[str, str]) -> Any:
    from luthier.sweeping.trial import Trial

    loss = math.log10(float(settings["train.learning_rate"]) / 3e-4) ** 2
    looks = [(1, loss + 1), (2, loss)]
    if searcher.hopeless(number, looks[:1]):
        trial, looks = Trial(number, "", settings, "pruned"), looks[:1]
    else:
        trial = Trial(number, "", settings, "finished", objective=loss)
    searcher.close(trial, looks)
    return trial, looks


def test_a_search_that_is_made_again_from_its_trials_asks_as_it_would_have() -> None:
    pytest.importorskip("optuna")
    from luthier.sweeping.search import Search

    axes = space.parse_search(SEARCH, [])
    whole = Search(axes, 17, True)
    done = [drawn(whole, number) for number in range(1, 21)]
    assert 0 < sum(trial.status == "pruned" for trial, _ in done) < 20
    for cut in (3, 12, 17):
        again = Search(axes, 17, True)
        for trial, looks in done[:cut]:
            again.remember(trial, looks)
        again.again(cut + 1, done[cut][0].settings)
        end(again, cut + 1, done[cut][0].settings)
        assert again.ask(cut + 2) == done[cut + 1][0].settings
    other = Search(axes, 18, True)
    assert other.ask(1) != done[0][0].settings


def test_a_weak_trial_of_a_search_is_stopped_and_saves(
    request_: SweepRequest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("optuna")
    monkeypatch.setenv("FAKE_STEP_SECONDS", "0.12")
    figures = sweep(replace(request_, search=SEARCH[:1], trials=8, jobs=2), FAKE)
    pruned = [trial for trial in figures["trials"] if trial["status"] == "pruned"]
    assert pruned
    best = next(trial for trial in figures["trials"] if trial["name"] == figures["best"])
    for trial in pruned:
        run = request_.out / "trials" / trial["name"]
        assert read_json(run / "run.json")["status"] == "running"
        assert trial["stages"]["main"]["steps"] < 6
        assert trial["stages"]["main"]["validation"] > best["objective"]
    assert f"trial {pruned[0]['number']} pruned after" in capsys.readouterr().err


def test_a_search_comes_closer_than_its_random_trials_do() -> None:
    pytest.importorskip("optuna")
    from luthier.sweeping.search import Search

    searcher = Search(space.parse_search(["train.learning_rate=1e-6..1:log"], []), 3, True)
    rates = [float(drawn(searcher, number)[0].settings["train.learning_rate"]) for number in range(1, 41)]
    away = [abs(math.log10(rate / 3e-4)) for rate in rates]
    assert statistics.median(away[25:]) < statistics.median(away[:8]) / 2


@given(st.floats(1e-30, 1e30), st.integers(-(2**40), 2**40))
def test_a_drawn_number_is_written_so_that_it_reads_back_the_same(value: float, whole: int) -> None:
    assert space.Range("k", 0, 1, False, False).read(space.Range("k", 0, 1, False, False).write(value)) == value
    assert space.Range("k", 0, 1, False, True).read(space.Range("k", 0, 1, False, True).write(whole)) == whole


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("data.train=[a,b],[a]", ("[a,b]", "[a]")),
        ("train.schedule=linear, cosine", ("linear", "cosine")),
        ("model.base=toy:llama", ("toy:llama",)),
    ],
)
def test_values_are_parted_at_commas_but_not_inside_a_list(word: str, values: tuple[str, ...]) -> None:
    problems: list[str] = []
    assert space.parse_grid([word], "", problems)[0].values == values
    assert problems == []


def test_ranges_know_whole_numbers_from_others() -> None:
    problems: list[str] = []
    words = ["a=1..8", "b=1e-5..1e-3:log", "c=-0.5..0.5", "d=x|y"]
    a, b, c, d = space.parse_search(words, problems)
    assert problems == []
    assert a == space.Range("a", 1, 8, False, True)
    assert b == space.Range("b", 1e-5, 1e-3, True, False)
    assert c == space.Range("c", -0.5, 0.5, False, False)
    assert d == space.Choice("d", ("x", "y"))
