"""Vectors as ids beyond the vocabulary: what is written is read back, and what is forgotten is never met again."""

from __future__ import annotations

import numpy as np
import pytest

from luthier.models.senses.base import Medium
from luthier.models.senses.numbers import Numbers
from support.mediabox import SmallSenses

IMAGE, AUDIO = 1, 2
FIRST = 32
ONE, OTHER, HEARD = Medium("image", "one", 3), Medium("image", "other", 2), Medium("audio", "heard", 2)


@pytest.fixture
def numbers() -> Numbers:
    return Numbers(SmallSenses(), FIRST)


def test_what_is_written_is_read_back(numbers: Numbers) -> None:
    # The spelling of one medium may have words between its slots.
    ids = [7, IMAGE, IMAGE, 9, IMAGE, 8, AUDIO, AUDIO, IMAGE, IMAGE, 7, IMAGE, IMAGE, IMAGE]
    media = (ONE, HEARD, OTHER, ONE)
    written = numbers.write(ids, media)
    assert written.tolist() == [7, 32, 33, 9, 34, 8, 35, 36, 37, 38, 7, 32, 33, 34], "equal media have equal numbers"
    read, found = numbers.read(written)
    assert (read.tolist(), found) == (ids, media)
    assert numbers.read(written[5:])[1] == (HEARD, OTHER, ONE)
    assert numbers.read(np.array([7, 8]))[1] == ()
    assert [numbers.medium(int(which)) for which in numbers.which(np.array([34, 36]))] == [(ONE, 32), (HEARD, 35)]


def test_one_medium_read_in_two_ways_has_two_ranges(numbers: Numbers) -> None:
    beside = Medium("audio", "heard", 2, mode="beside")
    assert numbers.write([AUDIO] * 4, (HEARD, beside)).tolist() == [32, 33, 34, 35]


def test_forgotten_numbers_are_never_given_again(numbers: Numbers) -> None:
    numbers.write([IMAGE] * 5, (ONE, OTHER))
    numbers.forget(ONE)
    assert numbers.read([35, 36])[1] == (OTHER,)
    assert numbers.write([IMAGE] * 3, (ONE,)).tolist() == [37, 38, 39]


def test_slots_that_are_not_those_of_the_media_are_an_error(numbers: Numbers) -> None:
    with pytest.raises(ValueError, match="cannot assign 3 input values"):
        numbers.write([IMAGE] * 4, (ONE,))
