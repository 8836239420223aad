"""A text alone is learned as any base reads text: between the first and the last token, past the chat template."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.building.rows import TableRow
from luthier.errors import RequestError
from luthier.models.chat import ChatTemplate
from luthier.models.lessons import Encoder, Encoding
from luthier.models.supervise import render, render_rows
from luthier.models.template_doctor import examine
from luthier.schema import Message, Part, Row
from support.templates import FAMILIES, LLAMA3, QWEN, chat, family, tokenizer_of

TOKENIZERS = {name: family(name) for name in FAMILIES}
TEXT = "  The river rises in the north.\n\nIts mouth is wide. "
ROW = chat(("assistant", TEXT))
REST = (ROW.target, "g", "train", ROW.provenance)
WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=60)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_ids_are_those_of_the_tokenizer_and_its_last_token(name):
    """Also of a base whose template refuses a chat that begins with the assistant."""
    tokenizer = TOKENIZERS[name]
    rendered = render(tokenizer, ROW)
    assert list(rendered.ids) == [*tokenizer(TEXT)["input_ids"], tokenizer.eos_token_id]
    assert rendered.proof == "text"
    assert rendered.unstopped == 0


@pytest.mark.parametrize("name", FAMILIES)
def test_all_but_the_first_token_is_learned(name):
    tokenizer = TOKENIZERS[name]
    rendered = render(tokenizer, ROW)
    begin = int(tokenizer.bos_token_id is not None)
    assert rendered.mask == (False,) * begin + (True,) * (len(rendered.ids) - begin)
    assert rendered.answers == ((begin, len(rendered.ids)),)
    ((start, end),) = rendered.learned
    assert rendered.text[start:end] == TEXT + tokenizer.eos_token
    assert tokenizer.decode(rendered.ids) == rendered.text


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(FAMILIES)), WORDS)
def test_any_words_stay_what_they_are(name, words):
    tokenizer = TOKENIZERS[name]
    assert list(render(tokenizer, chat(("assistant", words))).ids)[:-1] == tokenizer(words)["input_ids"]


def test_a_first_token_that_the_template_alone_writes_is_written():
    tokenizer = tokenizer_of(LLAMA3)
    tokenizer.bos_token = "<|bos|>"
    assert tokenizer("a")["input_ids"][0] != tokenizer.bos_token_id
    assert render(tokenizer, ROW).ids[0] == tokenizer.bos_token_id


def test_a_tokenizer_that_never_writes_its_first_token_keeps_it_back():
    tokenizer = tokenizer_of(QWEN)
    tokenizer.bos_token = "<|bos|>"
    assert tokenizer.bos_token_id not in render(tokenizer, ROW).ids


def test_a_base_without_a_template_learns_texts_and_refuses_chats():
    tokenizer = family("llama3")
    whole = render(tokenizer, ROW)
    tokenizer.chat_template = None
    assert render(tokenizer, ROW) == whole
    with pytest.raises(RequestError, match="no chat template"):
        render_rows(ChatTemplate.of(tokenizer), [ROW, chat(("user", "Where?"), ("assistant", "There."))])


def test_texts_and_chats_stand_in_their_order():
    asked = chat(("user", "Where is it?"), ("assistant", "Near the house."))
    rows = [asked, ROW, chat(("assistant", "")), asked, ROW]
    found = render_rows(ChatTemplate.of(TOKENIZERS["gemma"]), rows)
    assert [one.proof for one in found] == ["ids", "text", "text", "ids", "text"]
    assert found[0] == found[3] == render(TOKENIZERS["gemma"], asked)
    assert not any(found[2].mask)


@pytest.mark.parametrize(
    "row",
    [
        chat(("assistant", "Hm."), more=json.dumps({"tools": [{"type": "function", "function": {"name": "add"}}]})),
        Row(
            "r",
            (Message("assistant", (), json.dumps({"tool_calls": [{"function": {"name": "add", "arguments": {}}}]})),),
            *REST,
        ),
        Row("r", (Message("user", (Part("text", "Where?"),)),), *REST),
        chat(("system", "Be brief."), ("assistant", "Yes.")),
    ],
    ids=["tools", "calls", "question", "system"],
)
def test_what_is_more_than_a_text_goes_through_the_template(row):
    assert render(TOKENIZERS["qwen"], row).proof != "text"


def test_the_doctor_finds_nothing_wrong_with_texts():
    found = examine([ROW] * 3, TOKENIZERS["gemma"], 100)
    assert found.sound
    assert not found.unwritten_bos
    assert found.supervised_tokens == 3 * (len(render(TOKENIZERS["gemma"], ROW).ids) - 1)
    forged = examine([chat(("assistant", "A <turn_end> in the text."))], TOKENIZERS["gemma"], 100)
    assert list(forged.troubles) == ["reserved_token"]


def test_a_text_is_a_lesson_of_which_all_is_weighed_but_the_first_token():
    encoder = Encoder(ChatTemplate.of(TOKENIZERS["gemma"]), 100)
    [(_, lesson)] = list(encoder.encode([TableRow(ROW, 0.0, weight=0.5)], Encoding()))
    np.testing.assert_array_equal(lesson.weight_L, [0.0, *[0.5] * (len(lesson.ids_L) - 1)])
    found = Encoding()
    short = Encoder(ChatTemplate.of(TOKENIZERS["gemma"]), 8, "whole_turns")
    assert [lesson for _, lesson in short.encode([TableRow(ROW, 0.0)], found)] == [None]
    assert found.dropped == {"too_many_tokens": 1}
