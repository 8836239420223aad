"""The toy twins of Idefics3 and SmolVLM: the library's classes, tiles of 56 x 56 pixels and 4 tokens each."""

from __future__ import annotations

from typing import Any

from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
)

from luthier.models.toy_tokenizer import END_OF_TEXT, extended_tokenizer

TILE, LONGEST_EDGE = 56, 3 * 56
TOKENS_PER_TILE = 4
FAKE, IMAGE, GLOBAL, END_OF_UTTERANCE = "<fake_token_around_image>", "<image>", "<global-img>", "<end_of_utterance>"
ROWS_AND_COLUMNS = tuple(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))

# Idefics3: `User:words<end_of_utterance>`, one beginning of text for the whole chat, pictures before their words.
CHAT_TEMPLATE = (
    "{{ '<|im_start|>' }}{% for message in messages %}"
    "{% if message['content'] is string %}{% set parts = [{'type': 'text', 'text': message['content']}] %}"
    "{% else %}{% set parts = message['content'] %}{% endif %}"
    "{{ message['role'] | capitalize }}{{ ':' if parts[0]['type'] == 'image' else ': ' }}"
    "{% for part in parts %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% elif part['type'] == 'image' %}{{ '<image>' }}{% endif %}"
    "{% endfor %}{{ '<end_of_utterance>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """The toy tokenizer with the tokens and the template of Idefics3."""
    tokens = ("<|im_start|>", END_OF_UTTERANCE, FAKE, IMAGE, GLOBAL, *ROWS_AND_COLUMNS)
    return extended_tokenizer(tokens, CHAT_TEMPLATE, {"image_token": IMAGE})


def build(model_type: str, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """A model of random weights; `model_type` is "idefics3" or "smolvlm"."""
    from luthier.models.toys import VOCABULARY_ROWS, ToySize

    size = ToySize()
    text = LlamaConfig(
        vocab_size=VOCABULARY_ROWS,
        hidden_size=size.hidden_size,
        intermediate_size=size.intermediate_size,
        num_hidden_layers=size.num_hidden_layers,
        num_attention_heads=size.num_attention_heads,
        num_key_value_heads=size.num_key_value_heads,
        initializer_range=size.initializer_range,
        max_position_embeddings=8192,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.convert_tokens_to_ids([END_OF_TEXT, END_OF_UTTERANCE]),
    )
    sight: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": TILE,
        "patch_size": 14,
        "initializer_range": size.initializer_range,
    }
    kinds: dict[str, Any] = {
        "idefics3": (Idefics3Config, Idefics3ForConditionalGeneration),
        "smolvlm": (SmolVLMConfig, SmolVLMForConditionalGeneration),
    }
    configuration, kind = kinds[model_type]
    config = configuration(
        text_config=text,
        vision_config=sight,
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        pad_token_id=tokenizer.pad_token_id,
        # As the published SmolVLM-Instruct: a head of its own.
        tie_word_embeddings=False,
    )
    model: PreTrainedModel = kind(config)
    return model


def processors(model_type: str) -> tuple[Idefics3ImageProcessor | SmolVLMImageProcessor]:
    """The image processor: as published, with tiles of the size of the toy's eyes."""
    kind = {"idefics3": Idefics3ImageProcessor, "smolvlm": SmolVLMImageProcessor}[model_type]
    return (kind(size={"longest_edge": LONGEST_EDGE}, max_image_size={"longest_edge": TILE}),)
