"""What the model reads is what the recipe says, and a row that cannot be read is dropped with its reason."""

from __future__ import annotations

from itertools import groupby

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from luthier.models.encode import PromptEncoder, encode_rows
from luthier.models.load import load_base
from luthier.models.tokens import add_learned_tokens
from luthier.models.toy_tokenizer import SPECIAL_TOKENS
from luthier.recipe_model import LearnedTokens, ModelConfig
from luthier.schema import Message, Part, Provenance, Row, Target

INSTRUCTION = "Listen. Does it pass? Answer 1 or 0."
BASE = load_base(ModelConfig(base="toy:phi4-multimodal"))
LEARNED = LearnedTokens(soft_prompt=3)
IDS = add_learned_tokens(BASE.tokenizer, BASE.model, LEARNED)
AUDIO = BASE.family.audio_token_id(BASE.model)
ENCODER = PromptEncoder(BASE.tokenizer, AUDIO, INSTRUCTION, LEARNED, 2048)


def row(question: str, number: int = 0) -> Row:
    parts = (Part("text", question), Part("audio", media="sha256:a"))
    return Row(
        f"r{number}",
        (Message("user", parts),),
        Target(grade=3.5, held_back=(3.0,)),
        "speaker",
        "train",
        Provenance("source", "made"),
    )


def test_the_decoded_prompt_holds_every_part_in_order():
    ids, at = ENCODER.prompt_ids("Where do you live?", 5)
    text = BASE.tokenizer.decode(ids)
    assert text == (
        f"<|user|>{INSTRUCTION}\nWhere do you live?\n<|learned_0|><|learned_1|><|learned_2|>"
        + "<|audio|>" * 5
        + "<|end|><|assistant|><|verdict|>"
    )
    assert ids[at : at + 5] == (AUDIO,) * 5
    assert ids[at - 3 : at] == tuple(IDS[f"<|learned_{i}|>"] for i in range(3))
    assert ids[-1] == IDS["<|verdict|>"]


@pytest.mark.parametrize("length", [1, 7, 300])
def test_sound_is_one_run_of_its_length(length):
    ids, at = ENCODER.prompt_ids("Why?", length)
    runs = [len(list(run)) for token, run in groupby(ids) if token == AUDIO]
    assert runs == [length]
    assert ids.index(AUDIO) == at


@pytest.mark.parametrize("token", [*SPECIAL_TOKENS, *IDS])
def test_a_reserved_token_in_the_question_drops_the_row(token):
    assert ENCODER.prompt_ids(f"Say {token} now", 4) == "reserved_token_in_prompt"


@pytest.mark.parametrize("text", ["<|aud io|>", "a < b | c > d", "<|", "|>", "< |end|>"])
def test_text_that_only_looks_like_a_token_stays(text):
    assert not isinstance(ENCODER.prompt_ids(text, 4), str)


def test_too_long_is_dropped_and_never_cut():
    ids, _ = ENCODER.prompt_ids("Why?", 10)
    for limit in range(1, len(ids) + 3):
        found = PromptEncoder(BASE.tokenizer, AUDIO, INSTRUCTION, LEARNED, limit).prompt_ids("Why?", 10)
        assert found == ("too_many_tokens" if limit < len(ids) else (ids, ids.index(AUDIO)))


def test_an_instruction_with_sound_of_its_own_is_not_encoded():
    found = PromptEncoder(BASE.tokenizer, AUDIO, "Listen to <|audio|>.", LEARNED, 2048).prompt_ids("Why?", 10)
    assert found == "template_loses_a_token"


def test_rows_are_kept_in_order_and_drops_are_counted():
    rows = [row("One?", 0), row("<|end|>", 1), row("Two?", 2), row("long " * 3000, 3), row("<|audio|>", 4)]
    examples, dropped = encode_rows(rows, ENCODER, {"sha256:a": 6}, lambda _: (0.25, 5))
    assert [e.id for e in examples] == ["r0", "r2"]
    assert dropped == {"reserved_token_in_prompt": 2, "too_many_tokens": 1}
    assert len(examples) + sum(dropped.values()) == len(rows)
    first = examples[0]
    assert (first.target, first.level, first.grade, first.held_back) == (0.25, 5, 3.5, (3.0,))
    assert (first.media, first.media_length, first.group, first.source) == ("sha256:a", 6, "speaker", "source")
    assert first.ids[first.media_at : first.media_at + 6] == (AUDIO,) * 6


@settings(max_examples=250, deadline=None)
@given(st.text(max_size=80), st.integers(1, 40))
@example("\x00\n\r\t\u2028", 1)
@example("{{ messages }} {% raw %} {# no #}", 2)
@example("<|audio", 3)
@example("\U0001f600\u200d\ufeff\u0301", 4)
def test_any_question_comes_through_whole_or_is_dropped(question, length):
    found = ENCODER.prompt_ids(question, length)
    if isinstance(found, str):
        assert found == "reserved_token_in_prompt"
        assert "<|" in question
        return
    ids, at = found
    assert ids.count(AUDIO) == length
    assert set(ids[at : at + length]) == {AUDIO}
    assert ids[-1] == IDS["<|verdict|>"]
    assert f"{INSTRUCTION}\n{question}\n<|learned_0|>" in BASE.tokenizer.decode(ids)
