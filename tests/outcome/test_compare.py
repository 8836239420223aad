"""Runs side by side: what their records bear, what is refused, what a vote decides. No model is loaded."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest, ttest_rel
from sklearn.metrics import log_loss, roc_auc_score

from luthier import files
from luthier.errors import DataError, RequestError
from luthier.outcome.compare import table_text
from luthier.outcome.comparepage import write_comparison
from luthier.outcome.comparing import differences
from luthier.outcome.comparing.pairs import Drawing
from luthier.outcome.comparing.probe import default_probe, untrained
from luthier.outcome.comparing.runrecords import open_runs
from luthier.recipefile import to_yaml
from luthier.rundir import RunDir
from support.fakecompare import FakeRun, by_records, chat_recipe, chat_run, losses_of, verdict_run, write_exam


@pytest.fixture
def verdicts(tmp_path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[Path]]:
    rng = np.random.default_rng(5)
    grades = rng.choice([3.0, 3.5, 4.0, 4.5], 80)
    p_A = np.clip(0.5 + 0.2 * (grades - 3.75) + 0.2 * rng.normal(size=80), 0.01, 0.99)
    p_B = np.clip(p_A + 0.2 * rng.normal(size=80), 0.01, 0.99)
    paths = [verdict_run(tmp_path / "a", p_A, grades), verdict_run(tmp_path / "b", p_B, grades)]
    return p_A, p_B, grades, paths


def test_verdicts_agree_with_scipy_and_sklearn(verdicts) -> None:
    p_A, p_B, grades, paths = verdicts
    found, _ = by_records(paths)
    accuracy, area, loss = found["verdicts"]["measures"]
    passed = grades >= 4
    right_A, right_B = (p_A > 0.5) == passed, (p_B > 0.5) == passed
    pair = accuracy["pairs"][0]
    assert pair["wins"] == int((right_B & ~right_A).sum())
    assert pair["losses"] == int((right_A & ~right_B).sum())
    assert pair["p"] == pytest.approx(binomtest(pair["wins"], pair["wins"] + pair["losses"]).pvalue)
    assert pair["difference"]["value"] == pytest.approx(right_B.mean() - right_A.mean())
    assert [run["value"] for run in area["runs"]] == pytest.approx([roc_auc_score(passed, p) for p in (p_A, p_B)])
    # The event of a random rater is half a pass at the grade below the mark.
    truth = np.where(grades == 3.5, 0.5, passed)
    expected = [
        log_loss(np.r_[np.ones(80), np.zeros(80)], np.r_[p, p], sample_weight=np.r_[truth, 1 - truth])
        for p in (p_A, p_B)
    ]
    assert [run["value"] for run in loss["runs"]] == pytest.approx(expected, rel=1e-6)
    assert loss["lower_is_better"]


def test_items_that_one_run_lacks_are_counted_and_named(verdicts, tmp_path: Path) -> None:
    p_A, _, grades, paths = verdicts
    short = verdict_run(tmp_path / "short", p_A, grades, drop=7)
    found, _ = by_records([paths[0], short])
    assert found["verdicts"]["n"] == 73
    assert found["verdicts"]["left_out"]["a"] == {"n": 7, "first": [f"a{n}" for n in range(5)]}
    assert found["verdicts"]["left_out"]["short"]["n"] == 0


def test_log_loss_of_two_events_is_refused_and_accuracy_is_not(verdicts, tmp_path: Path) -> None:
    p_A, _, grades, paths = verdicts
    other = verdict_run(tmp_path / "panel", p_A, grades, event="panel")
    found, _ = by_records([paths[0], other])
    assert [measure["name"] for measure in found["verdicts"]["measures"]] == ["accuracy", "AUROC"]
    assert "log loss is not compared" in found["verdicts"]["notes"][0]


def test_flips_are_the_items_that_turned(verdicts) -> None:
    p_A, p_B, grades, paths = verdicts
    found, _ = by_records(paths)
    right_A, right_B = (p_A > 0.5) == (grades >= 4), (p_B > 0.5) == (grades >= 4)
    turned = found["verdicts"]["flips"][0]
    assert {item["id"] for item in turned["fixed"]["items"]} == {f"a{n}" for n in np.flatnonzero(right_B & ~right_A)}
    assert turned["broken"]["n"] == int((right_A & ~right_B).sum())


def test_bits_a_byte_are_a_ratio_of_sums_and_their_difference_is_paired(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    first, second = losses_of(rng.uniform(1, 3, 50)), losses_of(rng.uniform(1, 3, 50))
    for one, other in zip(first, second, strict=True):
        one["target_bytes"] = other["target_bytes"] = float(rng.integers(5, 60))
    paths = [
        FakeRun(tmp_path / name, chat_recipe(name), (), lines).write() for name, lines in (("a", first), ("b", second))
    ]
    found, _ = by_records(paths)
    measure = found["probe"]["measures"][0]
    total = sum(line["target_bytes"] for line in first)
    for run, lines in zip(measure["runs"], (first, second), strict=True):
        assert run["value"] == pytest.approx(sum(line["nll"] for line in lines) / np.log(2) / total)
        assert run["ci"][0] < run["value"] < run["ci"][1]
    nll_A, nll_B = (np.array([line["nll"] for line in lines]) for lines in (first, second))
    pair = measure["pairs"][0]
    assert pair["p"] == pytest.approx(ttest_rel(nll_B, nll_A).pvalue)
    assert pair["difference"]["value"] == pytest.approx(measure["runs"][1]["value"] - measure["runs"][0]["value"])


def test_a_row_whose_answer_was_cut_in_one_run_is_left_out(tmp_path: Path) -> None:
    whole, cut = losses_of([2.0] * 20), losses_of([2.1] * 20)
    cut[3]["target_bytes"] = 4.0
    cut[4]["target_bytes"] = 10.5  # another tokenizer's blank
    paths = [
        FakeRun(tmp_path / name, chat_recipe(name), (), lines).write() for name, lines in (("a", whole), ("b", cut))
    ]
    found, _ = by_records(paths)
    assert found["probe"]["n"] == 19
    assert found["probe"]["left_out"]["b"] == {"n": 1, "first": ["row-003"]}


def test_two_seeds_of_one_recipe_cannot_be_told_apart_whatever_their_rows_say(tmp_path: Path) -> None:
    bits = np.linspace(1, 3, 60)
    paths = [chat_run(tmp_path / f"s{n}", bits + 0.05 * n, recipe=chat_recipe(seed=n)) for n in (1, 2)]
    found, _ = by_records(paths)
    pair = found["probe"]["measures"][0]["pairs"][0]
    assert pair["models_differ"]
    assert pair["same_recipe"]
    assert not pair["apart"]
    assert "s1 and s2 cannot be told apart" in found["headline"][0]
    assert [line["key"] for line in found["settings"]] == ["seed"]
    assert found["losses"] == {"classes": [["s1", "s2"]], "reasons": []}


def test_another_recipe_must_beat_what_seeds_make(tmp_path: Path) -> None:
    bits = np.linspace(1, 3, 60)
    seeds = [chat_run(tmp_path / f"s{n}", bits + 0.05 * n, recipe=chat_recipe(seed=n)) for n in (1, 2)]
    near, far = chat_recipe(seed=1), chat_recipe(seed=1)
    near.train.learning_rate, far.train.learning_rate = 1.0, 2.0
    other = chat_run(tmp_path / "near", bits + 0.13, recipe=near), chat_run(tmp_path / "far", bits + 0.4, recipe=far)
    found, _ = by_records([*seeds, *other])
    pairs = {(pair["a"], pair["b"]): pair for pair in found["probe"]["measures"][0]["pairs"]}
    assert pairs["s2", "near"]["models_differ"]
    assert not pairs["s2", "near"]["apart"]
    assert "is not more than the 0.050 between runs of one recipe" in pairs["s2", "near"]["verdict"]
    assert pairs["s2", "far"]["apart"]
    assert "s2 is better than far by 0.300" in pairs["s2", "far"]["verdict"]
    letters = found["probe"]["measures"][0]["letters"]
    assert not set(letters["s1"]) & set(letters["far"])
    assert "far" in found["headline"][0]


def test_a_small_difference_says_how_many_more_items_it_takes(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    bits = rng.uniform(1, 3, 40)
    paths = [
        chat_run(tmp_path / "a", bits),
        chat_run(tmp_path / "b", bits + 0.02 + 0.3 * rng.normal(size=40), recipe=chat_recipe("two")),
    ]
    found, _ = by_records(paths)
    pair = found["probe"]["measures"][0]["pairs"][0]
    assert not pair["apart"]
    ends = pair["difference"]["ci"]
    error = (ends[1] - ends[0]) / (2 * 1.959964)
    assert pair["more"] == pytest.approx(40 * (2.8016 * error / pair["difference"]["value"]) ** 2 - 40, rel=0.01, abs=2)
    assert "more items would be needed" in table_text(found)
    assert "Each recipe has one seed" in found["headline"][-1]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ("rows", "training rows"),
        ("tokenizer", "tokenizer and chat template"),
        ("lessons", "tokens and mask"),
        ("packing", "train.packing"),
        ("mixture", "mixture of sources"),
        ("unrecorded", "tokens and mask of the rows: not recorded in a, not recorded in b"),
    ],
)
def test_training_losses_over_different_tokens_are_refused_with_the_reason(
    tmp_path: Path, change: str, word: str
) -> None:
    recipe = chat_recipe(seed=2)
    recipe.train.packing = change != "packing"
    about = {"lessons_sha256": "cd" * 32} if change == "lessons" else {}
    trained = [("new", "g", "train", "x")] if change == "rows" else []
    paths = [
        chat_run(tmp_path / "a", [1.0, 2.0]),
        chat_run(tmp_path / "b", [1.0, 2.0], recipe=recipe, about=about, trained=trained),
    ]
    if change == "tokenizer":
        files.write_json(
            paths[1] / "stages/main/adapter/adapter_base.json", {"tokenizer_sha256": "ef" * 32, "added_tokens": {}}
        )
    for path in paths if change == "unrecorded" else ():
        record = files.read_json(path / "stages/main/stage.json")
        files.write_json(
            path / "stages/main/stage.json", {key: value for key, value in record.items() if key != "lessons_sha256"}
        )
    if change == "mixture":
        manifest = files.read_json(paths[1] / "data/manifest.json")
        files.write_json(paths[1] / "data/manifest.json", {**manifest, "mixing": {"seed": 1, "temperature": 2.0}})
    found, runs = by_records(paths)
    assert found["losses"]["classes"] == [["a"], ["b"]]
    assert len(found["losses"]["reasons"]) == 1
    assert word in found["losses"]["reasons"][0]
    assert any(word in line for line in found["refused"])
    write_comparison(tmp_path / "page.html", found, runs)
    assert "Training loss of" not in (tmp_path / "page.html").read_text()


def test_a_source_that_one_recipe_lacks_is_one_line(tmp_path: Path) -> None:
    more = chat_recipe()
    more.data.sources["extra"] = replace(more.data.sources["chats"], name="extra", path="extra.jsonl")
    paths = [chat_run(tmp_path / "a", [1.0, 2.0]), chat_run(tmp_path / "b", [1.0, 2.0], recipe=more)]
    found, _ = by_records(paths)
    assert found["settings"] == [{"key": "data.sources.extra", "values": ["not there", "extra.jsonl"]}]


def test_the_probe_holds_no_row_and_no_group_that_a_run_was_trained_on(tmp_path: Path) -> None:
    first = chat_run(tmp_path / "a", [1.0] * 6, trained=[("t1", "seen", "train", "x")])
    lines = [
        {**line, "id": f"b{n}", "group": "seen" if n == 0 else f"h{n}"} for n, line in enumerate(losses_of([1.0] * 5))
    ]
    rows = [("row-002", "far", "train", "x"), ("z", "g3", "train", "x")]
    second = FakeRun(tmp_path / "b", chat_recipe("two"), rows, lines).write()
    runs = open_runs([first, second])
    probe = default_probe(runs)
    assert not probe.recorded
    assert sorted(probe.ids) == ["b1", "b2", "b3", "b4", "row-000", "row-001", "row-004", "row-005"]
    assert probe.trained == {"a": 1, "b": 2}
    assert untrained(runs, [("new", ""), ("t1", "")]) == (["new"], {"a": 1})


def test_rows_that_all_runs_scored_need_no_model(tmp_path: Path) -> None:
    runs = open_runs([chat_run(tmp_path / "a", [1.0, 2.0]), chat_run(tmp_path / "b", [1.5, 2.5])])
    assert default_probe(runs).recorded


def exam_runs(tmp_path: Path, **second: Any) -> list[Path]:
    rng = np.random.default_rng(2)
    right = rng.random((2, 60)) < np.array([[0.6], [0.8]])
    paths = []
    for name, own, more in (("a", right[0], {}), ("b", right[1], second)):
        about = {"trained": {"steps": 20, "kept_step": 10, "seconds": 1.0, "tokens": 5}}
        path = chat_run(tmp_path / name, [1.0, 2.0], about=about, recipe=chat_recipe(name))
        folder = RunDir(path).stage("main").exam("quiz")
        write_exam(folder, {"base": ~own, "step-000010": own, "step-000020": ~own}, **more)
        paths.append(path)
    return paths


def test_exams_are_compared_by_the_kept_checkpoint_with_flips_and_texts(tmp_path: Path) -> None:
    found, _ = by_records(exam_runs(tmp_path))
    exam = found["exams"][0]
    assert exam["candidates"] == {"a": "step-000010", "b": "step-000010"}
    accuracy, loss = exam["measures"]
    pair = accuracy["pairs"][0]
    assert pair["p"] == pytest.approx(binomtest(pair["wins"], pair["wins"] + pair["losses"]).pvalue)
    turned = exam["flips"][0]
    assert turned["fixed"]["n"] == pair["wins"]
    assert turned["broken"]["n"] == pair["losses"]
    item = turned["fixed"]["items"][0]
    assert (item["a"], item["b"]) == ("B", "A")
    assert item["text"] == f"What is {item['id'][1:]}?\nA. yes ← right\nB. no"
    share = np.exp(-0.2) / (np.exp(-0.2) + np.exp(-1.7)), np.exp(-1.4) / (np.exp(-1.4) + np.exp(-0.3))
    right = accuracy["runs"][0]["value"]
    assert loss["runs"][0]["value"] == pytest.approx(-right * np.log(share[0]) - (1 - right) * np.log(share[1]))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"digest": "cd" * 32}, "the questions differ (abababababab in a, cdcdcdcdcdcd in b)"),
        ({"method": "text"}, "it was put in different ways (method: letters in a, text in b)"),
        ({"prompts": ["exam", "question"]}, "it was put in different ways (prompts"),
    ],
)
def test_exams_with_other_questions_are_refused(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    found, _ = by_records(exam_runs(tmp_path, **change))
    assert found["exams"] == []
    assert reason in found["refused"][0]


def test_an_exam_that_chose_a_checkpoint_is_said_to_flatter_it(tmp_path: Path) -> None:
    paths = exam_runs(tmp_path)
    recipe = chat_recipe("a")
    recipe.train.select, recipe.evaluate.choose_by = "exam", "quiz"
    files.write_text(paths[0] / "recipe.yaml", to_yaml(recipe))
    found, _ = by_records(paths)
    assert found["exams"][0]["notes"] == ["This exam chose the checkpoint of a: it flatters them."]


def test_an_exam_that_one_run_did_not_sit_is_refused(tmp_path: Path) -> None:
    paths = exam_runs(tmp_path)
    shutil.rmtree(paths[1] / "stages/main/exams")
    found, _ = by_records(paths)
    assert "b did not sit it" in found["refused"][0]


def test_runs_that_cannot_stand_side_by_side_are_refused_by_name(tmp_path: Path, verdicts) -> None:
    chat, other = chat_run(tmp_path / "x", [1.0]), chat_run(tmp_path / "y", [1.0])
    with pytest.raises(RequestError, match="is nothing to compare"):
        open_runs([chat])
    with pytest.raises(RequestError, match="is named twice"):
        open_runs([chat, tmp_path / "y" / ".." / "x"])
    with pytest.raises(RequestError, match=r"different tasks: x \(chat\), a \(verdict\)"):
        open_runs([chat, verdicts[3][0]])
    with pytest.raises(RequestError, match="stage late is not finished"):
        open_runs([chat, other], "late")
    with pytest.raises(RequestError, match="not a run"):
        open_runs([chat, tmp_path])
    (other / "stages/main/stage.json").write_text("{")
    with pytest.raises(DataError, match=r"stage\.json: cannot be read"):
        by_records([chat, other])


def test_labels_are_the_shortest_ends_that_differ(tmp_path: Path) -> None:
    for name in ("p", "q"):
        (tmp_path / name).mkdir()
    paths = [chat_run(tmp_path / "p" / "run", [1.0]), chat_run(tmp_path / "q" / "run", [1.0])]
    assert [run.label for run in open_runs(paths)] == ["p/run", "q/run"]


def test_costs_come_from_the_records(tmp_path: Path) -> None:
    runs = open_runs([chat_run(tmp_path / "a", [1.0]), chat_run(tmp_path / "b", [1.0])])
    cost = differences.costs(runs)[0]
    assert (cost["seconds"], cost["tokens"], cost["tokens_per_second"], cost["steps"]) == (3.0, 300, 100.0, 3)


def test_areas_are_drawn_as_the_metrics_draw_them(verdicts) -> None:
    from luthier.assess.metrics import auroc, bootstrap_ci

    p_A, _, grades, paths = verdicts
    found, _ = by_records(paths, Drawing(resamples=4000))
    passed = (grades >= 4).astype(float)
    ends = bootstrap_ci(lambda index: auroc(p_A[index], passed[index]), [str(n) for n in range(80)], resamples=4000)
    assert found["verdicts"]["measures"][1]["runs"][0]["ci"] == pytest.approx(ends, abs=0.01)


def test_runs_that_held_nothing_out_say_so(tmp_path: Path) -> None:
    found, runs = by_records([chat_run(tmp_path / "a", []), chat_run(tmp_path / "b", [])])
    assert found["probe"]["measures"] == []
    assert "name rows with --probe FILE" in found["probe"]["notes"][-1]
    assert found["headline"][0].startswith("The runs have no item in common")
    write_comparison(tmp_path / "page.html", found, runs)
    assert "name rows with --probe FILE" in (tmp_path / "page.html").read_text()


def test_without_its_table_nothing_says_what_a_run_was_trained_on(tmp_path: Path) -> None:
    paths = [chat_run(tmp_path / "a", [1.0, 2.0]), chat_run(tmp_path / "b", [1.0, 2.0, 3.0])]
    same = chat_run(tmp_path / "c", [1.0, 2.0])
    for path in (paths[0], same):
        shutil.rmtree(path / "data")
    with pytest.raises(DataError, match="its table is not there"):
        default_probe(open_runs(paths))
    found, _ = by_records([paths[0], same])
    assert found["probe"]["n"] == 2
    assert "training rows: not recorded in a" in found["losses"]["reasons"][0]


def test_a_row_in_two_held_out_sources_counts_once(tmp_path: Path) -> None:
    lines = losses_of([1.0, 2.0, 3.0])
    paths = [FakeRun(tmp_path / name, chat_recipe(name), (), [*lines, lines[0]]).write() for name in ("a", "b")]
    found, _ = by_records(paths)
    assert found["probe"]["n"] == 3
    assert found["probe"]["notes"] == [f"{name}: 1 lines repeat an item, and count once" for name in ("a", "b")]
