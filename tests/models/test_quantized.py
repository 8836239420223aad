"""Bases in four and eight bits, on a processor: what is packed, what stays, and that nothing moves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPTQConfig, LlamaConfig

from luthier.errors import RequestError
from luthier.models import adapters, quantized
from luthier.models.families import parameters_digest
from luthier.models.text_base import TextBase, load_text_base
from luthier.models.toy_tokenizer import load_tokenizer
from luthier.models.toys import TOYS, Toy, ToySize, build_sized
from luthier.recipe_model import LoraSettings, ModelConfig
from support.text_cases import write_base

bitsandbytes = pytest.importorskip("bitsandbytes")
KINDS = ("nf4", "int8")
IDS = torch.arange(40)[None]


def base_of(kind: str, **changes: Any) -> TextBase:
    return load_text_base(ModelConfig(**{"base": "toy:llama", "quantization": kind, **changes}))


def lora(**changes: Any) -> LoraSettings:
    return LoraSettings(r=4, alpha=8, dropout=0.0, **changes)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose widths are whole blocks of four-bit weights, which processors may pack anew."""
    folder = tmp_path_factory.mktemp("wide")
    size = ToySize(hidden_size=64, intermediate_size=128)
    build_sized(Toy(size, TOYS["toy:llama"].build, hears=False))[0].save_pretrained(folder)
    load_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_projections_are_packed_and_all_else_stays_as_it_was(kind, dtype):
    base = base_of(kind, dtype=dtype)
    packed = {name for name, p in base.model.named_parameters() if not p.is_floating_point()}
    assert packed == {name for name, _ in base.model.named_parameters() if name.endswith("proj.weight")}
    whole = load_text_base(ModelConfig(base="toy:llama", dtype=dtype)).model.state_dict()
    for name, value in base.model.named_parameters():
        if name not in packed:
            assert torch.equal(value, whole[name])


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_the_dequantised_weights(kind):
    base = base_of(kind)
    plain = load_text_base(ModelConfig(base="toy:llama")).model
    for name, module in base.model.named_modules():
        if name.endswith("_proj"):
            if kind == "nf4":
                value = bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            else:
                value = bitsandbytes.functional.int8_vectorwise_dequant(module.weight.data, module.weight.SCB)
            plain.get_submodule(name).weight.data.copy_(value)
    # LLM.int8 rounds what goes in to 8 bits too.
    torch.testing.assert_close(logits(base.model), logits(plain), rtol=0, atol=1e-5 if kind == "nf4" else 0.15)


@pytest.mark.parametrize("kind", KINDS)
def test_a_base_published_quantised_needs_no_key(tmp_path, kind):
    first = base_of(kind)
    first.model.save_pretrained(tmp_path)
    first.tokenizer.save_pretrained(tmp_path)
    again = load_text_base(ModelConfig(base=str(tmp_path)))
    assert again.digest == first.digest
    assert quantized.kind_of(again.model) == kind
    assert torch.equal(logits(again.model), logits(first.model))
    named = load_text_base(ModelConfig(base=str(tmp_path), quantization=kind))
    assert named.digest == first.digest
    other = KINDS[1 - KINDS.index(kind)]
    with pytest.raises(RequestError, match=f"is {other}, and the base is published in {kind}"):
        load_text_base(ModelConfig(base=str(tmp_path), quantization=other))


def test_a_base_published_in_bfloat16_computes_in_float32_on_a_processor(tmp_path):
    first = base_of("nf4", dtype="bfloat16")
    first.model.config.quantization_config.bnb_4bit_compute_dtype = torch.bfloat16
    first.model.save_pretrained(tmp_path)
    first.tokenizer.save_pretrained(tmp_path)
    again = load_text_base(ModelConfig(base=str(tmp_path), dtype="bfloat16"))
    assert {m.compute_dtype for m in again.model.modules() if hasattr(m, "compute_dtype")} == {torch.float32}


def test_a_base_quantised_by_another_method_is_refused():
    settings = LlamaConfig(quantization_config=GPTQConfig(bits=4, dataset="c4", tokenizer=None).to_dict())
    with pytest.raises(RequestError, match="published quantised by"):
        quantized.published(settings)
    assert quantized.published(LlamaConfig()) == ""


@pytest.mark.parametrize("kind", KINDS)
def test_without_bitsandbytes_the_install_line_is_given(monkeypatch, kind):
    monkeypatch.setattr(quantized, "find_spec", lambda name: None)
    with pytest.raises(RequestError, match=f"{kind} needs bitsandbytes") as refusal:
        base_of(kind)
    assert refusal.value.mend == "pip install 'luthier[qlora]'"


@pytest.mark.parametrize("kind", KINDS)
def test_packed_weights_are_the_same_at_every_load_and_after_every_pass(wide, kind):
    base = base_of(kind, base=str(wide))
    first = logits(base.model)
    for mode in (True, False):
        base.model.train(mode)
        base.model(input_ids=IDS)
        assert torch.equal(logits(base.model.eval()), first)
    assert parameters_digest(base.model) == base.digest == base_of(kind, base=str(wide)).digest


def test_left_alone_some_processors_pack_the_weights_anew(wide):
    """The control: without `settle`, one pass without gradients moves the logits."""
    base = base_of("nf4", base=str(wide))
    if not bitsandbytes.functional.has_avx512bf16():
        pytest.skip("this processor has no AVX512-BF16")
    before = logits(base.model)
    for module in base.model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = True
    assert not torch.equal(logits(base.model), before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_checkpointed_gradients_are_equal_on_quantised_weights(kind, dtype):
    config = ModelConfig(base="toy:llama", quantization=kind, dtype=dtype, lora=lora())
    found = []
    for checkpointing in (False, True):
        model = adapters.attach(load_text_base(config), config, {}, 0).train()
        if checkpointing:
            adapters.bare(model).gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model(input_ids=IDS, labels=IDS).loss.backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert all(bool(value.any()) for name, value in found[0].items() if "lora_B" in name)
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_dora_on_int8_is_refused_where_it_loses_its_scales():
    config = ModelConfig(base="toy:llama", quantization="int8", lora=lora(use_dora=True))
    with pytest.raises(RequestError, match="use_dora: does not work on int8"):
        adapters.attach(load_text_base(config), config, {}, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_packed_cannot_be_trained_whole(kind):
    config = ModelConfig(base="toy:llama", quantization=kind, modules_to_save=["mlp"], lora=lora())
    config.lora.target_modules = r"model\.layers\.\d+\.self_attn\.q_proj"
    with pytest.raises(RequestError, match="mlp is quantised"):
        adapters.attach(load_text_base(config), config, {}, 0)
    config = ModelConfig(base="toy:llama", quantization=kind, tuning="full")
    with pytest.raises(RequestError, match="full, and toy:llama is quantised"):
        adapters.attach(load_text_base(config), config, {}, 0)


def test_an_untied_head_stays_whole(tmp_path):
    base = load_text_base(ModelConfig(base=str(write_base(tmp_path, tied=False)), quantization="nf4"))
    assert type(base.model.lm_head) is torch.nn.Linear
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(base.model.lm_head.weight, plain.lm_head.weight)
