"""What a model is asked, word by word: plain, in a chat, in reverse order, with solved questions before it."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.data.exams.exam import ExamItem
from luthier.errors import RequestError
from luthier.evaluate.exam_prompts import WORDINGS, Asked, Asker
from luthier.models.chat import ChatTemplate, load_tokenizer
from luthier.recipe_exam import PROMPTS, ExamSettings
from luthier.schema import Part
from support import seeing
from support.questions import exam_of
from support.templates import FAMILIES, MISTRAL, family, tokenizer_of

BOIL = ExamItem("q1", "How do you boil eggs?", ("In water.", "In sand."), 0)
TROPHY = ExamItem("w1", "The trophy does not fit because _ is too big.", ("the trophy", "the case"), 0)
QUESTION = "Question: How do you boil eggs?\nA. In water.\nB. In sand.\nAnswer with the letter of the right option."
SHOT = ExamItem("p1", "Is ice cold?", ("Yes", "No"), 0)


def ask(item: ExamItem, shape: str = "options", template: Any = None, pool: Any = None, **settings: Any) -> list[Asked]:
    made = ExamSettings(**{"chat_template": False, "both_orders": False, **settings})
    found = template or ChatTemplate.of(load_tokenizer("toy:llama"))
    return list(Asker.of(exam_of([item], shape=shape), made, found, pool).ask(item))


def test_text_of_a_question_is_the_string_that_the_harness_asks_of_piqa() -> None:
    [asked] = ask(BOIL, method="text")
    assert asked.contexts == ("Question: How do you boil eggs?\nAnswer:",) * 2
    assert asked.answers == (" In water.", " In sand.")


def test_what_follows_a_blank_is_scored_as_the_harness_does_for_winogrande() -> None:
    [asked] = ask(TROPHY, shape="winogrande", method="text")
    stem = "The trophy does not fit because "
    assert asked.contexts == (stem + "the trophy", stem + "the case")
    assert asked.answers == (" is too big.",) * 2


def test_letters_are_asked_below_the_options() -> None:
    [asked] = ask(BOIL)
    assert asked.contexts == ("Question: How do you boil eggs?\nA. In water.\nB. In sand.\nAnswer:",) * 2
    assert asked.answers == (" A", " B")


def test_in_reverse_order_options_and_letters_are_swapped_and_the_files_order_is_kept() -> None:
    straight, reverse = ask(BOIL, both_orders=True)
    assert (straight.reversed, reverse.reversed) == (False, True)
    assert "A. In sand.\nB. In water." in reverse.contexts[0]
    assert reverse.answers == (" B", " A")
    assert len(ask(BOIL, both_orders=True, method="text")) == 1


def test_a_passage_stands_before_its_question() -> None:
    item = ExamItem("b1", "Is it so?", ("no", "yes"), 1, before="It is so.")
    assert ask(item, method="text")[0].contexts[0] == "It is so.\nQuestion: Is it so?\nAnswer:"


def test_three_wordings_differ_and_show_all_that_is_asked() -> None:
    found = ask(BOIL, prompts=list(PROMPTS))
    assert [one.prompt for one in found] == list(PROMPTS) == list(WORDINGS)
    assert len({one.contexts[0] for one in found}) == 3
    for one in found:
        assert all(words in one.contexts[0] for words in (BOIL.question, *BOIL.options))


def test_solved_questions_stand_before_each_and_none_is_of_the_exam() -> None:
    pool = exam_of([BOIL, SHOT, ExamItem("p2", "Is it far?", ("Yes", "No"), 1)], "pool")
    [asked] = ask(BOIL, pool=pool, shots=2)
    solved = "Question: Is ice cold?\nA. Yes\nB. No\nAnswer: A\n\nQuestion: Is it far?\nA. Yes\nB. No\nAnswer: B\n\n"
    assert asked.contexts[0].startswith(solved + "Question: How do you boil")
    with pytest.raises(RequestError, match="3 shots, and the pool pool has 2 items that the exam has not"):
        ask(BOIL, pool=pool, shots=3)
    with pytest.raises(RequestError, match="no pool"):
        ask(BOIL, shots=1)


def test_a_solved_blank_is_the_whole_sentence() -> None:
    pool = exam_of([ExamItem("w2", "Ann paid as _ lost.", ("Ann", "Bo"), 1)], "pool", "winogrande")
    [asked] = ask(TROPHY, shape="winogrande", method="text", pool=pool, shots=1)
    assert asked.contexts[1] == "Ann paid as Bo lost.\n\nThe trophy does not fit because the case"


def chat(**more: Any) -> dict[str, Any]:
    return {"chat_template": True, "template": ChatTemplate.of(tokenizer_of(MISTRAL, "<|bos|>")), **more}


def test_a_chat_asks_in_the_users_turn_and_is_answered_where_the_template_puts_answers() -> None:
    [asked] = ask(BOIL, **chat())
    assert asked.contexts == (f"<|bos|>[INST] {QUESTION}[/INST] ",) * 2
    assert asked.answers == ("A", "B")


def test_solved_questions_are_turns_of_a_chat() -> None:
    [asked] = ask(BOIL, **chat(method="text", pool=exam_of([SHOT], "pool"), shots=1))
    assert asked.contexts[0] == (
        "<|bos|>[INST] Question: Is ice cold?[/INST] Yes</s>[INST] Question: How do you boil eggs?[/INST] "
    )
    assert asked.answers == BOIL.options


def test_a_blank_is_filled_in_the_assistants_turn() -> None:
    [asked] = ask(TROPHY, **chat(shape="winogrande", method="text"))
    assert asked.contexts[1] == (
        "<|bos|>[INST] Fill in the blank.\n\nThe trophy does not fit because _ is too big.[/INST] "
        "The trophy does not fit because the case"
    )
    assert asked.answers == (" is too big.",) * 2


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_context_and_answer_are_a_beginning_of_the_chat_that_has_the_answer(name: str) -> None:
    template = ChatTemplate.of(family(name))
    [asked] = ask(BOIL, chat_template=True, template=template)
    user = Part(
        "text",
        "Question: How do you boil eggs?\nA. In water.\nB. In sand.\nAnswer with the letter of the right option.",
    )
    turns = [{"role": "user", "content": user.text}, {"role": "assistant", "content": "B"}]
    if not template.takes_strings:
        turns = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in turns]
    assert template.write(turns).text.startswith(asked.contexts[1] + asked.answers[1])


def test_media_stand_before_the_question() -> None:
    media = (seeing.image(30, 30), seeing.sound(0.7))
    item = ExamItem("m1", "What is said?", ("yes", "no"), 0, media=media)
    twin = seeing.Seeing.of("toy:phi4-multimodal")
    asker = Asker.of(exam_of([item]), ExamSettings(), twin.encoder.template, None, twin.encoder.speller)
    asked = next(asker.ask(item))
    assert [medium.reference for medium in asked.media] == [part.media for part in media]
    spelled = "<|image|>" * asked.media[0].slots + "<|audio|>" * asked.media[1].slots
    assert asked.contexts[0].startswith(f"<|user|>{spelled}Question: What is said?")


def test_more_options_than_letters_and_a_base_without_a_template_are_refused() -> None:
    many = ExamItem("q9", "Which?", tuple(str(number) for number in range(27)), 0)
    with pytest.raises(RequestError, match="q9 has 27 options, and there are 26 letters"):
        ask(many)
    assert len(ask(many, method="text")[0].answers) == 27
    bare = load_tokenizer("toy:llama")
    bare.chat_template = None
    with pytest.raises(RequestError, match="no chat template"):
        ask(BOIL, chat_template=True, template=ChatTemplate.of(bare))


def test_many_items_may_ask_the_same_with_other_options_and_one_with_an_option_of_the_exam_is_no_shot() -> None:
    same = "Which of these sentences is correct?"
    exam_item = ExamItem("e", same, ("He runs.", "He run."), 0)
    pool = exam_of([ExamItem("twin", same, ("He run.", "He ran."), 1), ExamItem("new", same, ("I am.", "I is."), 0)])
    [asked] = ask(exam_item, pool=pool, shots=1)
    assert "I am." in asked.contexts[0]
    assert "He ran." not in asked.contexts[0]


def test_a_solved_question_with_more_options_than_letters_is_refused() -> None:
    pool = exam_of([ExamItem("many", "Which?", tuple(f"o{n}" for n in range(30)), 28)])
    with pytest.raises(RequestError, match="item many has 30 options"):
        ask(BOIL, pool=pool, shots=1)


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("sentence", ["It was _", "It was not there.", "It was _ "])
def test_a_sentence_with_nothing_behind_its_blank_is_refused_where_that_is_scored(sentence: str, chat: bool) -> None:
    item = ExamItem("w9", sentence, ("big", "small"), 0)
    with pytest.raises(RequestError, match="item w9 has no words behind a blank"):
        ask(item, shape="winogrande", method="text", chat_template=chat)
    assert ask(item, shape="winogrande", method="letters", chat_template=chat)
    with pytest.raises(RequestError, match="item p1 has no words behind a blank"):
        ask(TROPHY, shape="winogrande", method="text", chat_template=chat, pool=exam_of([SHOT]), shots=1)
