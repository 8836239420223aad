"""The rules of Gopher and C4 beside a slow second reading of the papers, and on both sides of each bound."""

from __future__ import annotations

import unicodedata
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.cleaning import quality
from luthier.data.cleaning.stepkit import ParameterError, Step
from luthier.schema import Drop, Message, Part, Provenance, Row, Target


def row(*answers: str) -> Row:
    turns = [Message("user", (Part("text", "Tell me."),))]
    turns += [Message("assistant", (Part("text", text),)) for text in answers]
    return Row("", tuple(turns), Target(), "", "", Provenance("chat", "f#1"))


def verdict(step: Step, *answers: str) -> str:
    """The reason of the drop, "" where the very same row came back, else what is left of the first answer."""
    item = row(*answers)
    found = step(item)
    return found.reason if isinstance(found, Drop) else "" if found is item else found.messages[1].text


# Repetition, as table A1 of Rae et al. 2021 states it: every bound written out once more

TABLE_A1 = {
    "line": 0.30, "paragraph": 0.30, "line characters": 0.20, "paragraph characters": 0.20,
    "top": {2: 0.20, 3: 0.18, 4: 0.16},
    "repeated": {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10},
}  # fmt: skip


def again(pieces: list[str]) -> tuple[float, float]:
    """Shares of pieces, and of their characters, that came earlier, piece by piece."""
    pieces = [piece.strip() for piece in pieces if piece.strip()]
    repeats = [piece for i, piece in enumerate(pieces) if piece in pieces[:i]]
    return len(repeats) / len(pieces), sum(map(len, repeats)) / sum(map(len, pieces))


def top_gram(words: list[str], n: int) -> float:
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    count = max(map(grams.count, grams), default=0)
    if count < 2:
        return 0.0
    size = max(sum(map(len, gram)) for gram in grams if grams.count(gram) == count)
    return min(1.0, count * size / sum(map(len, words)))


def covered(words: list[str], n: int) -> int:
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    inside = {i + k for i, gram in enumerate(grams) if gram in grams[:i] for k in range(n)}
    return sum(len(words[i]) for i in inside)


def slow_repetition(text: str, factor: float) -> str:
    paragraphs, lines, words = again(text.split("\n\n")), again(text.split("\n")), text.split()
    if paragraphs[0] > TABLE_A1["paragraph"] or paragraphs[1] > TABLE_A1["paragraph characters"]:  # type: ignore[operator]
        return "repeated_paragraphs"
    if lines[0] > TABLE_A1["line"] or lines[1] > TABLE_A1["line characters"]:  # type: ignore[operator]
        return "repeated_lines"
    total = sum(map(len, words))
    top = any(top_gram(words, n) > most * factor for n, most in TABLE_A1["top"].items())  # type: ignore[attr-defined]
    rest = any(
        covered(words, n) / total > most * factor
        for n, most in TABLE_A1["repeated"].items()  # type: ignore[attr-defined]
    )
    return "repeated_ngrams" if top or rest else ""


FEW = st.sampled_from("a bb ccc dddd the of river stone".split())
MANY = st.integers(0, 400).map(lambda n: f"w{n}")
GAPS = st.sampled_from([" "] * 12 + ["\n", "\n\n", "\n \n", "  "])
PROSE = st.lists(st.tuples(st.one_of(MANY, MANY, MANY, FEW), GAPS), min_size=1, max_size=120).map(
    lambda pairs: "".join(word + gap for word, gap in pairs)
)
# A passage that comes again somewhere puts texts on both sides of the bounds.
TEXTS = st.tuples(PROSE, PROSE, st.integers(0, 60)).map(lambda t: f"{t[0]} {t[0][: t[2]]}\n{t[1]} {t[0][: t[2]]}")


@settings(deadline=None, max_examples=300)
@given(TEXTS, st.sampled_from([0.5, 1.0, 1.5]))
def test_repetition_is_what_a_slow_count_says(text: str, factor: float) -> None:
    assert verdict(quality.repetition(minimum_words=1, ngrams=factor), text) == slow_repetition(text, factor)


@settings(deadline=None, max_examples=200)
@given(st.lists(FEW, min_size=1, max_size=60), st.integers(2, 10))
def test_shares_of_ngrams_are_those_of_a_slow_count(words: list[str], n: int) -> None:
    sizes = list(map(len, words))
    assert quality.repeated_share(words, sizes, n) == covered(words, n)
    assert quality.top_share(words, sizes, n, sum(sizes)) == pytest.approx(top_gram(words, n))


def fresh(count: int, start: int = 0) -> list[str]:
    """Words of four characters of which none comes twice."""
    return [f"{n:04d}" for n in range(start, start + count)]


