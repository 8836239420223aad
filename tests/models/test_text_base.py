"""A base for chat: loaded as published, or refused by name before a weight is read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, T5Config, T5ForConditionalGeneration

from luthier.errors import RequestError, SourceError
from luthier.models.chat import ChatTemplate
from luthier.models.families import parameters_digest
from luthier.models.text_base import load_text_base, tokenizer_digest
from luthier.models.toys import TOYS, build_toy
from luthier.recipe_model import ModelConfig
from support.text_cases import write_base

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("published"))


@pytest.fixture
def folder(published: Path, tmp_path: Path) -> Path:
    """A base on disk that a test may damage."""
    return Path(shutil.copytree(published, tmp_path / "base"))


def config(folder: Path | str, **changes: Any) -> ModelConfig:
    return ModelConfig(base=str(folder), **changes)


@pytest.mark.parametrize("name", sorted(TOYS))
def test_a_toy_is_a_base_for_text(name):
    base = load_text_base(config(name))
    plain = build_toy(name)[0]
    assert base.digest == parameters_digest(plain)
    assert base.family.name == base.model.config.model_type
    assert not base.model.training
    assert not any(p.requires_grad for p in base.model.parameters())


def test_a_folder_loads_equal_to_the_toy_it_was_made_from(published):
    loaded, toy = load_text_base(config(published)), load_text_base(config("toy:llama"))
    assert loaded.digest == toy.digest
    assert loaded.tokenizer_digest == toy.tokenizer_digest


@pytest.mark.parametrize("base", ["toy:llama", "folder"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_frozen_weights_are_held_in_the_type_of_the_recipe(published, base, dtype):
    loaded = load_text_base(config(base if base.startswith("toy:") else published, dtype=dtype))
    assert {p.dtype for p in loaded.model.parameters()} == {getattr(torch, dtype)}


def test_a_base_without_a_tokenizer_is_refused(folder):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(SourceError, match="the tokenizer of"):
        load_text_base(config(folder))


def test_a_base_without_a_chat_template_is_loaded_for_its_texts_and_refuses_chats(folder):
    (folder / "chat_template.jinja").unlink()
    template = ChatTemplate.of(load_text_base(config(folder)).tokenizer)
    with pytest.raises(RequestError, match="has no chat template") as refusal:
        template.require_chats()
    assert "-instruct" in refusal.value.mend


def test_a_weight_that_is_missing_is_named(folder):
    tensors = load_file(folder / WEIGHTS)
    tensors.pop("model.layers.0.mlp.up_proj.weight")
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(RequestError, match=r"lacks 1 weights, such as model\.layers\.0\.mlp\.up_proj\.weight"):
        load_text_base(config(folder))


@pytest.mark.parametrize("damage", ["torn", "gone", "another shape"])
def test_weights_that_cannot_be_read_are_refused(folder, damage):
    path = folder / WEIGHTS
    if damage == "torn":
        path.write_bytes(path.read_bytes()[:5000])
    elif damage == "gone":
        path.unlink()
    else:
        tensors = load_file(path)
        tensors["model.norm.weight"] = tensors["model.norm.weight"][:5].clone()
        save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(SourceError, match=str(folder)):
        load_text_base(config(folder))


def test_a_pickle_is_never_read(folder):
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    with pytest.raises(SourceError, match="safetensors"):
        load_text_base(config(folder))


def test_code_beside_the_weights_is_never_run(folder, tmp_path):
    canary = tmp_path / "canary"
    (folder / "own.py").write_text(f"open({str(canary)!r}, 'w')\nclass Own: pass\nclass OwnModel: pass\n")
    settings = json.loads((folder / "config.json").read_text())
    settings |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnModel"}}
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(RequestError, match="needs remote code, which is never run"):
        load_text_base(config(folder))
    assert not canary.exists()


def test_an_architecture_that_does_not_continue_a_text_is_refused(folder):
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 16}
    T5ForConditionalGeneration(T5Config(**sizes)).save_pretrained(folder)
    with pytest.raises(RequestError, match="'t5', which does not continue a text"):
        load_text_base(config(folder))


def test_an_adapter_is_no_base(folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.name_or_path = str(folder)
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(str(folder))
    with pytest.raises(RequestError, match="has an adapter in it"):
        load_text_base(config(folder))


@pytest.mark.parametrize("name", ["toy:nothing", "luthier-tests/no-such-model", "./nowhere"])
def test_a_name_that_leads_nowhere_is_refused(monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(RequestError, match=name) as refusal:
        load_text_base(config(name))
    assert refusal.value.mend


def test_the_digest_knows_one_weight(folder):
    before = load_text_base(config(folder)).digest
    tensors = load_file(folder / WEIGHTS)
    tensors["model.norm.weight"][3] += 1e-6
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    assert load_text_base(config(folder)).digest != before


def test_the_tokenizers_digest_knows_template_and_tokens_but_not_who_called_it(published):
    tokenizer = load_text_base(config(published)).tokenizer
    before = tokenizer_digest(tokenizer)
    tokenizer(["one", "two words"], padding=True, truncation=True, max_length=3)
    assert tokenizer_digest(tokenizer) == before
    tokenizer.add_tokens(["<|new|>"])
    with_token = tokenizer_digest(tokenizer)
    tokenizer.chat_template += " "
    assert len({before, with_token, tokenizer_digest(tokenizer)}) == 3
