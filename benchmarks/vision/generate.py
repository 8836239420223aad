"""Writes what the benchmark of stored vectors works on: drawn product cards, a model that sees, an untrained adapter.

    .venv/bin/python benchmarks/vision/generate.py FOLDER --eyes toy|large [--pictures 1000] [--seed 17]

The model is Idefics3 with random weights and a small decoder, a family that TRL trains too. Nothing is downloaded. It
knows what the work looks like, and nothing of who does it.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[2] / "src")]

import torch  # noqa: E402
from transformers import (  # noqa: E402
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    LlamaConfig,
)
from work import Settings, Work, recipe  # noqa: E402

from luthier.data.cards import write_cards  # noqa: E402
from luthier.files import read_jsonl  # noqa: E402
from luthier.models.senses import toy_idefics3 as toy  # noqa: E402
from luthier.runtime.devices import Devices  # noqa: E402
from luthier.stages.chat_prepare import build_chat_model  # noqa: E402

SEED = 17
EYES: dict[str, dict[str, int]] = {
    "toy": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    "large": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
}
TILE = {"toy": 56, "large": 336}
PATCH, SCALE = 14, 2
"""`large` is CLIP ViT-L/14-336 in size, 303 M parameters, and so is its work: 576 patches a tile through 24 layers."""
DECODER: dict[str, dict[str, int]] = {
    "toy": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
    "large": {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 4, "num_attention_heads": 8},
}
TEMPLATE = (
    "{{ '<|im_start|>' }}{% for message in messages %}{{ message['role'] | capitalize + ':' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}"
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{{ '<end_of_utterance>' }}{% endgeneration %}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}{{ '<image>' }}{% endif %}"
    "{% endfor %}{{ '<end_of_utterance>' }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""As Idefics3's, with marks around what is learned: both sides take their masks from them."""


def main() -> int:
    options = _options()
    settings = Settings(options.eyes, options.seed, options.pictures, options.rows_per_step, options.epochs)
    print(json.dumps(generate(options.folder, settings)))
    return 0


def generate(folder: Path, settings: Settings) -> dict[str, Any]:
    """Write one folder; the same call writes the same bytes. Returns counts for the record."""
    table = write_cards(folder / "cards", settings.pictures, settings.seed)
    rows = [
        {
            "image": str(Path("cards") / record["image"]),
            "answer": f"Product: {record['title']}, Category: {record['category3_code']}, "
            f"Full Price: {record['full_price']}",
        }
        for record in read_jsonl(table)
    ]
    work = Work(folder, settings, rows)
    work.write()
    parameters = _model(work)
    _, learner = build_chat_model(recipe(work), Devices("float32"), settings.seed)
    learner.language_model.save_pretrained(work.adapter)
    trained = sum(weight.numel() for weight in learner.parameters() if weight.requires_grad)
    return {"pictures": len(rows), **parameters, "lora_parameters": trained}


def _model(work: Work) -> dict[str, int]:
    """Random weights, and the processor of both sides: one tile a picture for the large eyes, ten for the toy's."""
    eyes, tile = work.settings.eyes, TILE[work.settings.eyes]
    torch.manual_seed(work.settings.seed)
    tokenizer = toy.tokenizer()
    ids = tokenizer.convert_tokens_to_ids
    text = LlamaConfig(
        vocab_size=768,
        **DECODER[eyes],
        num_key_value_heads=DECODER[eyes]["num_attention_heads"] // 2,
        initializer_range=0.05,  # wider than usual: what is seen then moves the loss
        max_position_embeddings=4096,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=ids("<end_of_utterance>"),
    )
    sight = {**EYES[eyes], "image_size": tile, "patch_size": PATCH, "initializer_range": 0.02}
    config = Idefics3Config(
        text_config=text,
        vision_config=sight,
        scale_factor=SCALE,
        image_token_id=ids(toy.IMAGE),
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    model = Idefics3ForConditionalGeneration(config)
    model.save_pretrained(work.model)
    longest = tile if eyes == "large" else toy.LONGEST_EDGE
    images = Idefics3ImageProcessor(size={"longest_edge": longest}, max_image_size={"longest_edge": tile})
    seen = (tile // PATCH // SCALE) ** 2
    Idefics3Processor(images, tokenizer, image_seq_len=seen, chat_template=TEMPLATE).save_pretrained(work.model)
    count = lambda module: sum(weight.numel() for weight in module.parameters())
    return {"encoder_parameters": count(model.model.vision_model), "decoder_parameters": count(model.model.text_model)}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--eyes", choices=tuple(EYES), default="toy")
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--rows-per-step", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=SEED)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
