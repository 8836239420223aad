"""A base comes from a folder as it was saved, with its speech adapter merged; what does not fit is refused."""

from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from luthier.errors import RequestError, SourceError
from luthier.models.families import PHI4_MULTIMODAL, family_of, parameters_digest
from luthier.models.load import _adapter_folder, load_base
from luthier.models.toys import build_toy, write_toy
from luthier.recipe_model import ModelConfig

TOY = "toy:phi4-multimodal"
WEIGHTS = "speech-lora/adapter_model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A base on disk with a speech adapter in it, as the hub's repository has it."""
    write_toy(TOY, tmp_path / "base")
    settings = LoraConfig(r=4, lora_alpha=16, target_modules=PHI4_MULTIMODAL.decoder_pattern)
    torch.manual_seed(3)
    speaking = get_peft_model(build_toy(TOY)[0], settings)
    with torch.no_grad():
        for name, parameter in speaking.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    speaking.save_pretrained(str(tmp_path / "base" / "speech-lora"))
    return tmp_path / "base"


def config(folder: Path, builtin: str = "speech-lora", **changes: str) -> ModelConfig:
    return ModelConfig(base=str(folder), builtin_adapter=builtin, **changes)


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(40)[None]).logits


def test_a_folder_loads_equal_to_the_toy(folder):
    loaded, toy = load_base(config(folder, "")), load_base(ModelConfig(base=TOY))
    assert parameters_digest(loaded.model) == parameters_digest(toy.model)
    assert loaded.tokenizer.get_vocab() == toy.tokenizer.get_vocab()
    assert loaded.extractor.to_dict() == toy.extractor.to_dict()
    assert loaded.family is toy.family is PHI4_MULTIMODAL
    assert not loaded.model.training


@pytest.mark.parametrize("base", [TOY, "folder"])
def test_the_type_of_frozen_weights_is_that_of_the_recipe(folder, base):
    name = TOY if base == TOY else str(folder)
    loaded = load_base(ModelConfig(base=name, dtype="bfloat16"))
    assert {p.dtype for p in loaded.model.parameters()} == {torch.bfloat16}


def test_the_merged_adapter_is_the_wrapped_one(folder):
    plain = load_base(config(folder, "")).model
    before = logits(plain)
    wrapped = PeftModel.from_pretrained(plain, str(folder / "speech-lora")).eval()
    merged = load_base(config(folder)).model
    assert float((logits(wrapped) - before).abs().max()) > 0.1
    torch.testing.assert_close(logits(merged), logits(wrapped), rtol=0, atol=1e-5)
    assert not [name for name, _ in merged.named_parameters() if "lora" in name or "base_layer" in name]
    assert merged.lm_head.weight is merged.get_input_embeddings().weight
    assert type(merged) is type(build_toy(TOY)[0])


def test_keys_without_the_prefix_are_mended(folder):
    expected = logits(load_base(config(folder)).model)
    tensors = load_file(folder / WEIGHTS)
    assert all(key.startswith("base_model.model.") for key in tensors)
    save_file({key.removeprefix("base_model.model."): value for key, value in tensors.items()}, folder / WEIGHTS)
    assert torch.equal(logits(load_base(config(folder)).model), expected)


def test_an_adapter_of_zeros_is_refused(folder):
    tensors = load_file(folder / WEIGHTS)
    save_file({k: torch.zeros_like(v) if "lora_B" in k else v for k, v in tensors.items()}, folder / WEIGHTS)
    with pytest.raises(RequestError, match="every lora_B"):
        load_base(config(folder))


@pytest.mark.parametrize(("damage", "named"), [("missing", "o_proj"), ("renamed", "o_proj"), ("unknown", "layers.7")])
def test_an_adapter_that_does_not_fit_is_refused(folder, damage, named):
    tensors = load_file(folder / WEIGHTS)
    key = next(k for k in tensors if "o_proj.lora_B" in k)
    if damage == "unknown":
        tensors[key.replace("layers.0", "layers.7")] = tensors[key].clone()
    else:
        value = tensors.pop(key)
        if damage == "renamed":
            tensors[key.replace("o_proj", "z_proj")] = value
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(RequestError, match=f"does not fit the base .*{named}"):
        load_base(config(folder))


def test_an_empty_adapter_folder_is_named(folder):
    (folder / WEIGHTS).unlink()
    with pytest.raises(SourceError, match=r"adapter_model\.safetensors is missing"):
        load_base(config(folder))


def test_another_architecture_is_refused(tmp_path):
    write_toy("toy:llama", tmp_path)
    with pytest.raises(RequestError, match="architecture 'llama'") as refusal:
        load_base(config(tmp_path, ""))
    assert not isinstance(refusal.value, SourceError)
    assert PHI4_MULTIMODAL.revision in refusal.value.mend
    with pytest.raises(RequestError, match="cannot judge recordings"):
        family_of(build_toy("toy:llama")[0])


def test_an_architecture_unknown_to_the_library_is_refused(folder):
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "model_type": "phi4mm"}))
    with pytest.raises(RequestError, match=str(folder)) as refusal:
        load_base(config(folder, ""))
    assert refusal.value.exit_code == 2


@pytest.mark.parametrize("name", ["nowhere/at/all", "./nowhere", "/nowhere/at/all", ""])
def test_a_folder_that_is_not_there_is_a_source_error(monkeypatch, name, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SourceError, match=r"model\.base") as refusal:
        load_base(ModelConfig(base=name))
    assert refusal.value.exit_code == 2


def test_a_hub_that_cannot_be_reached_is_a_source_error(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(SourceError, match="luthier-tests/no-such-model cannot be loaded") as refusal:
        load_base(ModelConfig(base="luthier-tests/no-such-model", builtin_adapter="speech-lora"))
    assert refusal.value.exit_code == 2
    assert "model.base=FOLDER" in refusal.value.mend


def test_a_builtin_adapter_that_the_folder_lacks(folder):
    with pytest.raises(SourceError, match=r"model\.builtin_adapter"):
        load_base(config(folder, "singing-lora"))


def test_a_builtin_adapter_of_the_hub_that_cannot_be_reached(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SourceError, match=r"speech-lora of luthier-tests/no-such-model cannot be reached"):
        _adapter_folder(ModelConfig(base="luthier-tests/no-such-model", builtin_adapter="speech-lora"), None)


def test_weights_torn_on_disk_are_refused(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(RequestError, match=str(folder)):
        load_base(config(folder, ""))


def test_weights_that_are_missing_are_refused(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors.pop(next(key for key in tensors if "qkv_proj" in key))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RequestError, match="qkv_proj"):
        load_base(config(folder, ""))


def test_the_layout_for_remote_code_is_named_with_its_mend(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "phi4mm", "architectures": ["Phi4MMForCausalLM"]}')
    with pytest.raises(RequestError, match="remote code") as refusal:
        load_base(ModelConfig(base=str(tmp_path)))
    assert "refs/pr/70" in refusal.value.mend
