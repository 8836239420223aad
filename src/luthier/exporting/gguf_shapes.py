"""What llama.cpp must be told about an architecture, and how its weights lie there.

For each family: the keys of its hyperparameters, tensors whose rows are in another order, tensors that follow from
the configuration, and everything that llama.cpp would compute otherwise, which is refused. Sources: llama.cpp's loaders
(src/models) and graphs; names of keys and tensors come from the `gguf` package. Compared with llama.cpp's own converter
tensor by tensor and key by key, and with transformers logit by logit. Knows no files and no vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from luthier.errors import RequestError

CONVERTER = "name a llama.cpp checkout, whose converter knows more of them: --llama-cpp DIR, or $LLAMA_CPP"


@dataclass(frozen=True)
class Family:
    """One architecture: its name in GGUF, its activation, the kinds of rope that llama.cpp computes for it as
    transformers does, and its own keys, changes and limits."""

    arch: str
    activation: str
    ropes: tuple[str, ...]
    keys: Callable[[Any, Any], None]
    problem: Callable[[Any], str] = lambda config: ""
    change: Callable[[Any, str, torch.Tensor], torch.Tensor] = lambda config, name, tensor: tensor


def family_of(config: Any) -> Family:
    """The family of a transformers configuration. Raises RequestError where llama.cpp would compute something else."""
    family = FAMILIES.get(config.model_type)
    if family is None:
        known = ", ".join(sorted(FAMILIES))
        raise RequestError(
            f"{config.model_type}: this architecture is not written as GGUF here ({known} are)", CONVERTER
        )
    activation = getattr(config, "hidden_act", None) or getattr(config, "hidden_activation", "")
    rope = rope_of(config)
    problem = ""
    if getattr(config, "quantization_config", None):
        problem = "its weights are quantised, and a GGUF is written from whole ones"
    elif activation != family.activation:
        problem = f"hidden_act is {activation}, and llama.cpp computes {family.activation}"
    elif rope["rope_type"] not in family.ropes:
        problem = f"rope_type {rope['rope_type']} is not among those known to agree ({', '.join(family.ropes)})"
    problem = problem or family.problem(config)
    if problem:
        raise RequestError(f"{config.model_type}: {problem}", CONVERTER)
    return family


def rope_of(config: Any) -> dict[str, Any]:
    """The rope parameters, with `rope_type` and `rope_theta` always there."""
    found = dict(getattr(config, "rope_parameters", None) or {})
    found.setdefault("rope_type", "default")
    found.setdefault("rope_theta", getattr(config, "rope_theta", 10_000.0))
    return found


def notes(config: Any) -> list[str]:
    """Where llama.cpp and transformers part on texts longer than some length."""
    found = []
    window = getattr(config, "sliding_window", None)
    if config.model_type in ("mistral", "phi3") and window and window < config.max_position_embeddings:
        found.append(
            f"trained with a window of {window:,} tokens, which llama.cpp does not keep for this architecture: "
            f"beyond {window:,} tokens its answers differ"
        )
    if rope_of(config)["rope_type"] == "longrope":
        found.append(
            "llama.cpp takes the long rope factors by the size of its context, transformers by a text's length"
        )
    return found


def describe(writer: Any, config: Any, family: Family) -> None:
    """Write the hyperparameters into a `gguf.GGUFWriter` of this family's architecture."""
    rope = rope_of(config)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(rope["rope_theta"])
    _scaling(writer, rope)
    family.keys(writer, config)


def extra_tensors(config: Any) -> dict[str, torch.Tensor]:
    """Tensors that no weight holds: by how much each rope frequency is divided, float32 of half a head's width."""
    rope = rope_of(config)
    if rope["rope_type"] == "llama3":
        return {"rope_freqs.weight": _llama3_factors(rope, _head_width(config))}
    if rope["rope_type"] == "longrope":
        return {
            f"rope_factors_{kind}.weight": torch.tensor(rope[f"{kind}_factor"], dtype=torch.float32)
            for kind in ("long", "short")
        }
    return {}


