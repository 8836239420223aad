"""Rows survive JSON, carry no null keys, and are named by what they hold."""

import json
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from luthier.schema import Message, Part, Provenance, Row, Target, content_id

GRADES = st.floats(1, 5, allow_nan=False)
MEDIA = st.from_regex(r"sha256:[0-9a-f]{64}", fullmatch=True)
PARTS = st.builds(Part, type=st.just("text"), text=st.text()) | st.builds(
    Part, type=st.sampled_from(["image", "audio", "video"]), media=MEDIA
)
MESSAGES = st.builds(
    Message,
    role=st.sampled_from(["system", "user", "assistant", "tool"]),
    content=st.lists(PARTS, max_size=3).map(tuple),
)
RATERS = st.lists(GRADES, max_size=3).map(tuple)
TARGETS = st.builds(
    Target,
    text=st.none() | st.text(),
    choice=st.none() | st.text(),
    grade=st.none() | GRADES,
    raters=RATERS,
    held_back=RATERS,
)


def nulls(value: Any) -> bool:
    if isinstance(value, dict):
        return any(item is None or nulls(item) for item in value.values())
    return any(map(nulls, value)) if isinstance(value, list) else False


def through_json(value: Any) -> Any:
    return json.loads(json.dumps(value, ensure_ascii=False))


@given(MESSAGES)
def test_a_message_comes_back_equal_and_has_no_null_keys(message: Message) -> None:
    found = message.to_json()
    assert not nulls(found)
    assert Message.from_json(through_json(found)) == message
    assert hash(Message.from_json(found)) == hash(message)


@given(TARGETS)
def test_a_target_comes_back_equal_and_has_no_null_keys(target: Target) -> None:
    found = target.to_json()
    assert not nulls(found)
    assert Target.from_json(through_json(found)) == target


@given(st.lists(MESSAGES, max_size=2).map(tuple), TARGETS, st.lists(MESSAGES, max_size=2).map(tuple), TARGETS)
def test_an_id_is_equal_exactly_where_the_content_is(
    one: tuple[Message, ...], target: Target, two: tuple[Message, ...], other: Target
) -> None:
    assert content_id(one, target) == content_id(tuple(Message.from_json(m.to_json()) for m in one), target)
    assert (content_id(one, target) == content_id(two, other)) == ((one, target) == (two, other))


def test_an_id_does_not_depend_on_where_a_row_came_from_but_on_every_part_of_what_it_says() -> None:
    message = Message("user", (Part("text", text="Why?"), Part("audio", media="sha256:" + "a" * 64)))
    target = Target(grade=3.5, raters=(3.0, 4.0))
    first = content_id((message,), target)
    assert len(first) == 16
    assert set(first) <= set("0123456789abcdef")
    changed = [
        ((replace(message, role="system"),), target),
        ((message, message), target),
        ((replace(message, content=message.content[::-1]),), target),
        ((message,), replace(target, grade=4.0)),
        ((message,), replace(target, raters=(4.0, 3.0))),
        ((message,), replace(target, held_back=(3.0,))),
    ]
    ids = {content_id(messages, other) for messages, other in changed}
    assert len(ids) == len(changed)
    assert first not in ids


def test_a_row_gives_its_user_text_and_its_media_in_order() -> None:
    picture, sound = Part("image", media="sha256:" + "b" * 64), Part("audio", media="sha256:" + "c" * 64)
    row = Row(
        "1",
        (
            Message("system", (Part("text", text="Be kind."),)),
            Message("user", (picture, Part("text", text="Look."), sound, Part("text", text="Listen."))),
        ),
        Target(),
        "speaker",
        "train",
        Provenance("source", "file#1"),
    )
    assert row.text == "Look.\nListen."
    assert row.media == (picture.media, sound.media)
