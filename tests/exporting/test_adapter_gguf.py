"""LoRA adapters as GGUF: on its base's GGUF one does what PEFT does, and what it cannot say is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from luthier.engines.llamacpp import gguf_answers
from luthier.errors import ExistsError, RequestError
from luthier.exporting.adapter_gguf import adapter_gguf_problem, write_adapter_gguf
from luthier.exporting.gguf_file import write_gguf
from support.ggufs import logits, model_folder, plain, prompts

pytest.importorskip("gguf")


def adapted(folder: Path, base: Path, **settings: Any) -> Any:
    """A PEFT model with random LoRA weights, saved in `folder`."""
    torch.manual_seed(2)
    chosen = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "init_lora_weights": False, **settings}
    model = get_peft_model(plain(base), LoraConfig(**chosen))
    model.save_pretrained(str(folder))
    return model.eval()


@pytest.mark.parametrize(
    ("name", "rslora"), [("llama", False), ("llama", True), ("qwen2", False), ("phi3", True), ("gemma2", False)]
)
def test_on_its_base_it_does_what_peft_does(name: str, rslora: bool, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    from luthier.engines.llamacpp_model import Model

    base = model_folder(tmp_path / name, name)
    model = adapted(tmp_path / "adapter", base, use_rslora=rslora)
    file = write_adapter_gguf(tmp_path / "adapter", base, tmp_path / "adapter.gguf", "f32")["file"]
    whole = write_gguf(base, tmp_path / "base.gguf", "f32").file
    ours = Model(whole, 256, adapters=[file], exact=True)
    gap = 5e-3 if name == "gemma2" else 2e-5
    for ids in prompts(5):
        ours.adapt([1.0])
        ours.read(ids)
        np.testing.assert_allclose(ours.logits(), logits(model, ids), atol=gap)
        ours.adapt([0.0])
        ours.read(ids)
        with model.disable_adapter():
            np.testing.assert_allclose(ours.logits(), logits(model, ids), atol=gap)
    if name == "llama":
        assert gguf_answers(whole, prompts(4), 6, adapter=file) != gguf_answers(whole, prompts(4), 6)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, "whole modules"),
        ({"trainable_token_indices": [5]}, "learned tokens"),
        ({"bias": "all"}, "tuned biases"),
        ({"rank_pattern": {"q_proj": 2}}, "ranks by module"),
        ({"alpha_pattern": {"q_proj": 2}}, "scales by module"),
        ({"lora_bias": True}, "LoRA's biases"),
        ({"peft_type": "IA3"}, "IA3 is not LoRA"),
    ],
)
def test_what_it_cannot_say_is_refused_from_the_configuration_alone(
    settings: dict[str, Any], words: str, tmp_path: Path
) -> None:
    assert words in adapter_gguf_problem({"peft_type": "LORA", "r": 4, "lora_alpha": 8, **settings})
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8, **settings}))
    with pytest.raises(RequestError, match=words) as caught:
        write_adapter_gguf(tmp_path, tmp_path, tmp_path / "a.gguf")
    assert "merged" in caught.value.mend


def test_a_plain_adapter_has_no_problem(tmp_path: Path) -> None:
    adapted(tmp_path / "adapter", model_folder(tmp_path / "llama", "llama"))
    assert adapter_gguf_problem(json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())) == ""


def test_tensors_that_are_no_plain_lora_are_refused(tmp_path: Path) -> None:
    base = model_folder(tmp_path / "llama", "llama")
    adapted(tmp_path / "embedding", base, target_modules=["embed_tokens"])
    with pytest.raises(RequestError, match="embed_tokens"):
        write_adapter_gguf(tmp_path / "embedding", base, tmp_path / "a.gguf")
    adapted(tmp_path / "head", base, target_modules=["lm_head", "q_proj"])
    with pytest.raises(RequestError, match="lm_head"):
        write_adapter_gguf(tmp_path / "head", base, tmp_path / "a.gguf")
    assert not (tmp_path / "a.gguf").exists()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    base = model_folder(tmp_path / "llama", "llama")
    adapted(tmp_path / "adapter", base)
    write_adapter_gguf(tmp_path / "adapter", base, tmp_path / "a.gguf")
    with pytest.raises(ExistsError):
        write_adapter_gguf(tmp_path / "adapter", base, tmp_path / "a.gguf")
