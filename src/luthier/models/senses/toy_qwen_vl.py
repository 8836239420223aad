"""Toy twins of Qwen2-VL, Qwen2.5-VL and Qwen3-VL: the real classes of transformers, small, and their tokenizer.

A twin has what its family is told apart by: mRoPE in three axes, windows in all but one layer of the encoder (2.5),
features that enter deeper layers of the decoder (3). Its processors read small pictures: 4 to 16 vectors each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLVideoProcessor,
)

from luthier.models.toy_tokenizer import END_OF_TEXT, extended_tokenizer

IMAGE_PAD, VIDEO_PAD = "<|image_pad|>", "<|video_pad|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
_ROWS = 768
_MERGE = 2
_NOTHING: Mapping[str, Any] = {}

# ChatML; a picture or video stands between its own marks.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% elif part['type'] == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{% elif part['type'] == 'video' %}{{ '<|vision_start|><|video_pad|><|vision_end|>' }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """The toy tokenizer with the tokens and the chat template of the family."""
    named = {
        "vision_start_token": VISION_START,
        "vision_end_token": VISION_END,
        "image_token": IMAGE_PAD,
        "video_token": VIDEO_PAD,
    }
    made = extended_tokenizer((TURN_START, TURN_END, *named.values()), CHAT_TEMPLATE, named)
    made.eos_token = TURN_END
    return made


def build(
    model_type: str,
    tokenizer: PreTrainedTokenizerFast,
    text: Mapping[str, Any] = _NOTHING,
    vision: Mapping[str, Any] = _NOTHING,
) -> PreTrainedModel:
    """A twin with random weights from the global state: qwen2_vl, qwen2_5_vl or qwen3_vl.

    `text` and `vision` are fields of the configuration that a larger twin has otherwise.
    """
    ids = tokenizer.convert_tokens_to_ids
    config = AutoConfig.for_model(
        model_type,
        text_config=_text(model_type, tokenizer) | dict(text),
        vision_config=_vision(model_type) | dict(vision),
        image_token_id=ids(IMAGE_PAD),
        video_token_id=ids(VIDEO_PAD),
        vision_start_token_id=ids(VISION_START),
        vision_end_token_id=ids(VISION_END),
        tie_word_embeddings=True,
    )
    model: PreTrainedModel = AutoModelForImageTextToText.from_config(config)
    return model


def processors(model_type: str, patch: int = 0, places: int = 16) -> tuple[Any, Any]:
    """(image processor, video processor) of a twin; sizes in pixels, of Qwen3-VL's videos over all frames.

    A larger twin has patches of `patch` pixels and `places` vectors of a picture at most.
    """
    patch = patch or _patch(model_type)
    place = (patch * _MERGE) ** 2
    picture = {"shortest_edge": 4 * place, "longest_edge": places * place}
    # The first two count the pixels of one frame.
    film = {"shortest_edge": 4 * place, "longest_edge": 2 * places * place} if model_type == "qwen3_vl" else picture
    settings = {"patch_size": patch, "merge_size": _MERGE, "temporal_patch_size": 2}
    of_films = Qwen3VLVideoProcessor if model_type == "qwen3_vl" else Qwen2VLVideoProcessor
    return Qwen2VLImageProcessor(size=picture, **settings), of_films(size=film, **settings)


def _patch(model_type: str) -> int:
    return 16 if model_type == "qwen3_vl" else 14


def _text(model_type: str, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    fields = {
        "vocab_size": _ROWS,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.12,
        "max_position_embeddings": 8192,
        "bos_token_id": tokenizer.bos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.convert_tokens_to_ids([END_OF_TEXT, TURN_END]),
        # Four frequencies of a head of 8: two of time, one each of rows and columns.
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 1, 1]},
    }
    return fields | ({"head_dim": 8} if model_type == "qwen3_vl" else {})


def _vision(model_type: str) -> dict[str, Any]:
    shared = {
        "depth": 2,
        "num_heads": 2,
        "patch_size": _patch(model_type),
        "spatial_merge_size": _MERGE,
        "temporal_patch_size": 2,
        "initializer_range": 0.12,
    }
    own: dict[str, dict[str, Any]] = {
        "qwen2_vl": {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2},
        # A window of two by two places: pictures of more are looked at whole in the second layer alone.
        "qwen2_5_vl": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "out_hidden_size": 32,
            "window_size": 56,
            "fullatt_block_indexes": [1],
        },
        "qwen3_vl": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "out_hidden_size": 32,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
        },
    }
    return shared | own[model_type]
