"""The arithmetic of a run: steps, tokens, and which forward pass is the largest."""

from __future__ import annotations

import pytest

from luthier.recipe_train import TrainConfig
from luthier.train.plan import load_of, make_plan

LENGTHS = [10, 20, 30, 40, 5]
TARGETS = [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("rows", "keys", "per_epoch", "steps", "epochs", "warmup"),
    [
        (100, {"epochs": 2, "batch_size": 10}, 10, 20, 2, 1),
        (101, {"epochs": 2, "batch_size": 10}, 11, 22, 2, 1),
        (100, {"epochs": 0.25, "batch_size": 10}, 10, 3, 1, 0),
        (100, {"max_steps": 60, "batch_size": 8}, 13, 60, 5, 3),
        (100, {"epochs": 2, "batch_size": 10, "warmup_steps": 7}, 10, 20, 2, 7),
        (100, {"max_steps": 5, "batch_size": 10, "warmup_steps": 7}, 10, 5, 1, 5),
        (3, {"epochs": 1, "batch_size": 10}, 1, 1, 1, 0),
    ],
)
def test_steps_follow_from_rows_and_epochs(
    rows: int, keys: dict[str, float], per_epoch: int, steps: int, epochs: int, warmup: int
) -> None:
    plan = make_plan(rows, TrainConfig(**keys))  # type: ignore[arg-type]
    assert (plan.rows, plan.steps_per_epoch, plan.steps, plan.epochs, plan.warmup_steps) == (
        rows,
        per_epoch,
        steps,
        epochs,
        warmup,
    )


def test_a_load_adds_up_the_tokens_of_all_passes() -> None:
    load = load_of([[[0, 1], [2]], [[3, 4]]], LENGTHS, TARGETS, packed=True)
    assert (load.steps, load.rows, load.tokens, load.target_tokens, load.most_passes) == (2, 5, 105, 15, 2)
    assert (load.largest, load.largest_tokens) == ((3, 4), 45)
    assert load.tokens_in(10) == 210


def test_a_row_that_is_shown_twice_counts_twice() -> None:
    assert load_of([[[3]], [[3]]], LENGTHS, TARGETS, packed=True).tokens == 80


def test_padding_makes_another_pass_the_largest() -> None:
    steps = [[[2, 4, 4]], [[3, 4]]]  # 40 and 45 tokens; 90 and 80 places where they are padded
    assert load_of(steps, LENGTHS, TARGETS, packed=True).largest == (3, 4)
    padded = load_of(steps, LENGTHS, TARGETS, packed=False)
    assert (padded.largest, padded.largest_tokens, padded.tokens) == ((2, 4, 4), 40, 85)


@pytest.mark.parametrize(("epochs", "steps"), [(0.07, 7), (1.1, 110), (0.29, 29), (3, 300), (0.001, 1)])
def test_parts_of_an_epoch_are_not_rounded_up_by_the_machine(epochs, steps):
    assert make_plan(100, TrainConfig(batch_size=1, epochs=epochs)).steps == steps
