"""The toy twin of LLaVA-OneVision: the library's classes, tiles of 56 x 56 pixels and 16 tokens each."""

from __future__ import annotations

from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionVideoProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)

from luthier.models.toy_tokenizer import END_OF_TEXT, extended_tokenizer

TILE = 56
PINPOINTS = [[TILE * rows, TILE * columns] for rows in (1, 2, 3) for columns in (1, 2, 3)]
ASPECT_RATIO = "anyres_max_2"
"""More than two tiles' worth of features are shrunk to two, as the big sister does beyond nine."""
IMAGE, VIDEO, START, END = "<image>", "<video>", "<|im_start|>", "<|im_end|>"

# LLaVA-OneVision writes the pictures of a turn first, then its videos, then its words.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + ' ' }}"
    "{% if message['content'] is string %}{{ '\\n' + message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'video' %}{{ '<video>' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ '\\n' + part['text'] }}{% endfor %}"
    "{% endif %}{{ '<|im_end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant \\n' }}{% endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """The toy tokenizer with the tokens and the template of LLaVA-OneVision."""
    return extended_tokenizer((START, END, IMAGE, VIDEO), CHAT_TEMPLATE, {"image_token": IMAGE, "video_token": VIDEO})


def build(model_type: str, tokenizer: PreTrainedTokenizerFast) -> LlavaOnevisionForConditionalGeneration:
    """A model of random weights."""
    from luthier.models.toys import VOCABULARY_ROWS, ToySize

    size, ids = ToySize(), tokenizer.convert_tokens_to_ids
    text = Qwen2Config(
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
        eos_token_id=ids([END_OF_TEXT, END]),
        tie_word_embeddings=True,
    )
    sight = SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=TILE,
        patch_size=14,
        vision_use_head=False,
    )
    config = LlavaOnevisionConfig(
        text_config=text,
        vision_config=sight,
        image_token_index=ids(IMAGE),
        video_token_index=ids(VIDEO),
        image_grid_pinpoints=PINPOINTS,
        vision_aspect_ratio=ASPECT_RATIO,
        tie_word_embeddings=True,
    )
    return LlavaOnevisionForConditionalGeneration(config)


def processors(model_type: str) -> tuple[LlavaOnevisionImageProcessor, LlavaOnevisionVideoProcessor]:
    """The processors of pictures and videos: as published, at the size of the toy's eyes."""
    size = {"height": TILE, "width": TILE}
    return LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=PINPOINTS), LlavaOnevisionVideoProcessor(
        size=size
    )
