"""Token trees: every text can be read back along its path, and what texts share stands in the line once."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from luthier.models.token_tree import TokenTree, in_order, shared_length

TEXTS = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=8), min_size=1, max_size=12)


def arrays(texts: list[list[int]]) -> list[np.ndarray]:
    return [np.array(text, np.int64) for text in texts]


@given(TEXTS, st.lists(st.integers(0, 200_000), max_size=3))
def test_every_text_is_found_along_its_path_and_every_beginning_once(texts: list[list[int]], common: list[int]) -> None:
    tree = TokenTree.of(arrays([common + text for text in texts]), len(common))
    beginnings = {tuple(text[:end]) for text in texts for end in range(1, len(text) + 1)}
    assert len(tree.ids_T) == len(beginnings)
    for text, path in zip(texts, tree.paths, strict=True):
        assert tree.ids_T[path].tolist() == text
        assert tree.position_T[path].tolist() == list(range(len(common), len(common) + len(text)))
        assert (np.diff(path) > 0).all(), "a token stands behind all that it looks at"


@given(TEXTS)
def test_the_new_tokens_of_the_branches_are_the_line(texts: list[list[int]]) -> None:
    tree = TokenTree.of(arrays(texts))
    new = np.concatenate([branch.path[-branch.length :] for branch in tree.branches])
    assert new.tolist() == list(range(len(tree.ids_T)))
    for branch in tree.branches:
        assert tree.position_T[branch.path].tolist() == list(range(len(branch.path)))


@given(TEXTS)
def test_texts_are_put_in_the_order_of_their_ids(texts: list[list[int]]) -> None:
    assert [texts[at] for at in in_order(arrays(texts))] == sorted(texts)


def test_large_ids_are_ordered_as_numbers() -> None:
    assert in_order(arrays([[256], [2], [70_000], [1, 9]])) == [3, 1, 0, 2]


def test_shared_length_ends_where_texts_differ_or_one_ends() -> None:
    one, other = arrays([[4, 5, 6], [4, 5, 7, 8]])
    assert (shared_length(one, other), shared_length(one, one), shared_length(one, one[:1])) == (2, 3, 1)
