"""Standings from pairwise votes: who is preferred, by how much, and how sure that is.

The module refuses to know who voted and what was read. Shape suffixes: K contestants, G prompts, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from luthier.assess.metrics import Floats
from luthier.errors import DataError, LuthierError
from luthier.outcome.statistics.clusters import Estimate, bootstrap_weights, cluster_ids
from luthier.outcome.statistics.intervals import accuracy_interval

_STEPS = 200


@dataclass(frozen=True)
class Vote:
    """One vote between two answers to one prompt, `first` shown first; `winner` is one of both, or "" for a tie."""

    prompt: str
    first: str
    second: str
    winner: str


def bradley_terry(
    votes: Sequence[Vote], *, level: float = 0.95, resamples: int = 1000, seed: int = 0
) -> dict[str, Estimate]:
    """Strength of each contestant in log-odds of being preferred to an average one, strongest first; n: its votes.

    Bradley & Terry 1952; a tie is half a win for both; maximum found by Newton steps on the concave likelihood of
    Hunter 2004. Everyone is also given half a win and half a loss against an average contestant: strengths stay
    finite where someone won or lost every vote. Intervals: bootstrap over prompts. Raises DataError on a vote that
    names its winner wrongly, and where two sets of contestants were never compared.
    """
    names = _names(votes)
    place = {name: k for k, name in enumerate(names)}
    members = cluster_ids([vote.prompt for vote in votes], len(votes))
    wins_GKK = np.zeros((int(members.max()) + 1, len(names), len(names)))
    for prompt, vote in zip(members, votes, strict=True):
        first, second = place[vote.first], place[vote.second]
        share = 0.5 if not vote.winner else float(vote.winner == vote.first)
        wins_GKK[prompt, first, second] += share
        wins_GKK[prompt, second, first] += 1 - share
    wins_KK = wins_GKK.sum(axis=0)
    _refuse_strangers(names, wins_KK + wins_KK.T)
    strength_K = _strengths(wins_KK[None])[0]
    flat = wins_GKK.reshape(len(wins_GKK), -1)
    drawn = [
        _strengths((weights @ flat).reshape(len(weights), len(names), len(names)))
        for weights in bootstrap_weights(len(wins_GKK), resamples, seed)
    ]
    ends = np.quantile(np.concatenate(drawn), [(1 - level) / 2, (1 + level) / 2], axis=0)
    votes_K = (wins_KK + wins_KK.T).sum(axis=1)
    found: dict[str, Estimate] = {}
    for k in np.argsort(-strength_K, kind="stable"):
        ci = [float(ends[0, k]), float(ends[1, k])]
        found[names[k]] = {"value": float(strength_K[k]), "ci": ci, "n": round(votes_K[k])}
    return found


def first_position(votes: Sequence[Vote], *, resamples: int = 1000, seed: int = 0) -> Estimate | None:
    """Share of decided votes that went to the answer shown first: 1/2 where places do not matter; None without any."""
    _names(votes)
    decided = [vote for vote in votes if vote.winner]
    if not decided:
        return None
    firsts = np.array([float(vote.winner == vote.first) for vote in decided])
    return accuracy_interval(firsts, [vote.prompt for vote in decided], resamples=resamples, seed=seed)


def _names(votes: Sequence[Vote]) -> list[str]:
    for number, vote in enumerate(votes, 1):
        if vote.first == vote.second or vote.winner not in ("", vote.first, vote.second):
            raise DataError(
                f"vote {number}: {vote.winner!r} won between {vote.first!r} and {vote.second!r}",
                "give two different contestants, and one of them or nothing (a tie) as the winner",
            )
    if not votes:
        raise DataError("no votes", "collect some first")
    return sorted({name for vote in votes for name in (vote.first, vote.second)})


def _refuse_strangers(names: list[str], met_KK: Floats) -> None:
    from scipy.sparse.csgraph import connected_components

    parts, part_K = connected_components(met_KK > 0, directed=False)
    if parts > 1:
        sets = [
            ", ".join(name for name, own in zip(names, part_K, strict=True) if own == part) for part in range(parts)
        ]
        raise DataError(
            f"no vote compares {' | '.join(sets)}: they have no common standing", "collect votes that link them"
        )


def _strengths(wins_RKK: Floats) -> Floats:
    """(R, K) log-strengths; the average contestant's is 0. Newton, no step longer than 1: far from the top the
    curvature is too flat to be trusted."""
    count = wins_RKK.shape[1]
    met_RKK = wins_RKK + wins_RKK.transpose(0, 2, 1)
    won_RK = wins_RKK.sum(axis=2) + 0.5
    strength_RK: Floats = np.zeros(won_RK.shape)
    for _ in range(_STEPS):
        ahead = _sigmoid(strength_RK[:, :, None] - strength_RK[:, None, :])
        average = _sigmoid(strength_RK)
        slope_RK = won_RK - (met_RKK * ahead).sum(axis=2) - average
        bend_RKK = -met_RKK * ahead * (1 - ahead)
        diagonal = average * (1 - average) - bend_RKK.sum(axis=2)
        bend_RKK[:, range(count), range(count)] += diagonal
        step_RK = np.linalg.solve(bend_RKK, slope_RK[:, :, None])[:, :, 0]
        longest = np.abs(step_RK).max(axis=1, keepdims=True)
        strength_RK = strength_RK + step_RK / np.maximum(1.0, longest)
        if float(longest.max()) < 1e-10:
            return strength_RK
    raise LuthierError(f"the strengths did not settle in {_STEPS} steps", "report the votes: this should not happen")


def _sigmoid(value: Floats) -> Floats:
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(value, -700, 700))), dtype=np.float64)
