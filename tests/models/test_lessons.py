"""Chats as lessons: what is learned is the assistants' text and stop tokens, and nothing is lost without a word."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.errors import DataError
from luthier.models.chat import ChatTemplate
from luthier.models.lessons import Encoder, Encoding, Lessons, write_lessons
from support import chats
from support.templates import FAMILIES, family

TURNS = st.lists(st.sampled_from(chats.WORDS), min_size=1, max_size=6).map(" ".join)


def encode_one(name, item, most=4096, truncation="reject"):
    found = Encoding()
    tokenizer = family(name)
    encoder = Encoder(ChatTemplate.of(tokenizer), most, truncation)
    [(_, lesson)] = list(encoder.encode([item], found))
    return tokenizer, encoder, lesson, found


@pytest.mark.parametrize("name", sorted(FAMILIES))
@settings(deadline=None, max_examples=15)
@given(words=st.lists(st.tuples(TURNS, TURNS), min_size=1, max_size=3))
def test_what_is_learned_decodes_to_the_answers_and_their_stop_tokens(name, words):
    turns = [chats.turn(role, text) for pair in words for role, text in zip(("user", "assistant"), pair, strict=True)]
    tokenizer, encoder, lesson, _ = encode_one(name, chats.row(0, *turns))
    learned = lesson.ids_L[lesson.weight_L > 0].tolist()
    stop = encoder.template.stop
    assert learned.count(stop) == len(words), "every answer's stop token is learned"
    assert learned[-1] == stop
    text = tokenizer.decode(learned).replace("<think>", "").replace("</think>", "")  # written by one template itself
    spoken = text.replace(tokenizer.decode([stop]), " ").split()
    assert spoken == " ".join(answer for _, answer in words).split()


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_the_first_token_is_there_once(name):
    tokenizer, _, lesson, _ = encode_one(name, chats.row(0, chats.turn("user", "one"), chats.turn("assistant", "two")))
    assert lesson.ids_L.tolist().count(tokenizer.bos_token_id) <= 1
    assert lesson.weight_L[0] == 0.0


def conversation(*weights):
    turns = []
    for number, weight in enumerate(weights):
        more = {} if weight is None else {"weight": weight}
        turns += [chats.turn("user", f"one {number}"), chats.turn("assistant", f"green {number}", **more)]
    return turns


def test_weights_of_turns_and_rows_multiply():
    _, _, plain, _ = encode_one("llama3", chats.row(0, *conversation(None, None)))
    _, _, weighed, _ = encode_one("llama3", chats.row(0, *conversation(0.5, 2), weight=3.0))
    half = int(np.flatnonzero(plain.weight_L)[len(np.flatnonzero(plain.weight_L)) // 2])
    assert set(weighed.weight_L[:half][plain.weight_L[:half] > 0]) == {1.5}
    assert set(weighed.weight_L[half:][plain.weight_L[half:] > 0]) == {6.0}


def test_a_turn_of_weight_0_is_read_and_not_learned():
    _, _, plain, _ = encode_one("llama3", chats.row(0, *conversation(None, None)))
    _, _, weighed, _ = encode_one("llama3", chats.row(0, *conversation(0, 1)))
    assert weighed.ids_L.tolist() == plain.ids_L.tolist()
    assert 0 < np.count_nonzero(weighed.weight_L) < np.count_nonzero(plain.weight_L)


@pytest.mark.parametrize("weight", ["much", -1, float("inf"), [1]])
def test_a_weight_that_is_no_weight_drops_the_row_with_its_reason(weight):
    *_, lesson, found = encode_one("llama3", chats.row(0, *conversation(weight)))
    assert lesson is None
    assert found.dropped == Counter({"bad_weight": 1})
    assert "row row-0" in found.first["bad_weight"]


def test_no_length_cuts_a_turn_and_every_row_is_accounted_for():
    turns = conversation(None, None, None)
    _, encoder, whole, _ = encode_one("llama3", chats.row(0, *turns))
    stop, length = encoder.template.stop, len(whole.ids_L)
    ends = [at + 1 for at in np.flatnonzero((whole.ids_L == stop) & (whole.weight_L > 0))]
    assert len(ends) == 3
    for most in range(8, length + 2):
        *_, lesson, found = encode_one("llama3", chats.row(0, *turns), most, "whole_turns")
        fitting = [end for end in ends if end <= most]
        if most >= length:
            assert len(lesson.ids_L) == length
            assert not found.shortened
        elif fitting:
            assert lesson.ids_L.tolist() == whole.ids_L[: fitting[-1]].tolist()
            assert lesson.ids_L[-1] == stop
            assert lesson.weight_L[-1] == 1.0
            assert found.shortened == 1
        else:
            assert lesson is None
            assert found.dropped == Counter({"too_many_tokens": 1})
        *_, lesson, found = encode_one("llama3", chats.row(0, *turns), most)
        assert (lesson is None) == (most < length)
        assert sum(found.dropped.values()) == (most < length)


def test_pad_and_stop_being_one_token_changes_nothing():
    item = chats.row(0, *conversation(None))
    tokenizer = family("qwen")
    stop = ChatTemplate.of(tokenizer).stop
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(stop)
    [(_, lesson)] = list(Encoder(ChatTemplate.of(tokenizer), 512).encode([item], Encoding()))
    assert lesson.ids_L[np.flatnonzero(lesson.weight_L)[-1]] == stop


def test_written_lessons_are_those_in_memory_and_a_torn_file_is_no_lessons(tmp_path):
    tokenizer = family("llama3")
    encoder = Encoder(ChatTemplate.of(tokenizer), 40)
    items = chats.chats(30)
    found = Encoding()
    written = write_lessons(tmp_path / "a", lambda: enumerate(items), encoder, found)
    pairs = [(number, lesson) for number, (_, lesson) in enumerate(encoder.encode(items, Encoding())) if lesson]
    assert len(written) == len(pairs) == len(items) - sum(found.dropped.values())
    assert written.numbers.tolist() == [number for number, _ in pairs]
    for index, (_, lesson) in enumerate(pairs):
        assert written[index].id == lesson.id
        assert written[index].ids_L.tolist() == lesson.ids_L.tolist()
        assert written[index].weight_L.tolist() == lesson.weight_L.tolist()
    assert Lessons.read(tmp_path / "a").about["dropped"] == dict(found.dropped)
    ids = tmp_path / "a" / "ids.npy"
    ids.write_bytes(ids.read_bytes()[:-4])
    assert Lessons.read(tmp_path / "a") is None


def test_no_row_left_is_told_with_the_first_reason(tmp_path):
    encoder = Encoder(ChatTemplate.of(family("llama3")), 9)
    with pytest.raises(DataError, match="max_tokens is 9"):
        write_lessons(tmp_path / "a", lambda: enumerate(chats.chats(3)), encoder, Encoding())
    assert not (tmp_path / "a").exists()
