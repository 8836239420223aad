"""Makes what the serving benchmark asks: a base of random weights, adapters on it, two small finished runs.

Nothing is downloaded and no answer means anything. Knows what is served, and nothing of how it is timed.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import torch
from transformers import AutoTokenizer

from luthier import verbs
from luthier.data.simulate import write_forms
from luthier.engines.base import ServedModel
from luthier.models import adapters
from luthier.models.text_base import load_text_base
from luthier.recipe_model import LoraSettings, ModelConfig

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
CHATS = """
name: bench-serve
model: {base: "toy:llama", lora: {r: 8}}
data: {sources: {chats: {path: PATH}}, train: [chats], test: [], validation_fraction: 0.1}
task: {kind: chat}
train: {max_steps: 10, batch_size: 8, micro_batch_size: 8, save_every: 5}
evaluate: {resamples: 20, samples: 0}
"""


def big_base(folder: Path) -> Path:
    """SmolLM2-135M's shape with random weights, as the exam benchmark makes it, and a plain chat template."""
    make = [sys.executable, str(ROOT / "benchmarks" / "exam" / "generate.py"), str(folder)]
    subprocess.run([*make, "--questions", "4", "--bases", "big"], check=True, stdout=subprocess.DEVNULL)
    tokenizer = AutoTokenizer.from_pretrained(folder / "big")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder / "big")
    return folder / "big"


def adapters_on(base: str, folder: Path, count: int, ranks: tuple[int, ...] = (16,)) -> list[ServedModel]:
    """Adapters with random weights, in turn of each rank."""
    found = []
    for number in range(count):
        config = ModelConfig(base=base, lora=LoraSettings(r=ranks[number % len(ranks)]))
        loaded = load_text_base(config)
        tuned = adapters.attach(loaded, config, {}, seed=number)
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for name, weight in tuned.named_parameters():
                if "lora_B" in name:
                    weight.copy_(0.05 * torch.randn(weight.shape, generator=generator))
        place = folder / f"adapter-{number}"
        place.mkdir(parents=True)
        adapters.save(tuned, place, loaded.name, loaded.facts())
        found.append(ServedModel(f"adapter-{number}", "chat", base, adapter=place))
    return found


def chat_run(folder: Path) -> Path:
    """A finished run of toy:llama on a few made-up chats, with two checkpoints."""
    rng = random.Random(1)
    words = "pass fail score grade answer the a one two three green blue red long short".split()
    with (folder / "chats.jsonl").open("w", encoding="utf-8") as stream:
        for _ in range(60):
            asked = rng.choices(words, k=6)
            turns = [("user", " ".join(asked)), ("assistant", " ".join(reversed(asked)))]
            stream.write(json.dumps({"messages": [{"role": who, "content": text} for who, text in turns]}) + "\n")
    recipe = folder / "chats.yaml"
    recipe.write_text(CHATS.replace("PATH", str(folder / "chats.jsonl")), encoding="utf-8")
    verbs.run(recipe, folder / "chats")
    return folder / "chats"


def verdict_run(folder: Path) -> Path:
    """The quickstart's recipe on few simulated answers, for one epoch: toy:phi4-multimodal."""
    write_forms(folder / "data", sizes={"1764": (48, 64), "1964": (32, 24)})
    text = (ROOT / "recipes" / "quickstart.yaml").read_text(encoding="utf-8")
    text = text.replace("path: data/", f"path: {folder}/data/").replace("epochs: 8", "epochs: 1")
    recipe = folder / "verdicts.yaml"
    recipe.write_text(f"{text}\nevaluate: {{resamples: 20}}\n", encoding="utf-8")
    verbs.run(recipe, folder / "verdicts")
    return folder / "verdicts"
