"""The describer from its recipe to its report: a rehearsal offline, a tracked run, two runs compared."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from luthier import compareverbs, rehearse, verbs
from luthier.assess.described import summaries
from luthier.compareverbs import CompareRequest
from luthier.data.cards import COLUMNS, write_cards
from luthier.files import read_json, read_jsonl
from luthier.recipefile import load_recipe, stage_recipes
from luthier.rehearse import rehearsal
from luthier.rundir import RunDir
from support.children import ROOT, environment

SHIPPED = ROOT / "recipes" / "describer.yaml"
RECIPE = """
name: cards
model: {base: "toy:phi3-vision", max_tokens: 512, lora: {r: 4}}
data: {sources: {products: {path: TABLE}}, train: [products], validation_fraction: 0.3}
task:
  kind: describe
  describe:
    group: GROUP
    columns: {category: CATEGORY, price: PRICE}
train: {max_steps: 4, batch_size: 8, micro_batch_size: 8, learning_rate: 1.0e-2, log_every: 1, save_every: 4}
evaluate: {resamples: 50, describe_rows: 6, describe_before: true, samples: 0}
track: {trackers: [wandb], project: cards}
"""


@pytest.fixture
def hubless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearse, "_unreachable", lambda source, request: "" if source.path else "not here")


def smaller(tmp_path: Path, *overrides: str) -> dict[str, Any]:
    return rehearsal(load_recipe(SHIPPED, overrides), tmp_path / "standins")


def test_the_recipe_keeps_the_contracts_names_and_the_users_text() -> None:
    stage = stage_recipes(load_recipe(SHIPPED))["main"]
    assert list(stage.data.sources) == ["products"]
    assert stage.data.sources["products"].hub == "DBQ/Burberry.Product.prices.United.States"
    assert stage.model.base == "microsoft/Phi-3-vision-128k-instruct"
    form = stage.task.describe.form
    assert form.write({"title": "T", "category": "C", "price": "P"}) == "Product: T, Category: C, Full Price: P"
    assert stage.task.describe.prompt == "What is shown in this image?"
    assert stage.track.trackers == ["wandb"]


@pytest.mark.usefixtures("hubless")
def test_a_rehearsal_draws_cards_in_the_sources_own_columns(tmp_path: Path) -> None:
    tree = smaller(tmp_path)
    path = Path(tree["data"]["sources"]["products"]["path"])
    rows = read_jsonl(path)
    assert len(rows) == rehearse.ROWS
    assert rows[0].keys() == {"image", "title", "category3_code", "full_price"}
    assert all((path.parent / row["image"]).is_file() for row in rows)
    assert tree["model"]["base"] == "toy:phi3-vision"
    assert tree["track"]["trackers"] == []


@pytest.mark.usefixtures("hubless")
def test_other_fields_and_a_product_column_are_drawn_too(tmp_path: Path) -> None:
    described = {
        "template": "{brand} by {maker}: {cost}",
        "kinds": {"brand": "text", "maker": "category", "cost": "amount"},
        "columns": {"image": "foto", "cost": "eur"},
        "group": "sku",
    }
    tree = yaml.safe_load(SHIPPED.read_text())
    tree["task"]["describe"] |= described
    path = tmp_path / "other.yaml"
    path.write_text(yaml.safe_dump(tree))
    made = rehearsal(load_recipe(path), tmp_path / "standins")
    rows = read_jsonl(Path(made["data"]["sources"]["products"]["path"]))
    assert rows[0].keys() == {"brand", "maker", "eur", "foto", "sku"}
    assert isinstance(rows[0]["eur"], int)


def test_a_table_whose_rows_are_all_unusable_is_stood_in_for_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "table.jsonl"
    row = {"image": "https://shop.example/1.jpg", "title": "a", "category3_code": "b", "full_price": 3.0}
    table.write_text(json.dumps(row) + "\n")
    tree = smaller(tmp_path, f"data.sources.products.path={table}")
    assert tree["data"]["sources"]["products"]["path"] != str(table)
    assert "remote_media" in capsys.readouterr().err


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDir, RunDir]:
    """Two runs over the same cards, of other rates."""
    folder = tmp_path_factory.mktemp("describer")
    text = RECIPE.replace("TABLE", str(write_cards(folder / "cards", 60, seed=5)))
    for key, name in (("GROUP", "group"), ("CATEGORY", "category"), ("PRICE", "price")):
        text = text.replace(key, COLUMNS[name])
    recipe = folder / "cards.yaml"
    recipe.write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("LUTHIER_CACHE", str(folder / "cache"))
        verbs.run(recipe, folder / "first")
        verbs.run(recipe, folder / "second", ["train.learning_rate=1.0e-3", "track.trackers=[]"])
    return RunDir(folder / "first"), RunDir(folder / "second")


def test_every_picture_has_a_line_and_every_score_a_place(runs: tuple[RunDir, RunDir]) -> None:
    run, _ = runs
    stage = run.stage("main")
    lines, scores = read_jsonl(stage.predictions), read_json(stage.scores)
    assert len(lines) == 6
    form = load_recipe(run.recipe).task.describe.form
    assert set(summaries(form)) | {"loss", "before.loss", "over_constant.price.within_10"} <= set(scores)
    assert {f"before.{name}" for name in summaries(form)} <= set(scores)
    assert all(scores[name]["n"] == 6 for name in summaries(form))
    assert read_json(stage.record)["kind"] == "describe"
    assert all("nll" in line for line in read_jsonl(stage.held_out))
    assert "Descriptions of held-out pictures" in run.report.read_text()
    assert run.report.read_text().count("data:image/jpeg;base64,") == 6


def test_the_tracker_holds_the_table_with_pictures(runs: tuple[RunDir, RunDir]) -> None:
    folder = runs[0].stage("main").path / "track" / "wandb"
    (table,) = folder.glob("offline-run-*/files/media/table/*.json")
    assert len(json.loads(table.read_text())["data"]) == 6
    assert len(list(folder.glob("offline-run-*/files/media/images/*.jpg"))) == 6


def test_two_runs_are_compared_on_the_same_pictures(runs: tuple[RunDir, RunDir], tmp_path: Path) -> None:
    found = compareverbs.compare(CompareRequest([run.path for run in runs], out=tmp_path / "compare.html"))
    assert found["descriptions"]["n"] == 6
    assert [measure["name"] for measure in found["descriptions"]["measures"]][:2] == [
        "category accuracy",
        "price log error",
    ]
    assert "Held-out pictures" in (tmp_path / "compare.html").read_text()


def luthier(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "luthier.cli", *words],
        env=environment(LUTHIER_CACHE=str(folder / "cache")),
        capture_output=True,
        text=True,
        timeout=200,
    )


@pytest.mark.slow
def test_the_shipped_recipe_is_rehearsed_offline_in_under_two_minutes(tmp_path: Path) -> None:
    begin = time.monotonic()
    done = luthier("rehearse", str(SHIPPED), "--out", str(tmp_path / "rehearsal"), "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - begin < 120
    assert "drawn product cards stand in for it" in done.stderr
    scores = json.loads(done.stdout.splitlines()[-1])["stages"]["main"]
    assert scores["unparseable"]["n"] > 0
    assert (tmp_path / "rehearsal/run/report.html").is_file()


@pytest.mark.slow
def test_a_check_without_a_network_says_what_is_missing_and_how_to_mend_it(tmp_path: Path) -> None:
    done = luthier("check", str(SHIPPED), folder=tmp_path)
    assert done.returncode == 2
    assert "data.sources.products.path=FILE" in done.stderr
    assert "model.base" in done.stderr
    assert "Traceback" not in done.stderr
