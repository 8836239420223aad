"""The simulated exam: its truth is the truth, its files are what they say, and its quality can be heard."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile as sf
from scipy.optimize import minimize
from scipy.stats import rankdata

from luthier.data.simulate import (
    ITEMS,
    LOADING,
    SCHEMA,
    WEIGHTS,
    Answer,
    Judges,
    delivery_of,
    qualities,
    simulate,
    write_forms,
)
from luthier.data.voice import RATE, FormantVoice, open_voice
from luthier.errors import ExistsError, RequestError

COLUMNS = [
    "utt_id",
    "form_id",
    "speaker",
    "prompt",
    "audio",
    "grade",
    "rater_1",
    "rater_2",
    "rater_3",
    "p_panel",
    "p_rater",
]
SMALL = {"1764": (6, 5), "1964": (5, 6)}


def auroc(score: np.ndarray, label: np.ndarray) -> float:
    """P(a passed answer scores above a failed one), by ranks."""
    ranks, passed = rankdata(score), int(label.sum())
    return float((ranks[label].sum() - passed * (passed + 1) / 2) / (passed * (~label).sum()))


def digest(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.parquet")}


@pytest.mark.parametrize("judges", [Judges(), Judges(severity=0.1), Judges(sd=0.8, severities=(-0.5, 0, 0.2, 0.6))])
@pytest.mark.parametrize("quality", [-2.0, -0.5, 0.3, 1.6])
def test_the_closed_forms_are_what_the_judges_do(judges: Judges, quality: float) -> None:
    drawn = judges.judge(np.full(20_000, quality), np.random.default_rng(0))
    at = np.array([quality])
    assert abs((drawn[:, :2].mean(1) >= 4).mean() - judges.p_panel(at)[0]) < 1e-2
    assert abs((drawn[:, 2] >= 4).mean() - judges.p_rater(at)[0]) < 1e-2
    assert np.abs(drawn[:, 0] - drawn[:, 1]).max() <= 1


def test_the_judges_draw_from_their_grade_probabilities() -> None:
    judges = Judges(severities=(0.2, 0.2, 0.2))
    drawn = judges.judge(np.full(20_000, -0.4), np.random.default_rng(1))[:, 2]
    expected = judges.grade_probabilities(np.array([-0.4]))
    assert expected.shape == (1, 3, 5)
    assert np.allclose(expected.sum(2), 1)
    seen = [(drawn == grade).mean() for grade in range(1, 6)]
    assert np.allclose(seen, expected[0, 0], atol=1e-2)


def test_chances_rise_with_quality_fall_with_severity_and_stay_inside() -> None:
    quality = np.linspace(-9, 9, 181)
    for chance in (Judges().p_panel(quality), Judges().p_rater(quality)):
        assert (np.diff(chance) >= 0).all()
        assert 0 < chance.min() < 1e-9
        assert 1 - 1e-9 < chance.max() < 1
    assert (Judges(severity=0.1).p_panel(quality[80:100]) < Judges().p_panel(quality[80:100])).all()


@pytest.mark.parametrize("wrong", [{"severities": (0.0, 0.1)}, {"sd": 0.0}, {"thresholds": (1.0, 0.0, 2.0, 3.0)}])
def test_a_bench_that_cannot_judge_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(RequestError, match="cannot judge"):
        Judges(**wrong)  # type: ignore[arg-type]


def test_the_world_has_the_variances_it_claims() -> None:
    speaker, controls, rendered = qualities(40_000, np.random.default_rng(0))
    assert np.allclose(controls.std(0), 1, atol=0.03)
    assert rendered.std() == pytest.approx(1, abs=0.03)
    between = np.corrcoef(controls.T)[~np.eye(len(WEIGHTS), dtype=bool)]
    assert np.allclose(between, LOADING**2, atol=0.02)
    assert np.bincount(speaker).max() == 5
    means = np.bincount(speaker, rendered) / 5
    assert means.var() > 1.5 * rendered.var() / 5  # answers of one speaker are alike


def test_better_controls_are_a_better_delivery() -> None:
    good, bad = delivery_of(np.full(6, 2.0)), delivery_of(np.full(6, -2.0))
    assert good.rate > 0.9 > 0.1 > bad.rate
    for fault in ("pause", "filler", "repair", "mispronounce", "monotone"):
        assert getattr(good, fault) < 0.1 < 0.9 < getattr(bad, fault)


def test_answers_are_short_and_prompts_differ_between_forms() -> None:
    rng = np.random.default_rng(0)
    for items in ITEMS.values():
        assert len(items) == 8
        assert all(5 <= len(item.answer(rng).split()) <= 10 for item in items for _ in range(5))
    prompts = [{item.prompt for item in items} for items in ITEMS.values()]
    assert not prompts[0] & prompts[1]


def test_the_files_hold_what_they_say(tmp_path: Path) -> None:
    paths = write_forms(tmp_path / "exam", seed=4, sizes=SMALL)
    assert list(paths) == ["form-1764-train", "form-1764-test", "form-1964-train", "form-1964-test"]
    tables = {name: pq.read_table(path) for name, path in paths.items()}
    assert {name: len(table) for name, table in tables.items()} == dict(zip(paths, (6, 5, 5, 6), strict=True))
    speakers: list[set[str]] = []
    for table in tables.values():
        assert table.schema == SCHEMA
        assert table.column_names == COLUMNS == list(Answer.__dataclass_fields__)
        speakers.append(set(table["speaker"].to_pylist()))
        for row in table.to_pylist():
            sound, rate = sf.read(io.BytesIO(row["audio"]["bytes"]))
            assert rate == RATE
            assert sound.ndim == 1
            assert 0.5 < len(sound) / RATE < 9
            assert row["audio"]["path"] == row["utt_id"] + ".flac"
            assert row["grade"] == (row["rater_1"] + row["rater_2"]) / 2
            assert row["rater_3"] in (1, 2, 3, 4, 5)
    assert len(set.union(*speakers)) == sum(len(one) for one in speakers)
    ids = [value for table in tables.values() for value in table["utt_id"].to_pylist()]
    assert len(set(ids)) == len(ids)
    with pytest.raises(ExistsError):
        write_forms(tmp_path / "exam", seed=4, sizes=SMALL)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    sizes = {"1764": (6, 1)}
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        write_forms(tmp_path / name, seed, sizes)
    assert digest(tmp_path / "one") == digest(tmp_path / "two")
    assert not set(digest(tmp_path / "one").values()) & set(digest(tmp_path / "three").values())


def test_a_wrong_request_leaves_nothing_behind(tmp_path: Path) -> None:
    for sizes in ({"1765": (5, 5)}, {"1764": (5, 0)}):
        with pytest.raises(RequestError, match="cannot be simulated"):
            write_forms(tmp_path / "exam", sizes=sizes, voice="formant")
    assert list(tmp_path.iterdir()) == []


def features(answer: Answer) -> list[float]:
    """What a simple ear hears: time, silence, pieces of speech, brightness, and how the loudness moves."""
    sound, _ = sf.read(io.BytesIO(answer.audio["bytes"]))  # type: ignore[arg-type]
    frames = sound[: len(sound) // 160 * 160].reshape(-1, 160)
    loud = np.sqrt((frames**2).mean(1))
    speech = loud > 0.15 * np.percentile(loud, 95)
    starts = (np.diff(speech.astype(int)) == 1).sum()
    crossings = (np.diff(np.sign(frames), axis=1) != 0).mean(1)
    level = np.log(loud + 1e-4)
    return [
        np.log(len(frames)),
        np.log(speech.sum()),
        float(1 - speech.mean()),
        float(starts),
        starts / len(frames),
        crossings[speech].mean(),
        crossings[speech].std(),
        level[speech].std(),
        np.abs(np.diff(level[speech])).mean(),
    ]


def heard(train: list[Answer], test: list[Answer]) -> np.ndarray:
    """Scores of the test answers by a ridge logistic regression on the panel's verdicts of the others."""
    known, asked = (np.array([features(answer) for answer in answers]) for answers in (train, test))
    mean, std = known.mean(0), known.std(0)
    known, asked = (known - mean) / std, (asked - mean) / std
    sign = np.where([answer.grade >= 4 for answer in train], 1.0, -1.0)

    def loss(weights: np.ndarray) -> float:
        margin = sign * (known @ weights[1:] + weights[0])
        return float(np.logaddexp(0, -margin).sum() + 3 * weights[1:] @ weights[1:])

    return np.asarray(asked @ minimize(loss, np.zeros(known.shape[1] + 1)).x[1:])


