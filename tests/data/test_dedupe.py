"""Duplicates beside a second way of finding them: parsed JSON for keys, Python sets and all pairs for texts."""

from __future__ import annotations

import json
import random
import re
import unicodedata
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data import dedupe
from luthier.data.alike.contentkey import normal_key, quick_key
from luthier.data.alike.entities import siblings, signatures
from luthier.data.dedupe import Found, exact, near, near_between
from luthier.errors import DataError
from luthier.schema import Message, Part

COMMON = [f"{a}{b}{c}" for a in "bdfklmnprst" for b in "aeiou" for c in ("n", "st", "ly", "m")]
NAMES = "Anna Boris Carla Dmitri Elif Fatima Goran Hana Ines Jonas Kofi Lena Mara Nils Olga Pavel".split()


def prose(rng: random.Random, words: int) -> str:
    """Sentences of lower-case words, begun by a capital, with some names and numbers inside."""
    found = []
    for n in range(words):
        word = rng.choice(COMMON)
        if n % 12 == 0:
            word = word.capitalize()
        elif n % 12 == 5:
            word = rng.choice(NAMES)
        elif n % 12 == 9:
            word = str(rng.randrange(1000))
        found.append(word + ("." if n % 12 == 11 else ""))
    return " ".join(found)


def edited(text: str, share: float, rng: random.Random) -> str:
    """A copy in which a share of the words, all of lower case, is replaced, left out or doubled."""
    words = text.split(" ")
    places = [i for i, word in enumerate(words) if word.isalpha() and word.islower()]
    for i in rng.sample(places, round(share * len(words))):
        words[i] = rng.choice(["", f"new{rng.choice(COMMON)}", f"{words[i]} {rng.choice(COMMON)}"])
    return " ".join(word for word in words if word)


def renamed(text: str, rng: random.Random, count: int) -> str:
    """A filling of the same template: `count` of its names and numbers are others."""
    words = text.split(" ")
    places = [i for i, word in enumerate(words) if i % 12 == 5 or word.isdigit()]
    for i in rng.sample(places, count):
        words[i] = str(int(words[i]) + 1000) if words[i].isdigit() else words[i][::-1].capitalize() + "o"
    return " ".join(words)


def shingles(text: str) -> set[tuple[str, ...]]:
    words = re.findall("[0-9a-z]+", text.lower())
    return {tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2))} if words else set()


def jaccard(a: str, b: str) -> float:
    first, second = shingles(a), shingles(b)
    return len(first & second) / len(first | second) if first | second else 0.0


def found_near(texts: Sequence[str], folder: Path, alive: Any = None, threshold: float = 0.8) -> Found:
    parts = [list(texts[i : i + 7]) for i in range(0, len(texts), 7)]
    return near(parts, threshold, 3, lambda rows: [texts[i] for i in rows], folder, alive)


def are_siblings(a: str, b: str) -> bool:
    first, second = signatures([a, b])
    return siblings(first, second)


# Keys of equal content


def reference_key(texts: list[str]) -> list[list[str]]:
    """The folded words of each text."""
    return [unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).split() for text in texts]


def said(*texts: str) -> tuple[Message, ...]:
    return tuple(Message("user", (Part("text", text=text),)) for text in texts)


PIECES = st.sampled_from(
    [
        *"\n\t\r\f\v\x1c\u2003\xa0\u2028\x85",
        "a",
        "A",
        "n",
        "1",
        " ",
        "  ",
        "\\",
        "\\n",
        '"',
        "u000b",
        "é",
        "e\u0301",
        "É",
        "ß",
        "SS",
        "＂",
        "＼",
        "ﬁ",
        "fi",
    ]
)
CONTENTS = st.lists(st.lists(PIECES, max_size=6).map("".join), min_size=1, max_size=2)


@settings(deadline=None, max_examples=500)
@given(st.lists(CONTENTS, min_size=2, max_size=6))
def test_two_contents_have_one_key_exactly_where_their_folded_strings_are_equal(contents: list[list[str]]) -> None:
    for a, b in combinations(contents, 2):
        same = reference_key(a) == reference_key(b)
        assert (normal_key(said(*a)) == normal_key(said(*b))) == same
        assert not same or quick_key(said(*a)) == quick_key(said(*b))


def test_a_quick_key_tells_letters_and_numbers_apart() -> None:
    texts = ["Tom has 3 apples", "Tom has 5 apples", "Ann has 3 apples", "Tom has 3 apple trees"]
    assert len({quick_key(said(text)) for text in texts}) == 4


@settings(deadline=None, max_examples=200)
@given(st.lists(PIECES, min_size=1, max_size=4).map("".join), st.integers(0, 700), st.integers(0, 700))
def test_a_quick_key_of_a_long_text_does_not_depend_on_its_spaces(text: str, few: int, many: int) -> None:
    long, wide = text * 200 + " " * few + text, (" " * many + text).join(["", *[text] * 199]) + "\n" * many + text
    a, b = said(long), said(wide)
    assert normal_key(a) != normal_key(b) or quick_key(a) == quick_key(b)
    assert quick_key(said("x" * 3 + " " * many + "y" * 900)) == quick_key(said("X" * 3 + " " + "Y" * 900))


