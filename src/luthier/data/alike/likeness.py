"""Finds pictures that look the same and recordings that sound the same, whatever file they came in.

Knows decoded pictures and samples; refuses to know rows, files and texts. Pictures: a 64-bit perceptual hash of the
lower DCT coefficients (Zauner 2010), verified by the colours of a small copy. Sound: 32-bit sub-fingerprints of energy
differences between neighbouring bands and frames (Haitsma & Kalker 2002), matched by equal values and verified by the
bit error rate over the whole overlap.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import soxr
from numpy.typing import NDArray

from luthier.data.alike.standins import Indices, parted, stand_ins
from luthier.data.dedupe import Found, Merge

if TYPE_CHECKING:
    from PIL.Image import Image

Print = NDArray[np.uint32]
"""A recording's sub-fingerprints, one a frame; 0 where the frame is silent."""

SIDE = 16
"""Width and height of the small copy of a picture."""
_COLOURS, _FLAT_COLOURS = 12.0, 3.0
_FLAT = 6.0  # grey levels of deviation below which a picture has no structure to hash

_RATE, _FRAME, _HOP, _BANDS = 5_000, 2_048, 64, 33
_LOW, _HIGH = 300.0, 2_000.0
_SILENT = 1e-5  # of the loudest frame's energy
_OVERLAP = 0.8
_OWNERS = 24
_TRIES = 3


@dataclass(frozen=True, slots=True)
class PicturePrint:
    """`bits`: the perceptual hash; `small`: (SIDE, SIDE, 3) float32 colours, 0..255."""

    bits: int
    small: NDArray[np.float32]


def picture_print(picture: Image) -> PicturePrint:
    """What is compared of a decoded picture (RGB)."""
    import imagehash
    from PIL import Image as images

    packed = np.packbits(imagehash.phash(picture).hash.ravel())
    small = picture.convert("RGB").resize((SIDE, SIDE), images.Resampling.BOX)
    return PicturePrint(int.from_bytes(packed.tobytes(), "big"), np.asarray(small, dtype=np.float32))


def same_pictures(
    prints: Sequence[PicturePrint | None], distance: int, within: Sequence[Hashable] | None = None
) -> Found:
    """Pictures whose hashes differ in at most `distance` of 64 bits and whose colours agree.

    None stands for a picture that is passed over. Where `within` is given, only items of equal value are compared (such
    as the words that stand beside the picture). `similarity` is the share of equal bits.
    """
    rows = np.array([i for i, item in enumerate(prints) if item is not None], dtype=np.int64)
    bits = np.array([item.bits if item else 0 for item in prints], dtype=np.uint64)

    def equal_bits(some: Indices, others: Indices) -> NDArray[np.float32]:
        differing = np.bitwise_count(bits[some][:, None] ^ bits[others][None, :])
        return np.asarray((64 - differing) / np.float32(64), dtype=np.float32)

    def colours_differ(first: int, second: int) -> bool:
        a, b = prints[first], prints[second]
        if a is None or b is None:
            return True
        flat = min(float(a.small.mean(axis=2).std()), float(b.small.mean(axis=2).std())) < _FLAT
        return float(np.abs(a.small - b.small).mean()) > (_FLAT_COLOURS if flat else _COLOURS)

    found = Found(bytes_per_row=8.0 + SIDE * SIDE * 3 * 4)
    for part in parted(rows, within):
        alike = stand_ins(part, equal_bits, (64 - distance) / 64, colours_differ)
        found.merges += [Merge(row, into, "image", value) for row, into, value in alike.merged]
    found.merges.sort(key=lambda merge: merge.index)
    return found


