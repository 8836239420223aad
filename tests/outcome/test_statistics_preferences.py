"""Standings from votes, beside choix and by simulation."""

import choix
import numpy as np
import pytest

from luthier.errors import DataError
from luthier.outcome.statistics import Vote, bradley_terry, first_position


def simulate_votes(strengths: dict[str, float], prompts: int, seed: int, first: float = 0.0) -> list[Vote]:
    """Every pair once a prompt; `first` is the log-odds that standing first is worth."""
    generator, votes, names = np.random.default_rng(seed), [], sorted(strengths)
    for prompt in range(prompts):
        for place, name in enumerate(names):
            for other in names[place + 1 :]:
                a, b = (name, other) if generator.random() < 0.5 else (other, name)
                ahead = 1 / (1 + np.exp(strengths[b] - strengths[a] - first))
                votes.append(Vote(str(prompt), a, b, a if generator.random() < ahead else b))
    return votes


def test_strengths_are_those_of_choix() -> None:
    votes = simulate_votes({"a": 0.8, "b": 0.0, "c": -0.5, "d": -1.5}, 30, seed=0)
    votes += [Vote("tie", "a", "b", ""), Vote("tie", "c", "d", "")]
    place = {"a": 0, "b": 1, "c": 2, "d": 3}
    # every vote twice, a tie once each way, one win and one loss against the average contestant (4)
    wins = [
        (place[one], place[other])
        for vote in votes
        for one, other in ((vote.first, vote.second), (vote.second, vote.first))
        for _ in range(2)
        if vote.winner == one
    ]
    wins += [pair for vote in votes if not vote.winner for pair in _both_ways(place[vote.first], place[vote.second])]
    wins += [pair for k in range(4) for pair in _both_ways(k, 4)]
    theirs = choix.opt_pairwise(5, wins, alpha=0.0, tol=1e-12)
    ours = bradley_terry(votes, resamples=10)
    assert [ours[name]["value"] for name in "abcd"] == pytest.approx((theirs[:4] - theirs[4]).tolist(), abs=1e-4)
    assert ours["a"]["n"] == 91
    assert list(ours) == sorted(ours, key=lambda name: -ours[name]["value"])


def _both_ways(first: int, second: int) -> list[tuple[int, int]]:
    return [(first, second), (second, first)]


def test_intervals_cover_the_differences() -> None:
    true = {"a": 0.6, "b": 0.0, "c": -0.6}
    covered = 0
    for seed in range(100):
        found = bradley_terry(simulate_votes(true, 60, seed), resamples=200, seed=seed)
        covered += sum(found[name]["ci"][0] <= value <= found[name]["ci"][1] for name, value in true.items())
    assert covered >= 0.89 * 300


def test_one_who_wins_every_vote_stays_finite() -> None:
    found = bradley_terry([Vote(str(k), "a", "b", "a") for k in range(40)])
    assert list(found) == ["a", "b"]
    assert 0 < found["a"]["value"] < 10
    assert found["a"]["value"] == pytest.approx(-found["b"]["value"])


def test_many_prompts_narrow_what_many_votes_on_one_do_not() -> None:
    winner = ["a"] * 2 + ["b"]
    spread = [Vote(str(k), "a", "b", winner[k % 3]) for k in range(90)]
    lumped = [Vote(str(k % 9), "a", "b", winner[k % 3]) for k in range(90)]
    assert np.ptp(bradley_terry(lumped)["a"]["ci"]) > 1.5 * np.ptp(bradley_terry(spread)["a"]["ci"])


def test_ties_alone_are_a_draw() -> None:
    found = bradley_terry([Vote("1", "a", "b", ""), Vote("2", "b", "a", "")])
    assert [one["value"] for one in found.values()] == pytest.approx([0, 0])


def test_contestants_that_never_met_have_no_common_standing() -> None:
    with pytest.raises(DataError, match=r"a, b \| c, d"):
        bradley_terry([Vote("1", "a", "b", "a"), Vote("2", "c", "d", "c")])


@pytest.mark.parametrize("vote", [Vote("1", "a", "b", "c"), Vote("1", "a", "a", "a")])
def test_a_vote_that_cannot_be_is_named(vote: Vote) -> None:
    with pytest.raises(DataError, match="vote 2"):
        bradley_terry([Vote("1", "a", "b", "a"), vote])
    with pytest.raises(DataError, match="no votes"):
        bradley_terry([])


def test_a_liking_for_the_first_place_shows() -> None:
    votes = simulate_votes({"a": 0.0, "b": 0.0}, 300, seed=1, first=1.0)
    found = first_position(votes)
    assert found is not None
    assert found["ci"][0] > 0.5
    assert found["value"] == pytest.approx(1 / (1 + np.exp(-1)), abs=0.08)
    assert first_position([Vote("1", "a", "b", "")]) is None