@pytest.mark.parametrize("name", ["auto", "formant"])
def test_quality_can_be_heard(name: str) -> None:
    voice = open_voice(name)  # type: ignore[arg-type]
    rows = simulate("1764", 150, 120, seed=2, voice=voice).rows
    voice.close()
    passed = np.array([answer.grade >= 4 for answer in rows["test"]])
    best = auroc(np.array([answer.p_panel for answer in rows["test"]]), passed)
    assert best > 0.88
    assert auroc(heard(rows["train"], rows["test"]), passed) > 0.9 * best


def test_grades_are_balanced_and_the_truth_is_calibrated() -> None:
    forms = [simulate(form, 60, 60, 0, FormantVoice()) for form in ITEMS]
    everyone = [answer for form in forms for answers in form.rows.values() for answer in answers]
    passed = np.array([answer.grade >= 4 for answer in everyone])
    panel = np.array([answer.p_panel for answer in everyone])
    rater = np.array([answer.p_rater for answer in everyone])
    assert 0.3 < passed.mean() < 0.7
    assert {answer.grade * 2 for answer in everyone} <= set(range(2, 11))
    assert 0 < panel.min() <= panel.max() < 1
    assert 0 < rater.min() <= rater.max() < 1
    # Three standard errors of a sum of independent coins.
    assert abs((passed - panel).sum()) < 3 * np.sqrt((panel * (1 - panel)).sum())