def sound_print(samples: NDArray[np.float32]) -> Print:
    """Sub-fingerprints of mono samples at 16 kHz; one for each 12.8 ms, from frames of 0.41 s."""
    audio = soxr.resample(samples, 16_000, _RATE, quality="HQ")
    padded = np.concatenate([np.zeros(_FRAME // 2), audio, np.zeros(_FRAME // 2)]).astype(np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(padded, _FRAME)[::_HOP]
    edges = np.geomspace(_LOW, _HIGH, _BANDS + 1) * _FRAME / _RATE
    bounds = np.rint(edges).astype(np.int64)
    window = np.hanning(_FRAME).astype(np.float32)
    energy = np.concatenate(
        [
            np.add.reduceat(np.abs(np.fft.rfft(frames[at : at + 256] * window)) ** 2, bounds, axis=1)[:, :_BANDS]
            for at in range(0, len(frames), 256)
        ]
    )
    slope = energy[:, :-1] - energy[:, 1:]
    bits = (slope[1:] - slope[:-1]) > 0
    found = np.packbits(bits, axis=1).view(">u4").ravel().astype(np.uint32)
    total = energy.sum(axis=1)[1:]
    found[total <= _SILENT * total.max(initial=0.0)] = 0
    return found


def same_sounds(prints: Sequence[Print | None], rate: float, within: Sequence[Hashable] | None = None) -> Found:
    """Recordings of which at most a share `rate` of the bits differ, over at least 0.8 of the longer one.

    None stands for a recording that is passed over; `within` as in `same_pictures`. `similarity` is 1 - bit error rate.
    A short shift in time, other loudness, other coding and other sampling rates do not matter; speech of the same words
    spoken again has an error rate near one half.
    """
    rows = np.array([i for i, item in enumerate(prints) if item is not None and item.any()], dtype=np.int64)
    found = Found(bytes_per_row=float(np.mean([len(prints[i]) * 4 for i in rows.tolist()])) if len(rows) else 0.0)  # type: ignore[arg-type]
    into: set[int] = set()
    for part in parted(rows, within):
        for first, second, shifts in _meetings(prints, part):
            if first in into or second in into:
                continue
            a, b = prints[first], prints[second]
            if a is None or b is None:
                continue
            error = min(_error(a, b, shift) for shift in shifts)
            found.compared += 1
            if error <= rate:
                into.add(second)
                found.merges.append(Merge(second, first, "audio", 1.0 - error))
    found.merges.sort(key=lambda merge: merge.index)
    return found


def _meetings(prints: Sequence[Print | None], rows: Indices) -> list[tuple[int, int, list[int]]]:
    """(earlier, later, shifts in frames) of recordings with equal sub-fingerprints, by the later and then the earlier.

    A value that more than _OWNERS frames share is met by its first few alone.
    """
    values = [np.asarray(prints[row]) for row in rows.tolist()]
    lengths = np.array([len(value) for value in values], dtype=np.int64)
    flat = np.concatenate([*values, np.empty(0, dtype=np.uint32)])
    owner = np.repeat(rows, lengths)
    place = np.arange(len(flat)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    heard = np.flatnonzero(flat)
    order = heard[np.argsort(flat[heard], kind="stable")]
    ranked, owner, place = flat[order], owner[order], place[order]
    start = np.searchsorted(ranked, ranked)
    votes: list[NDArray[np.int64]] = []
    for step in range(1, _OWNERS):
        # With the one `step` before it of the same value, or, in crowds, with one of the first.
        at = np.arange(step, len(ranked))
        at = at[at - step >= start[at]]
        votes.append(_votes(owner, place, at - step, at))
        late = np.flatnonzero(np.arange(len(ranked)) - start >= _OWNERS + step - 1) if step <= 4 else at[:0]
        votes.append(_votes(owner, place, start[late] + step - 1, late))
    every = np.concatenate(votes)
    if not len(every):
        return []
    found, counts = np.unique(every, axis=0, return_counts=True)
    meetings: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for (later, earlier, shift), count in zip(found.tolist(), counts.tolist(), strict=True):
        meetings.setdefault((later, earlier), []).append((-count, shift))
    return [
        (earlier, later, [shift for _, shift in sorted(shifts)[:_TRIES]])
        for (later, earlier), shifts in sorted(meetings.items())
    ]


def _votes(owner: Indices, place: Indices, first: Indices, second: Indices) -> NDArray[np.int64]:
    """(later recording, earlier one, shift) of frames of equal value; (votes, 3). The order by value is stable, so
    `first` belongs to the earlier recording."""
    other = owner[first] != owner[second]
    first, second = first[other], second[other]
    return np.stack([owner[second], owner[first], place[second] - place[first]], axis=1)


def _error(first: Print, second: Print, shift: int) -> float:
    """Bit error rate where `second` lies `shift` frames later; 1 where they overlap too little."""
    begin, end = max(0, -shift), min(len(first), len(second) - shift)
    if end - begin < _OVERLAP * max(len(first), len(second)):
        return 1.0
    a, b = first[begin:end], second[begin + shift : end + shift]
    heard = (a != 0) | (b != 0)
    return float(np.bitwise_count(a[heard] ^ b[heard]).mean() / 32) if heard.any() else 1.0
