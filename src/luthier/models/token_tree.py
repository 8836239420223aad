"""Texts that begin alike, laid out so that every token is read once: a tree of token ids in one line.

The texts are put in order of their ids; each then adds to the line what the one before it does not begin with, and
remembers which tokens of the line lie on its way from the root. Nothing is padded. This module knows ids and places
alone, no model and no torch.

Shapes: T tokens of the line, L tokens of a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
"""(L,) token ids."""


@dataclass(frozen=True)
class Branch:
    """A run of new tokens: the last `length` of the path. `path` holds the line's places of all tokens up to there."""

    path: Ids
    length: int


@dataclass(frozen=True)
class TokenTree:
    """A line of tokens, each after all that it may look at."""

    ids_T: Ids
    position_T: Ids
    """Place in its text, counted from the very beginning (what is common to all included)."""
    branches: list[Branch]
    paths: list[Ids]
    """For each text, in the order given: the places of its tokens in the line, without what is common to all."""

    @classmethod
    def of(cls, texts: Sequence[Ids], common: int = 0) -> TokenTree:
        """The tree of what follows the first `common` ids, which all texts share and none ends with."""
        tails = [text[common:] for text in texts]
        runs: list[Ids] = []
        branches: list[Branch] = []
        paths: list[Ids] = [np.empty(0, np.int64)] * len(texts)
        places = np.empty(0, np.int64)
        before = places
        total = 0
        for at in in_order(tails):
            shared = shared_length(before, tails[at])
            run = tails[at][shared:]
            places = np.concatenate([places[:shared], np.arange(total, total + len(run))])
            if len(run):
                runs.append(run)
                branches.append(Branch(places, len(run)))
            paths[at], before, total = places, tails[at], total + len(run)
        ids_T = np.concatenate([np.empty(0, np.int64), *runs])
        depths = [np.arange(len(branch.path) - branch.length, len(branch.path)) for branch in branches]
        return cls(ids_T, np.concatenate([np.empty(0, np.int64), *depths]) + common, branches, paths)


def in_order(texts: Sequence[Ids]) -> list[int]:
    """Indices of the texts, sorted by their ids; a text stands before those that it begins."""
    return sorted(range(len(texts)), key=lambda at: texts[at].astype(">u4").tobytes())


def shared_length(one: Ids, other: Ids) -> int:
    """How many ids two texts begin with in common."""
    least = min(len(one), len(other))
    differing = np.flatnonzero(one[:least] != other[:least])
    return int(differing[0]) if len(differing) else least
