"""The head of each architecture beside the library's own logits, under every way of training it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from luthier.errors import RequestError
from luthier.models.head import Head, body
from luthier.models.token_loss import TokenTargets, token_cross_entropy

V, ROWS = 61, [3, 40, 17]
IDS = torch.tensor([[5, 9, 3, 40, 22, 17, 31]])
SMALL: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.3,
}
FACTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {},
    "qwen3": {},
    "phi": {},
    "phi3": {},
    "gemma2": {"final_logit_softcapping": 3.0},
    "gemma3_text": {"final_logit_softcapping": 2.0},
    "granite": {"logits_scaling": 4.0},
    "cohere": {"logit_scale": 0.0625},
    "hyperclovax": {"logits_scaling": 0.5},
    "nanochat": {},
}
WAYS: dict[str, dict[str, Any]] = {
    "lora": {"target_modules": ["q_proj"]},
    "whole head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "learned tokens": {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": ROWS}},
    "lora on the head": {"target_modules": ["q_proj", "lm_head"]},
}


def built(kind: str, *, tied: bool = False, dtype: torch.dtype = torch.float32, **more: Any) -> Any:
    """A small random model; a head with a bias (Phi) has one that is not zero."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SMALL, **FACTS.get(kind, {}), **more}, tie_word_embeddings=tied)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    bias_V = getattr(model.get_output_embeddings(), "bias", None)
    if bias_V is not None:
        torch.nn.init.normal_(bias_V)
    return model


def adapted(way: str, *, tied: bool, kind: str = "llama", dtype: torch.dtype = torch.float32) -> Any:
    """A PEFT model whose adapters are not zero, as after some training."""
    model = get_peft_model(built(kind, tied=tied, dtype=dtype), LoraConfig(task_type="CAUSAL_LM", r=2, **WAYS[way]))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def loss_of(model: Any, head: Head) -> torch.Tensor:
    """Next-token loss by body and head."""
    hidden_ND = body(model)(input_ids=IDS, use_cache=False).last_hidden_state[0, :-1]
    count = len(hidden_ND)
    return token_cross_entropy(hidden_ND, head, TokenTargets(IDS[0, 1:], torch.ones(count), count), chunk_rows=4).sum


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    tuned = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return dict(zip(tuned, torch.autograd.grad(loss, list(tuned.values())), strict=True))


def held_against_the_library(model: Any) -> Head:
    """Loss and gradients of everything tuned, beside those of the model's own logits."""
    head = Head.of(model)
    model.eval()  # no dropout
    loss = loss_of(model, head)
    theirs = F.cross_entropy(model(input_ids=IDS).logits[0, :-1].float(), IDS[0, 1:], reduction="sum")
    torch.testing.assert_close(loss, theirs, rtol=1e-6, atol=0)
    wanted = gradients(model, theirs)
    for name, found in gradients(model, loss).items():
        assert found.any(), f"{name} learns nothing"
        limit = 1e-5 * float(wanted[name].abs().max())
        assert float((found - wanted[name]).abs().max()) <= limit, name
    return head


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("kind", FACTS)
def test_body_and_head_learn_what_the_library_would(kind: str, tied: bool) -> None:
    head = held_against_the_library(built(kind, tied=tied))
    assert head.module is None


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_tuning_reaches_its_weights(way: str, tied: bool) -> None:
    head = held_against_the_library(adapted(way, tied=tied))
    assert (head.module is not None) == (way == "lora on the head")
    assert (head.patch_RD is not None) == (way == "learned tokens" and tied)


def test_learned_tokens_of_a_soft_capped_scaled_embedding() -> None:
    held_against_the_library(adapted("learned tokens", tied=True, kind="gemma2"))


def test_a_head_follows_weights_that_train() -> None:
    model = adapted("learned tokens", tied=True)
    head = Head.of(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.mul_(1.5)
        model.eval()
        ours = head.logits(body(model)(input_ids=IDS).last_hidden_state)
        torch.testing.assert_close(ours, model(input_ids=IDS).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("way", WAYS)
def test_a_half_precision_base_with_parts_in_float32_is_proved(way: str, tied: bool) -> None:
    model = adapted(way, tied=tied, dtype=torch.bfloat16)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    head = Head.of(model)
    model.eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(model, head)
        theirs = F.cross_entropy(model(input_ids=IDS).logits[0, :-1].float(), IDS[0, 1:], reduction="sum")
    torch.testing.assert_close(loss, theirs, rtol=1e-2, atol=0)
    for name, found in gradients(model, loss).items():
        assert found.any(), f"{name} learns nothing"


def test_proving_leaves_the_model_as_it_was() -> None:
    model = built("llama")
    model.train()
    model.model.layers[0].eval()
    before = [(module, module.training) for module in model.modules()]
    Head.of(model)
    assert [(module, module.training) for module in model.modules()] == before
    assert not model.model._forward_hooks


@pytest.mark.parametrize(
    ("kind", "fact", "hidden_from_us"),
    [("gemma2", "final_logit_softcapping", None), ("granite", "logits_scaling", 1.0), ("cohere", "logit_scale", 1.0)],
)
def test_a_fact_that_the_config_does_not_tell_is_refused(kind: str, fact: str, hidden_from_us: float | None) -> None:
    """The library's logits change, and the config no longer says so; at this size the cap alone moves them by 1e-7."""
    model = built(kind, initializer_range=0.02, **({fact: 30.0} if kind == "gemma2" else {}))
    forward, value = model.forward, getattr(model.config, fact)

    def informed(*args: Any, **kwargs: Any) -> Any:
        setattr(model.config, fact, value)
        try:
            return forward(*args, **kwargs)
        finally:
            setattr(model.config, fact, hidden_from_us)

    model.forward = informed
    setattr(model.config, fact, hidden_from_us)
    with pytest.raises(RequestError, match=type(model).__name__):
        Head.of(model)


def test_a_model_that_changes_its_logits_is_refused() -> None:
    model = built("llama")
    model.lm_head.register_forward_hook(lambda module, inputs, output: output * 1.001)
    with pytest.raises(RequestError, match="LlamaForCausalLM does more to its logits"):
        Head.of(model)


def test_a_head_of_zeros_is_proved_like_any_other() -> None:
    model = built("llama")
    torch.nn.init.zeros_(model.lm_head.weight)
    assert Head.of(model).weight_VD is model.lm_head.weight


def test_a_model_without_a_head_is_refused() -> None:
    with pytest.raises(RequestError, match="LlamaModel has no language-model head"):
        Head.of(built("llama").model)


def test_a_packed_head_is_called_and_not_read() -> None:
    """A subclass of Linear, as quantised layers are, keeps its weight in a form of its own."""

    class Packed(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.linear(x, self.weight * 2)

    model = built("llama")
    packed = Packed(32, V, bias=False)
    packed.weight = torch.nn.Parameter(model.lm_head.weight.detach() / 2)
    model.lm_head = packed
    assert Head.of(model).module is packed
    held_against_the_library(model)
