"""GGUF files beside transformers (logits, greedy tokens), and beside llama.cpp's converter if $LLAMA_CPP names it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from luthier.engines.llamacpp import gguf_answers
from luthier.errors import DiskError, ExistsError, RequestError
from luthier.exporting import gguf_file, llamatools
from luthier.exporting.gguf_file import write_gguf
from luthier.exporting.gguf_shapes import FAMILIES
from support.ggufs import greedy, logits, model_folder, plain, prompts

gguf = pytest.importorskip("gguf")

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.1, 1.2, 1.3, 1.5],
    "long_factor": [2.0, 3.0, 5.0, 9.0],
    "original_max_position_embeddings": 4096,
}
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 16}
HEADS = {"head_dim": 8}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama3": ("llama", {"rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": False}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 16}),
    "llama-linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
    "mistral": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "qwen2-yarn": ("qwen2", {"rope_parameters": YARN}),
    "qwen3": ("qwen3", {}),
    "phi3": ("phi3", {"sliding_window": None, "original_max_position_embeddings": 8192, "tie_word_embeddings": False}),
    "phi3-long": ("phi3", {"sliding_window": None, "rope_parameters": LONGROPE, "tie_word_embeddings": False}),
    "gemma2": ("gemma2", {}),
}
GAPS = {"gemma2": 5e-3}
"""llama.cpp looks gemma's activation up in a table of float16."""


@pytest.mark.parametrize("case", CASES)
def test_a_float32_file_has_the_logits_and_greedy_tokens_of_transformers(case: str, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    from luthier.engines.llamacpp_model import Model

    name, changes = CASES[case]
    folder = model_folder(tmp_path / case, name, **changes)
    file = write_gguf(folder, tmp_path / "model.gguf", "f32").file
    model, asked = plain(folder), prompts()
    ours = Model(file, context=1024 if case != "phi3-long" else 4096, exact=True)
    for ids in asked:
        ours.read(ids)
        np.testing.assert_allclose(ours.logits(), logits(model, ids), atol=GAPS.get(name, 2e-5))
    assert gguf_answers(file, asked, 12) == greedy(model, asked, 12)


def test_coarser_kinds_answer_nearly_alike(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    folder = model_folder(tmp_path / "llama", "llama")
    wanted = greedy(plain(folder), prompts(), 12)
    differ = {}
    for kind in ("f16", "bf16", "q8_0", "q4_k_m"):
        record = write_gguf(folder, tmp_path / f"{kind}.gguf", kind)
        found = gguf_answers(record.file, prompts(), 12)
        differ[kind] = sum(one != other for one, other in zip(found, wanted, strict=True))
        assert record.bytes == record.file.stat().st_size
        assert record.tokens.texts == 300
    assert differ["f16"] <= 1
    assert max(differ["bf16"], differ["q8_0"]) <= 6
    assert not list(tmp_path.glob(".tmp-*"))


@pytest.mark.parametrize("kind", gguf_file.OWN_KINDS)
def test_what_is_read_back_is_what_was_written(kind: str, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "qwen2", "qwen2")
    record = write_gguf(folder, tmp_path / "model.gguf", kind)
    read = gguf.GGUFReader(record.file)
    tensors = {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in read.tensors}
    weights = plain(folder).state_dict()
    pairs = {
        "token_embd.weight": "model.embed_tokens.weight",
        "blk.0.attn_q.bias": "model.layers.0.self_attn.q_proj.bias",
    }
    for name, ours in pairs.items():
        np.testing.assert_allclose(tensors[name], weights[ours].numpy(), atol=1e-2 if kind == "q8_0" else 4e-3)
    assert "output.weight" not in tensors
    fields = {key: field.contents() for key, field in read.fields.items()}
    assert fields["tokenizer.ggml.tokens"][636] == "<|end|>"
    assert fields["tokenizer.ggml.eot_token_id"] == 636
    assert "message['role']" in fields["tokenizer.chat_template"]
    assert len(fields["tokenizer.ggml.tokens"]) == 768


REFERENCE = """
import sys
sys.path[:0] = [sys.argv[1] + "/gguf-py", sys.argv[1]]
from pathlib import Path
import torch, gguf
from conversion import ModelBase, ModelType, get_model_architecture, get_model_class
from conversion.base import TextModel
TextModel.get_vocab_base_pre = lambda self, tokenizer: "smollm"
folder = Path(sys.argv[2])
kind = get_model_class(get_model_architecture(ModelBase.load_hparams(folder, False), ModelType.TEXT))
kind.set_vocab = lambda self: self._set_vocab_gpt2()
with torch.inference_mode():
    kind(folder, gguf.LlamaFileType[sys.argv[4]], Path(sys.argv[3])).write()
"""
"""llama.cpp's converter knows tokenizers by name, so the toy's is told to it; weights and keys are all its own."""

OWN_WORDS = {"general.name", "general.size_label", "GGUF.kv_count"}
MORE = {"tokenizer.ggml.eot_token_id", "tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token"}
MORE |= {"gemma2.rope.freq_base", "tokenizer.ggml.unknown_token_id", "tokenizer.ggml.pre"}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_tensors_and_keys_are_those_of_llama_cpps_converter(case: str, tmp_path: Path) -> None:
    checkout = os.environ.get("LLAMA_CPP", "")
    if not (Path(checkout) / "conversion").is_dir():
        pytest.skip("LLAMA_CPP names no checkout")
    name, changes = CASES[case]
    folder = model_folder(tmp_path / case, name, **changes)
    for kind, file_type in (("f16", "MOSTLY_F16"), ("q8_0", "MOSTLY_Q8_0")):
        ours = gguf.GGUFReader(write_gguf(folder, tmp_path / f"{kind}.gguf", kind).file)
        other = tmp_path / f"{kind}-reference.gguf"
        subprocess.run([sys.executable, "-c", REFERENCE, checkout, str(folder), str(other), file_type], check=True)
        theirs = gguf.GGUFReader(other)
        keys = [{key: field.contents() for key, field in one.fields.items()} for one in (ours, theirs)]
        assert {key: keys[0][key] for key in keys[0].keys() - OWN_WORDS - MORE} == {
            key: keys[1][key] for key in keys[1].keys() - OWN_WORDS - MORE
        }
        tensors = [{one.name: (one.tensor_type, one.data.tobytes()) for one in read.tensors} for read in (ours, theirs)]
        assert tensors[0] == tensors[1]


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("gemma3", {}, "this architecture is not written"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act is gelu"),
        ("llama", {"rope_parameters": YARN}, "rope_type yarn"),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 0, "sliding_window": 8}, "use_sliding_window"),
        ("gemma2", {**HEADS, "query_pre_attn_scalar": 9, "sliding_window": 48}, "query_pre_attn_scalar"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    name: str, changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    folder = model_folder(tmp_path / name, name, **changes)
    with pytest.raises(RequestError, match=words) as caught:
        write_gguf(folder, tmp_path / "model.gguf", "f16")
    assert "--llama-cpp DIR" in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]


def test_a_window_that_llama_cpp_does_not_keep_is_told(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "mistral", "mistral")
    notes = write_gguf(folder, tmp_path / "model.gguf", "f16").notes
    assert any("beyond 48 tokens" in note for note in notes)


def test_numbers_above_the_largest_of_float16_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = model_folder(tmp_path / "llama", "llama")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = 1e5
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(RequestError, match="above float16's largest") as caught:
        # A checkout would not help: its converter writes infinity.
        write_gguf(folder, tmp_path / "model.gguf", "f16", tmp_path / "llama.cpp")
    assert "bf16" in caught.value.mend
    assert not list(tmp_path.glob("*gguf*")) + list(tmp_path.glob(".tmp-*"))
    write_gguf(folder, tmp_path / "model.gguf", "bf16")


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model_folder(tmp_path / "llama", "llama")
    monkeypatch.setattr(gguf_file, "free_bytes", lambda place: 1000)
    with pytest.raises(DiskError, match="1,000 free"):
        write_gguf(folder, tmp_path / "model.gguf", "f16")
    assert not list(tmp_path.glob("*gguf*")) + list(tmp_path.glob(".tmp-*"))


def test_nothing_is_overwritten_and_unknown_kinds_are_named(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"mine")
    with pytest.raises(ExistsError):
        write_gguf(tmp_path, tmp_path / "model.gguf", "f16")
    with pytest.raises(RequestError, match="q9"):
        write_gguf(tmp_path, tmp_path / "other.gguf", "q9")


def test_without_a_quantiser_its_kinds_are_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llamatools.shutil, "which", lambda *words, **more: None)
    monkeypatch.setattr(llamatools.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RequestError, match="no llama-quantize") as caught:
        write_gguf(tmp_path / "nowhere", tmp_path / "model.gguf", "q4_k_m")
    assert "luthier[llamacpp]" in caught.value.mend


