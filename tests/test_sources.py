"""One table for all stages, and what a stage has been trained on before it begins."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.errors import DataError, RecipeError, RequestError
from luthier.recipefile import load_recipe, stage_recipes
from luthier.stages.prepare import split_rows
from luthier.stages.sources import table_request, trained_sources

ROOT = Path(__file__).parents[1]
SPEAKING = ROOT / "recipes" / "speaking.yaml"


def stages(*overrides: str):
    return stage_recipes(load_recipe(SPEAKING, overrides))


def test_variables_in_a_source_are_those_of_the_stage(tmp_path: Path) -> None:
    request = table_request(stages("vars.folder=/data", "data.sources.form-1764-train.path=${folder}/a.parquet"))
    assert {source.name: source.path for source, _ in request.sources}["form-1764-train"] == "/data/a.parquet"
    assert [split for _, split in request.sources] == ["train", "test", "train", "test"]


@pytest.mark.parametrize(
    "override",
    [
        "stages.1964.task.scale.pass_mark=3",
        "stages.1964.data.columns.grade=[mark]",
        "stages.1964.data.limits.maximum_seconds=9",
        "stages.1964.data.test=[form-1764-train]",
    ],
)
def test_stages_that_disagree_on_how_rows_are_read_are_refused(override: str) -> None:
    with pytest.raises(RequestError, match=r"stage"):
        table_request(stages(override))


def test_a_stage_has_been_trained_on_what_its_ancestors_were() -> None:
    found = stages()
    assert trained_sources(found, "1764") == ["form-1764-train"]
    assert trained_sources(found, "1964") == ["form-1964-train", "form-1764-train"]


def test_a_speaker_heard_in_an_earlier_stage_is_not_held_out(tmp_path: Path) -> None:
    from luthier.data.building.rows import TableRow
    from luthier.data.table import Table
    from luthier.schema import Message, Part, Provenance, Row, Target

    def item(name: str, group: str, source: str, split: str) -> TableRow:
        parts = (Part("text", text="q"), Part("audio", media="sha256:" + name.encode().hex().ljust(64, "0")))
        message = Message("user", parts)
        return TableRow(Row(name, (message,), Target(grade=4.0), group, split, Provenance(source, name)), 1.0)

    rows = [item(f"a{i}", f"s{i}", "form-1764-train", "train") for i in range(4)]
    rows += [item(f"b{i}", f"t{i}", "form-1964-train", "train") for i in range(4)]
    rows += [item("c", "s1", "form-1964-test", "test")]
    table, recipe = Table(rows, tmp_path, ""), stages()["1964"]
    assert len(split_rows(recipe, table, ["form-1964-train"])["test"]) == 1
    with pytest.raises(DataError, match="s1"):
        split_rows(recipe, table, ["form-1964-train", "form-1764-train"])


def test_a_row_of_two_sources_is_used_once(tmp_path: Path) -> None:
    from luthier.data.building.rows import TableRow
    from luthier.data.table import Table
    from luthier.schema import Message, Part, Provenance, Row, Target

    def item(name: str, group: str, source: str, split: str) -> TableRow:
        message = Message("user", (Part("audio", media="sha256:" + name.encode().hex().ljust(64, "0")),))
        return TableRow(Row(name, (message,), Target(grade=4.0), group, split, Provenance(source, name)), 1.0)

    found = stages("stages.1764.data.test=[form-1764-test, form-1964-test]")["1764"]
    rows = [item(f"a{i}", f"s{i}", "form-1764-train", "train") for i in range(4)]
    rows += [item("c", "t", source, "test") for source in ("form-1764-test", "form-1964-test")]
    assert len(split_rows(found, Table(rows, tmp_path, ""), ["form-1764-train"])["test"]) == 1


def test_a_stage_that_is_not_there_is_a_slip_of_the_pen() -> None:
    with pytest.raises(RecipeError, match="did you mean 1964"):
        load_recipe(SPEAKING, ["stages.1946.train.epochs=1"])


def test_a_variable_that_looks_octal_stays_a_text() -> None:
    assert load_recipe(SPEAKING, ["vars.batch=0520"]).vars["batch"] == "0520"


@pytest.mark.parametrize("override", ["evaluate.resamples=0", "evaluate.batch_size=0", "train.max_steps=-3", "seed=-1"])
def test_numbers_that_would_fail_after_training_are_refused_before(override: str) -> None:
    with pytest.raises(RecipeError, match=override.partition("=")[0]):
        load_recipe(SPEAKING, [override])
