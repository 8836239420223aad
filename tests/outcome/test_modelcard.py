"""Cards of models: from records alone, with every score, and with no word of others that is more than a word."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from luthier.files import read_json, write_json, write_text
from luthier.outcome.modelcard import model_card
from luthier.recipe import Recipe
from luthier.recipe_data import Source
from luthier.recipefile import to_yaml
from luthier.rundir import StageDir
from support.fakeexams import FakeExam, checkpoints, write_exam

ATTACK = "<script>alert(1)</script> | [x](javascript:y) `z` ![i](http://h/p)\nlicense: mit"


def front(card: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(card.split("---\n", 2)[1])
    return found


def chat_stage(folder: Path, **changes: str) -> Path:
    """A made-up run of two chat stages on a base of the hub; `changes` are keys such as publish.license."""
    recipe = Recipe(name="tiny")
    recipe.task.kind = "chat"
    recipe.model.base, recipe.model.revision = "meta-llama/Llama-3.2-1B-Instruct", "abc"
    recipe.data.sources = {
        "first": Source(name="first", hub="org/first", license="MIT", attribution="Ada"),
        "second": Source(name="second", hub="org/second", path="/home/somebody/second.jsonl"),
    }
    recipe.data.train = ["first"]
    recipe.stages = {"one": {}, "two": {"start_from": "one", "data": {"train": ["second"]}}}
    for key, value in changes.items():
        part: Any = recipe
        *above, last = key.split("__")
        for name in above:
            part = getattr(part, name) if not isinstance(part, dict) else part[name]
        setattr(part, last, value)
    write_text(folder / "recipe.yaml", to_yaml(recipe))
    write_json(folder / "run.json", {"versions": {"luthier": "0.1.0", "torch": "2.15"}})
    first = {"in": 90, "kept": 70, "merged": 5, "dropped": {"too_short": 15}, "license": "MIT"}
    write_json(folder / "data" / "manifest.json", {"sources": {"first": first}})
    stage = folder / "stages" / "two"
    trained = {"steps": 60, "epochs": 1.5}
    write_json(stage / "stage.json", {"trained": trained, "unstopped": 3, "start_from": "one"})
    write_json(stage / "scores.json", {"loss": {"value": 1.25, "ci": [1.0, 1.5], "n": 24}, "sources": {"x": {}}})
    return stage


def test_every_score_of_a_stage_stands_on_its_card_with_its_interval(finished: Path) -> None:
    stage = finished / "stages" / "1964"
    card = model_card(stage, "group/judge")
    scores = {name: one for name, one in read_json(stage / "scores.json").items() if "value" in one}
    assert "auroc" in scores
    metrics = [one for result in front(card)["model-index"][0]["results"] for one in result["metrics"]]
    assert {one["type"]: one["value"] for one in metrics} == pytest.approx(
        {name: one["value"] for name, one in scores.items()}, abs=1e-6
    )
    for name, one in scores.items():
        (told,) = [metric["name"] for metric in metrics if metric["type"] == name]
        low, high = one["ci"]
        assert f"{low:.4g} to {high:.4g}, n = {one['n']}" in told
        assert f"| {name.replace('_', chr(92) + '_')} | " in card
    assert "form-1764-train | training, in stage 1764" in card
    assert "| form-1964-test | test |" in card
    assert "It began where the stage 1764" in card
    assert read_json(stage / "stage.json")["checks"]["deafness"]["message"] in card.replace("\\", "")
    assert str(finished) not in card
    assert model_card(stage, "group/judge") == card


def test_the_hub_reads_the_front_matter_as_it_was_meant(tmp_path: Path) -> None:
    card = model_card(chat_stage(tmp_path, publish__license="apache-2.0"), "group/tiny")
    data = ModelCard(card).data
    assert (data.base_model, data.base_model_relation) == ("meta-llama/Llama-3.2-1B-Instruct", "adapter")
    assert (data.library_name, data.pipeline_tag, data.license) == ("peft", "text-generation", "apache-2.0")
    assert data.datasets == ["org/first"]  # a local file stood in for the other
    assert data.model_name == "group/tiny"
    assert [(one.metric_type, one.metric_value) for one in data.eval_results] == [("loss", 1.25)]


@pytest.mark.parametrize(
    ("relation", "library", "how"),
    [("adapter", "peft", "PeftModel"), ("finetune", "transformers", "AutoModel"), ("quantized", "gguf", "")],
)
def test_each_form_of_a_model_says_how_it_relates_to_its_base(
    tmp_path: Path, relation: str, library: str, how: str
) -> None:
    card = model_card(chat_stage(tmp_path), "group/tiny", relation)
    assert (front(card)["library_name"], front(card)["base_model_relation"]) == (library, relation)
    assert how in card
    assert ("PeftModel" in card) is (relation == "adapter")


def test_sources_are_told_with_licence_and_with_what_became_of_their_rows(tmp_path: Path) -> None:
    card = model_card(chat_stage(tmp_path))
    assert r"| first | training, in stage one | org/first@main | MIT | 90 | 70 | 5 | too\_short 15 |" in card
    assert "| second | training | a local file (second.jsonl) | unknown | – | – | – | none |" in card
    assert "To be named: Ada." in card
    assert "/home" not in card
    assert "3 answers it learned from ended without a stop token" in card


def test_a_licence_that_nobody_gave_stays_out_and_is_said_to(tmp_path: Path) -> None:
    card = model_card(chat_stage(tmp_path))
    assert "license" not in front(card)
    assert "No licence was given" in card


@pytest.mark.parametrize("base", ["toy:llama", "/models/private-llama"])
def test_a_base_that_is_on_no_hub_is_no_base_model_of_the_hub(tmp_path: Path, base: str) -> None:
    card = model_card(chat_stage(tmp_path, model__base=base))
    assert "base_model" not in front(card)
    assert "which is on no hub" in card
    assert "/models" not in card


@pytest.mark.parametrize("key", ["name", "publish__license", "model__base", "model__revision"])
def test_words_of_others_are_nothing_but_words(tmp_path: Path, key: str) -> None:
    stage = chat_stage(tmp_path, **{key: ATTACK})
    recipe = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    recipe["data"]["sources"]["first"] |= {"license": ATTACK, "attribution": ATTACK}
    write_text(tmp_path / "recipe.yaml", yaml.safe_dump(recipe))
    card = model_card(stage)
    body = card.split("---\n", 2)[2]
    assert "<script>" not in body
    assert re.search(r"(?<!\\)\]\(", body) is None  # no link, no picture
    assert front(card).get("license") in (None, ATTACK, " ".join(ATTACK.split()))
    table = [line for line in body.splitlines() if line.startswith("| first")]
    assert len(table) == 1
    assert table[0].replace(r"\|", "").count("|") == 9


def test_exams_stand_with_their_looks(tmp_path: Path) -> None:
    stage = chat_stage(tmp_path)
    write_exam(StageDir(stage).exam("trivia").path, FakeExam(name="trivia", candidates=checkpoints(3), chooses=True))
    card = model_card(stage, "group/tiny")
    assert "## Exams" in card
    assert "Looks" in card
    assert "flattered" in card
    results = front(card)["model-index"][0]["results"]
    assert [one["dataset"]["name"] for one in results] == ["held-out rows", "trivia"]


def test_what_the_records_lack_is_not_made_up(tmp_path: Path) -> None:
    stage = chat_stage(tmp_path)
    for name in ("stage.json", "scores.json"):
        (stage / name).unlink()
    (tmp_path / "data" / "manifest.json").write_text("{torn")
    card = model_card(stage)
    assert "model-index" not in front(card)
    assert "## Scores" not in card
    assert "for – steps" in card
    assert "A record could not be read: data/manifest.json" in card.replace("\\", "")
