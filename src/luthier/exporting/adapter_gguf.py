"""A LoRA adapter as a GGUF beside its base's (`--lora` of llama.cpp), where such a file can say what the adapter does.

llama.cpp adds B A alpha / rank to a matrix and knows nothing else: everything beyond that is refused by name, early,
from adapter_config.json alone. The base's weights are not needed, only its config.json.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from luthier.errors import ExistsError, RequestError
from luthier.exporting import gguf_shapes
from luthier.exporting.gguf_file import import_gguf, read_config, read_tensor
from luthier.files import read_json, write_atomically

KINDS = ("f32", "f16")
_A, _B = ".lora_A.weight", ".lora_B.weight"
_PREFIX = "base_model.model."
_MEND = "ship it merged: --to gguf without --what adapter"


def adapter_gguf_problem(adapter_config: Mapping[str, Any]) -> str:
    """Why this PEFT configuration (adapter_config.json) has no adapter GGUF; "" where it has one."""
    reasons = {
        "use_dora": "DoRA's magnitudes have no place in it (model.lora.use_dora)",
        "modules_to_save": "whole modules have no place in it (model.modules_to_save, or model.tuning: full)",
        "trainable_token_indices": "learned tokens have no place in it (model.added_tokens)",
        "rank_pattern": "ranks by module are not carried (rank_pattern)",
        "alpha_pattern": "scales by module are not carried (alpha_pattern)",
        "fan_in_fan_out": "transposed matrices are not carried (fan_in_fan_out)",
        "lora_bias": "LoRA's biases have no place in it (lora_bias)",
        "target_parameters": "matrices inside of experts are not carried (target_parameters)",
        "layer_replication": "repeated layers have no place in it (layer_replication)",
    }
    if str(adapter_config.get("peft_type", "LORA")) != "LORA":
        return f"{adapter_config['peft_type']} is not LoRA"
    if adapter_config.get("bias", "none") != "none":
        return "tuned biases have no place in it (bias)"
    return next((reason for key, reason in reasons.items() if adapter_config.get(key)), "")


def write_adapter_gguf(adapter: Path, base: Path | Any, out: Path, kind: str = "f16") -> dict[str, Any]:
    """Write the PEFT folder `adapter` as `out`. `base` is the base's folder, or its transformers configuration.

    Returns file, alpha and tensors. rsLoRA's scale, alpha / sqrt(rank), is written as the alpha that llama.cpp divides
    by the rank. Raises RequestError where the adapter cannot be said so, ExistsError, DiskError.
    """
    from safetensors import safe_open

    settings = read_json(adapter / "adapter_config.json")
    problem = adapter_gguf_problem(settings)
    if problem or kind not in KINDS:
        raise RequestError(f"{adapter}: {problem or f'{kind} is none of ' + ', '.join(KINDS)}", _MEND)
    if out.exists():
        raise ExistsError(f"{out} exists already", "name another file")
    gguf = import_gguf()
    config = read_config(base) if isinstance(base, Path) else base
    family = gguf_shapes.family_of(config)
    names = gguf.get_tensor_name_map(
        next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == family.arch), config.num_hidden_layers
    )
    alpha = float(settings["lora_alpha"]) * (math.sqrt(settings["r"]) if settings.get("use_rslora") else 1.0)
    writer = gguf.GGUFWriter(None, family.arch)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    encoding = gguf.GGMLQuantizationType[kind.upper()]
    weights = adapter / "adapter_model.safetensors"
    with safe_open(str(weights), framework="pt") as stored:
        keys = sorted(stored.keys())
    pairs = [key for key in keys if key.endswith(_A)]
    _refuse_others(weights, keys, config)
    for key in pairs:
        inner = key.removeprefix(_PREFIX).removesuffix(_A)
        name = names.get_name(f"{inner}.weight", try_suffixes=(".weight",))
        if name is None:
            raise RequestError(f"{weights}: {inner} has no place in {family.arch}", _MEND)
        down = read_tensor(weights, key)
        up = family.change(config, f"{inner}.weight", read_tensor(weights, key.replace(_A, _B)))
        for tensor, letter in ((down, "a"), (up, "b")):
            values = gguf.quants.quantize(tensor.float().contiguous().numpy(), encoding)
            writer.add_tensor(f"{name}.lora_{letter}", values, raw_dtype=encoding)
    with write_atomically(out) as stream:
        writer.write_header_to_file(Path(stream.name))
        try:
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()
    return {"file": out, "alpha": alpha, "tensors": 2 * len(pairs), "kind": kind, "architecture": family.arch}


def _refuse_others(weights: Path, keys: list[str], config: Any) -> None:
    """llama.cpp's converter drops or mistakes these; a tensor that is left out changes every answer."""
    other = next((key for key in keys if not key.endswith((_A, _B))), "")
    if other:
        raise RequestError(f"{weights}: {other} is no part of a plain LoRA", _MEND)
    ends = ("embed_tokens", "lm_head") if config.tie_word_embeddings else ("embed_tokens",)
    end = next((key for key in keys if any(part in key for part in ends)), "")
    if end:
        raise RequestError(
            f"{weights}: {end}: embeddings and heads that are tied to them cannot be adapted alone there", _MEND
        )
