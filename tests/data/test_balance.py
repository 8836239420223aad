"""Balancing: exact counts, a seed, and rows without a class left as they are."""

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_sample_weight

from luthier.data.balance import balance
from luthier.errors import DataError

LABELS = ["pass"] * 7 + ["fail"] * 3 + [""] * 2


def test_down_keeps_as_many_as_the_smallest_class_has() -> None:
    found = balance(LABELS, "down", 1)
    assert found.keep[:7].sum() == 3
    assert found.keep[7:].all()
    assert (found.repeats == found.keep).all()
    assert (balance(LABELS, "down", 1).keep == found.keep).all()
    assert any((balance(LABELS, "down", seed).keep != found.keep).any() for seed in range(2, 6))


def test_up_repeats_whole_rows_to_the_largest_class() -> None:
    found = balance(LABELS, "up", 1)
    assert found.repeats[:7].tolist() == [1] * 7
    assert sorted(found.repeats[7:10].tolist()) == [2, 2, 3]
    assert found.repeats[10:].tolist() == [1, 1]


def test_weights_are_those_of_scikit_learn_with_mean_one() -> None:
    found = balance(LABELS, "weights", 1)
    assert np.allclose(found.weights[:10], compute_sample_weight("balanced", LABELS[:10]))
    assert np.isclose(found.weights[:10].mean(), 1)
    assert found.weights[10:].tolist() == [1, 1]
    assert "fail" in found.table()


def test_what_cannot_be_balanced_is_said() -> None:
    with pytest.raises(DataError, match="'sideways' is not a method"):
        balance(LABELS, "sideways", 1)
    with pytest.raises(DataError, match="all rows are of the class 'pass'"):
        balance(["pass", ""], "up", 1)
