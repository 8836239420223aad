"""Toy twins: real architectures of the transformers library, small enough to learn on a laptop's processor.

A twin has the classes, the parameter names and the tokens of its big sister, and random weights; what is
tested on the twin therefore runs the same code as the real model. This module knows nothing of training,
adapters or rows, and never looks at the network.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Phi4MultimodalAudioConfig,
    Phi4MultimodalConfig,
    Phi4MultimodalFeatureExtractor,
    Phi4MultimodalForCausalLM,
    Phi4MultimodalVisionConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from luthier.errors import RequestError
from luthier.models.toy_tokenizer import END_OF_TURN, load_tokenizer

VOCABULARY_ROWS = 768
"""Rows of the embedding matrix: the tokenizer fills 640, the rest is free for learned tokens."""

LOG_MEL_MEAN, LOG_MEL_STD = 13.5, 3.8
"""Level and spread of the log-mel features of speech; the real model ships such constants per mel bin."""


@dataclass(frozen=True, slots=True)
class ToySize:
    """Widths and depths of a twin. Heads divide their widths; the audio fields are for hearing twins only."""

    hidden_size: int = 32
    intermediate_size: int = 64
    num_hidden_layers: int = 1
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    audio_hidden_size: int = 32
    audio_intermediate_size: int = 64
    audio_blocks: int = 1
    audio_heads: int = 4
    conv_channels: int = 16
    initializer_range: float = 0.12
    """At the usual 0.02 the sound vanishes on its way through so narrow a model, and nothing is learned."""


Builder = Callable[[ToySize, PreTrainedTokenizerFast], PreTrainedModel]


@dataclass(frozen=True, slots=True)
class Toy:
    """One twin: its size, how its model is built, and whether it hears."""

    size: ToySize
    build: Builder
    hears: bool
    sight: str = ""
    """The module of its eyes' twin, with `build`, `tokenizer` and `processors`, for families that see."""
    model_type: str = ""
    """What that module is asked for."""


def build_toy(
    name: str, seed: int = 0
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast, Phi4MultimodalFeatureExtractor | None]:
    """Build a twin by its registered name.

    Returns the model (float32, evaluation mode), its tokenizer, and its feature extractor (16 kHz mono sound
    to 80 log-mel bins at 100 frames a second) or None for a twin that does not hear. The weights depend on
    `seed` alone; the global random state is neither read nor moved. Raises RequestError for an unknown name.
    """
    return build_sized(_find(name), seed)


def build_sized(
    toy: Toy, seed: int = 0
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast, Phi4MultimodalFeatureExtractor | None]:
    """Build a twin of any size; otherwise as `build_toy`."""
    tokenizer = _tokenizer_of(toy)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = toy.build(toy.size, tokenizer).float().eval()
    return model, tokenizer, Phi4MultimodalFeatureExtractor() if toy.hears else None


def write_toy(name: str, folder: Path, seed: int = 0) -> None:
    """Save a twin in the usual hub layout: config, safetensors, tokenizer and, if it hears or sees, preprocessors.

    Plain transformers loads it back equal. Raises RequestError for an unknown name.
    """
    model, tokenizer, _ = build_toy(name, seed)
    for part in (model, tokenizer, *toy_processors(name)):
        part.save_pretrained(str(folder))


def toy_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a twin with the media tokens and the chat template of its family. Raises RequestError."""
    return _tokenizer_of(_find(name))


def toy_processors(name: str) -> tuple[Any, ...]:
    """The processors of a twin's media, of pictures first; none where it reads text alone. Raises RequestError."""
    toy = _find(name)
    if not toy.sight:
        return (Phi4MultimodalFeatureExtractor(),) if toy.hears else ()
    found: tuple[Any, ...] = importlib.import_module(toy.sight).processors(toy.model_type)
    return found


def _tokenizer_of(toy: Toy) -> PreTrainedTokenizerFast:
    found: PreTrainedTokenizerFast = importlib.import_module(toy.sight).tokenizer() if toy.sight else load_tokenizer()
    return found


def _find(name: str) -> Toy:
    if name not in TOYS:
        raise RequestError(f"{name}: no such toy", f"choose one of {', '.join(sorted(TOYS))}")
    return TOYS[name]


def _text_fields(size: ToySize, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY_ROWS,
        "hidden_size": size.hidden_size,
        "intermediate_size": size.intermediate_size,
        "num_hidden_layers": size.num_hidden_layers,
        "num_attention_heads": size.num_attention_heads,
        "num_key_value_heads": size.num_key_value_heads,
        "initializer_range": size.initializer_range,
        "max_position_embeddings": 8192,
        # As the small published checkpoints do; a family that does not says so in its facts.
        "tie_word_embeddings": True,
        "bos_token_id": tokenizer.bos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(END_OF_TURN)],
    }


