"""The quickstart of the describer: a toy of random weights learns to read drawn product cards.

What is asked of it: the category of at least 0.9 of unseen cards, the price within a tenth on at least 0.8 of them,
in under ten minutes on two cores. The constant that is best on the training prices gets a tenth of them right.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from luthier.data.drawing import SIDE
from luthier.data.mediasource import Facts
from luthier.files import read_json, read_jsonl
from luthier.models.senses.base import senses_of
from luthier.models.toys import build_toy
from luthier.quickstart import lay_out
from luthier.recipefile import load_recipe, stage_recipes
from luthier.rundir import RunDir
from support.children import Luthier, environment

TOY = "toy:qwen3-vl-large"


def test_what_is_laid_out_is_a_recipe_with_nothing_to_mend_over_files_that_are_there(tmp_path: Path) -> None:
    path = lay_out(tmp_path / "made", "describer")
    stage = stage_recipes(load_recipe(path))["main"]
    assert stage.problems() == []
    assert stage.model.base == TOY
    tables = {name: read_jsonl(Path(source.path)) for name, source in stage.data.sources.items()}
    assert {name: len(rows) for name, rows in tables.items()} == {"cards": 2000, "unseen": 500}
    products = [{row["product_code"] for row in tables[name]} for name in ("cards", "unseen")]
    assert not products[0] & products[1]


def test_the_toy_looks_at_every_pixel_of_a_card_in_forty_nine_vectors() -> None:
    model, tokenizer, _ = build_toy(TOY)
    senses = senses_of(model, tokenizer, TOY)
    assert senses is not None
    prepared = senses.prepare("image", Image.new("RGB", (SIDE, SIDE)))
    assert prepared.slots == senses.slots(Facts("image", SIDE, SIDE)) == 49
    assert prepared.grid == (1, SIDE // 8, SIDE // 8)


def scores(run: Path) -> dict[str, Any]:
    return dict(read_json(RunDir.open(run).stage("main").scores))


def test_a_minute_is_enough_to_learn_the_form_and_not_to_see(tmp_path: Path, luthier: Luthier) -> None:
    recipe = lay_out(tmp_path / "made", "describer")
    few = ["train.max_steps=60", "evaluate.describe_rows=60", "data.augment.colour=0", "data.augment.noise=0"]
    options = [word for setting in few for word in ("--set", setting)]
    done = luthier("run", str(recipe), "--out", str(tmp_path / "run"), *options)
    assert done.returncode == 0, done.stderr
    found = scores(tmp_path / "run")
    assert found["unparseable"]["value"] < 0.2
    assert found["category.accuracy"]["value"] < 0.5
    assert found["category.accuracy"]["n"] == 60


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A finished quickstart, and the seconds that it took with all that belongs to it."""
    out = tmp_path_factory.mktemp("describer") / "quickstart"
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "luthier.cli", "quickstart", "--kind", "describer", "--out", str(out)],
        env=environment(LUTHIER_CACHE=str(out.parent / "cache"), OMP_NUM_THREADS="2"),
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr
    assert "price.within_10" in done.stderr
    return out / "run", time.monotonic() - begin


@pytest.mark.slow
def test_category_and_price_of_unseen_cards_are_read_in_time(finished: tuple[Path, float]) -> None:
    run, seconds = finished
    found = scores(run)
    assert found["category.accuracy"]["n"] == found["price.within_10"]["n"] == 500
    assert found["category.accuracy"]["value"] >= 0.9
    assert found["price.within_10"]["value"] >= 0.8
    assert found["constant.price.within_10"]["value"] < 0.2
    assert found["over_constant.price.within_10"]["ci"][0] > 0.5
    assert seconds < 600


@pytest.mark.slow
def test_the_price_is_read_and_not_guessed_from_the_garment(finished: tuple[Path, float]) -> None:
    """Within a category prices differ by a factor of two; answers follow them."""
    answers = read_jsonl(RunDir.open(finished[0]).stage("main").predictions)
    read = [one for one in answers if one["read"] is not None]
    exact = sum(one["read"]["price"] == one["truth"]["price"] for one in read)
    assert exact / len(answers) > 0.7
