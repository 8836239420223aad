"""Weights held in four or eight bits by bitsandbytes: what is asked for, what a published base brings, what is mended.

* nf4 with double quantisation (QLoRA, Dettmers et al. 2023, arXiv 2305.14314); int8 as in LLM.int8 (Dettmers et al.
  2022, arXiv 2208.07339), whose products are taken in float16 on every device.
* The head stays as it is published, and so do embeddings and norms: none of them is trained, their passes are
  computed in the type of autocast, and in float32 they would cost twice the memory.
* What sees and hears stays as it is published too, encoder and projector: it is a tenth of a base, and no adapter
  mends what is lost in it. A base that is published quantised is as its publisher has it.
* Layers compute in float32 on a processor, and in `model.dtype` elsewhere.

This module knows nothing of adapters, and loads nothing itself.
"""

from __future__ import annotations

import logging
from importlib.util import find_spec
from typing import Any

import torch

from luthier.errors import RequestError


def published(settings: Any) -> str:
    """nf4, fp4 or int8 for the config of a base that is published quantised by bitsandbytes, or "" for none.

    Raises RequestError for a base quantised by another method.
    """
    found = getattr(settings, "quantization_config", None)
    if found is None:
        return ""
    known = found if isinstance(found, dict) else found.to_dict()
    if known.get("load_in_8bit"):
        return "int8"
    if known.get("load_in_4bit"):
        return str(known.get("bnb_4bit_quant_type", "fp4"))
    raise RequestError(
        f"model.base: is published quantised by {known.get('quant_method')}, which cannot be tuned here",
        "take the version that is not quantised, and set model.quantization: nf4",
    )


def loading_options(
    quantization: str, settings: Any, dtype: torch.dtype, device: torch.device, whole: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Arguments for `from_pretrained`, empty for weights that are not quantised.

    `quantization` is the recipe's key, `settings` the base's own config, `whole` the modules that stay as published
    beside the head. Raises RequestError when key and config differ, or bitsandbytes is not installed.
    """
    brought = published(settings)
    if brought and quantization not in ("", brought):
        raise RequestError(
            f"model.quantization: is {quantization}, and the base is published in {brought}",
            "leave model.quantization empty, or take the version that is not quantised",
        )
    kind = brought or quantization
    if not kind:
        return {}
    if find_spec("bitsandbytes") is None:
        raise RequestError(f"model.quantization: {kind} needs bitsandbytes", "pip install 'luthier[qlora]'")
    # One line for every layer of every pass, about a cast that is meant.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    chosen = {} if brought else {"quantization_config": _settings(kind, dtype, device, whole)}
    return {"device_map": {"": device}, **chosen}


def _settings(kind: str, dtype: torch.dtype, device: torch.device, whole: tuple[str, ...]) -> Any:
    from transformers import BitsAndBytesConfig

    # Without a list the library finds the head by itself; with one it takes the list alone. The key has this name for
    # four bits too.
    kept = {"llm_int8_skip_modules": [*whole, "lm_head"]} if whole else {}
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, **kept)
    return BitsAndBytesConfig(
        **kept,
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=_compute_dtype(dtype, device),
    )


def _compute_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "cpu" else dtype


def settle(model: Any, dtype: torch.dtype, device: torch.device) -> None:
    """Set what a four-bit layer computes in, and keep its weights as they are.

    A published base brings a type of its own. And on processors with AVX512-BF16 the first pass without gradients
    would pack the weights anew, with their scales rounded to bfloat16: every later pass would differ from the one
    before, and so would the digest.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
            module.compute_dtype = _compute_dtype(dtype, device)
            module.compute_type_is_set = True


def kind_of(model: Any) -> str:
    """int8, nf4 (any four-bit type) or "" for a loaded model."""
    if getattr(model, "is_loaded_in_8bit", False):
        return "int8"
    return "nf4" if getattr(model, "is_loaded_in_4bit", False) else ""
