"""A made-up describe run: a table of drawn cards, predictions of a given skill, scores as the product makes them."""

from __future__ import annotations

import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

from luthier import files
from luthier.assess.described import Constants, constant_scores, row_scores
from luthier.data.building.build import build
from luthier.data.cards import COLUMNS, write_cards
from luthier.data.table import iter_rows
from luthier.outcome.describescores import describe_scores
from luthier.recipefile import load_recipe, stage_recipes, to_yaml
from luthier.records import DescribedAnswer, DescribePrediction
from luthier.stages.sources import table_request

RECIPE = """
name: describer
model: {base: "toy:phi3-vision"}
data: {sources: {products: {path: TABLE}}, train: [products], validation_fraction: 0.4}
train: {learning_rate: RATE}
task: {kind: describe, describe: {group: GROUP, columns: {category: CATEGORY, price: PRICE}}}
"""


def describe_run(run: Path, skill: float = 0.85, rows: int = 400, before: bool = True, seed: int = 3) -> Path:
    """A finished run of one stage, in `run`; `skill` is the share of fields that are right."""
    run.mkdir(parents=True)
    text = RECIPE.replace("TABLE", str(write_cards(run / "cards", rows, 5)))
    text = text.replace("RATE", str(skill / 1000))  # runs of other skill are of other recipes
    for key, name in (("GROUP", "group"), ("CATEGORY", "category"), ("PRICE", "price")):
        text = text.replace(key, COLUMNS[name])
    files.write_text(run / "given.yaml", text)
    recipe = load_recipe(run / "given.yaml")
    build(table_request(stage_recipes(recipe)), run / "data", None)
    files.write_text(run / "recipe.yaml", to_yaml(recipe))
    found = predictions(run, skill, before, seed)
    base = run / "stages" / "main"
    files.write_jsonl(base / "predictions.jsonl", (one.to_json() for one in found))
    scores: dict[str, Any] = dict(describe_scores(found, recipe.task.describe.form, resamples=100))
    loss = {"value": 1.2, "ci": [1.1, 1.3], "n": len(found)}
    files.write_json(base / "scores.json", {"loss": loss, "before.loss": loss, "gain.loss": loss, **scores})
    files.write_json(base / "stage.json", {"name": "main", "kind": "describe", "base": "toy:phi3-vision"})
    manifest = {"name": "describer", "status": "finished", "seed": 17, "stages": ["main"], "hashes": {}, "versions": {}}
    files.write_json(run / "run.json", manifest)
    return run


def predictions(run: Path, skill: float, before: bool, seed: int) -> list[DescribePrediction]:
    """One of each held-out row; a tenth is not in the form."""
    form = load_recipe(run / "given.yaml").task.describe.form
    draw, rows = random.Random(seed), [item.row for item in iter_rows(run / "data")]
    read = {row.id: form.read(row.messages[-1].text) or {} for row in rows}
    constants = Constants.of(form, [read[row.id] for row in rows if row.split == "train"])
    others = [read[row.id] for row in rows]
    found = []
    for row in rows:
        if row.split == "train":
            continue
        truth = read[row.id]
        said = {name: value if draw.random() < skill else draw.choice(others)[name] for name, value in truth.items()}
        if draw.random() < 0.2:
            said["title"] = said["title"].split(" ", 1)[1]  # no colour
        answer = form.write(said) if draw.random() < 0.9 else "<script>alert('x')</script> a picture of " + "a_" * 90
        own = form.read(answer)
        scores = row_scores(form, constants, own, truth)
        blind = DescribedAnswer("A scarf.", None, row_scores(form, constants, None, truth)) if before else None
        constant = constant_scores(form, constants, truth)
        group, source = row.group, row.provenance.source
        found.append(DescribePrediction(row.id, source, group, answer, True, own, truth, scores, constant, blind))
    return found


def as_lines(found: list[DescribePrediction]) -> list[dict[str, Any]]:
    """Predictions as they are read from disk."""
    return [asdict(one) for one in found]