@pytest.mark.parametrize(("repeats", "expected"), [(3, ""), (4, "repeated_lines")])
def test_three_of_ten_lines_may_be_there_again_and_four_not(repeats: int, expected: str) -> None:
    lines = [*(["ab"] * (repeats + 1)), *(" ".join(fresh(20, 20 * n)) for n in range(9 - repeats))]
    assert verdict(quality.repetition(ngrams=0), "\n".join(lines)) == expected


@pytest.mark.parametrize(("words", "expected"), [(20, ""), (21, "repeated_paragraphs")])
def test_a_fifth_of_the_characters_may_be_in_repeated_paragraphs(words: int, expected: str) -> None:
    again, rest = "abcd" * words, "efgh" * (100 - 2 * words)
    text = "\n\n".join([again, *(rest[i::3] for i in range(3)), again])
    assert verdict(quality.repetition(minimum_words=1, ngrams=0), text) == expected


@pytest.mark.parametrize(("n", "times"), [(2, 10), (3, 6), (4, 4)])
def test_the_most_frequent_ngram_may_hold_its_share_of_a_hundred_words_but_not_of_fewer(n: int, times: int) -> None:
    assert n * times / 100 == TABLE_A1["top"][n]  # type: ignore[index]
    for count, expected in ((100, ""), (99, "repeated_ngrams")):
        others = fresh(count - n * times)
        words = [word for k, other in enumerate(others) for word in ([*"abcd"[:n], other] if k < times else [other])]
        text = " ".join(word * 4 if len(word) == 1 else word for word in words)
        assert len(text.split()) == count
        assert verdict(quality.repetition(), text) == expected


@pytest.mark.parametrize(("n", "most"), TABLE_A1["repeated"].items())  # type: ignore[attr-defined]
def test_each_longer_ngram_has_its_bound(n: int, most: float) -> None:
    """Three passages of just n words come again, in a text so long that the share is below the bound or above."""
    passages = [[f"{name}{k:03d}" for k in range(n)] for name in "xyz"]
    for words, expected in ((round(3 * n / most) + 1, ""), (int(3 * n / most) - 1, "repeated_ngrams")):
        between = fresh(6)  # the passages would be one without a word between them
        blocks = [*passages, fresh(words - 6 * n - len(between), 10), *passages]
        text = [word for block, other in zip(blocks, [*between, ""], strict=True) for word in [*block, other]]
        assert len(" ".join(text).split()) == words
        assert verdict(quality.repetition(minimum_words=1), " ".join(text)) == expected


def test_short_rows_are_kept_however_they_repeat() -> None:
    assert verdict(quality.repetition(), "no " * 49) == ""
    assert verdict(quality.repetition(), "no " * 50) == "repeated_ngrams"


# Word shapes, as section A1.1 of Rae et al. 2021 states them

STOP = "the be to of and that have with".split()


def slow_gopher(text: str) -> set[str]:
    """Every rule that the text breaks."""
    words, lines = text.split(), [line.strip() for line in text.split("\n") if line.strip()]
    found = set()
    if sum(map(len, words)) < 3 * len(words) or sum(map(len, words)) > 10 * len(words):
        found.add("odd_word_length")
    for symbols in (text.count("#"), text.count("...") + text.count("…")):
        if symbols / len(words) > 0.1:
            found.add("too_many_symbols")
    if len([line for line in lines if line[0] in "•-*●‣"]) / len(lines) > 0.9:
        found.add("too_many_bullets")
    if len([line for line in lines if line[-3:] == "..." or line[-1] == "…"]) / len(lines) > 0.3:
        found.add("too_many_ellipses")
    if len([word for word in words if any(unicodedata.category(c)[0] == "L" for c in word)]) / len(words) < 0.8:
        found.add("too_few_alphabetic_words")
    if len([word for word in STOP if word in [other.lower() for other in words]]) < 2:
        found.add("too_few_stop_words")
    return found


SHAPES = st.sampled_from(
    [*"river stone garden window".split(), *STOP, "THE", "x" * 40, "#", "12", "ab", "wait...", "so…", "é", "\n", "\n- "]
)


@settings(deadline=None, max_examples=400)
@given(st.lists(SHAPES, min_size=1, max_size=80))
def test_gopher_drops_for_a_rule_that_is_broken_and_for_nothing_else(words: list[str]) -> None:
    text = " ".join(words)
    if not text.split():
        return
    found, broken = verdict(quality.gopher(minimum_words=1), text), slow_gopher(text)
    assert found in broken if broken else found == ""


