"""The order of rows is a pure function of (seed, epoch), and every row is seen once an epoch."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.models.batches import VerdictFeed, epoch_order, plan_micros, ranking_pairs
from luthier.models.encode import Example
from luthier.models.feeds import stream
from luthier.recipe_train import TrainConfig


def make(number: int, length: int, grade: float) -> Example:
    return Example(
        f"row{number}",
        "s",
        f"g{number}",
        tuple(range(1, length + 1)),
        f"sha256:{number}",
        1,
        2,
        grade,
        grade / 5,
        round(grade * 2 - 2),
    )


def made(count: int) -> list[Example]:
    return [make(i, 5 + (i * 7) % 23, 1 + (i * 5 % 9) / 2) for i in range(count)]


def feed_of(examples: list[Example], micro: int, mark: float | None = None, store: Any = None, pad: int = 0):
    train = TrainConfig(batch_size=16, micro_batch_size=micro)
    return VerdictFeed(examples, store, pad, train, seed=5, pass_mark=mark)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.integers(1, 500), min_size=1, max_size=120), st.integers(1, 9), st.integers(0, 99), st.integers(0, 9)
)
def test_an_epoch_is_a_permutation_and_pure(lengths, batch_size, seed, epoch):
    order = epoch_order(lengths, batch_size, seed, epoch)
    assert sorted(row for rows in order for row in rows) == list(range(len(lengths)))
    assert all(1 <= len(rows) <= batch_size for rows in order)
    assert order == epoch_order(lengths, batch_size, seed, epoch)
    assert len(order) == -(-len(lengths) // batch_size)


def test_epochs_and_seeds_differ_and_the_global_state_is_left():
    lengths = list(range(64))
    before = torch.random.get_rng_state()
    orders = [str(epoch_order(lengths, 4, seed, epoch)) for seed in (1, 2) for epoch in range(4)]
    assert len(set(orders)) == len(orders)
    assert torch.equal(before, torch.random.get_rng_state())


def test_rows_of_similar_length_share_a_batch():
    lengths = [(i * 37) % 400 for i in range(128)]
    spread = [max(lengths[r] for r in rows) - min(lengths[r] for r in rows) for rows in epoch_order(lengths, 8, 1, 0)]
    assert sum(spread) / len(spread) < 80  # unsorted batches of 8 spread over about 300 of the 400


@pytest.mark.parametrize("mark", [None, 4.0])
@pytest.mark.parametrize("micro", [2, 3, 4, 16])
def test_every_row_is_covered_once_an_epoch(micro, mark):
    examples = made(37)
    feed = feed_of(examples, micro, mark)
    assert feed.steps_per_epoch == 3
    for epoch in range(3):
        steps = [feed.rows(3 * epoch + place) for place in (1, 2, 3)]
        assert sorted(map(len, steps)) == [5, 16, 16]
        micros = [m for rows in steps for m in plan_micros(rows, examples, micro, mark)]
        assert Counter(r for m in micros for r in m.rows) == Counter(range(37))
        assert all(0 < len(m.rows) <= micro for m in micros)


def test_any_step_can_be_asked_for_first():
    feed = feed_of(made(300), 4)
    per_epoch = feed.steps_per_epoch
    assert per_epoch == 19
    steps = [feed.rows(step) for step in range(1, 3 * per_epoch + 1)]
    assert len({str(rows) for rows in steps}) == 3 * per_epoch
    for step in (50, 1, 20, 19, 38, 57):
        assert feed.rows(step) == feed_of(made(300), 4).rows(step) == steps[step - 1]


def test_steps_hold_the_same_rows_and_pairs_whatever_the_micro_batch():
    examples = made(37)

    def steps(micro: int) -> list[tuple[set[int], set[tuple[str, str]]]]:
        found = []
        feed = feed_of(examples, micro, 4.0)
        for step in range(1, 7):
            micros = plan_micros(feed.rows(step), examples, micro, 4.0)
            pairs = {(examples[m.rows[a]].id, examples[m.rows[b]].id) for m in micros for a, b in m.pairs}
            found.append(({row for m in micros for row in m.rows}, pairs))
        return found

    whole = steps(16)
    assert sum(len(pairs) for _, pairs in whole) > 10
    assert steps(2) == steps(4) == steps(5) == whole


@pytest.mark.parametrize("mark", [None, 4.0])
def test_halving_makes_passes_smaller_and_keeps_the_rows_and_pairs_of_a_step(bench, mark):
    one = bench()
    feed = feed_of(one.examples, 8, mark, one.store)
    sizes, kept = [], set()
    for halvings in range(9):
        batches = feed.batches(1, halvings)
        if not batches:
            break
        sizes.append(max(len(batch.ids) for batch in batches))
        pairs = sorted((batch.ids[a], batch.ids[b]) for batch in batches for a, b in batch.pairs)
        kept.add(str((sorted(name for batch in batches for name in batch.ids), pairs)))
    assert sizes == ([8, 4, 2, 1] if mark is None else [8, 4, 2])  # a pair is never split
    assert len(kept) == 1
    assert ("[]" in kept.pop()) == (mark is None)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([1.0, 2.5, 3.5, 4.0, 4.5, 5.0]), min_size=1, max_size=24))
def test_pairs_cross_the_mark_and_are_disjoint(grades):
    examples = [make(i, 6, grade) for i, grade in enumerate(grades)]
    pairs = ranking_pairs(range(len(grades)), examples, 4.0)
    assert all(grades[a] >= 4.0 > grades[b] for a, b in pairs)
    used = [row for pair in pairs for row in pair]
    assert len(used) == len(set(used))
    assert len(pairs) == min(sum(g >= 4 for g in grades), sum(g < 4 for g in grades))


def test_no_pass_mark_means_no_pairs():
    assert not any(m.pairs for m in plan_micros(range(20), made(20), 4))


def test_collate_pads_on_the_right_and_groups_sound_by_length(bench):
    one = bench()
    batch, examples = one.batch(), one.examples
    longest = max(len(e.ids) for e in examples)
    assert batch.input_ids_BL.shape == (len(examples), longest)
    for i, e in enumerate(examples):
        assert tuple(batch.input_ids_BL[i, : len(e.ids)].tolist()) == e.ids
        assert set(batch.input_ids_BL[i, len(e.ids) :].tolist()) <= {one.base.tokenizer.pad_token_id}
        assert batch.readout_B[i] == len(e.ids) - 1
        assert batch.readout_B[i] == len(e.ids) - 1
    assert batch.tokens == sum(len(e.ids) for e in examples)
    assert sorted(int(r) for g in batch.media for r in g.rows_G) == list(range(len(examples)))
    for group in batch.media:
        for row, value in zip(group.rows_G.tolist(), group.values, strict=True):
            assert torch.equal(value, one.store.load(examples[row].media))
            assert len(value) == examples[row].media_length
    assert len(batch.media) == 4
    torch.testing.assert_close(batch.target_B, torch.tensor([e.target for e in examples]))


def test_workers_do_not_change_a_batch(bench):
    one = bench()
    feed = feed_of(one.examples, 3, 4.0, one.store, one.base.tokenizer.pad_token_id)
    alone, helped = (list(stream(feed, 2, 4, workers=workers)) for workers in (0, 2))
    assert [len(group) for group in alone] == [len(group) for group in helped]
    assert len(alone) == 3
    alone, helped = ([batch for group in groups for batch in group] for groups in (alone, helped))
    assert sum(len(batch.pairs) for batch in alone) >= 6
    for a, b in zip(alone, helped, strict=True):
        assert (a.ids, a.pairs) == (b.ids, b.pairs)
        for name in ("input_ids_BL", "readout_B", "target_B", "level_B"):
            assert torch.equal(getattr(a, name), getattr(b, name))
        assert all(
            torch.equal(x.values, y.values) and torch.equal(x.rows_G, y.rows_G)
            for x, y in zip(a.media, b.media, strict=True)
        )
