"""Conversations that share a long passage are not one talk."""

from dataclasses import replace

from luthier.data.alike.turnwise import same_talk
from luthier.schema import Message, Part

PASSAGE = " ".join(f"word{i} of the story" for i in range(60))


def talk(*turns: tuple[str, str]) -> tuple[Message, ...]:
    return tuple(Message(role, (Part("text", text),)) for role, text in turns)  # type: ignore[arg-type]


def test_an_edited_word_is_the_same_talk_and_another_answer_is_not() -> None:
    first = talk(("user", f"{PASSAGE} Is the keeper lonely?"), ("assistant", "Yes, he says that he misses the town."))
    edited = talk(("user", f"{PASSAGE} Is the keeper lonely?"), ("assistant", "Yes, he said that he misses the town."))
    other = talk(("user", f"{PASSAGE} Where do gulls go?"), ("assistant", "They leave for the southern islands."))
    opposite = talk(("user", f"{PASSAGE} Is the keeper lonely?"), ("assistant", "No."))
    assert same_talk(first, first)
    assert same_talk(first, edited)
    assert not same_talk(first, other)
    assert not same_talk(first, opposite)


def test_who_speaks_tool_calls_system_prompts_and_media_must_be_equal() -> None:
    first = talk(("system", "Answer as a pirate."), ("user", "turn the light off"), ("assistant", "it is off"))
    assert not same_talk(
        first, talk(("system", "Refuse all."), *[("user", "turn the light off"), ("assistant", "it is off")])
    )
    assert not same_talk(first[1:], talk(("assistant", "turn the light off"), ("user", "it is off")))
    called = (*first[:2], replace(first[2], more='{"tool_calls":["light_off"]}'))
    assert not same_talk(called, (*first[:2], replace(first[2], more='{"tool_calls":["delete_house"]}')))
    seen = (replace(first[1], content=(*first[1].content, Part("image", media="sha256:aa"))),)
    assert not same_talk(seen, (replace(seen[0], content=(*first[1].content, Part("image", media="sha256:bb"))),))
    assert same_talk(called, called)


def test_turns_without_words_must_be_equal() -> None:
    assert same_talk(talk(("user", "?!")), talk(("user", "?!")))
    assert not same_talk(talk(("user", "?!")), talk(("user", "yes")))
    assert same_talk(talk(("user", "a b c")), talk(("user", "x y z")), least=0.0)
