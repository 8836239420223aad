"""Shingles hashed in numpy, beside the obvious way: a regular expression, tuples of words and Python sets."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.alike import shingles
from luthier.data.alike.shingles import fold, shingle_batch
from luthier.data.alike.sketches import ShingleStore, bands_for, candidates

WORD = re.compile("[0-9A-Za-z\x80-\U0010ffff]+")
ALPHABET = "ab B1\n.,-'éÉß漢字 ﬁ\u2003“”\x01İ🙂"
TEXTS = st.lists(st.text(alphabet=ALPHABET, max_size=40), min_size=1, max_size=8)
SIZES = st.integers(1, 4)


def reference(text: str, size: int) -> list[tuple[str, ...]]:
    """All runs of `size` words, or of all words where there are fewer."""
    words = [word.lower() if word.isascii() else word for word in WORD.findall(fold(text))]
    words = ["".join(c.lower() if c.isascii() else c for c in word) for word in words]
    return [tuple(words[i : i + size]) for i in range(max(1, len(words) - size + 1))] if words else []


def rows(texts: list[str], size: int) -> list[list[int]]:
    found = shingle_batch(texts, size)
    return [found.hashes[a:b].tolist() for a, b in zip(found.offsets[:-1], found.offsets[1:], strict=True)]


@settings(deadline=None, max_examples=200)
@given(TEXTS, SIZES)
def test_two_shingles_have_one_hash_exactly_where_their_words_are_equal(texts: list[str], size: int) -> None:
    ours, theirs = rows(texts, size), [reference(text, size) for text in texts]
    assert [len(row) for row in ours] == [len(row) for row in theirs]
    pairs = {(a, b) for mine, other in zip(ours, theirs, strict=True) for a, b in zip(mine, other, strict=True)}
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})


@settings(deadline=None, max_examples=60)
@given(TEXTS, SIZES)
def test_the_hashes_do_not_depend_on_what_else_is_in_the_batch(texts: list[str], size: int) -> None:
    assert rows(texts, size) == [rows([text], size)[0] for text in texts]


def test_long_texts_are_hashed_as_short_ones_are(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [" ".join(f"w{i * k}" for i in range(300)) for k in range(1, 9)]
    whole = rows(texts, 3)
    monkeypatch.setattr(shingles, "PIECE", 64)
    assert rows(texts, 3) == whole
    assert rows(["x " * 400_000 + "end"], 3)[0][-1] == rows(["x x end"], 3)[0][0]


def test_case_punctuation_and_unicode_variants_do_not_count() -> None:
    first, *others = rows(["The ﬁrst Straße, again", "the first STRASSE again!", "“The” first — strasse… again"], 2)
    assert others == [first, first]


def test_chinese_characters_are_words_of_their_own() -> None:
    assert len(rows(["北京欢迎你"], 3)[0]) == 3


def test_an_arrow_array_is_read_as_a_list_is() -> None:
    texts = ["one two three four", "", "five"]
    assert np.array_equal(shingle_batch(pa.array(texts, pa.large_string()), 3).hashes, shingle_batch(texts, 3).hashes)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.text(alphabet="ab c", max_size=30), min_size=2, max_size=6))
def test_the_similarity_is_the_jaccard_index_of_the_sets(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    pairs = [(i, j) for i in range(len(texts)) for j in range(i + 1, len(texts))]
    sets = [set(reference(text, 2)) for text in texts]
    pairs = [(i, j) for i, j in pairs if sets[i] and sets[j]]
    with ShingleStore(tmp_path_factory.getbasetemp(), 0.8, 2) as store:
        store.fill([texts[:1], texts[1:]])
        found = store.jaccard(np.array(pairs, dtype=np.int64).reshape(-1, 2))
    assert found.tolist() == [len(sets[i] & sets[j]) / len(sets[i] | sets[j]) for i, j in pairs]


def test_many_pairs_are_compared_in_parts_without_mixing_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    texts = [" ".join(rng.choice(list("abcdefgh"), 30)) for _ in range(120)]
    pairs = np.stack(np.triu_indices(120, 1), axis=1).astype(np.int64)
    sets = [set(reference(text, 2)) for text in texts]
    with ShingleStore(tmp_path, 0.8, 2) as store:
        store.fill([texts])
        found = store.jaccard(rng.permutation(pairs))
        again = store.jaccard(pairs)
    assert again.tolist() == [len(sets[i] & sets[j]) / len(sets[i] | sets[j]) for i, j in pairs.tolist()]
    assert sorted(found.tolist()) == sorted(again.tolist())


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 1.0])
def test_bands_miss_almost_no_pair_at_the_threshold(threshold: float) -> None:
    bands, values = bands_for(threshold)
    assert (1 - threshold**values) ** bands <= 1e-4 + 1e-12
    assert bands * values <= 128


@pytest.mark.parametrize("shared", [8, 40, 200])
def test_pairs_of_exactly_the_threshold_are_found(tmp_path: Path, shared: int) -> None:
    pairs, own = 300, shared // 8  # shared / (shared + 2 own) = 0.8
    texts = []
    for n in range(pairs):
        both = [f"s{n}x{i}" for i in range(shared)]
        texts += [" ".join([*both, *(f"{side}{n}x{i}" for i in range(own))]) for side in "ab"]
    with ShingleStore(tmp_path, 0.8, 1) as store:
        store.fill([texts])
        found = candidates(store.keys, store.filled, lambda rows: rows.astype(np.uint64)).pairs
        assert np.allclose(store.jaccard(found[found[:, 1] - found[:, 0] == 1]), 0.8)
    met = {(a, b) for a, b in found.tolist()} & {(2 * n, 2 * n + 1) for n in range(pairs)}
    assert len(met) >= 0.99 * pairs
