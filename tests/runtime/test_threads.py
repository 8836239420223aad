"""Threads while a model works on a processor."""

from __future__ import annotations

import pytest
import torch

from luthier.models.toys import build_toy
from luthier.runtime.threads import suited_threads


@pytest.fixture(autouse=True)
def _two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_a_small_model_has_one_thread_while_it_works_and_the_others_return_after_an_error():
    def fail() -> None:
        with suited_threads(build_toy("toy:llama")[0]):
            assert torch.get_num_threads() == 1
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    assert torch.get_num_threads() == 2


def test_a_large_vocabulary_does_not_make_a_model_large_and_a_large_body_keeps_its_threads(monkeypatch):
    model = build_toy("toy:llama")[0]
    model.resize_token_embeddings(40_000)
    with suited_threads(model):
        assert torch.get_num_threads() == 1
    monkeypatch.setattr("luthier.runtime.threads.SMALL", 100)
    with suited_threads(model):
        assert torch.get_num_threads() == 2
