"""Cuts texts into words and word shingles and hashes them, a batch at a time and in numpy alone.

Knows what a word is; refuses to know rows, files and what two equal shingles mean. A word is a run of ASCII letters,
digits and characters beyond ASCII; case, Unicode variants (NFKC) and punctuation do not count, and each Chinese or
Japanese character is a word of its own. Words are hashed by differences of a polynomial prefix hash modulo 2^64
(Karp & Rabin 1987), mixed by SplitMix64's finaliser, so that no Python runs per word.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Offsets = NDArray[np.int64]

PIECE = 1 << 18
"""Bytes of text that are worked on at once: what numpy writes for them stays in the processor's cache."""
_FACTOR = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64
LOWER = np.frombuffer(bytes(range(256)).lower(), dtype=np.uint8)
"""(256,) each byte, ASCII capitals as lower-case letters: a table for `hash_words`."""
_WORD = np.array([chr(i).isalnum() if i < 128 else True for i in range(256)])
_WORD[1] = True  # CAPITAL
APART = re.compile("([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])")
"""A character that is a word by itself: Chinese and Japanese."""
PUNCTUATION = re.compile(
    "[\x01\u0080-\u00bf\u00d7\u00f7\u037e\u0387\u055a-\u055f\u0589\u05be\u05c0\u05c3\u060c\u061b\u061f\u066a-\u066d"
    "\u06d4\u0964\u0965\u2000-\u206f\u20a0-\u20cf\u2190-\u2bff\u3000-\u303f]"
)
"""A character beyond ASCII that parts words, and CAPITAL's own."""
_CAPITAL = re.compile("(?<![^\\W_])([^\\W\\d_a-zA-Z])")
CAPITAL = "\x01"
"""Stands before a capital letter beyond ASCII that begins a word, where `marked` was asked for."""


@dataclass(frozen=True, slots=True)
class Shingles:
    """Hashes of a batch: row i owns hashes[offsets[i]:offsets[i + 1]], in the text's order and with repeats."""

    offsets: Offsets
    hashes: Hashes


@dataclass(frozen=True, slots=True)
class Words:
    """Where the words of a piece of text lie: `start` and `end` in `data` (bytes), and `row_starts` (rows + 1,)."""

    data: NDArray[np.uint8]
    start: NDArray[np.int64]
    end: NDArray[np.int64]
    row_starts: Offsets


def fold(text: str) -> str:
    """The text as its words are compared: NFKC, case folded, punctuation beyond ASCII as spaces, CJK set apart."""
    if text.isascii():
        return text.replace(CAPITAL, " ") if CAPITAL in text else text
    plain = unicodedata.normalize("NFKC", text).casefold()
    return APART.sub(r" \1 ", PUNCTUATION.sub(" ", plain))


def marked(text: str) -> str:
    """As `fold`, with its case kept and CAPITAL before capitals beyond ASCII."""
    if text.isascii():
        return text.replace(CAPITAL, " ") if CAPITAL in text else text
    plain = PUNCTUATION.sub(_stop_or_space, unicodedata.normalize("NFKC", text))
    return APART.sub(r" \1 ", _CAPITAL.sub(lambda m: CAPITAL + m[1] if m[1].isupper() else m[1], plain))


def _stop_or_space(found: re.Match[str]) -> str:
    return "." if found[0] in "\u3002\u0964\u06d4\u061f" else " "


def shingle_batch(texts: Sequence[str] | pa.StringArray, size: int) -> Shingles:
    """Hash all runs of `size` words inside each text (a list of str, or an Arrow string array).

    A text of fewer words has one shingle, of all its words; a text without words has none.
    """
    listed = texts if isinstance(texts, list) else texts.to_pylist() if hasattr(texts, "to_pylist") else list(texts)
    counts, parts = [np.zeros(1, dtype=np.int64)], [np.empty(0, dtype=np.uint64)]
    for piece in pieces([fold(text or "") for text in listed]):
        words = split_words(piece)
        found = _combine(hash_words(words, LOWER), words.row_starts, size)
        counts.append(np.diff(found.offsets))
        parts.append(found.hashes)
    return Shingles(np.cumsum(np.concatenate(counts)), np.concatenate(parts))


def pieces(texts: Sequence[str]) -> Iterator[list[bytes]]:
    """The texts as UTF-8, some PIECE bytes at a time; a longer text is a piece of its own."""
    held: list[bytes] = []
    total = 0
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        if held and total + len(data) > PIECE:
            yield held
            held, total = [], 0
        held.append(data)
        total += len(data)
    if held:
        yield held


def split_words(piece: Sequence[bytes]) -> Words:
    """Find the words of a piece; a word never reaches from one text into the next."""
    data = np.frombuffer(b"\n" + b"\n".join(piece) + b"\n", dtype=np.uint8)
    inside = _WORD[data]
    edges = np.flatnonzero(inside[1:] != inside[:-1]) + 1
    start, end = edges[::2], edges[1::2]
    first = np.cumsum([1, *(len(text) + 1 for text in piece)])
    return Words(data, start, end, np.searchsorted(start, first))


def hash_words(words: Words, table: NDArray[np.uint8] | None = None) -> Hashes:
    """One mixed 64-bit hash per word; `table` (256,) maps bytes first (to lower case, say)."""
    data = words.data if table is None else table[words.data]
    powers, inverses = _powers(len(data))
    prefix = np.zeros(len(data) + 1, dtype=np.uint64)
    np.cumsum(data * powers, out=prefix[1:])
    found = prefix[words.end]
    found -= prefix[words.start]
    found *= inverses[words.start]
    return mix(found)


def mix(values: Hashes) -> Hashes:
    """SplitMix64's finaliser, in place: every bit of the input moves half the bits of the output."""
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def _combine(words: Hashes, row_starts: Offsets, size: int) -> Shingles:
    lengths = np.diff(row_starts)
    counts = np.where(lengths >= size, lengths - size + 1, np.minimum(lengths, 1))
    factors = [np.uint64(pow(_FACTOR, 2 * k + 1, 1 << 64)) for k in range(size)]
    padded = np.concatenate([words, np.zeros(size, dtype=np.uint64)])
    total = padded[: len(words)] * factors[0]
    for k in range(1, size):
        total += padded[k : k + len(words)] * factors[k]
    # A shingle must end inside its row; only rows shorter than `size` keep a shorter one.
    keep = np.ones(len(words) + 1, dtype=bool)
    for k in range(1, size):
        keep[np.maximum(row_starts[1:] - k, row_starts[:-1])[lengths > 0]] = False
    for row in np.flatnonzero((lengths > 0) & (lengths < size)).tolist():
        at, stop = row_starts[row], row_starts[row + 1]
        total[at] = (words[at:stop] * np.array(factors[: stop - at])).sum()
        keep[at] = True
    return Shingles(np.concatenate([[0], np.cumsum(counts)]), mix(total[keep[:-1]]))


_held: list[Hashes] = [np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.uint64)]


def _powers(length: int) -> tuple[Hashes, Hashes]:
    """Powers of the factor and of its inverse, (length,) each; made once for pieces of the usual size."""
    if len(_held[0]) < length:
        size = max(length, PIECE + 4096)
        grown = [_power_table(factor, size) for factor in (_FACTOR, pow(_FACTOR, -1, 1 << 64))]
        if size > 8 * PIECE:  # a giant text: not kept
            return grown[0], grown[1]
        _held[:] = grown
    return _held[0][:length], _held[1][:length]


def _power_table(factor: int, size: int) -> Hashes:
    table = np.full(size, factor, dtype=np.uint64)
    table[0] = 1
    return np.multiply.accumulate(table)
