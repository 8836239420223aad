"""scores.json and table.json from answers on disk: each figure beside a reference, and what is refused."""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import brier_score_loss
from sklearn.metrics import log_loss as sklearn_log_loss

from luthier.assess.metrics import Floats
from luthier.errors import DataError
from luthier.exam_records import ExamAsked, ExamPrediction, ExamRecord, SatRecord
from luthier.files import read_json, write_json, write_jsonl
from luthier.outcome.exams.examined import conclude, write_scores
from luthier.outcome.looks import record_look
from luthier.outcome.statistics import accuracy_interval, all_pairs, mcnemar_exact, questions_needed, wilson
from luthier.rundir import ExamDir
from support.sweeps import clusters, simulate_sweep


@dataclass
class Written:
    """An exam whose candidates answer as the rows of (K, N) say; the right answer alternates between two options."""

    correct_KN: Floats
    steps: list[int | None]
    groups: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    overlap: list[str] = field(default_factory=list)
    bases: list[str] = field(default_factory=list)

    def write(self, folder: Path) -> ExamDir:
        found, n = ExamDir(folder), self.correct_KN.shape[1]
        groups = self.groups or [""] * n
        rows = [
            {"id": f"q{k}", "question": "?", "options": ["x", "y"], "answer": k % 2, "group": groups[k]}
            for k in range(n)
        ]
        write_jsonl(found.items, rows)
        settings = {"method": "letters", "normalization": "none", "prompts": ["question"], **self.settings}
        record = ExamRecord(
            "e", "d1", "options", "0", n, [2], 0.5, (n - n // 2) / n, [], {}, settings, overlap=self.overlap
        )
        write_json(found.exam, record.to_json())
        for place in range(len(self.steps)):
            name = self.name(place)
            answers = [self.prediction(place, k, groups[k]) for k in range(n)]
            write_jsonl(found.candidate(name).predictions, [answer.to_json() for answer in answers])
            write_json(found.candidate(name).record, self.record(place).to_json())
        return found

    def name(self, place: int) -> str:
        step = self.steps[place]
        return self.bases[place] if self.bases else "base" if step is None else f"step-{step:06}"

    def record(self, place: int) -> SatRecord:
        step, base = self.steps[place], self.bases[place] if self.bases else "toy"
        return SatRecord(
            self.name(place), base, base, "" if step is None else "adapter", "" if step is None else f"sha{step}",
            step, 1.0, 1.0, 1, f"key{place}",
        )  # fmt: skip

    def prediction(self, place: int, k: int, group: str) -> ExamPrediction:
        right, answer = bool(self.correct_KN[place, k]), k % 2
        choice = answer if right else 1 - answer
        margin = 0.5 + 0.1 * (k % 7)
        logprobs = [-2.0 + margin if option == choice else -2.0 for option in range(2)]
        return ExamPrediction(f"q{k}", answer, choice, logprobs, right, group)


def checkpoints(generator: np.random.Generator, accuracies: list[float], n: int, **more: Any) -> Written:
    """A base at 0.6 and a checkpoint every 50 steps."""
    steps: list[int | None] = [None, *(50 * (place + 1) for place in range(len(accuracies)))]
    return Written(simulate_sweep(generator, [0.6, *accuracies], n), steps, **more)


def change_answers(exam: ExamDir, name: str, change: Any) -> None:
    """Rewrite a candidate's answers by a function of each line and its place."""
    path = exam.candidate(name).predictions
    rows = [change(row, place) for place, row in enumerate(_rows(path))]
    write_jsonl(path, [row for row in rows if row])


def option_loss(item: ExamPrediction) -> float:
    """Minus the log-probability of the right one of two options."""
    return float(np.logaddexp(*item.logprobs)) - item.logprobs[item.answer]


def notes(exam: ExamDir) -> list[str]:
    for name in exam.candidates():
        write_scores(exam, name)
    return conclude(exam, choose=False)["notes"]


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_scores_of_one_candidate_are_those_of_scikit_learn(tmp_path: Path) -> None:
    written = checkpoints(np.random.default_rng(0), [0.77], 162)
    exam = written.write(tmp_path)
    scores = write_scores(exam, "step-000050")
    assert read_json(exam.candidate("step-000050").scores) == scores
    answers = [written.prediction(1, k, "") for k in range(162)]
    second = np.array([1 / (1 + np.exp(one.logprobs[0] - one.logprobs[1])) for one in answers])
    truth = np.array([one.answer for one in answers])
    right = int(written.correct_KN[1].sum())
    assert scores["accuracy"] == {"value": right / 162, "ci": list(wilson(right, 162)), "n": 162}
    assert scores["log_loss"]["value"] == pytest.approx(sklearn_log_loss(truth, second))
    assert scores["brier"]["value"] == pytest.approx(brier_score_loss(truth, second))
    assert scores["majority"] == {"value": 0.5, "ci": [0.5, 0.5], "n": 162}
    assert scores["chance"]["value"] == 0.5
    assert 0 <= scores["ece"]["ci"][0] <= scores["ece"]["ci"][1] <= 1
    assert set(scores) == {"accuracy", "majority", "chance", "log_loss", "brier", "ece"}


def test_ece_is_the_gap_of_a_candidate_that_is_too_sure(tmp_path: Path) -> None:
    exam = Written(np.tile([1.0, 1, 1, 0], 50)[None], [None]).write(tmp_path)

    def sure(row: dict[str, Any], place: int) -> dict[str, Any]:
        logprobs = [0.0 if option == row["choice"] else -np.log(9) for option in range(2)]
        return {**row, "logprobs": logprobs}

    change_answers(exam, "base", sure)
    assert write_scores(exam, "base")["ece"]["value"] == pytest.approx(0.9 - 0.75)


def test_options_of_uneven_number_have_a_log_loss_each(tmp_path: Path) -> None:
    exam = Written(np.ones((1, 2)), [None]).write(tmp_path)
    rows = [{"id": f"q{k}", "options": ["x"] * (2 + 2 * k), "answer": k} for k in range(2)]
    write_jsonl(exam.items, rows)
    change_answers(exam, "base", lambda row, place: {**row, "logprobs": [-1000.0] * (2 + 2 * place)})
    found = write_scores(exam, "base")
    assert found["log_loss"]["value"] == pytest.approx((np.log(2) + np.log(4)) / 2)
    assert found["brier"]["value"] == pytest.approx((0.25 + 0.5 * (3 / 16 + 9 / 16)) / 2)


def test_both_orders_show_the_place_a_model_prefers(tmp_path: Path) -> None:
    exam = Written(np.ones((1, 40)), [None]).write(tmp_path)

    def always_first(row: dict[str, Any], place: int) -> dict[str, Any]:
        back = ExamAsked("question", True, [-2.0, -1.0], 1)
        return {**row, "choice": 0, "correct": row["answer"] == 0, "more": [back.__dict__]}

    change_answers(exam, "base", always_first)
    found = write_scores(exam, "base")
    assert found["swap.first"] == {"value": 1.0, "ci": [1.0, 1.0], "n": 40}
    assert found["swap.accuracy"]["value"] == 0.5
    assert found["swap.consistent"]["value"] == 0.0
    assert any("whatever stands there" in note and "base (100.0%)" in note for note in notes(exam))

    def never_swayed(row: dict[str, Any], place: int) -> dict[str, Any]:
        back = ExamAsked("question", True, [], row["answer"])
        return {**row, "choice": row["answer"], "correct": True, "logprobs": [], "more": [back.__dict__]}

    change_answers(exam, "base", never_swayed)
    found = write_scores(exam, "base")
    assert [found[f"swap.{key}"]["value"] for key in ("first", "accuracy", "consistent")] == [0.5, 1.0, 1.0]
    assert not any("whatever stands there" in note for note in notes(exam))


def test_several_wordings_have_an_accuracy_each_and_a_spread(tmp_path: Path) -> None:
    written = Written(np.repeat([1.0, 0.0], [30, 10])[None], [None], settings={"prompts": ["question", "exam"]})
    exam = written.write(tmp_path)

    def two(row: dict[str, Any], place: int) -> dict[str, Any]:
        other = ExamAsked("exam", False, [-1.0, -1.0], row["answer"] if place < 20 else 1 - row["answer"])
        return {**row, "more": [other.__dict__]}

    change_answers(exam, "base", two)
    found = write_scores(exam, "base")
    assert found["prompt.question.accuracy"]["value"] == found["accuracy"]["value"] == 0.75
    assert found["prompt.exam.accuracy"]["value"] == 0.5
    assert found["prompt.spread"]["value"] == 0.25
    assert found["prompt.spread"]["ci"][0] > 0.05
    assert "Between the wordings a score differs by up to 25.0 points (base)." in notes(exam)

    change_answers(exam, "base", lambda row, place: {**row, "more": row["more"] if place else []})
    with pytest.raises(DataError, match="'q0' was not asked in the wording 'exam'"):
        write_scores(exam, "base")


def test_what_names_no_option_is_wrong_and_counted(tmp_path: Path) -> None:
    exam = Written(np.ones((1, 20)), [None], settings={"method": "generate"}).write(tmp_path)

    def silent(row: dict[str, Any], place: int) -> dict[str, Any]:
        return {**row, "logprobs": [], "choice": -1 if place < 5 else row["answer"], "correct": place >= 5}

    change_answers(exam, "base", silent)
    found = write_scores(exam, "base")
    assert found["accuracy"]["value"] == 0.75
    assert found["unparsed"]["value"] == 0.25
    assert "log_loss" not in found
    table = conclude(exam, choose=False)
    assert any("base 25.0%" in note for note in table["notes"])


def test_items_that_training_touches_are_left_out_of_the_clean_score(tmp_path: Path) -> None:
    exam = Written(np.repeat([1.0, 0.0], [30, 10])[None], [None], overlap=[f"q{k}" for k in range(20)]).write(tmp_path)
    found = write_scores(exam, "base")
    assert found["clean.accuracy"]["value"] == 0.5
    assert found["clean.accuracy"]["n"] == 20
    assert any("touches 20 of 40 questions; without them base has 50.0% right" in note for note in notes(exam))


def test_an_exam_that_training_touches_all_of_has_no_score_free_of_it(tmp_path: Path) -> None:
    exam = Written(np.ones((1, 5)), [None], overlap=[f"q{k}" for k in range(5)]).write(tmp_path)
    assert "Training touches 5 of 5 questions; no score is free of them." in notes(exam)


def test_log_loss_tells_apart_what_right_and_wrong_do_not(tmp_path: Path) -> None:
    exam = checkpoints(np.random.default_rng(3), [0.7, 0.7, 0.7], 80).write(tmp_path)
    base = _rows(exam.candidate("base").predictions)
    sure = np.random.default_rng(4).normal(0.3, 0.1, len(base))
    for name in exam.candidates():
        moved = 0.0 if name == "base" else 1.0

        def change(row: dict[str, Any], place: int, moved: float = moved) -> dict[str, Any]:
            logprobs = [-1.0, -1.0]
            logprobs[row["answer"]] += 0.5 + moved * float(sure[place])
            return {**base[place], "logprobs": logprobs}

        change_answers(exam, name, change)
    table = conclude(exam, choose=True)
    picked = next(row for row in table["candidates"] if row["name"] == table["chosen"])
    gap = picked["against_base"]["log_loss"]
    assert picked["against_base"]["p_adjusted"] == 1.0
    assert gap["value"] < 0
    assert 2 * gap["p"] < 0.001
    assert [note for note in table["notes"] if note.startswith("By log loss")] == [
        "By log loss, which sees more than right and wrong: that of step-000050 is lower than the base's "
        f"({gap['value']:+.3f} nats [{gap['ci'][0]:+.3f}, {gap['ci'][1]:+.3f}], paired t, p < 0.001)."
    ]
    # Their scores tie: one sentence on that is enough.
    assert sum("step-000050" in note and "cannot be told" in note for note in table["notes"]) == 1


def test_groups_widen_every_interval(tmp_path: Path) -> None:
    correct = simulate_sweep(np.random.default_rng(1), [0.7], 300, cluster=10)
    alone = write_scores(Written(correct, [None]).write(tmp_path / "a"), "base")
    grouped = write_scores(Written(correct, [None], clusters(300, 10)).write(tmp_path / "b"), "base")
    for key in ("accuracy", "log_loss", "brier"):
        assert np.ptp(grouped[key]["ci"]) > 1.15 * np.ptp(alone[key]["ci"])
    assert grouped["accuracy"]["ci"] == accuracy_interval(correct[0], clusters(300, 10), resamples=1000)["ci"]


def test_the_table_of_a_rising_run_chooses_the_first_on_the_plateau(tmp_path: Path) -> None:
    written = checkpoints(np.random.default_rng(2), [0.66, 0.72, 0.8, 0.8, 0.8], 3137)
    exam = written.write(tmp_path)
    table = conclude(exam, choose=True)
    assert read_json(exam.table) == table
    assert [row["name"] for row in table["candidates"]] == [written.name(place) for place in range(6)]
    assert table["chosen"] == "step-000150"
    assert table["best"] in {"step-000150", "step-000200", "step-000250"}
    rows = {row["name"]: row for row in table["candidates"]}
    assert rows["base"]["against_base"] is None
    assert rows[table["best"]]["against_best"] is None
    assert [rows[name]["group"] for name in ("base", "step-000050", "step-000100", "step-000150")] == [
        ["d"], ["c"], ["b"], ["a"],
    ]  # fmt: skip
    for row in table["candidates"]:
        accuracy = row["scores"]["accuracy"]
        assert row["band"][0] < accuracy["ci"][0] < accuracy["value"] < accuracy["ci"][1] < row["band"][1]
    assert abs(table["corrected"]["value"] - 0.8) < 0.02
    assert table["corrected"]["of"] == 5
    assert set(table["more_questions"]["pair"]) & {table["best"]}
    assert any(note.startswith("step-000150 is chosen: the ") for note in table["notes"])


def test_differences_to_the_base_are_those_of_mcnemar_and_scipy(tmp_path: Path) -> None:
    written = checkpoints(np.random.default_rng(3), [0.63, 0.7], 400)
    table = conclude(written.write(tmp_path), choose=True)
    against = table["candidates"][2]["against_base"]
    base, last = written.correct_KN[0], written.correct_KN[2]
    wins, losses = int((last > base).sum()), int((last < base).sum())
    assert (against["wins"], against["losses"]) == (wins, losses)
    assert against["value"] == pytest.approx((wins - losses) / 400)
    assert against["p"] == mcnemar_exact(wins, losses)
    assert against["p"] <= against["p_adjusted"] + 0.01
    losses_of = [[option_loss(written.prediction(place, k, "")) for k in range(400)] for place in (2, 0)]
    assert against["log_loss"]["p"] == pytest.approx(stats.ttest_rel(*losses_of).pvalue, rel=1e-6)
    assert table["discordance"] == pytest.approx(
        np.median([np.abs(written.correct_KN[a] - written.correct_KN[b]).mean() for a, b in ((0, 1), (0, 2), (1, 2))])
    )


def test_three_questions_apart_cannot_be_told_apart(tmp_path: Path) -> None:
    correct = np.zeros((2, 162))
    correct[0, :124], correct[1, :119], correct[1, 154:] = 1, 1, 1
    exam = Written(correct, [None, None], bases=["one", "two"]).write(tmp_path)
    table = conclude(exam, choose=False)
    assert table["chosen"] is None
    assert [row["group"] for row in table["candidates"]] == [["a"], ["a"]]
    assert [row["against_base"] for row in table["candidates"]] == [None, None]
    assert table["best"] == "two"
    assert table["more_questions"]["pair"] == ["one", "two"]
    needed = table["more_questions"]["questions"] + 162
    assert needed == pytest.approx((1.96 + 0.84) ** 2 * (13 / 162) / (3 / 162) ** 2, rel=0.03)
    assert any(note.startswith("one and two cannot be told apart: about") for note in table["notes"])
    assert any("can never tell a gap below 3.7 points" in note for note in table["notes"])


def test_a_best_that_the_scores_picked_is_compared_as_one_of_all_pairs(tmp_path: Path) -> None:
    written = checkpoints(np.random.default_rng(2), [0.74, 0.76, 0.78, 0.8], 600)
    table = conclude(written.write(tmp_path), choose=True)
    names = [row["name"] for row in table["candidates"]]
    best = names.index(table["best"])
    pairs = all_pairs(written.correct_KN, resamples=2000)
    for place, row in enumerate(table["candidates"]):
        if place != best:
            assert row["against_best"]["p_adjusted"] == pairs.p_KK[place, best]
    more = table["more_questions"]
    other = names.index(more["pair"][0])
    share = float(np.abs(written.correct_KN[best] - written.correct_KN[other]).mean())
    assert more["questions"] + 600 == questions_needed(more["difference"], share, alpha=pairs.single_alpha)
    assert more["questions"] + 600 > 1.3 * questions_needed(more["difference"], share)


def test_the_best_of_a_choice_is_a_checkpoint_and_a_better_base_is_said(tmp_path: Path) -> None:
    scores = simulate_sweep(np.random.default_rng(4), [0.9, 0.7, 0.71], 1000)
    table = conclude(Written(scores, [None, 50, 100]).write(tmp_path), choose=True)
    assert table["best"].startswith("step-")
    assert table["chosen"] == "step-000050"
    assert "step-000050 is worse than the base." in table["notes"]
    assert table["corrected"]["of"] == 2


def test_one_candidate_has_a_table_without_comparisons(tmp_path: Path) -> None:
    table = conclude(checkpoints(np.random.default_rng(5), [], 162).write(tmp_path), choose=True)
    assert table["best"] == table["chosen"] == "base"
    assert table["discordance"] is table["minimum_detectable_effect"] is table["more_questions"] is None
    assert table["candidates"][0]["group"] == ["a"]
    assert table["corrected"]["value"] == pytest.approx(table["candidates"][0]["scores"]["accuracy"]["value"])


@pytest.mark.parametrize("choose", [True, False])
def test_one_question_has_a_table_that_tells_nothing_apart(tmp_path: Path, choose: bool) -> None:
    table = conclude(checkpoints(np.random.default_rng(5), [0.9, 0.9], 1).write(tmp_path), choose=choose)
    assert {letter for one in table["candidates"] for letter in one["group"]} == {"a"}
    assert table["corrected"]["ci"] == [0.0, 1.0]
    assert table["minimum_detectable_effect"] is None


def test_scores_that_are_missing_are_drawn_as_the_others(tmp_path: Path) -> None:
    exam = checkpoints(np.random.default_rng(5), [0.6, 0.7], 40).write(tmp_path)
    wanted = write_scores(exam, "base", resamples=60, seed=7)
    exam.candidate("base").scores.unlink()
    table = conclude(exam, choose=False, resamples=60, seed=7)
    assert table["candidates"][0]["scores"] == read_json(exam.candidate("base").scores) == wanted


def test_a_candidate_that_copies_another_ties_with_it(tmp_path: Path) -> None:
    row = simulate_sweep(np.random.default_rng(6), [0.8], 100)
    table = conclude(Written(np.repeat(row, 2, axis=0), [None, 50]).write(tmp_path), choose=True)
    against = table["candidates"][1]["against_base"]
    assert (against["value"], against["p"], against["p_adjusted"], against["log_loss"]["p"]) == (0, 1, 1, 1)
    assert table["more_questions"] == {"pair": ["base", "step-000050"], "difference": 0.0, "questions": None}


def test_guessing_and_always_one_place_are_named(tmp_path: Path) -> None:
    scores = np.repeat([[1.0, 0.0], [1.0, 1.0]], [90, 72], axis=1)
    notes = conclude(Written(scores, [None, 50]).write(tmp_path), choose=True)["notes"]
    assert "Not above guessing (50.0%): base." in notes
    assert not any("one place" in note and "step-000050" in note for note in notes)


def test_looks_come_from_the_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_HOME", str(tmp_path / "home"))
    for who in "xyz":
        record_look("d1", who, "choose")
    assert conclude(checkpoints(np.random.default_rng(5), [0.7], 50).write(tmp_path / "e"), choose=True)["looks"] == 3


def test_a_table_is_the_same_when_it_is_made_again(tmp_path: Path) -> None:
    exam = checkpoints(np.random.default_rng(8), [0.7, 0.75], 162, groups=clusters(162, 3)).write(tmp_path)
    first = conclude(exam, choose=True)
    assert conclude(exam, choose=True) == first
    assert any("54 groups" in note for note in first["notes"])


def test_who_sat_other_items_is_refused_by_name(tmp_path: Path) -> None:
    exam = checkpoints(np.random.default_rng(9), [0.7], 20).write(tmp_path)
    change_answers(exam, "step-000050", lambda row, place: row if place else None)
    with pytest.raises(DataError, match=r"step-000050 did not sit the items.*first 'q0'"):
        conclude(exam, choose=True)


def test_another_right_answer_to_the_same_item_is_refused(tmp_path: Path) -> None:
    exam = checkpoints(np.random.default_rng(9), [0.7], 20).write(tmp_path)
    change_answers(exam, "step-000050", lambda row, place: {**row, "answer": 1 - row["answer"]} if place == 3 else row)
    with pytest.raises(DataError, match=r"base and step-000050 .*'q3'"):
        conclude(exam, choose=True)


def test_the_order_of_lines_does_not_matter(tmp_path: Path) -> None:
    exam = checkpoints(np.random.default_rng(9), [0.7], 20).write(tmp_path)
    before = write_scores(exam, "step-000050")
    path = exam.candidate("step-000050").predictions
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    assert write_scores(exam, "step-000050") == before


@pytest.mark.parametrize("name", ["exam.json", "base/predictions.jsonl", "base/candidate.json", "items.jsonl"])
def test_a_broken_record_is_named(tmp_path: Path, name: str) -> None:
    exam = checkpoints(np.random.default_rng(9), [0.7], 20).write(tmp_path)
    (tmp_path / name).write_text('{"id": \n{"unknown": 1}\n')
    with pytest.raises(DataError, match=r"exam\.json|predictions\.jsonl|candidate\.json|items\.jsonl"):
        conclude(exam, choose=True)


def test_an_exam_that_nobody_finished_has_no_table(tmp_path: Path) -> None:
    exam = checkpoints(np.random.default_rng(9), [], 20).write(tmp_path)
    exam.candidate("base").record.unlink()
    with pytest.raises(DataError, match="nobody has finished"):
        conclude(exam, choose=True)


@pytest.mark.slow
def test_22_checkpoints_on_3137_questions_are_concluded_in_seconds(tmp_path: Path) -> None:
    exam = checkpoints(np.random.default_rng(0), [0.77] * 21, 3137).write(tmp_path)
    for name in exam.candidates():
        write_scores(exam, name, resamples=100)
    began = time.process_time()
    conclude(exam, choose=True)
    assert time.process_time() - began < 6