PLAIN = " ".join([*["the", "of"], *["river"] * 98])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (PLAIN, ""),
        (" ".join(["the", "and"] * 50), ""), (" ".join(["the", "an"] * 50), "odd_word_length"),
        (" ".join(["of to", *["x" * 10] * 97, "x" * 26]), ""),
        (" ".join(["of to", *["x" * 10] * 97, "x" * 27]), "odd_word_length"),
        (PLAIN + "#" * 10, ""), (PLAIN + "#" * 11, "too_many_symbols"),
        (PLAIN.replace("river", "river...", 10), ""), (PLAIN.replace("river", "river…", 11), "too_many_symbols"),
        ("\n".join(["- the rivers of stones"] * 18 + ["+ the rivers of stones"] * 2), ""),
        ("\n".join(["* the rivers of stones"] * 19 + ["+ the rivers of stones"]), "too_many_bullets"),
        ("\n".join(["the river of stones and that is so..."] * 3 + ["the river of stones and that is so"] * 7), ""),
        ("\n".join(["the river of stones and that is so…"] * 4 + ["the river of stones, that is so"] * 6),
         "too_many_ellipses"),
        (" ".join(["the", "of", *["river"] * 78, *["12345"] * 20]), ""),
        (" ".join(["the", "of", *["river"] * 77, *["12345"] * 21]), "too_few_alphabetic_words"),
        (" ".join(["the", *["river"] * 99]), "too_few_stop_words"), (" ".join(["The", "WITH", *["river"] * 98]), ""),
    ],
)  # fmt: skip
def test_gopher_on_both_sides_of_each_bound(text: str, expected: str) -> None:
    assert verdict(quality.gopher(), text) == expected


# C4, as section 2.2 of Raffel et al. 2020 states it


def test_c4_drops_by_words_and_sentences_of_all_answers_together() -> None:
    step = quality.c4()
    assert verdict(step, "One.", "Two! Is it three?") == ""
    assert verdict(step, "One.", "Two and 3.5 of it") == "too_few_sentences"
    assert verdict(step, "He said “one.” (Two?) 三。") == ""
    assert verdict(step, "One. Two. Lorem Ipsum. Three.") == "lorem_ipsum"
    assert verdict(step, "One. Two. Three }.") == "curly_bracket"
    assert verdict(quality.c4(curly_bracket=False, lorem_ipsum=False), "One {. Two. Lorem ipsum.") == ""


def test_c4_takes_out_lines() -> None:
    text = "A good line of words.\nPlease enable JavaScript!\n\nno end here\nIs it? \nOne two. Three four."
    assert verdict(quality.c4(), text) == text.replace("Please enable JavaScript!\n", "")
    ended = "A good line of words.\n\nIs it? \nOne two. Three four."
    assert verdict(quality.c4(terminal_punctuation=True), text) == ended
    assert verdict(quality.c4(minimum_line_words=5, minimum_sentences=1), text) == "A good line of words.\n"


def test_an_answer_of_which_nothing_is_left_costs_the_row() -> None:
    whole = "One. Two. Three."
    assert verdict(quality.c4(), whole, "Turn on JavaScript.") == "nothing_left"
    assert verdict(quality.c4(), whole, "Turn on JavaScript.\nFour.") == whole
    assert verdict(quality.c4(), whole, " \n") == ""


# Symbols


@settings(deadline=None, max_examples=200)
@given(st.text(min_size=1, max_size=40), st.sampled_from([0.0, 0.3, 1.0]))
def test_symbols_are_what_is_no_letter_mark_digit_or_space(text: str, most: float) -> None:
    count = sum(not (c.isalnum() or c.isspace() or unicodedata.category(c)[0] == "M") for c in text)
    assert verdict(quality.symbol_ratio(maximum=most), text) == ("too_many_symbols" if count > most * len(text) else "")


def test_scripts_that_write_vowels_as_marks_are_not_symbols() -> None:
    assert verdict(quality.symbol_ratio(maximum=0.01), "हिन्दी में लिखी हुई किताबें") == ""


@pytest.mark.parametrize(
    ("make", "parameters", "named"),
    [
        (quality.repetition, {"lines": 1.1}, "lines"), (quality.repetition, {"ngrams": float("nan")}, "ngrams"),
        (quality.gopher, {"word_length": [10.0, 3.0]}, "word_length"),
        (quality.gopher, {"alphabetic": -0.1}, "alphabetic"),
        (quality.symbol_ratio, {"maximum": float("nan")}, "maximum"),
    ],
)  # fmt: skip
def test_a_bound_that_is_no_share_is_refused(make: Any, parameters: dict[str, Any], named: str) -> None:
    with pytest.raises(ParameterError) as caught:
        make(**parameters)
    assert caught.value.parameter == named
