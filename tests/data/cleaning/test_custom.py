"""What a custom function returns costs at most its row: rows that no table could hold, odd drops, odd exits."""

import sys
import types
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from luthier.data.cleaning.custom import custom
from luthier.schema import Drop, Message, Part, Provenance, Row, Target

PICTURE = Part("image", None, "sha256:" + "a" * 64)
ROW = Row(
    "",
    (Message("user", (PICTURE, Part("text", "what is it"))), Message("assistant", (Part("text", "a hat"),))),
    Target(),
    "g",
    "train",
    Provenance("here", "file:1"),
)


@pytest.fixture
def module() -> Iterator[types.ModuleType]:
    made = types.ModuleType("luthier_custom_probe")
    sys.modules[made.__name__] = made
    yield made
    del sys.modules[made.__name__]


def after(module: types.ModuleType, result: Any) -> Row | Drop:
    """What the step makes of a function that returns `result`, or raises it."""

    def check(row: Row) -> Any:
        if isinstance(result, BaseException):
            raise result
        return result

    module.check = check  # type: ignore[attr-defined]
    return custom("luthier_custom_probe:check")(ROW)


def talk(*content: Any, role: Any = "user", more: Any = "") -> Row:
    return replace(ROW, messages=(Message(role, content, more),))


class Speechless(Exception):
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    "result",
    [
        replace(ROW, messages=()),
        replace(ROW, messages=list(ROW.messages)),  # type: ignore[arg-type]
        replace(ROW, messages=None),  # type: ignore[arg-type]
        replace(ROW, messages=({"role": "user", "content": "hi"},)),  # type: ignore[arg-type]
        talk(Part("text", "hi"), role="human"),
        talk(Part("text", "hi"), role=["user"]),
        replace(ROW, messages=(Message("user", "hi"),)),  # type: ignore[arg-type]
        talk("hi"),
        talk(Part("text", None)),
        talk(Part("text", 7)),  # type: ignore[arg-type]
        talk(Part("text", "half \ud800")),
        talk(Part("text", "nul \0")),
        talk(Part("text", "hi", PICTURE.media)),
        talk(Part("thing", "hi")),  # type: ignore[arg-type]
        talk(Part("image", None, "sha256:" + "b" * 64)),
        talk(Part("image", None, None)),
        talk(Part("text", "hi"), more="[1]"),
        talk(Part("text", "hi"), more={"name": "x"}),
        talk(Part("text", "hi"), more='{"a": NaN}'),
        replace(ROW, group=None),  # type: ignore[arg-type]
        replace(ROW, more="not json"),
        replace(ROW, more=None),  # type: ignore[arg-type]
        replace(ROW, target=None),  # type: ignore[arg-type]
        replace(ROW, target=Target(text=5)),  # type: ignore[arg-type]
        replace(ROW, target=Target(grade=float("nan"))),
        Row.__new__(Row),
        Drop("here", "file:1", ""),
        Drop("here", "file:1", " "),
        Drop("here", "file:1", None),  # type: ignore[arg-type]
        Drop("here", "file:1", "mine", 7),  # type: ignore[arg-type]
        1,
        "yes",
        np.int64(1),
        ValueError("bad \ud800"),
        Speechless(),
        SystemExit(3),
    ],
)
def test_what_no_table_could_hold_is_a_failed_step_with_words(module: types.ModuleType, result: Any) -> None:
    found = after(module, result)
    assert isinstance(found, Drop)
    assert (found.source, found.origin, found.reason) == ("here", "file:1", "step_failed")
    assert found.detail
    found.detail.encode()


def test_sound_rows_bools_and_drops_pass(module: types.ModuleType) -> None:
    fewer = replace(ROW, messages=ROW.messages[:1], more='{"a":1}', target=Target(choice="x"))
    assert after(module, fewer) == fewer
    assert after(module, ROW) is ROW
    assert after(module, True) is ROW
    assert after(module, np.bool_(True)) is ROW
    for no in (False, None, np.bool_(False)):
        found = after(module, no)
        assert isinstance(found, Drop)
        assert found.reason == "custom"
    assert after(module, Drop("elsewhere", "x", "too_dull", "why")) == Drop("here", "file:1", "too_dull", "why")


def test_a_function_cannot_say_where_a_row_is_from(module: types.ModuleType) -> None:
    moved = replace(ROW, id="x", split="test", provenance=Provenance("other", "b:2"), group="h")
    assert after(module, moved) == replace(ROW, group="h")


def test_an_interrupt_is_not_swallowed(module: types.ModuleType) -> None:
    with pytest.raises(KeyboardInterrupt):
        after(module, KeyboardInterrupt())
