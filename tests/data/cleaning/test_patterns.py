"""Patterns that explode cost one row and a bounded time, and a list of words finds whole words alone."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.cleaning.patterns import regex, words_list
from luthier.data.cleaning.stepkit import FilePath, ParameterError, Step
from luthier.schema import Drop, Message, Part, Provenance, Row, Target

EXPLODING = [
    (r"(a|aa)+$", "a" * 60 + "!"),  # two ways to read each letter: as many readings as Fibonacci's 60th number
    (r"^(?:(a|aa)\b?)+$", "a" * 60 + "!"),
    (r"(?e)(?:foobarbazqux){e<=9}", "x" * 200_000),  # fuzzy matching
    (r"(.+)\1\1\1$", "ab" * 30_000 + "c"),  # back references
]


def row(*texts: str) -> Row:
    parts = tuple(Part("text", text) for text in texts)
    return Row("", (Message("user", parts),), Target(), "", "", Provenance("chat", "f#1"))


@pytest.mark.parametrize(("pattern", "text"), EXPLODING)
@pytest.mark.parametrize("action", ["drop", "keep", "replace"])
def test_a_pattern_that_explodes_drops_the_row_within_the_time_it_was_given(
    pattern: str, text: str, action: str
) -> None:
    apply = regex(pattern, action=action, timeout=0.1)  # type: ignore[arg-type]
    begun = time.perf_counter()
    found = apply(row("harmless", text, "more"))
    spent = time.perf_counter() - begun
    assert isinstance(found, Drop)
    assert (found.reason, found.detail) == ("pattern_timeout", "more than 0.1 s on one text")
    assert 0.05 < spent < 5.0  # the library counts processor time: a busy machine takes longer
    again = apply(row("harmless"))  # the step goes on with the next row
    assert isinstance(again, Row) or again.reason == "pattern_missing"


def test_a_timeout_of_nothing_is_refused() -> None:
    for timeout in (0.0, -1.0, float("nan")):
        with pytest.raises(ParameterError):
            regex("a", timeout=timeout)


def test_groups_that_are_not_there_are_a_problem_at_once() -> None:
    for pattern, replacement in (("(", ""), ("a", r"\1"), ("(a)", r"\g<name>")):
        with pytest.raises(ParameterError, match="no regular expression"):
            regex(pattern, action="replace", replacement=replacement)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.text("ab1 \n", max_size=8), min_size=1, max_size=3), st.sampled_from(["a+", r"(?m)^b", r"\d$", "A"]))
def test_plain_patterns_do_what_the_standard_library_does(texts: list[str], pattern: str) -> None:
    item = row(*texts)
    hit = any(re.search(pattern, text) for text in texts)
    assert isinstance(regex(pattern)(item), Drop) == hit
    assert isinstance(regex(pattern, action="keep")(item), Drop) != hit
    replaced = regex(pattern, action="replace", replacement="<>")(item)
    assert isinstance(replaced, Row)
    assert [part.text for part in replaced.messages[0].content] == [re.sub(pattern, "<>", text) for text in texts]


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Step:
    path = tmp_path_factory.mktemp("words") / "words.txt"
    path.write_text("bad\nson of fun\n", encoding="utf-8")
    return words_list(FilePath(str(path)))


@settings(deadline=None, max_examples=100)
@given(st.lists(st.sampled_from(["bad", "Bad", "badly", "son", "of", "fun", "é", "_", "-", "1"]), max_size=8))
def test_listed_words_are_found_as_whole_words(listed: Step, words: list[str]) -> None:
    text = " ".join(words)
    found = listed(row(text))
    plain = text.lower().replace("_", " ").replace("-", " ").split()
    hit = "bad" in plain or any(plain[i : i + 3] == ["son", "of", "fun"] for i in range(len(plain)))
    assert isinstance(found, Drop) == hit


def test_an_empty_list_and_a_list_in_another_encoding_are_refused(tmp_path: Path) -> None:
    for content in (b"# nothing\n\n", "caf\u00e9".encode("latin-1")):
        path = tmp_path / "words.txt"
        path.write_bytes(content)
        with pytest.raises(ParameterError):
            words_list(FilePath(str(path)))