def test_a_checkouts_converter_is_run_for_what_is_not_known_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model_folder(tmp_path / "gemma3", "gemma3")
    checkout = tmp_path / "llama.cpp"
    checkout.mkdir()
    with pytest.raises(RequestError, match=r"holds no convert_hf_to_gguf\.py"):
        write_gguf(folder, tmp_path / "model.gguf", "f16", checkout)
    script = checkout / "convert_hf_to_gguf.py"
    script.write_text("import sys; sys.exit('Model Gemma9 is not supported')")
    with pytest.raises(RequestError, match="Gemma9 is not supported"):
        write_gguf(folder, tmp_path / "model.gguf", "f16", checkout)
    script.write_text("import json, sys; open(sys.argv[3], 'w').write(json.dumps(sys.argv[1:]))")
    monkeypatch.setenv("LLAMA_CPP", str(checkout))
    monkeypatch.setattr(gguf_file, "check_tokens", lambda *words: gguf_file.TokenCheck(reason="a stand-in"))
    record = write_gguf(folder, tmp_path / "model.gguf", "f16")
    assert record.written_by == "llama.cpp's converter"
    words = json.loads(record.file.read_text())
    assert words[0] == str(folder)
    assert words[3:] == ["--outtype", "f16"]


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="holds no model of transformers"):
        write_gguf(tmp_path / "nowhere", tmp_path / "model.gguf", "f16")
    assert not list(tmp_path.iterdir())


def test_every_family_is_in_the_cases() -> None:
    assert {name for name, _ in CASES.values()} == set(FAMILIES)
