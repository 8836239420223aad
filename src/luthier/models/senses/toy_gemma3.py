"""The toy twin of Gemma 3 that sees: the library's classes, a SigLIP tower of 56 x 56 pixels, 4 tokens a picture."""

from __future__ import annotations

from typing import Any

from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3TextConfig,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)

from luthier.models.toy_tokenizer import END_OF_TEXT, extended_tokenizer

IMAGE_SIZE, TOKENS_PER_IMAGE = 56, 4
START_OF_IMAGE, SOFT, END_OF_IMAGE = "<start_of_image>", "<image_soft_token>", "<end_of_image>"
START_OF_TURN, END_OF_TURN = "<start_of_turn>", "<end_of_turn>"

# Gemma: the assistant is called "model", turns alternate, and a system's words open the first turn of the user.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% set ns = namespace(system='') %}"
    "{% for message in messages %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{% if message['content'] is string %}{% set parts = [{'type': 'text', 'text': message['content']}] %}"
    "{% else %}{% set parts = message['content'] %}{% endif %}"
    "{% if role == 'system' %}{% set ns.system = parts[0]['text'] + '\\n\\n' %}{% else %}"
    "{{ '<start_of_turn>' + role + '\\n' + ns.system }}{% set ns.system = '' %}"
    "{% for part in parts %}"
    "{% if part['type'] == 'text' %}{{ part['text'] | trim }}"
    "{% elif part['type'] == 'image' %}{{ '<start_of_image>' }}{% endif %}"
    "{% endfor %}{{ '<end_of_turn>\\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """The toy tokenizer with Gemma's tokens and template, and the names that its processor reads."""
    return extended_tokenizer(
        (START_OF_TURN, END_OF_TURN, START_OF_IMAGE, END_OF_IMAGE, SOFT),
        CHAT_TEMPLATE,
        {"boi_token": START_OF_IMAGE, "eoi_token": END_OF_IMAGE, "image_token": SOFT},
    )


def build(model_type: str, tokenizer: PreTrainedTokenizerFast) -> Gemma3ForConditionalGeneration:
    """A model of random weights; one layer looks back on a window, the other on everything."""
    from luthier.models.toys import HEAD_WIDTH, TWO_KINDS, VOCABULARY_ROWS, WINDOW

    ids = tokenizer.convert_tokens_to_ids
    text: dict[str, Any] = {
        "vocab_size": VOCABULARY_ROWS,
        "hidden_size": TWO_KINDS.hidden_size,
        "intermediate_size": TWO_KINDS.intermediate_size,
        "num_hidden_layers": TWO_KINDS.num_hidden_layers,
        "num_attention_heads": TWO_KINDS.num_attention_heads,
        "num_key_value_heads": TWO_KINDS.num_key_value_heads,
        "head_dim": HEAD_WIDTH,
        "query_pre_attn_scalar": HEAD_WIDTH,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention"],
        "max_position_embeddings": 8192,
        "initializer_range": TWO_KINDS.initializer_range,
        "bos_token_id": tokenizer.bos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": ids([END_OF_TEXT, END_OF_TURN]),
    }
    sight = SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=14,
        vision_use_head=False,
    )
    config = Gemma3Config(
        text_config=Gemma3TextConfig(**text),
        vision_config=sight,
        mm_tokens_per_image=TOKENS_PER_IMAGE,
        boi_token_index=ids(START_OF_IMAGE),
        eoi_token_index=ids(END_OF_IMAGE),
        image_token_index=ids(SOFT),
        initializer_range=TWO_KINDS.initializer_range,
    )
    model = Gemma3ForConditionalGeneration(config)
    # The library leaves this weight at zero until a checkpoint fills it; a picture would then be nothing.
    model.model.multi_modal_projector.mm_input_projection_weight.data.normal_(std=TWO_KINDS.hidden_size**-0.5)
    return model


def processors(model_type: str) -> tuple[Gemma3ImageProcessor]:
    """The image processor: as published, at the size of the toy's eyes."""
    return (Gemma3ImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, do_pan_and_scan=False),)