def _phi4_multimodal(size: ToySize, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    audio = Phi4MultimodalAudioConfig(
        hidden_size=size.audio_hidden_size,
        intermediate_size=size.audio_intermediate_size,
        num_blocks=size.audio_blocks,
        num_attention_heads=size.audio_heads,
        ext_pw_out_channel=size.audio_hidden_size,
        depthwise_separable_out_channel=size.audio_hidden_size,
        nemo_conv_channels=size.conv_channels,
        bias_max_distance=500,
        initializer_range=size.initializer_range,
        audio_token_id=tokenizer.audio_token_id,
    )
    vision = Phi4MultimodalVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        crop_size=28,
        patch_size=14,
        image_token_id=tokenizer.image_token_id,
    )
    config = Phi4MultimodalConfig(
        audio_config=audio, vision_config=vision, original_max_position_embeddings=8192, **_text_fields(size, tokenizer)
    )
    model = Phi4MultimodalForCausalLM(config)
    normal = model.model.embed_tokens_extend.audio_embed.encoder.encoder_embedding
    normal.global_mean.fill_(LOG_MEL_MEAN)
    normal.global_invstd.fill_(1 / LOG_MEL_STD)
    return model


def _decoder(model_type: str, **facts: Any) -> Builder:
    """A builder of a text-only twin: the class that transformers has for `model_type`, with its family's facts."""

    def build(size: ToySize, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
        return AutoModelForCausalLM.from_config(
            AutoConfig.for_model(model_type, **(_text_fields(size, tokenizer) | facts))
        )

    return build


def _seeing(module: str, model_type: str) -> Toy:
    """A twin that sees: `build(model_type, tokenizer)` of its family's module makes the model."""
    where = f"luthier.models.senses.{module}"

    def build(_size: ToySize, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
        model: PreTrainedModel = importlib.import_module(where).build(model_type, tokenizer)
        return model

    return Toy(ToySize(), build, hears=False, sight=where, model_type=model_type)


HEAD_WIDTH = ToySize().hidden_size // ToySize().num_attention_heads
"""For families whose heads have a width of their own, by default that of the big sister."""
WINDOW = 48
"""Tokens that a layer with a sliding window looks back on, itself included: less than a toy chat has."""

TWO_KINDS = ToySize(num_hidden_layers=2)
"""For families that alternate between windowed and full attention: one layer of each."""

LARGE = ToySize(
    hidden_size=96,
    intermediate_size=256,
    num_hidden_layers=2,
    num_key_value_heads=4,
    initializer_range=0.04,
)
"""0.3 million weights: learns some hundred facts from prose in a minute on a processor."""

TOYS: dict[str, Toy] = {
    "toy:phi4-multimodal": Toy(ToySize(), _phi4_multimodal, hears=True),
    "toy:llama": Toy(ToySize(), _decoder("llama"), hears=False),
    "toy:llama-large": Toy(LARGE, _decoder("llama"), hears=False),
    "toy:qwen2": Toy(ToySize(), _decoder("qwen2"), hears=False),
    "toy:qwen3": Toy(ToySize(), _decoder("qwen3", head_dim=HEAD_WIDTH), hears=False),
    "toy:gemma2": Toy(
        TWO_KINDS,
        _decoder("gemma2", head_dim=HEAD_WIDTH, query_pre_attn_scalar=HEAD_WIDTH, sliding_window=WINDOW),
        hears=False,
    ),
    "toy:gemma3": Toy(
        TWO_KINDS,
        _decoder(
            "gemma3_text",
            head_dim=HEAD_WIDTH,
            query_pre_attn_scalar=HEAD_WIDTH,
            sliding_window=WINDOW,
            layer_types=["sliding_attention", "full_attention"],
        ),
        hears=False,
    ),
    # The published Phi-3 and Mistral have a head of their own, apart from the embeddings.
    "toy:phi3": Toy(
        ToySize(),
        _decoder("phi3", sliding_window=WINDOW, original_max_position_embeddings=8192, tie_word_embeddings=False),
        hears=False,
    ),
    "toy:mistral": Toy(ToySize(), _decoder("mistral", sliding_window=WINDOW, tie_word_embeddings=False), hears=False),
    "toy:qwen2-vl": _seeing("toy_qwen_vl", "qwen2_vl"),
    "toy:qwen2.5-vl": _seeing("toy_qwen_vl", "qwen2_5_vl"),
    "toy:qwen3-vl": _seeing("toy_qwen_vl", "qwen3_vl"),
    "toy:qwen3-vl-large": _seeing("toy_qwen_vl_large", "qwen3_vl"),
    "toy:gemma3-vision": _seeing("toy_gemma3", "gemma3"),
    "toy:smolvlm": _seeing("toy_idefics3", "smolvlm"),
    "toy:idefics3": _seeing("toy_idefics3", "idefics3"),
    "toy:llava-onevision": _seeing("toy_llava_onevision", "llava_onevision"),
    "toy:phi3-vision": _seeing("toy_phi3_vision", "phi3_v"),
}
"""Every twin by name."""
