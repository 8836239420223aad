"""Scores, page and comparison of a describe stage, made up over drawn cards: what they say, and that all is offline."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from luthier import files
from luthier.outcome import describecharts, describepage
from luthier.outcome.compare import compare, table_text
from luthier.outcome.comparepage import write_comparison
from luthier.outcome.comparing.pairs import Drawing
from luthier.outcome.comparing.runrecords import open_runs
from luthier.outcome.describescores import describe_scores
from luthier.outcome.report import write_report
from luthier.outcome.thumbnails import SIDE, thumbnail
from luthier.quickstart import headline
from luthier.recipe_describe import DescribeSettings
from luthier.records import DescribePrediction
from support.fakedescribe import describe_run, predictions

CHROMIUM = Path("/usr/bin/chromium")
FORM = DescribeSettings().form


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return describe_run(tmp_path_factory.mktemp("describe") / "run")


@pytest.fixture(scope="module")
def lines(run: Path) -> list[dict[str, Any]]:
    return files.read_jsonl(run / "stages/main/predictions.jsonl")


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return write_report(run).read_text(encoding="utf-8")


def as_records(lines: list[dict[str, Any]]) -> list[DescribePrediction]:
    return [DescribePrediction(**{**line, "before": None}) for line in lines]


def test_every_score_is_a_value_with_an_interval_over_all_rows(run: Path, lines: list[dict[str, Any]]) -> None:
    scores = files.read_json(run / "stages/main/scores.json")
    for name, score in scores.items():
        if "loss" not in name.split("."):
            assert score.keys() == {"value", "ci", "n"}, name
            assert score["n"] == len(lines), name
            assert score["ci"][0] <= score["value"] <= score["ci"][1], name
            assert np.isfinite([score["value"], *score["ci"]]).all(), name
    errors = [line["scores"]["price.log_error"] for line in lines]
    assert scores["price.median_log_error"]["value"] == pytest.approx(float(np.median(errors)))
    assert scores["price.p90_log_error"]["value"] == pytest.approx(float(np.quantile(errors, 0.9)))
    assert scores["unparseable"]["value"] == pytest.approx(np.mean([line["read"] is None for line in lines]))
    right = [line["scores"]["category.accuracy"] for line in lines]
    assert scores["category.accuracy"]["value"] == pytest.approx(np.mean(right))
    assert scores["before.category.accuracy"]["value"] == 0
    assert scores["before.unparseable"]["value"] == 1


def test_a_gain_over_the_constant_is_above_0_for_better_whichever_way_the_score_goes(run: Path) -> None:
    scores = files.read_json(run / "stages/main/scores.json")
    for name in ("category.accuracy", "price.within_10"):
        gap = scores[name]["value"] - scores[f"constant.{name}"]["value"]
        assert scores[f"over_constant.{name}"]["value"] == pytest.approx(gap)
    for name in ("price.median_log_error", "price.p90_log_error"):
        gap = scores[f"constant.{name}"]["value"] - scores[name]["value"]
        assert scores[f"over_constant.{name}"]["value"] == pytest.approx(gap)
    assert scores["over_constant.price.median_log_error"]["ci"][0] > 0
    assert "over_constant.title.token_f1" not in scores


def test_answers_that_are_the_constants_are_no_gain(lines: list[dict[str, Any]]) -> None:
    blind = [
        replace(one, scores={**one.scores, "category.accuracy": one.constant["category.accuracy"]})
        for one in as_records(lines)
    ]
    over = describe_scores(blind, FORM, resamples=50)["over_constant.category.accuracy"]
    assert over["value"] == 0
    assert over["ci"][0] < 0 < over["ci"][1]


def test_intervals_are_of_products(lines: list[dict[str, Any]]) -> None:
    """Every row four times under its product says no more than once; as products of their own it would."""
    once = as_records(lines)
    four = [one for one in once for _ in range(4)]
    alone = [replace(one, group=f"{one.group}-{number}") for number, one in enumerate(four)]
    widths = []
    for rows in (once, four, alone):
        low, high = describe_scores(rows, FORM, resamples=400, seed=1)["price.within_25"]["ci"]
        widths.append(high - low)
    assert widths[1] == pytest.approx(widths[0], rel=0.25)
    assert widths[2] < 0.7 * widths[1]


def test_no_rows_have_no_scores() -> None:
    assert describe_scores([], FORM) == {}


def test_samples_are_the_same_each_time_and_none_is_shown_twice(lines: list[dict[str, Any]]) -> None:
    shown = describepage.chosen(lines, 17)
    assert shown == describepage.chosen(list(reversed(lines)), 17)
    assert shown["chance"] != describepage.chosen(lines, 18)["chance"]
    ids = [line["id"] for group in shown.values() for line in group]
    assert len(ids) == len(set(ids))
    assert all(line["read"] is None for line in shown["unparseable"])
    bad = [describepage._badness(line) for line in shown["worst"]]
    assert bad == sorted(bad, reverse=True)


def test_a_thumbnail_is_small_upright_and_never_raises(run: Path, tmp_path: Path) -> None:
    medium = next((run / "data/media").iterdir()).name
    small = thumbnail(run, f"sha256:{medium}")
    with Image.open(io.BytesIO(small.data)) as picture:
        assert picture.format == "JPEG"
        assert picture.size == (small.width, small.height)
        assert max(picture.size) <= SIDE
    assert len(small.data) < 12_000
    assert small.uri == f"data:image/jpeg;base64,{base64.b64encode(small.data).decode()}"
    files.write_bytes(tmp_path / "data/media" / ("ab" * 32), b"<html>")
    for reference in ("sha256:" + "ab" * 32, "sha256:" + "cd" * 32, "sha256:../../etc", "", f"sha256:{medium}#frame=1"):
        assert thumbnail(tmp_path, reference).data == b""
        assert thumbnail(tmp_path, reference).note


def test_the_page_says_how_much_better_than_a_constant_it_is(run: Path, page: str) -> None:
    scores = files.read_json(run / "stages/main/scores.json")
    assert f"category is right for {scores['category.accuracy']['value']:.1%}" in page
    assert f"(the best constant: {scores['constant.price.within_10']['value']:.1%})" in page
    assert "are not in the form and count as wrong" in page
    assert f"<b>{scores['over_constant.price.median_log_error']['value']:.3f}</b>" in page
    assert "What is shown in this image?" in page
    assert "Product: {title}, Category: {category}, Full Price: {price}" in page
    assert "How far price is off" in page


def test_the_page_shows_answers_with_their_pictures_and_nothing_of_them_is_markup(page: str) -> None:
    assert page.count("data:image/jpeg;base64,") > describepage.SAMPLES
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(" in page
    for mark in ("mark right", "mark near", "mark wrong"):
        assert f'class="{mark}"' in page
    for title in describepage.KINDS.values():
        assert title in page
    assert not re.search(r"(?:src|href)=\"https?:", page)
    assert len(page) < 1_500_000


def test_a_stage_that_is_not_finished_is_shown_as_far_as_it_is(run: Path, tmp_path: Path) -> None:
    files.write_text(tmp_path / "recipe.yaml", (run / "recipe.yaml").read_text())
    files.write_json(tmp_path / "run.json", {"stages": ["main"]})
    files.write_jsonl(tmp_path / "stages/main/metrics.jsonl", [{"step": 1, "loss": 3.0}])
    assert "Descriptions of held-out pictures" in write_report(tmp_path).read_text()
    files.write_text(tmp_path / "recipe.yaml", "task: {kind: describe, describe: 3}")
    assert write_report(tmp_path).is_file()


def test_the_terminal_gets_a_line_a_score_beside_its_constant(run: Path) -> None:
    text = headline(run)
    assert re.search(r"main\s+category\.accuracy\s+0\.\d{3} \[", text)
    assert re.search(r"main\s+unparseable\s+0\.\d{3} .*–\s+–", text)


def test_the_chart_of_ratios_counts_what_is_within_a_tenth() -> None:
    svg = describecharts.ratio_chart("price", [1.0, 1.05, 0.95, 1.2, 0.5, 100.0])
    assert "3 of 6 within 10% of the truth" in svg
    assert svg.count('class="s1"') == 4, "the three near ones share a bar, the farthest lies in the last"
    assert describecharts.ratio_chart("price", []) == ""


def test_runs_are_compared_on_the_pictures_that_both_described(run: Path, tmp_path: Path) -> None:
    other = describe_run(tmp_path / "other", skill=0.3, seed=4)
    worse = files.read_jsonl(other / "stages/main/predictions.jsonl")
    files.write_jsonl(other / "stages/main/predictions.jsonl", worse[3:])
    runs = open_runs([run, other])
    found = compare(runs, None, Drawing(resamples=200))
    part = found["descriptions"]
    assert part["n"] == len(worse) - 3
    assert part["left_out"][runs[0].label]["n"] == 3
    names = [measure["name"] for measure in part["measures"]]
    assert names == ["category accuracy", "price log error", "price within 10", "title token f1"]
    accuracy, error, *_ = part["measures"]
    assert accuracy["pairs"][0]["apart"]
    assert accuracy["pairs"][0]["difference"]["value"] < 0
    assert error["lower_is_better"]
    assert error["pairs"][0]["difference"]["value"] > 0
    assert any("held-out pictures" in line for line in found["headline"])
    assert "held-out pictures" in table_text(found)
    write_comparison(tmp_path / "compare.html", {**found, "answers": [], "votes": None}, runs)
    assert "Held-out pictures" in (tmp_path / "compare.html").read_text()
    assert json.dumps(found)


def test_runs_over_other_truths_share_no_item(run: Path, tmp_path: Path) -> None:
    other = describe_run(tmp_path / "other")
    changed = files.read_jsonl(other / "stages/main/predictions.jsonl")
    for line in changed:
        line["truth"]["price"] = "1"
    files.write_jsonl(other / "stages/main/predictions.jsonl", changed)
    assert compare(open_runs([run, other]), None, Drawing(resamples=50))["descriptions"]["n"] == 0


def test_the_trackers_table_has_the_same_samples_with_pictures(run: Path, lines: list[dict[str, Any]]) -> None:
    columns, rows = describepage.sample_table(run, [*lines, {"id": "chat", "nll": 1.0}], 17)
    assert columns[:3] == ["picture", "shown as", "answer"]
    assert columns[-1] == "id"
    assert all(len(row) == len(columns) and row[0][:2] == b"\xff\xd8" for row in rows)
    shown = describepage.chosen(lines, 17)
    assert [row[-1] for row in rows] == [line["id"] for group in shown.values() for line in group]
    assert describepage.sample_table(run, [], 17)[1] == []


def test_predictions_of_a_run_that_was_asked_nothing_before_have_no_such_scores(run: Path) -> None:
    found = predictions(run, 0.5, before=False, seed=1)
    assert not any(name.startswith("before.") for name in describe_scores(found, FORM, resamples=20))
    assert "before" not in found[0].to_json()


@pytest.mark.skipif(not CHROMIUM.exists(), reason="no Chromium at /usr/bin/chromium")
@pytest.mark.parametrize(("width", "height", "scheme"), [(390, 844, "dark"), (1440, 900, "light")])
def test_it_opens_offline_at_both_widths(run: Path, page: str, width: int, height: int, scheme: str) -> None:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    said: list[str] = []
    asked: list[str] = []
    flags = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    with api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=str(CHROMIUM), args=flags)
        view = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        view.on("console", lambda message: said.append(message.text))
        view.on("pageerror", lambda error: said.append(str(error)))
        view.on("request", lambda request: asked.append(request.url))
        view.goto((run / "report.html").resolve().as_uri())
        overflow = view.evaluate("() => document.documentElement.scrollWidth - window.innerWidth")
        cards = view.evaluate("() => [...document.querySelectorAll('.seen .card')].map(c => c.getBoundingClientRect())")
        drawn = view.evaluate("() => [...document.querySelectorAll('.seen img')].every(i => i.naturalWidth > 0)")
        browser.close()
    assert overflow <= 0
    assert drawn
    assert all(card["left"] >= 0 and card["right"] <= width for card in cards)
    beside = len({round(card["left"]) for card in cards})
    assert beside == 1 if width == 390 else beside >= 3
    assert said == []
    assert all(url.startswith(("file:", "data:")) for url in asked)
