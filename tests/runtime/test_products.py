"""Products through oneDNN: only where they are float32 still, and never without that proof."""

from __future__ import annotations

import pytest
import torch

from luthier.runtime import products


@pytest.fixture(autouse=True)
def switch():
    """The process's own setting, put back afterwards."""
    found = torch.backends.mkldnn.matmul
    before = found.fp32_precision
    yield found
    found.fp32_precision = before


def test_whatever_was_chosen_products_are_float32():
    products.use_quick_products()
    made = torch.Generator().manual_seed(3)
    for rows, inner, columns in ((7, 64, 33), (300, 512, 1376), (1, 32, 768)):
        x, w = torch.randn(rows, inner, generator=made), torch.randn(columns, inner, generator=made)
        exact = x.double() @ w.double().T
        size = x.double().norm(dim=1)[:, None] * w.double().norm(dim=1)
        assert float(((x @ w.T - exact).abs() / size).max()) < 1e-6


def test_where_the_proof_fails_nothing_is_changed(switch, monkeypatch):
    switch.fp32_precision = "ieee"
    monkeypatch.setattr(products, "_error", lambda: 1e-3)
    assert not products.use_quick_products()
    assert switch.fp32_precision == "ieee"


def test_a_processor_with_tiles_is_left_alone(switch, monkeypatch):
    switch.fp32_precision = "ieee"
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert not products.use_quick_products()
    assert switch.fp32_precision == "ieee"


def test_the_proof_tells_bfloat16_from_float32():
    assert products._error() < products.TOLERANCE
    made = torch.Generator().manual_seed(0)
    x, w = (torch.randn(size, 384, generator=made) for size in (96, 160))
    rounded = (x.bfloat16().double() @ w.bfloat16().double().T) - x.double() @ w.double().T
    size = x.double().norm(dim=1)[:, None] * w.double().norm(dim=1)
    assert float((rounded.abs() / size).max()) > 100 * products.TOLERANCE
