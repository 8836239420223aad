"""Writes what the exam benchmark works on: bases of random weights, adapters, a tokenizer and exam files.

    .venv/bin/python benchmarks/exam/generate.py FOLDER [--questions 162] [--adapters 22] [--bases big small toy]

Nothing is downloaded and no question means anything. It knows what the work looks like, and nothing of who does it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "data"), str(HERE.parents[1] / "src")]

import numpy as np  # noqa: E402
from cases import SHOTS  # noqa: E402
from words import Vocabulary  # noqa: E402

SEED = 17
VOCABULARY = 49_152
QUESTION_WORDS, OPTION_WORDS = (12, 26), (4, 7)
"""Shortest and longest: a lettered question comes to some 50 tokens, an option to 7."""
BIG = {
    "hidden_size": 576,
    "intermediate_size": 1_536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}
"""SmolLM2-135M's shape."""
SMALL = {
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
"""A body that its vocabulary dwarfs."""
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]


def main() -> int:
    options = _options()
    print(json.dumps(generate(options.folder, options.questions, options.adapters, options.bases)))
    return 0


def generate(folder: Path, questions: int, adapters: int, bases: Iterable[str]) -> dict[str, Any]:
    """Write exams and bases; the same call writes the same bytes. Returns counts for the record."""
    vocabulary = Vocabulary.make(SEED)
    rng = np.random.default_rng([SEED, 2])
    _exams(folder / "exams", vocabulary, questions, rng)
    tokenizer = None
    found: dict[str, Any] = {}
    for base in bases:
        place = folder / base
        if base == "toy":
            from luthier.models.toys import write_toy

            write_toy("toy:llama", place)
        else:
            tokenizer = tokenizer or _tokenizer(vocabulary)
            _model(place, BIG if base == "big" else SMALL, tokenizer)
        if base != "big":
            _adapters(place, folder / f"{base}-adapters", adapters)
        found[base] = _about(place, folder / "exams" / "questions.jsonl")
    return found


def _exams(folder: Path, vocabulary: Vocabulary, count: int, rng: np.random.Generator) -> None:
    """Two-way questions with letters, a pool of solved ones, and the shapes of PIQA and WinoGrande."""
    folder.mkdir(parents=True)
    asked = _sentences(vocabulary, 3 * count + SHOTS, QUESTION_WORDS, rng)
    options = _sentences(vocabulary, 2 * len(asked), OPTION_WORDS, rng)
    answers = rng.integers(0, 2, len(asked)).tolist()
    rows = [
        {"id": f"q{number}", "question": f"{text[:-1]}?", "A": first, "B": second, "answer": "AB"[answer]}
        for number, (text, first, second, answer) in enumerate(
            zip(asked, options[::2], options[1::2], answers, strict=True)
        )
    ]
    piqa = [
        {"goal": row["question"], "sol1": row["A"], "sol2": row["B"], "label": "AB".index(row["answer"])}
        for row in rows[count : 2 * count]
    ]
    winogrande = []
    for row in rows[2 * count : 3 * count]:
        first, second = (str(row[letter]).split()[0].strip(",.") for letter in "AB")
        words = row["question"][:-1].split()
        words.insert(len(words) // 2, "_")
        sentence = " ".join(words) + "."
        winogrande.append(
            {
                "sentence": sentence,
                "option1": first,
                "option2": f"{second}s",
                "answer": str("AB".index(row["answer"]) + 1),
            }
        )
    for name, part in (
        ("questions", rows[:count]),
        ("pool", rows[3 * count :]),
        ("piqa", piqa),
        ("winogrande", winogrande),
    ):
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in part), encoding="utf-8")


def _sentences(vocabulary: Vocabulary, count: int, words: tuple[int, int], rng: np.random.Generator) -> list[str]:
    """Texts on one line each."""
    lengths = rng.integers(words[0], words[1] + 1, count)
    texts = vocabulary.texts(lengths, np.zeros(count, bool), rng)
    return [" ".join(text.replace("_", " ").replace("\n- ", " ").split()) for text in texts]


def _tokenizer(vocabulary: Vocabulary) -> Any:
    """Byte-level BPE of SmolLM2's size, made of invented prose."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    texts = vocabulary.texts(np.full(12_000, 200), np.zeros(12_000, bool), np.random.default_rng([SEED, 3]))
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    end = "<|endoftext|>"
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, show_progress=False, initial_alphabet=alphabet, special_tokens=[end]
    )
    made.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token=end, eos_token=end, pad_token=end)


def _model(place: Path, shape: dict[str, int], tokenizer: Any) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        **shape,
        max_position_embeddings=8_192,
        tie_word_embeddings=True,
        initializer_range=0.02,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(place)
    tokenizer.save_pretrained(place)


def _adapters(base: Path, place: Path, count: int) -> None:
    """LoRA of random weights in PEFT's layout, all of one shape, as the checkpoints of one training are."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    tuned = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS, task_type="CAUSAL_LM"))
    torch.manual_seed(SEED)
    for number in range(1, count + 1):
        for name, weight in tuned.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(weight, std=0.02)
        tuned.save_pretrained(place / f"step-{50 * number:06d}")


def _about(base: Path, exam: Path) -> dict[str, Any]:
    """Sizes that the reader of a ratio wants to know."""
    from transformers import AutoConfig, AutoTokenizer

    tokenizer, config = AutoTokenizer.from_pretrained(base), AutoConfig.from_pretrained(base)
    rows = [json.loads(line) for line in exam.read_text(encoding="utf-8").splitlines()]
    lettered = [f"Question: {row['question']}\nA. {row['A']}\nB. {row['B']}\nAnswer:" for row in rows]
    options = [f" {row[letter]}" for row in rows for letter in "AB"]
    means = [float(np.mean([len(ids) for ids in tokenizer(texts)["input_ids"]])) for texts in (lettered, options)]
    weights = sum(path.stat().st_size for path in base.glob("*.safetensors")) / 4e6
    return {
        "layers": config.num_hidden_layers,
        "hidden": config.hidden_size,
        "vocabulary": config.vocab_size,
        "million_weights": round(weights, 1),
        "questions": len(rows),
        "question_tokens": round(means[0], 1),
        "option_tokens": round(means[1], 1),
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--questions", type=int, default=162)
    parser.add_argument("--adapters", type=int, default=22)
    parser.add_argument("--bases", nargs="*", choices=("big", "small", "toy"), default=["big", "small", "toy"])
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
