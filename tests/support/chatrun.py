"""A finished chat run with checkpoints, made in seconds: 10 steps of toy:llama, saved every 5."""

from __future__ import annotations

import json
import random
from pathlib import Path

from support.chats import WORDS

RECIPE = """
name: small-chats
model: {base: "BASE", max_tokens: 256, lora: {r: 4}}
data:
  sources: {chats: {path: CHATS}}
  train: [chats]
  test: []
  validation_fraction: 0.15
task: {kind: chat}
train: {max_steps: 10, batch_size: 8, micro_batch_size: 8, learning_rate: 3.0e-3, log_every: 1, save_every: 5}
evaluate: {resamples: 50, samples: 1, sample_tokens: 4}
"""


def chat_run(folder: Path, base: str = "toy:llama", more: str = "") -> Path:
    """The run's folder, `folder`/run: stage `main`, checkpoints step-000005 and step-000010. `more` ends the recipe."""
    from luthier import verbs

    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(3)
    with (folder / "chats.jsonl").open("w") as stream:
        for number in range(60):
            words = rng.choices(WORDS, k=rng.randint(1, 9))
            turns = [("human", f"{' '.join(words)} {number}"), ("gpt", " ".join(reversed(words)))]
            stream.write(json.dumps({"conversations": [{"from": who, "value": text} for who, text in turns]}) + "\n")
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.replace("CHATS", str(folder / "chats.jsonl")).replace("BASE", base) + more)
    verbs.run(recipe, folder / "run")
    return folder / "run"