def interleave(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of each head from halves to pairs: rope turns neighbours in llama.cpp, halves in transformers."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def _head_width(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _scaling(writer: Any, rope: dict[str, Any]) -> None:
    import gguf

    kind = rope["rope_type"]
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR if kind == "linear" else gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


def _llama3_factors(rope: dict[str, Any], width: int) -> torch.Tensor:
    """Meta's rescaling for Llama 3.1: long waves are slowed by `factor`, short ones kept, those between blended."""
    length, factor = rope["original_max_position_embeddings"], rope["factor"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    waves = 2 * math.pi * rope["rope_theta"] ** (torch.arange(0, width, 2, dtype=torch.float32) / width)
    blend = ((length / waves - low) / (high - low)).clamp(0, 1)
    divided: torch.Tensor = 1 / ((1 - blend) / factor + blend)
    return divided


def _llama_keys(writer: Any, config: Any) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(_head_width(config))
    _head_keys(writer, config)


def _head_keys(writer: Any, config: Any) -> None:
    if getattr(config, "head_dim", None):
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)


def _llama_change(config: Any, name: str, tensor: torch.Tensor) -> torch.Tensor:
    if name.endswith(("q_proj.weight", "q_proj.bias")):
        return interleave(tensor, config.num_attention_heads)
    if name.endswith(("k_proj.weight", "k_proj.bias")):
        return interleave(tensor, config.num_key_value_heads)
    return tensor


def _qwen_problem(config: Any) -> str:
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        return "use_sliding_window is on, and llama.cpp reads the whole text"
    if config.model_type == "qwen3" and config.attention_bias:
        return "attention_bias is on, and llama.cpp's qwen3 has none"
    return ""


def _phi3_keys(writer: Any, config: Any) -> None:
    rope = rope_of(config)
    original = getattr(config, "original_max_position_embeddings", None) or config.max_position_embeddings
    writer.add_rope_scaling_orig_ctx_len(original)
    writer.add_rope_dimension_count(int(rope.get("partial_rotary_factor", 1.0) * _head_width(config)))
    writer.add_sliding_window(config.sliding_window or 0)
    if rope["rope_type"] == "longrope":
        stretch = config.max_position_embeddings / original
        writer.add_rope_scaling_attn_factors(
            math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0
        )


def _gemma2_keys(writer: Any, config: Any) -> None:
    _head_keys(writer, config)
    writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    writer.add_final_logit_softcapping(config.final_logit_softcapping)
    writer.add_sliding_window(config.sliding_window)


def _gemma2_problem(config: Any) -> str:
    # llama.cpp tells the 27B by its 46 layers, and has a fixed scale of attention for it and for the others.
    large = config.num_hidden_layers == 46
    scale = config.hidden_size // config.num_attention_heads if large else config.head_dim
    kinds = ["full_attention" if layer % 2 else "sliding_attention" for layer in range(config.num_hidden_layers)]
    if config.query_pre_attn_scalar != scale:
        return f"query_pre_attn_scalar is {config.query_pre_attn_scalar}, and llama.cpp takes {scale}"
    if list(config.layer_types) != kinds:
        return "layer_types do not alternate as llama.cpp's do (sliding first)"
    if not config.tie_word_embeddings:
        return "tie_word_embeddings is off, and llama.cpp's gemma2 has no head of its own"
    return ""


def _gemma2_change(config: Any, name: str, tensor: torch.Tensor) -> torch.Tensor:
    # transformers computes x * (1 + w), llama.cpp x * w.
    return tensor.float() + 1 if name.endswith("norm.weight") else tensor


FAMILIES = {
    "llama": Family("llama", "silu", ("default", "linear", "llama3"), _llama_keys, change=_llama_change),
    "mistral": Family("llama", "silu", ("default",), _llama_keys, change=_llama_change),
    "qwen2": Family("qwen2", "silu", ("default", "linear", "yarn"), _head_keys, _qwen_problem),
    "qwen3": Family("qwen3", "silu", ("default", "linear", "yarn"), _head_keys, _qwen_problem),
    "phi3": Family("phi3", "silu", ("default", "longrope"), _phi3_keys),
    "gemma2": Family("gemma2", "gelu_pytorch_tanh", ("default",), _gemma2_keys, _gemma2_problem, _gemma2_change),
}
"""By transformers' model_type."""
