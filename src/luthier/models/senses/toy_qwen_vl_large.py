"""A larger twin of Qwen3-VL, which can learn to read: a price on a tag, and what kind of thing the tag hangs on.

0.6 million weights. Its processor leaves a picture of 112 x 112 pixels as it is and cuts it into patches of 8, so that
a digit of 10 x 14 pixels is some three of them and a picture has 49 vectors. Tokens, template and the spread of the
first weights are those of the small twin: with a third of that spread it takes half as many steps more until the
decoder looks at the tag.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from luthier.models.senses import toy_qwen_vl
from luthier.models.senses.toy_qwen_vl import tokenizer

__all__ = ["build", "processors", "tokenizer"]

_PATCH, _PLACES = 8, 49
"""Pixels of a patch; vectors of a picture at most, each of two by two patches."""
_TEXT = {
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_key_value_heads": 4,
    "head_dim": 24,
    # Twelve frequencies: four each of time, rows and columns.
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 4, 4]},
}
_VISION = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_heads": 4,
    "patch_size": _PATCH,
    "out_hidden_size": 96,
    "num_position_embeddings": 4 * _PLACES,
}


def build(model_type: str, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """The twin with random weights from the global state; `model_type` is qwen3_vl."""
    return toy_qwen_vl.build(model_type, tokenizer, _TEXT, _VISION)


def processors(model_type: str) -> tuple[Any, Any]:
    """(image processor, video processor)."""
    return toy_qwen_vl.processors(model_type, _PATCH, _PLACES)
