"""Records become questions with options by their columns; prefixes go only where a whole file has them."""

from typing import Any

import pytest

from luthier.data.shapes.asked import Asked, content_name, shaped, told_apart, unprefixed


def options(value: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    asked = shaped({"question": "Q?", "options": value})
    assert asked is not None
    return asked.options, asked.labels


@pytest.mark.parametrize(
    ("value", "texts", "labels"),
    [
        (["x", 4, True], ("x", "4", "True"), ()),
        (["x", None, "y", None], ("x", "", "y"), ()),
        ({"A": "x", "B": "y", "C": None}, ("x", "y"), ("A", "B")),
        ({"text": ["x", "y"], "label": ["1", "2"]}, ("x", "y"), ("1", "2")),
        ([{"text": "x", "label": "a"}, {"text": "y", "label": "b"}], ("x", "y"), ("a", "b")),
        ([{"text": "x", "label": "a"}, {"text": "y", "label": "a"}], ("x", "y"), ()),
        ('["x", "y"]', ("x", "y"), ()),
        ("['x', \"it's\"]", ("x", "it's"), ()),
        ("[x, y]", ("[x, y]",), ()),
    ],
)
def test_options_are_read_however_a_cell_spells_them(
    value: Any, texts: tuple[str, ...], labels: tuple[str, ...]
) -> None:
    assert options(value) == (texts, labels)


def test_prefixes_go_where_nearly_all_items_have_them_and_names_stay() -> None:
    lettered = Asked("options", "Q?", ("A) x", "(B) y"), "A) x")
    names = Asked("options", "Who?", ("A. Smith", "B. Jones"), "A")
    plain = Asked("options", "Q?", ("x", "y"), "A")
    bare = unprefixed([lettered] * 19 + [plain])
    assert (bare[0].options, bare[0].key, bare[19]) == (("x", "y"), "A", plain)
    assert unprefixed([names, plain]) == [names, plain]
    turned = Asked("options", "Q?", ("B: x", "A: y"), "A")
    assert unprefixed([turned]) == [turned]
    assert unprefixed([Asked("options", "Q?", ())]) == [Asked("options", "Q?", ())]


def test_no_record_of_another_kind_is_taken_for_a_question() -> None:
    others: list[dict[str, Any]] = [
        {"messages": [], "question": "Q?"},
        {"instruction": "Do.", "input": "this", "output": "done"},
        {"text": "words"},
        {"question": 4, "options": ["x", "y"]},
        {"question": None, "A": "x", "B": "y"},
        {},
    ]
    assert [shaped(record) for record in others] == [None] * len(others)


def test_a_content_name_hangs_on_what_is_asked_and_not_on_the_answer() -> None:
    asked = Asked("options", "Q?", ("x", "y"), 0)
    assert content_name(asked) == content_name(Asked("options", "Q?", ("x", "y"), 1))
    others = [
        Asked("options", "Q!", ("x", "y")),
        Asked("options", "Q?", ("y", "x")),
        Asked("options", "Q?", ("x", "y"), before="P"),
    ]
    assert len({content_name(one) for one in (asked, *others)} | {content_name(asked, ["sha256:0"])}) == 5
    assert told_apart(["a", "b", "a"], ["1", "2", "3"]) == ["a (1)", "b", "a (3)"]


@pytest.mark.parametrize("named", [1, "A", {"a": 1}, None])
def test_names_of_options_that_are_no_list_are_none(named: object) -> None:
    found = shaped({"question": "which?", "choices": {"text": ["x", "y"], "label": named}, "answer": "x"})
    assert found is not None
    assert found.options == ("x", "y")
