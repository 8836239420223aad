"""Cards of models that see: scores beside the constants, the prompt and the form, the class that loads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.files import read_json, write_json
from luthier.models.senses.base import SENSES
from luthier.outcome.cardseen import SEEING
from luthier.outcome.modelcard import model_card
from support.fakedescribe import describe_run


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = describe_run(tmp_path_factory.mktemp("described") / "run", rows=120)
    return run / "stages" / "main"


def named(stage: Path, architecture: str, **more: str) -> str:
    """The card of the stage as if its base were of this architecture."""
    write_json(stage / "stage.json", read_json(stage / "stage.json") | {"architecture": architecture})
    return model_card(stage, "me/cards", **more)


def test_scores_stand_beside_the_best_constant_and_once(stage: Path) -> None:
    card = named(stage, "qwen3_vl")
    scores = read_json(stage / "scores.json")
    (line,) = [line for line in card.splitlines() if line.startswith("| category | right")]
    for name in ("before.category.accuracy", "category.accuracy", "constant.category.accuracy"):
        assert f"{100 * scores[name]['value']:.1f}%" in line
    assert f"{100 * scores['over_constant.category.accuracy']['value']:.1f}%" in line
    assert "over\\_constant" not in card
    assert "type: constant" not in card
    assert "| loss | 1.2000 |" in card
    assert "answers not in the form" in card


def test_the_prompt_and_the_form_are_told(stage: Path) -> None:
    card = named(stage, "qwen3_vl")
    assert "It is asked: “What is shown in this image?”" in card
    assert "Product: {title}, Category: {category}, Full Price: {price}" in card
    assert "price (amount)" in card
    assert "describes pictures in a fixed form" in card


@pytest.mark.parametrize("architecture", [*SEEING, ""])
def test_the_example_loads_what_sees_and_asks_with_a_picture(stage: Path, architecture: str) -> None:
    card = named(stage, architecture)
    ours = architecture == "phi3_v"
    assert ("import luthier.models.phi3_vision" in card) is ours
    assert ("AutoModelForImageTextToText" in card) is not ours
    assert "exif_transpose" in card
    assert ("<|image_1|>What is shown" in card) is ours
    assert ("PeftModel" in named(stage, architecture, relation="finetune")) is False


def test_every_family_that_sees_is_known_here() -> None:
    """Phi-4-multimodal apart, which transformers alone reads otherwise."""
    assert set(SENSES) - set(SEEING) == {"phi4_multimodal"}
    assert set(SEEING) <= set(SENSES)
