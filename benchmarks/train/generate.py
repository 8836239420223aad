"""Writes what the training benchmark works on: rows of token ids, a Llama-shaped model and an untrained adapter.

    .venv/bin/python benchmarks/train/generate.py FOLDER [--steps 9] [--rows-per-step 8] [--seed 17]

Nothing is downloaded and no token is real; lengths follow FineTome-100k's card (README.md). It knows what the work
looks like, and nothing of who does it.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[2] / "src")]

import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from rows import Settings, Work  # noqa: E402

STEPS, ROWS_PER_STEP, SEED = 9, 8, 17
VOCABULARIES = {"32k": 32_000, "128k": 128_256}
MEAN_TOKENS, SIGMA, SHORTEST, LONGEST = 530, 0.75, 16, 2_048
"""FineTome-100k's card: 239,650,960 bytes in 100,000 rows, 2,330 of each in text; at 4.4 bytes a token 530 tokens."""
EXCHANGES = (0.86, 0.07, 0.04, 0.03)
"""Share of rows with one, two, three and four exchanges, as in benchmarks/data."""
ASKED = 0.40
"""Length of a user's turn beside an assistant's, as in benchmarks/data."""
SHAPE = {
    "hidden_size": 512,
    "intermediate_size": 1_376,
    "num_hidden_layers": 7,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def main() -> int:
    options = _options()
    settings = {"seed": options.seed, "steps": options.steps, "rows_per_step": options.rows_per_step}
    print(json.dumps(generate(options.folder, settings, options.asked)))
    return 0


def generate(folder: Path, settings: dict[str, int], asked: float = ASKED) -> dict[str, Any]:
    """Write one folder a vocabulary; the same call writes the same bytes. Returns counts for the record."""
    rng = np.random.default_rng([settings["seed"], 1])
    lengths, learned_T = _lengths(settings["steps"] * settings["rows_per_step"], asked, rng)
    found: dict[str, Any] = {}
    for name, vocabulary in VOCABULARIES.items():
        place = folder / name
        place.mkdir(parents=True, exist_ok=True)
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        ids_T = _ids(int(starts[-1]), vocabulary, np.random.default_rng([settings["seed"], 2]))
        work = Work(place, Settings(vocabulary, **settings), ids_T, learned_T, starts)
        work.write()
        parameters = _model(work)
        found[name] = {"vocabulary": vocabulary, **parameters}
    found["rows"] = {
        "count": len(lengths),
        "tokens": int(lengths.sum()),
        "learned_share": round(float(learned_T.mean()), 4),
        "mean": round(float(lengths.mean()), 1),
        "quantiles": [int(value) for value in np.quantile(lengths, [0, 0.1, 0.5, 0.9, 1])],
    }
    return found


def _lengths(count: int, asked: float, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Log-normal lengths of rows, and for each token whether an assistant's turn holds it."""
    drawn = rng.lognormal(np.log(MEAN_TOKENS) - SIGMA**2 / 2, SIGMA, count)
    lengths = np.rint(drawn).clip(SHORTEST, LONGEST).astype(np.int64)
    exchanges = rng.choice(len(EXCHANGES), count, p=EXCHANGES) + 1
    masks = []
    for length, turns in zip(lengths.tolist(), exchanges.tolist(), strict=True):
        weight = rng.gamma(3.0, size=2 * turns)
        weight[::2] *= asked
        ends = np.rint(np.cumsum(weight) / weight.sum() * length).astype(np.int64).clip(2, length)
        mask = np.zeros(length, np.uint8)
        for begin, end in zip(ends[::2].tolist(), ends[1::2].tolist(), strict=True):
            mask[begin:end] = 1
        mask[-1] = 1  # the stop token of the last turn
        masks.append(mask)
    return lengths, np.concatenate(masks)


def _ids(count: int, vocabulary: int, rng: np.random.Generator) -> NDArray[np.int32]:
    """Token ids by Zipf's law over the whole vocabulary, frequent ones scattered over it."""
    weight = 1.0 / np.arange(1, vocabulary + 1)
    ranks = rng.choice(vocabulary, count, p=weight / weight.sum())
    return rng.permutation(vocabulary)[ranks].astype(np.int32)


def _model(work: Work) -> dict[str, int]:
    """Random weights, a tokenizer since all sides ask for one, and an adapter that all of them load."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    from luthier.models.toy_tokenizer import load_tokenizer

    torch.manual_seed(work.settings.seed)
    tokenizer = load_tokenizer()
    config = LlamaConfig(
        vocab_size=work.settings.vocabulary,
        **SHAPE,
        max_position_embeddings=LONGEST,
        tie_word_embeddings=True,
        # Wider than usual: logits then differ, and a token that is weighted wrongly moves the loss.
        initializer_range=0.05,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(work.model)
    tokenizer.save_pretrained(work.model)
    embeddings = model.get_input_embeddings().weight.numel()
    decoder = sum(parameter.numel() for parameter in model.parameters()) - embeddings
    lora = LoraConfig(
        r=work.settings.lora_r,
        lora_alpha=work.settings.lora_alpha,
        lora_dropout=0.0,
        target_modules=TARGETS,
        task_type="CAUSAL_LM",
    )
    tuned = get_peft_model(model, lora)
    tuned.save_pretrained(work.adapter)
    trained = sum(parameter.numel() for parameter in tuned.parameters() if parameter.requires_grad)
    return {"decoder_parameters": decoder, "embedding_parameters": embeddings, "lora_parameters": trained}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the two folders go")
    parser.add_argument("--steps", type=int, default=STEPS, help="optimizer steps")
    parser.add_argument("--rows-per-step", type=int, default=ROWS_PER_STEP)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--asked", type=float, default=ASKED, help="length of a user's turn beside an assistant's")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
