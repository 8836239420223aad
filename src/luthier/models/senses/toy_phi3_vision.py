"""The toy twin of Phi-3-vision: our own classes of it, at most four tiles of 28 x 28 pixels with four vectors each.

Its tokenizer adds BOS to every text, and its decoder is scaled by long-rope beyond 2,048 tokens, as in the big sister.
"""

from __future__ import annotations

from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from luthier.models.phi3_vision import Phi3VConfig, Phi3VForCausalLM, Phi3VImageProcessor
from luthier.models.toy_tokenizer import END_OF_TEXT, END_OF_TURN, extended_tokenizer

TILE, PATCH, MOST_TILES = 28, 7, 4
BEGIN = "<s>"
ORIGINAL_POSITIONS = 2048

# As published: strings alone, a picture as <|image_1|> in them, every turn closed by <|end|> and a newline.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt and messages[-1]['role'] != 'assistant' %}{{ '<|assistant|>\\n' }}{% endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """The toy tokenizer with the tokens and the template of Phi-3-vision."""
    made = extended_tokenizer((BEGIN,), CHAT_TEMPLATE, {})
    made.bos_token = BEGIN
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, made.bos_token_id)]
    )
    return made


def image_processor() -> Phi3VImageProcessor:
    """Pictures as the twin reads them: 25 or 27 vectors for most shapes, 31 at most."""
    return Phi3VImageProcessor(num_crops=MOST_TILES, num_img_tokens=(TILE // PATCH // 2) ** 2, image_size=TILE)


def processors(model_type: str) -> tuple[Phi3VImageProcessor]:
    """What turns its media into its inputs."""
    return (image_processor(),)


def build(model_type: str, tokenizer: PreTrainedTokenizerFast) -> Phi3VForCausalLM:
    """A model of random weights."""
    from luthier.models.toys import VOCABULARY_ROWS, ToySize

    size = ToySize()
    pairs = size.hidden_size // size.num_attention_heads // 2
    config = Phi3VConfig(
        vocab_size=VOCABULARY_ROWS,
        hidden_size=size.hidden_size,
        intermediate_size=size.intermediate_size,
        num_hidden_layers=size.num_hidden_layers,
        num_attention_heads=size.num_attention_heads,
        num_key_value_heads=size.num_key_value_heads,
        initializer_range=size.initializer_range,
        max_position_embeddings=4 * ORIGINAL_POSITIONS,
        original_max_position_embeddings=ORIGINAL_POSITIONS,
        rope_scaling={
            "type": "su",
            "short_factor": [1.0 + 0.1 * pair for pair in range(pairs)],
            "long_factor": [1.5 + pair for pair in range(pairs)],
        },
        sliding_window=4 * ORIGINAL_POSITIONS,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.convert_tokens_to_ids([END_OF_TEXT, END_OF_TURN]),
        tie_word_embeddings=False,
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": TILE,
            "patch_size": PATCH,
            "projection_dim": 32,
            "initializer_range": size.initializer_range,
        },
    )
    return Phi3VForCausalLM(config)