def test_numbers_that_differ_by_a_space_keep_their_own_keys() -> None:
    assert normal_key(said("1 2")) != normal_key(said("12"))


def test_who_speaks_the_target_and_the_media_are_part_of_the_key() -> None:
    picture = (Message("user", (Part("image", media="sha256:ab"),)),)
    keys = [
        normal_key(said("image sha256:ab")),
        normal_key(picture),
        normal_key((Message("assistant", (Part("text", text="image sha256:ab"),)),)),
        normal_key(said("image sha256:ab"), b'{"grade":4.0}'),
        normal_key((Message("user", (Part("text", text="image sha256:ab"),), more='{"name":"x"}'),)),
        normal_key(said("image", "sha256:ab")),
    ]
    assert len(set(keys)) == len(keys)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(0, 2)), max_size=40))
def test_the_first_of_equal_content_stays_and_keys_are_asked_only_where_they_decide(
    rows: list[tuple[int, int, int]],
) -> None:
    # Content (a, b); its spellings c are equal content under other ids; the quick key knows a alone.
    quick = np.array([a for a, _, _ in rows], dtype=np.uint64)
    ids = np.array([100 * a + 10 * b + c for a, b, c in rows], dtype=np.uint64)
    asked: list[int] = []

    def keys_of(numbers: Any) -> list[bytes]:
        asked.extend(numbers.tolist())
        return [str(rows[n][:2]).encode() for n in numbers.tolist()]

    first: dict[tuple[int, int], int] = {}
    expected = [(n, first[a, b]) for n, (a, b, _) in enumerate(rows) if first.setdefault((a, b), n) != n]
    assert [(m.index, m.into) for m in exact(quick, ids, keys_of).merges] == expected
    assert len(asked) == len(set(asked))
    assert all(len({row for row in rows if row[0] == rows[n][0]}) > 1 for n in asked)


# Near duplicates


def test_every_merge_is_verified_and_no_two_kept_texts_are_alike(tmp_path: Path) -> None:
    rng = random.Random(3)
    texts = [prose(rng, rng.choice([20, 60, 200])) for _ in range(120)]
    for _ in range(150):  # copies of copies too
        texts.append(edited(rng.choice(texts), rng.uniform(0.0, 0.06), rng))
    rng.shuffle(texts)
    found = found_near(texts, tmp_path)
    merged = {merge.index: merge for merge in found.merges}
    for merge in found.merges:
        assert merge.into < merge.index
        assert merge.into not in merged
        assert merge.similarity == jaccard(texts[merge.index], texts[merge.into]) >= 0.8
    kept = [i for i in range(len(texts)) if i not in merged]
    alike = {(a, b) for a, b in combinations(kept, 2) if jaccard(texts[a], texts[b]) >= 0.8}
    assert alike == set(found.siblings)
    assert len(found.merges) > 60
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("share", "threshold"), [(0.02, 0.9), (0.04, 0.8), (0.06, 0.7)])
def test_copies_with_edited_words_are_merged_wherever_they_are_alike(
    tmp_path: Path, share: float, threshold: float
) -> None:
    rng = random.Random(int(share * 100))
    pairs = [(text, edited(text, share, rng)) for text in (prose(rng, 250) for _ in range(150))]
    found = found_near([text for pair in pairs for text in pair], tmp_path, threshold=threshold)
    expected = {2 * n + 1 for n, (a, b) in enumerate(pairs) if jaccard(a, b) >= threshold}
    assert len(expected) > 20
    assert len(expected - {merge.index for merge in found.merges}) <= 0.01 * len(expected)


def test_fillings_of_one_template_are_all_kept_and_counted(tmp_path: Path) -> None:
    rng = random.Random(8)
    texts = []
    for _ in range(40):
        base = prose(rng, 240)
        texts += [base, renamed(base, rng, 2), renamed(base, rng, 5)]
    found = found_near(texts, tmp_path)
    assert found.merges == []
    assert found.sibling_count == sum(jaccard(a, b) >= 0.8 for a, b in combinations(texts, 2)) > 40


def test_a_copy_inside_a_crowd_of_siblings_is_found_with_bounded_work(tmp_path: Path) -> None:
    rng = random.Random(9)
    base = prose(rng, 300)
    crowd = list(dict.fromkeys(renamed(base, rng, 3) for _ in range(400)))
    copies = {i: edited(crowd[i], 0.01, rng) for i in range(0, len(crowd), 40)}
    found = found_near([*crowd, *copies.values()], tmp_path)
    assert {(merge.index, merge.into) for merge in found.merges} == {(len(crowd) + n, i) for n, i in enumerate(copies)}
    assert found.compared < 400 * 60
    assert any("compared with some" in note for note in found.notes)


