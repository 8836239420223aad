"""Problems of the data part that need more than one field to see."""

import pytest

from luthier.recipe_data import COLUMN_ROLES, DataConfig, Limits, Source, data_problems


def problems(
    source: Source | None = None, limits: Limits | None = None, train: str = "a", test: str = "b"
) -> list[str]:
    sources = {"a": source or Source(path="a.jsonl"), "b": Source(path="b.jsonl")}
    return data_problems(DataConfig(sources, train.split(), test.split(), limits=limits or Limits()), "verdict")


def test_a_sound_data_part_has_no_problem() -> None:
    every = dict.fromkeys(COLUMN_ROLES, "x")
    assert problems(Source(path="a.jsonl", columns=every)) == []
    assert problems(Source(hub="o/x", streaming=True), Limits(maximum_pixels=1, minimum_seconds=60)) == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (
            Source(path="a", columns={"gruop": "page"}),
            "data.sources.a.columns.gruop: unknown role (did you mean group?)",
        ),
        (
            Source(path="a", columns={"zzz": "x"}),
            "data.sources.a.columns.zzz: unknown role (there are messages, prompt",
        ),
        (Source(path="a", hub="o/x", streaming=True), "data.sources.a.streaming: only a hub table streams"),
    ],
)
def test_a_wrong_source_is_named_with_its_key(source: Source, expected: str) -> None:
    (found,) = problems(source)
    assert found.startswith(expected)


def test_a_source_named_twice_is_one_problem() -> None:
    assert problems(train="a a a") == ["data.train: 'a' is there twice"]
    assert problems(test="b b") == ["data.test: 'b' is there twice"]


def test_bounds_that_let_nothing_through_are_problems() -> None:
    assert problems(limits=Limits(maximum_pixels=0)) == ["data.limits.maximum_pixels: must be at least 1"]
    (found,) = problems(limits=Limits(minimum_seconds=5, maximum_seconds=2))
    assert found == "data.limits.minimum_seconds: 5 is above maximum_seconds (2)"
