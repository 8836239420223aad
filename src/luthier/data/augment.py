"""Pictures and sound of training rows changed a little: cut, mirrored, coloured, made noisy, faster or louder.

What is done to a medium follows from (seed, epoch, row id, place in the row) alone: not from the order of rows, from
workers or from what else is in a batch. A picture keeps its size, so it keeps its number of vectors. A recording that
is played faster is filled up with silence to its old length; one that is played slower may be as long as there is
`room` for, so no word is ever lost. Knows no rows, tables and models; no torch.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import soxr
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from luthier.data.media import RATE
from luthier.data.mediasource import Film
from luthier.recipe_data import Augmentation
from luthier.schema import PartType, canonical

_STRIP = 2**20
"""Pixels that are given noise together: in floats a whole picture of the largest size would take 2 GB."""


@dataclass(frozen=True, slots=True)
class Draw:
    """What the augmentation of a medium follows from; two media of a row differ in `place`."""

    seed: int
    epoch: int
    row: str
    place: int

    def generator(self) -> np.random.Generator:
        """The random numbers of this draw, from the beginning."""
        digest = hashlib.sha256(canonical([self.seed, self.epoch, self.row, self.place]).encode()).digest()
        return np.random.default_rng(np.random.SeedSequence(int.from_bytes(digest)))


def changes(kind: PartType, settings: Augmentation) -> bool:
    """Whether media of a kind are changed at all."""
    if kind == "video":
        return settings.of_pictures or settings.of_sound
    return settings.of_sound if kind == "audio" else settings.of_pictures


def augment(kind: PartType, medium: Any, settings: Augmentation, draw: Draw, room: int = 0) -> Any:
    """A decoded medium (see MediaSource.load) as it is shown this time; the same object where nothing changes it.

    room: samples that a recording may take where it is played slower; 0: as many as it has.
    """
    if kind == "image":
        return augment_picture(medium, settings, draw)
    if kind == "audio":
        return augment_sound(medium, settings, draw, room)
    return augment_film(medium, settings, draw)


def augment_film(film: Film, settings: Augmentation, draw: Draw) -> Film:
    """A film whose frames are all changed in one way. Its sound keeps its speed, and so stays with the pictures."""
    frames = tuple(augment_picture(frame, settings, draw) for frame in film.frames)
    heard = film.sound
    if heard is not None:
        heard = augment_sound(heard, replace(settings, speed=0.0), draw)
    return replace(film, frames=frames, sound=heard)


def augment_picture(picture: Image.Image, settings: Augmentation, draw: Draw) -> Image.Image:
    """A picture in RGB, cut and resized to its old size, mirrored, its colours changed, with noise: in this order."""
    if not settings.of_pictures:
        return picture
    generator = draw.generator()
    # Always all seven: a setting that is switched on later leaves what the others draw as it was.
    share, left, top, side, *colours = generator.random(7)
    if settings.crop:
        box = crop_box(picture.size, 1.0 - settings.crop * share, left, top)
        picture = picture.crop(box).resize(picture.size, Image.Resampling.BICUBIC)
    if settings.flip and side < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if settings.colour:
        kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
        for enhance, number in zip(kinds, colours, strict=True):
            picture = enhance(picture).enhance(1.0 + settings.colour * (2.0 * number - 1.0))
    return _noisy(picture, settings.noise * 255.0, generator) if settings.noise else picture


def crop_box(size: tuple[int, int], share: float, left: float, top: float) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) in pixels of a part with at least `share` of the area and the shape of the whole.

    `left` and `top` in 0..1 say where it lies between the edges.
    """
    width, height = (max(1, min(whole, math.ceil(whole * math.sqrt(share)))) for whole in size)
    x, y = int(left * (size[0] - width + 1)), int(top * (size[1] - height + 1))
    return x, y, x + width, y + height


def augment_sound(
    samples: NDArray[np.float32], settings: Augmentation, draw: Draw, room: int = 0
) -> NDArray[np.float32]:
    """(samples,) at 16 kHz at another speed, with noise, louder or softer: in this order. Nothing is cut off.

    The result has its old length, or up to `room` samples where it is slower. What was within -1..1 stays there: a
    gain, or noise, that would leave it is scaled down for the whole recording.
    """
    if not settings.of_sound:
        return samples
    generator = draw.generator()
    speed, gain = 2.0 * generator.random(2) - 1.0
    peak = float(np.abs(samples).max(initial=0.0))
    found = _at_speed(samples, 1.0 + settings.speed * speed, max(room, len(samples))) if settings.speed else samples
    if settings.noise:
        level = settings.noise * math.sqrt(float(np.mean(np.square(samples, dtype=np.float64)))) if peak else 0.0
        found = found + np.float32(level) * generator.standard_normal(len(found), dtype=np.float32)
    most = max(peak, 1.0)
    factor = 10.0 ** (settings.gain * gain / 20.0)
    loudest = float(np.abs(found).max(initial=0.0))
    if loudest * factor > most:
        factor = most / loudest
    return np.asarray(np.clip(found * np.float32(factor), -most, most), dtype=np.float32)  # the product may round up


def _at_speed(samples: NDArray[np.float32], speed: float, room: int) -> NDArray[np.float32]:
    """Played `speed` times as fast, or as slowly as fits into `room`; silence follows where that is shorter."""
    rate = max(round(RATE * speed), -(-len(samples) * RATE // room))
    played = np.asarray(soxr.resample(samples, rate, RATE, quality="HQ"), dtype=np.float32)
    found = np.zeros(max(len(samples), len(played)), dtype=np.float32)
    found[: len(played)] = played
    return found


def _noisy(picture: Image.Image, deviation: float, generator: np.random.Generator) -> Image.Image:
    """Normal noise on every value of every pixel, in steps of 1 out of 255."""
    pixels = np.array(picture)
    rows = max(1, _STRIP // picture.width)
    for begin in range(0, picture.height, rows):
        strip = pixels[begin : begin + rows]
        noise = generator.standard_normal(strip.shape, dtype=np.float32)
        strip[:] = np.clip(np.rint(strip + np.float32(deviation) * noise), 0, 255)
    return Image.fromarray(pixels)