def test_thousands_of_copies_of_one_text_become_one(tmp_path: Path) -> None:
    rng = random.Random(10)
    base = prose(rng, 120)
    found = found_near([base, *(edited(base, 0.02, rng) for _ in range(1500))], tmp_path)
    assert len(found.merges) == 1500
    assert {merge.into for merge in found.merges} == {0}
    assert found.compared < 1500 * 150


def test_rows_that_are_gone_are_passed_over_and_keep_their_numbers(tmp_path: Path) -> None:
    text = prose(random.Random(1), 50)
    alive = np.array([False, True, True])
    assert [(m.index, m.into) for m in found_near([text] * 3, tmp_path, alive).merges] == [(2, 1)]


def test_empty_texts_and_no_texts_are_never_alike(tmp_path: Path) -> None:
    assert found_near(["", "...", "", "?"], tmp_path).merges == []
    assert found_near([], tmp_path).merges == []


def test_a_table_is_compared_with_another_one(tmp_path: Path) -> None:
    rng = random.Random(4)
    held_out = [prose(rng, 80) for _ in range(20)]
    train = [prose(rng, 80), edited(held_out[3], 0.02, rng), renamed(held_out[5], rng, 2), held_out[7], held_out[7]]
    found = near_between(
        [train],
        [held_out],
        0.7,
        3,
        lambda rows: [train[i] for i in rows],
        lambda rows: [held_out[i] for i in rows],
        tmp_path,
    )
    assert [(merge.index, merge.into) for merge in found.merges] == [(1, 3), (3, 7), (4, 7)]
    assert found.siblings == [(2, 5)]


def test_a_threshold_beyond_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a similarity of 80 is not in 0\.\.1"):
        near([["a"]], 80, 3, lambda rows: [], tmp_path)


# Siblings and copies, one text beside another

STORY = "On that day {0} walked to the market and bought {1} apples from {2}. The price was low, so {0} paid at once."


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (STORY.format("Tom", 3, "Anna"), STORY.format("Ben", 3, "Anna")),
        (STORY.format("Tom", 3, "Anna"), STORY.format("Tom", 4, "Anna")),
        (STORY.format("Tom", "three", "Anna"), STORY.format("Tom", "five", "Anna")),
        (STORY.format("Tom", 3, "Anna"), STORY.format("Anna", 3, "Tom")),
        (STORY.format("Éric", 3, "Anna"), STORY.format("Élie", 3, "Anna")),
        ("What is 3 + 4?", "What is 3 * 4?"),
        ("we meet on monday at the hall", "we meet on friday at the hall"),
        ("write to kim@site.example today", "write to lee@site.example today"),
        ("see https://site.example/apples for more", "see https://site.example/pears for more"),
        ("ask Dr. Smith about it", "ask Dr. Jones about it"),
        ("Name: Tom, and nothing else", "Name: Ben, and nothing else"),
        ("Tom ran. He saw that Tom won.", "Ben ran. He saw that Ben won."),
        ("we like apples a lot, and apples like us", "we like pears a lot, and pears like us"),
    ],
)
def test_siblings_are_told_by_what_stands_in_the_place_of_what(first: str, second: str) -> None:
    assert are_siblings(first, second)
    assert are_siblings(second, first)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("They met Tom. The day was fine.", "They met Tom. A day was fine."),
        ("They met Tom. Then all was fine.", "They met Tom! Yet all was fine."),
        ("He said no. No. Then he left.", "He said no. No. Later he left."),
        ("Tom has 3 apples and 4 pears.", "Tom has 3 apples."),
        ("so Tom has 3 apples in a small bag", "so Tom has 3 apples in a large bag"),
        ("they know that Tom is here", "Today Tom is here"),
        ("he said that I was late", "she said that i was late"),
        ("Say it to Tom and 3 others", "say it to tom and 3 others"),
        ("nothing here at all", "nothing there at all"),
        ("a Время идёт. Так Время идёт.", "a время идёт. так время идёт."),
        ("", ""),
    ],
)
def test_other_changes_do_not_make_siblings(first: str, second: str) -> None:
    assert not are_siblings(first, second)
    assert not are_siblings(second, first)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.floats(0.0, 0.06))
def test_random_edits_of_lower_case_words_never_make_siblings(seed: int, share: float) -> None:
    rng = random.Random(seed)
    text = prose(rng, 400)
    assert not are_siblings(text, edited(text, share, rng))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 6), st.floats(0.0, 0.03))
def test_other_names_and_numbers_make_siblings_even_among_edits(seed: int, count: int, share: float) -> None:
    rng = random.Random(seed)
    text = prose(rng, 200)
    assert are_siblings(text, edited(renamed(text, rng, count), share, rng))


def test_the_limits_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dedupe, "_ROUNDS", 0)
    text = prose(random.Random(1), 60)
    assert "0 rounds" in json.dumps(found_near([text, text], tmp_path).notes)
