"""What an adapter does, measured against the product of its matrices and against the base alone."""

from __future__ import annotations

import pytest
import torch

from luthier.models import adapters
from luthier.models.effect import adapter_effect, delta_norms, summary
from support import chats


def tuned(**lora):
    made = chats.recipe()
    for name, value in lora.items():
        setattr(made.model.lora, name, value)
    base, model = chats.model_of(made)
    with torch.no_grad():
        for number, (_, p) in enumerate(model.tuned()):
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(number)) * 0.05)
    return base, model.language_model


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"r": 2, "alpha": 3}])
def test_norms_are_those_of_the_product(settings):
    _, model = tuned(**settings)
    norms = delta_norms(model)
    layers = {name: module for name, module in adapters.bare(model).named_modules() if name in norms}
    assert len(layers) == len(norms) == 7  # attention and MLP of one layer
    for name, layer in layers.items():
        assert norms[name] == pytest.approx(float(layer.get_delta_weight("default").norm()), rel=1e-5)
    found = summary(norms)
    assert found["modules"] == 7
    assert found["smallest"]["norm"] <= found["median"] <= found["largest"]["norm"]


def test_the_effect_is_the_distance_to_the_base_and_0_for_a_fresh_adapter():
    made = chats.recipe()
    _, fresh = chats.model_of(made)
    ids = torch.arange(40, 72)
    assert adapter_effect(fresh.language_model, ids) == 0.0
    assert all(norm == 0.0 for norm in delta_norms(fresh.language_model).values())
    _, model = tuned()
    model.eval()
    with_adapter = torch.log_softmax(model(input_ids=ids[None]).logits[0, :-1], -1)
    plain = chats.load_text_base(made.model).model
    without = torch.log_softmax(plain(input_ids=ids[None]).logits[0, :-1], -1)
    wanted = (with_adapter - without).gather(1, ids[1:, None]).abs().mean()
    assert adapter_effect(model, ids) == pytest.approx(float(wanted), rel=1e-4)
    assert adapter_effect(model, ids) > 0


def test_a_model_without_an_adapter_has_no_effect_to_measure():
    made = chats.recipe()
    made.model.tuning = "full"
    _, model = chats.model_of(made)
    assert delta_norms(model.language_model) == {}
    with pytest.raises(TypeError):
        adapter_effect(model.language_model, torch.arange(5))
