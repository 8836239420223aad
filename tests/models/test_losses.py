"""Each loss beside a reference, and sums that do not depend on how rows fall into micro-batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from luthier.models.losses import (
    answer_mass,
    ordinal_likelihood,
    ordinal_log_probabilities,
    pairwise_ranking,
    soft_binary_cross_entropy,
)

B, V, K = 16, 50, 8
ANSWERS = (7, 3)


@pytest.fixture
def made() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    gaps = torch.rand(K, generator=generator) + 0.1
    return {
        "logits": torch.randn(B, V, generator=generator) * 3,
        "score": torch.randn(B, generator=generator) * 2,
        "target": torch.rand(B, generator=generator),
        "thresholds": torch.cumsum(gaps, 0) - 2,
        "level": torch.randint(0, K + 1, (B,), generator=generator),
    }


def reference_probabilities(score: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """(B, K + 1) by the textbook: differences of sigmoids in float64."""
    above = 1 / (1 + np.exp(-(score[:, None].astype(np.float64) - thresholds[None].astype(np.float64))))
    edges = np.concatenate([np.ones((len(score), 1)), above, np.zeros((len(score), 1))], 1)
    return edges[:, :-1] - edges[:, 1:]


def losses(made: dict[str, torch.Tensor], rows: slice) -> dict[str, tuple[torch.Tensor, float]]:
    score = made["score"][rows]
    pairs = [(i, i + 1) for i in range(0, len(score) - 1, 2)]
    return {
        "soft": soft_binary_cross_entropy(score, made["target"][rows]),
        "mass": answer_mass(made["logits"][rows], ANSWERS),
        "ordinal": ordinal_likelihood(score, made["thresholds"], made["level"][rows]),
        "ranking": pairwise_ranking(score, pairs),
    }


def test_soft_binary_cross_entropy_is_the_formula(made):
    p, t = torch.sigmoid(made["score"].double()).numpy(), made["target"].double().numpy()
    expected = -(t * np.log(p) + (1 - t) * np.log1p(-p)).sum()
    found = soft_binary_cross_entropy(made["score"], made["target"])
    assert float(found.sum) == pytest.approx(expected, rel=1e-6)
    assert found.weight == B


def test_answer_mass_is_minus_the_log_of_both_probabilities(made):
    p = torch.softmax(made["logits"].double(), -1)
    found = answer_mass(made["logits"], ANSWERS)
    assert float(found.sum) == pytest.approx(float(-torch.log(p[:, ANSWERS[0]] + p[:, ANSWERS[1]]).sum()), rel=1e-6)
    assert found.weight == B


def test_full_vocabulary_cross_entropy_is_the_binary_term_plus_the_mass(made):
    soft = torch.zeros(B, V, dtype=torch.float64)
    soft[:, ANSWERS[0]], soft[:, ANSWERS[1]] = made["target"].double(), 1 - made["target"].double()
    expected = F.cross_entropy(made["logits"].double(), soft, reduction="sum")
    binary = soft_binary_cross_entropy(made["logits"][:, ANSWERS[0]] - made["logits"][:, ANSWERS[1]], made["target"])
    assert float(binary.sum + answer_mass(made["logits"], ANSWERS).sum) == pytest.approx(float(expected), rel=1e-6)


def test_ordinal_probabilities_are_differences_of_sigmoids(made):
    found = ordinal_log_probabilities(made["score"], made["thresholds"]).double().exp().numpy()
    expected = reference_probabilities(made["score"].numpy(), made["thresholds"].numpy())
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-9)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)
    likelihood = ordinal_likelihood(made["score"], made["thresholds"], made["level"])
    own = expected[np.arange(B), made["level"].numpy()]
    assert float(likelihood.sum) == pytest.approx(-np.log(own).sum(), rel=1e-6)
    assert likelihood.weight == B


@pytest.mark.parametrize("score", [-1e4, -80.0, -3.0, 0.0, 3.0, 80.0, 1e4])
@pytest.mark.parametrize("gap", [1e-4, 1e-2, 1.0, 50.0])
def test_ordinal_stays_finite_at_extreme_scores_and_tiny_gaps(score, gap):
    thresholds = (torch.arange(K) * gap - 1).requires_grad_()
    scores = torch.tensor([score], requires_grad=True)
    log_p = ordinal_log_probabilities(scores, thresholds)
    assert bool(torch.isfinite(log_p).all())
    assert float(log_p.detach().double().exp().sum()) == pytest.approx(1, abs=1e-5)
    for level in range(K + 1):
        loss = ordinal_likelihood(scores, thresholds, torch.tensor([level])).sum
        grads = torch.autograd.grad(loss, (scores, thresholds))
        assert all(bool(torch.isfinite(g).all()) for g in grads)


def test_ordinal_tails_do_not_underflow_where_the_difference_of_sigmoids_does():
    thresholds = torch.tensor([0.0, 1.0])
    naive = torch.sigmoid(torch.tensor(40.0)) - torch.sigmoid(torch.tensor(39.0))
    middle = ordinal_log_probabilities(torch.tensor([40.0]), thresholds)[0, 1]
    assert float(naive) == 0
    # For a score far above, P(level 1) is exp(-39) - exp(-40).
    assert float(middle) == pytest.approx(np.log(np.exp(-39) - np.exp(-40)), rel=1e-6)


def test_ranking_is_the_value_by_hand():
    score = torch.tensor([2.0, 0.5, -1.0, 3.0])
    found = pairwise_ranking(score, [(0, 1), (2, 3)])
    expected = np.log1p(np.exp(-1.5)) + np.log1p(np.exp(4.0))
    assert float(found.sum) == pytest.approx(expected, rel=1e-6)
    assert found.weight == 2


def test_ranking_of_no_pairs_is_zero_with_a_gradient_of_zero():
    score = torch.randn(4, requires_grad=True)
    found = pairwise_ranking(score, [])
    found.sum.backward()
    assert (found.sum.item(), found.weight) == (0.0, 0.0)
    assert bool((score.grad == 0).all())


@pytest.mark.parametrize("name", ["soft", "mass", "ordinal", "ranking"])
def test_sums_add_up_however_rows_are_split(made, name):
    whole = losses(made, slice(0, B))[name]
    for size in (4, 1) if name != "ranking" else (4, 2):
        parts = [losses(made, slice(i, i + size))[name] for i in range(0, B, size)]
        assert sum(part.weight for part in parts) == whole.weight
        total = sum(part.sum / whole.weight for part in parts)
        assert float(total) == pytest.approx(float(whole.sum / whole.weight), abs=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e3])
@pytest.mark.parametrize("name", ["soft", "mass", "ordinal", "ranking"])
def test_gradients_are_finite_and_there(made, name, scale):
    leaf = "logits" if name == "mass" else "score"
    value = (made[leaf] * scale).requires_grad_()
    gradient = torch.autograd.grad(losses({**made, leaf: value}, slice(0, B))[name].sum, value)[0]
    assert bool(torch.isfinite(gradient).all())
    assert float(gradient.abs().max()) > 0


def test_a_bfloat16_score_is_summed_in_float32(made):
    score = made["score"].bfloat16()
    assert soft_binary_cross_entropy(score, made["target"]).sum.dtype is torch.float32
    assert ordinal_likelihood(score, made["thresholds"], made["level"]).sum.dtype is torch.float32
