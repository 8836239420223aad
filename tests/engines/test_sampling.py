"""Drawing of tokens: the shares are those of transformers' own warpers, and a seed is a promise."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from luthier.engines.base import Sampling
from luthier.engines.sampling import Chooser, probabilities
from luthier.errors import RequestError

CPU = torch.device("cpu")


def logits(seed: int = 0, size: int = 300) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 3


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("top_k", [0, 1, 5, 400])
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 1.0])
def test_tokens_are_drawn_with_the_shares_of_transformers(temperature: float, top_k: int, top_p: float) -> None:
    for seed in range(3):
        scores = TemperatureLogitsWarper(temperature)(torch.empty(0), logits(seed)[None])
        if top_k:
            scores = TopKLogitsWarper(top_k)(torch.empty(0), scores)
        if top_p < 1:
            scores = TopPLogitsWarper(top_p)(torch.empty(0), scores)
        found = probabilities(logits(seed), Sampling(temperature=temperature, top_k=top_k, top_p=top_p))
        torch.testing.assert_close(found, scores.softmax(-1)[0], atol=1e-6, rtol=1e-5)


def test_temperature_zero_is_the_likeliest_and_a_seed_draws_the_same_again() -> None:
    assert Chooser(Sampling(temperature=0), CPU)(logits()) == int(logits().argmax())

    def drawn(seed: int | None) -> list[int]:
        choose = Chooser(Sampling(temperature=1.5, top_p=1.0, seed=seed), CPU)
        return [choose(logits(step)) for step in range(30)]

    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)
    assert drawn(None) != drawn(None)
    assert Chooser(Sampling(temperature=1.0, seed=-5), CPU)(logits()) >= 0


@pytest.mark.parametrize("temperature", [1e-6, 1e-38, 1e-300])
@pytest.mark.parametrize("top_p", [0.9, 1.0])
def test_a_temperature_next_to_zero_is_as_good_as_zero(temperature: float, top_p: float) -> None:
    found = probabilities(logits() * 100, Sampling(temperature=temperature, top_p=top_p))
    assert found[int(logits().argmax())] == found.sum() == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_new_tokens": 0},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -1},
    ],
)
def test_settings_that_mean_nothing_are_refused_by_name(wrong: dict[str, float]) -> None:
    with pytest.raises(RequestError, match=next(iter(wrong))):
        Chooser(replace(Sampling(), **wrong), CPU)
