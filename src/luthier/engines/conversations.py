"""What a model has read of a conversation, kept so that the next turn reads only what is new.

One conversation a model, for a few models: keys and values of one adapter mean nothing to another. What was read is
kept as ids with the library's own cache, which is cut back to where the new text begins to differ. Knows no tokenizer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import DynamicCache

MOST = 3
"""Conversations that are kept: two models side by side, and a third. 1,000 tokens of a 1B model are some 64 MB."""


@dataclass
class Reading:
    """A text as far as a model has read it: `cache` holds what the attention keeps of `ids`."""

    cache: Any
    ids: list[int] = field(default_factory=list)
    last: int | None = None
    """The greatest position; None where it is to be found anew."""
    stretched: bool = False
    """Whether it was read by the positions of long texts (`tree_reading.stretches_beyond`)."""

    def forget(self, config: Any) -> list[int]:
        """Be as if nothing had been read; returns what was."""
        read, self.ids, self.last, self.cache = self.ids, [], None, DynamicCache(config=config)
        return read


class Conversations:
    """The last reading of each model, the longest unused going first."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Reading] = OrderedDict()

    def begin(self, model: str, ids: Sequence[int], config: Any) -> Reading:
        """The longest known beginning of `ids`, without its last token, which is to be read for what follows it.

        It is this model's last reading from now on, and goes on as it is read.
        """
        known = self._kept.pop(model, None)
        self._kept[model] = _same_beginning(known, ids) or Reading(DynamicCache(config=config))
        while len(self._kept) > MOST:
            self._kept.popitem(last=False)
        return self._kept[model]

    def clear(self) -> None:
        self._kept.clear()


def _same_beginning(known: Reading | None, ids: Sequence[int]) -> Reading | None:
    # A pass that was cut off has left more in the cache than was read.
    if known is None or known.cache.get_seq_length() != len(known.ids):
        return None
    most = min(len(known.ids), len(ids) - 1)
    same = next((i for i in range(most) if known.ids[i] != ids[i]), most)
    if not same or not _cut(known.cache, len(known.ids) - same):
        return None
    return Reading(known.cache, list(ids[:same]), stretched=known.stretched)


def _cut(cache: Any, count: int) -> bool:
    """Take the last `count` tokens back; False where that is not possible without a trace.

    A layer with a window has forgotten what lay before it, and layers with a state have no tokens to take away.
    """
    if not cache.is_croppable:
        return False
    if not count:
        return True
    windows = [(layer.get_seq_length(), getattr(layer, "sliding_window", None)) for layer in cache.layers]
    if any(window is not None and length >= window for length, window in windows):
        return False
    cache.crop(-count)
    return True
