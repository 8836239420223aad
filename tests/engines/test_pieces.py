"""Pieces of an answer: put together they are the whole, and no stop text shows its beginning."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from luthier.engines.pieces import StopTexts, TextPieces
from luthier.models.toy_tokenizer import VOCABULARY_SIZE, load_tokenizer

TOY = load_tokenizer()
LETTERS = st.text(st.sampled_from("ab é漢🎻\n\ufffd'.,") | st.characters(exclude_categories=["Cs"]), max_size=30)


def sentencepiece() -> PreTrainedTokenizerFast:
    """Words that begin with a mark for the blank, which the decoder takes off the first one; bytes for the rest."""
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁the", "▁score", "▁", "s", "é", "."]
    tokenizer = Tokenizer(models.BPE({word: n for n, word in enumerate(words)}, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def pieces_of(tokenizer: Any, ids: list[int]) -> list[str]:
    pieces = TextPieces(tokenizer)
    return [*(pieces.add(token) for token in ids), pieces.rest()]


@given(LETTERS)
def test_pieces_of_a_text_are_the_text(text: str) -> None:
    ids = TOY(text, add_special_tokens=False)["input_ids"]
    assert "".join(pieces_of(TOY, ids)) == TOY.decode(ids, skip_special_tokens=True) == text


@settings(max_examples=300)
@given(st.lists(st.integers(0, VOCABULARY_SIZE - 1), max_size=40))
def test_pieces_of_any_tokens_are_what_all_of_them_decode_to(ids: list[int]) -> None:
    assert "".join(pieces_of(TOY, ids)) == TOY.decode(ids, skip_special_tokens=True)


@given(st.lists(st.sampled_from(["▁the", "▁score", "s", "é", "."]) | st.sampled_from("é漢🎻"), max_size=20))
def test_blanks_at_the_beginning_of_words_are_neither_lost_nor_doubled(words: list[str]) -> None:
    tokenizer = sentencepiece()
    known = tokenizer.get_vocab()
    ids = [
        token
        for word in words
        for token in ([known[word]] if word in known else [known[f"<0x{byte:02X}>"] for byte in word.encode()])
    ]
    assert "".join(pieces_of(tokenizer, ids)) == tokenizer.decode(ids, skip_special_tokens=True)


def test_a_letter_of_several_tokens_comes_whole() -> None:
    ids = TOY("a🎻b", add_special_tokens=False)["input_ids"]
    assert len(ids) == 6
    assert pieces_of(TOY, ids) == ["a", "", "", "", "🎻", "b", ""]


def test_the_cost_of_a_token_does_not_grow_with_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    longest = 0

    class Counting:
        def decode(self, ids: list[int], **options: Any) -> str:
            nonlocal longest
            longest = max(longest, len(ids))
            return TOY.decode(ids, **options)

    pieces = TextPieces(Counting())
    for token in TOY("one two three " * 50, add_special_tokens=False)["input_ids"]:
        pieces.add(token)
    assert longest <= 4


@given(
    st.lists(st.text("ab\n", max_size=4), max_size=12),
    st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3),
)
def test_a_text_ends_before_its_first_stop_text_however_it_is_cut(parts: list[str], stops: list[str]) -> None:
    texts, said = StopTexts(stops), ""
    for part in parts:
        said += texts.add(part)
        if texts.found:
            break
    else:
        said += texts.rest()
    whole = "".join(parts)
    places = [whole.find(stop) for stop in stops if stop in whole]
    assert texts.found == bool(places)
    # The first that is whole ends the answer; one that begins earlier may be whole only later.
    assert not any(stop in said for stop in stops)
    assert whole.startswith(said)
    if not places:
        assert said == whole


def test_nothing_of_a_stop_text_is_given_out_before_it_is_known_not_to_be_one() -> None:
    texts = StopTexts(["</end>", "STOP"])
    assert [texts.add(part) for part in ("a<", "/en", "ter>", "ST", "OP now")] == ["a", "", "</enter>", "", ""]
    assert texts.found
