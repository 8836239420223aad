"""Small chats as table rows, as lessons, and a chat training put together without a run folder."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from luthier.data.building.rows import TableRow
from luthier.files import sha256_file
from luthier.models import adapters
from luthier.models.attention import use_packed_attention
from luthier.models.chat import ChatTemplate
from luthier.models.chat_batches import ChatFeed, Layout
from luthier.models.chat_model import ChatModel
from luthier.models.lessons import Encoder, Encoding, Lesson, Lessons
from luthier.models.text_base import load_text_base
from luthier.models.tokens import add_text_tokens
from luthier.recipe import Recipe
from luthier.runtime.checkpoints import Checkpoints
from luthier.runtime.devices import Devices
from luthier.schema import NO_TARGET, Message, Part, Provenance, Row
from luthier.train.loop import Job, train
from luthier.train.optim import make_optimizer
from luthier.train.plan import make_plan

WORDS = "pass fail score grade answer the a one two three green blue red long short".split()


def turn(role: str, text: str, **more: Any) -> Message:
    return Message(role, (Part("text", text),), json.dumps(more, sort_keys=True) if more else "")


def row(number: int, *messages: Message, weight: float = 1.0) -> TableRow:
    found = Row(
        f"row-{number}", tuple(messages), NO_TARGET, f"g{number % 4}", "train", Provenance("chats", f"{number}")
    )
    return TableRow(found, 0.0, weight=weight)


def chats(count: int, seed: int = 0, longest: int = 12) -> list[TableRow]:
    """Questions and answers of varied length; every third row has two of them, every fourth a system turn."""
    rng = np.random.default_rng(seed)

    def words() -> str:
        return " ".join(rng.choice(WORDS, size=int(rng.integers(1, longest))))

    found = []
    for number in range(count):
        messages = [turn("system", words())] if number % 4 == 0 else []
        for _ in range(2 if number % 3 == 0 else 1):
            messages += [turn("user", words()), turn("assistant", words())]
        found.append(row(number, *messages))
    return found


def encode(base: Any, rows: list[TableRow], max_tokens: int = 512, truncation: str = "reject") -> Lessons:
    encoder = Encoder(ChatTemplate.of(base.tokenizer), max_tokens, truncation)
    return Lessons.of([lesson for _, lesson in encoder.encode(rows, Encoding()) if lesson is not None])


def recipe(base: str = "toy:llama", **train_settings: Any) -> Recipe:
    """LoRA with dropout on a toy: 12 steps of 4 rows over two epochs."""
    found = Recipe()
    found.task.kind = "chat"
    found.model.base = base
    found.model.lora.dropout = 0.2
    found.model.lora.r = 4
    settings: dict[str, Any] = {
        "epochs": 2,
        "batch_size": 4,
        "micro_batch_size": 2,
        "learning_rate": 1e-2,
        "log_every": 3,
        "save_every": 1,
        "warmup_ratio": 0.1,
        "keep_checkpoints": 100,
    }
    found.train = replace(found.train, **{**settings, **train_settings})
    return found


def model_of(made: Recipe) -> tuple[Any, ChatModel]:
    """The recipe's base with its adapter."""
    base = load_text_base(made.model)
    tokens = add_text_tokens(base, made.model.added_tokens, made.seed)
    tuned = adapters.attach(base, made.model, tokens, made.seed)
    use_packed_attention(adapters.bare(tuned))
    if made.train.gradient_checkpointing:
        adapters.checkpoint_activations(base.model)
    return base, ChatModel(tuned, base.facts(), made.train.label_smoothing)


def layout_of(made: Recipe, base: Any) -> Layout:
    train_settings = made.train
    return Layout(
        train_settings.batch_size,
        train_settings.micro_batch_size,
        train_settings.micro_batch_tokens,
        train_settings.packing,
        base.tokenizer.pad_token_id,
    )


def make_job(folder: Path, made: Recipe, rows: int = 24, poison: int | None = None) -> Job:
    """A job whose checkpoints and metrics are in `folder`."""
    base, model = model_of(made)
    lessons = encode(base, chats(rows))
    if poison is not None:
        items = [lessons[i] for i in range(len(lessons))]
        bad = items[poison]
        items[poison] = Lesson(bad.id, bad.ids_L, bad.weight_L * np.float32("nan"))
        lessons = Lessons.of(items)
    seed = made.seed

    def order(epoch: int) -> Any:
        return np.random.default_rng([seed, epoch]).permutation(len(lessons))

    feed = ChatFeed(lessons, order, layout_of(made, base), seed)
    return Job(
        learner=model,
        optimizer=make_optimizer(model, made.train, 1e-2),
        plan=make_plan(len(lessons), made.train),
        settings=made.train,
        seed=seed,
        feed=feed,
        devices=Devices(made.model.dtype),
        checkpoints=Checkpoints(
            folder / "checkpoints",
            made.model.base,
            made.train.keep_checkpoints,
            made.train.save_every,
            keep_best=made.train.select == "best",
        ),
        metrics=folder / "metrics.jsonl",
    )


def outcome(job: Job) -> dict[str, Any]:
    """Digests of everything that a training leaves, but for the clock."""
    last = job.checkpoints.path(job.plan.steps)
    state = json.loads((last / "state.json").read_text())
    state.pop("seconds")
    metrics = [json.loads(line) for line in job.metrics.read_text().splitlines()]
    for line in metrics:
        line.pop("seconds")
    names = sorted(item.name for item in last.iterdir() if item.suffix == ".safetensors")
    return {"state": state, "metrics": metrics, **{name: sha256_file(last / name) for name in names}}


if __name__ == "__main__":  # a fresh process resumes: chats.py FOLDER SETTINGS
    settings = json.loads(sys.argv[2])
    fresh = make_job(Path(sys.argv[1]), recipe(**settings))
    train(fresh, resume=True)
    print(json.dumps(outcome(fresh)))
