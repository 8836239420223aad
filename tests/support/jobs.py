"""A small training on synthetic sound: the pieces that stages/ puts together, without a table."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from luthier.files import sha256_file
from luthier.models.batches import VerdictFeed
from luthier.models.encode import Example, PromptEncoder
from luthier.models.features import FeatureStore
from luthier.recipe import Recipe
from luthier.runtime.checkpoints import Checkpoints
from luthier.runtime.devices import Devices
from luthier.stages.prepare import build_model
from luthier.train.loop import Job, train
from luthier.train.optim import make_optimizer
from luthier.train.plan import make_plan

GRADES = (2.0, 3.0, 3.5, 4.0, 4.5, 5.0)


def recipe(**train_settings) -> Recipe:
    """LoRA with dropout on the toy: 12 steps of 4 rows over two epochs."""
    found = Recipe()
    found.model.base = "toy:phi4-multimodal"
    found.model.lora.dropout = 0.2
    found.model.lora.r = 4
    found.model.learned_tokens.soft_prompt = 2
    found.train = replace(
        found.train,
        epochs=2,
        batch_size=4,
        micro_batch_size=2,
        learning_rate=1e-2,
        log_every=3,
        save_every=1,
        warmup_ratio=0.1,
        keep_checkpoints=100,
        **train_settings,
    )
    return found


def waveform(reference: str) -> np.ndarray:
    """A tone whose pitch and length follow from the reference."""
    number = int(reference.rpartition("-")[2])
    time = np.arange(16_000 * (1 + number % 3) // 2) / 16_000
    rng = np.random.default_rng(number)
    return (0.3 * np.sin(2 * np.pi * (200 + 90 * number) * time) + 0.01 * rng.standard_normal(len(time))).astype(
        np.float32
    )


def make_job(folder: Path, made: Recipe, rows: int = 24, poison: int | None = None) -> Job:
    """A job whose checkpoints and metrics are in `folder`; features are shared beside it."""
    base, model, _, _ = build_model(made, made.seed)
    frozen = made.model.tuning == "lora" and poison is None
    store = FeatureStore(folder.parent / "features", base.family, base.extractor, waveform, base.model, frozen=frozen)
    references = [f"sha256:clip-{i}" for i in range(rows)]
    lengths = store.prepare(references)
    audio = base.family.audio_token_id(base.model)
    encoder = PromptEncoder(base.tokenizer, audio, "Judge.", made.model.learned_tokens, 512)
    examples = []
    for i, reference in enumerate(references):
        ids, at = encoder.prompt_ids(f"Question {i % 5}?", lengths[reference])
        grade = GRADES[i % len(GRADES)]
        target = float("nan") if i == poison else {3.5: 0.5}.get(grade, float(grade >= 4))
        examples.append(
            Example(
                f"row-{i}",
                "s",
                f"g{i % 6}",
                ids,
                reference,
                at,
                lengths[reference],
                grade,
                target,
                round((grade - 1) * 2),
            )
        )
    counts = Counter(e.level for e in examples)
    model.initialise_head([counts[k] for k in range(9)])
    plan = make_plan(rows, made.train)
    mark = 4.0 if made.task.ranking_weight else None
    return Job(
        learner=model,
        optimizer=make_optimizer(model, made.train, 1e-2),
        plan=plan,
        settings=made.train,
        seed=made.seed,
        feed=VerdictFeed(examples, store, base.tokenizer.pad_token_id, made.train, made.seed, mark),
        devices=Devices("float32"),
        checkpoints=Checkpoints(folder / "checkpoints", made.model.base, 100, made.train.save_every),
        metrics=folder / "metrics.jsonl",
    )


def outcome(job: Job) -> dict:
    """Digests of everything that a training leaves, but for the clock."""
    last = job.checkpoints.path(job.plan.steps)
    state = json.loads((last / "state.json").read_text())
    state.pop("seconds")
    metrics = [json.loads(line) for line in job.metrics.read_text().splitlines()]
    for line in metrics:
        line.pop("seconds")
    names = ("adapter_model.safetensors", "optimizer.safetensors")
    return {"state": state, "metrics": metrics, **{name: sha256_file(last / name) for name in names}}


if __name__ == "__main__":  # a fresh process resumes: jobs.py FOLDER
    fresh = make_job(Path(sys.argv[1]), recipe())
    train(fresh, resume=True)
    print(json.dumps(outcome(fresh)))
