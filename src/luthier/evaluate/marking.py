"""Which items of an exam are scored together, and their sums, however much memory there is.

This module knows encoded questions and a scorer, and no answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import torch
from numpy.typing import NDArray

from luthier.errors import LuthierError
from luthier.evaluate.exam_encoded import Encoded
from luthier.evaluate.loglikelihood import Scorer, beginning
from luthier.models.token_tree import in_order
from luthier.models.tree_attention import Prefix


class Marker:
    """Scores items (by their number in the exam) with one model; what a wording's questions share is read once."""

    def __init__(self, asked: Sequence[Sequence[Encoded]], scorer: Scorer) -> None:
        self.asked, self.scorer = asked, scorer
        self.items = in_order([ways[0].texts[0].ids for ways in asked])
        """In an order in which neighbours begin alike."""
        self.most = len(asked)
        """Items in one pass; halved where memory runs out."""
        self.prefixes: dict[str, Prefix] = {}
        for prompt in dict.fromkeys(one.prompt for one in asked[0]):
            texts = [text for ways in asked for one in ways if one.prompt == prompt for text in one.texts]
            self.prefixes[prompt] = scorer.prefix(beginning(texts))

    def lines(self, tokens: int) -> list[list[int]]:
        """The items in lines of about so many tokens to read; one that is longer has a line of its own."""
        lines: list[list[int]] = [[]]
        total = 0
        for at in self.items:
            size = sum(self._new_tokens(one) for one in self.asked[at])
            if lines[-1] and total + size > tokens:
                lines.append([])
                total = 0
            lines[-1].append(at)
            total += size
        return lines

    def options(self, at: int) -> int:
        """How many sums an item has: its options in all wordings and orders."""
        return sum(len(one.texts) for one in self.asked[at])

    def score(self, items: Sequence[int]) -> NDArray[np.float64]:
        """Log-likelihoods in nats of the items' options, one after the other: wordings and orders, then options.

        Raises LuthierError where not even one item fits into memory.
        """
        found: list[NDArray[np.float64]] = []
        begin = 0
        while begin < len(items):
            part = items[begin : begin + self.most]
            sums = None
            with suppress(torch.OutOfMemoryError):
                sums = self._sums(part)
            if sums is None:
                self._take_less(part)
            else:
                found.append(sums)
                begin += len(part)
        return np.concatenate(found)

    def _sums(self, items: Sequence[int]) -> NDArray[np.float64]:
        texts = [(one.prompt, text) for at in items for one in self.asked[at] for text in one.texts]
        found = np.empty(len(texts))
        for prompt, prefix in self.prefixes.items():
            mine = [number for number, (its, _) in enumerate(texts) if its == prompt]
            found[mine] = self.scorer([texts[number][1] for number in mine], prefix)
        return found

    def _take_less(self, items: Sequence[int]) -> None:
        if len(items) == 1:
            raise LuthierError("memory ran out while one question was read", "shorten it, or take a smaller base")
        self.most = len(items) // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _new_tokens(self, one: Encoded) -> int:
        """Tokens of the longest option's text, and of the other options alone."""
        counts = [text.count for text in one.texts]
        longest = max(len(text.ids) for text in one.texts)
        return longest - len(self.prefixes[one.prompt].ids) + sum(counts) - max(counts)
