"""Our loop beside transformers.Trainer, on work where both are right: equal curves of loss and gradient norm."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from transformers import Trainer, TrainingArguments

from luthier.train.loop import train
from support import chats

STEPS = 60


def theirs(job, made, folder) -> list[dict]:
    """The same rows in the same order through the Trainer: right-padded batches, plain attention, labels of -100."""
    lessons = job.feed.lessons
    rows = [row for step in range(1, STEPS + 1) for row in job.feed.rows(step)]
    examples = [{"input_ids": lessons[row].ids_L.tolist(), "weight": lessons[row].weight_L.tolist()} for row in rows]

    def collate(items):
        width = max(len(item["input_ids"]) for item in items)
        ids = [item["input_ids"] + [0] * (width - len(item["input_ids"])) for item in items]
        mask = [[1] * len(item["input_ids"]) + [0] * (width - len(item["input_ids"])) for item in items]
        labels = [
            [token if weight else -100 for token, weight in zip(item["input_ids"], item["weight"], strict=True)]
            + [-100] * (width - len(item["input_ids"]))
            for item in items
        ]
        names = ("input_ids", "attention_mask", "labels")
        return {name: torch.tensor(value) for name, value in zip(names, (ids, mask, labels), strict=True)}

    class InOrder(Trainer):
        def _get_train_sampler(self, *_):
            return torch.utils.data.SequentialSampler(examples)

    settings = made.train
    arguments = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=STEPS,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=0,
        weight_decay=settings.weight_decay,
        adam_beta1=settings.adam_beta1,
        adam_beta2=settings.adam_beta2,
        adam_epsilon=settings.adam_epsilon,
        max_grad_norm=settings.max_grad_norm,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        remove_unused_columns=False,
        disable_tqdm=True,
        logging_nan_inf_filter=False,
    )
    _, model = chats.model_of(made)
    language_model = model.language_model
    language_model.set_attn_implementation("sdpa")
    trainer = InOrder(model=language_model, args=arguments, train_dataset=examples, data_collator=collate)
    trainer.train()
    return [line for line in trainer.state.log_history if "loss" in line]


@pytest.mark.parametrize("base", ["toy:llama", "toy:qwen2"])
def test_60_steps_have_the_trainers_losses(tmp_path, base):
    made = chats.recipe(base, max_steps=STEPS, log_every=1, save_every=1000, warmup_ratio=0.0, learning_rate=3e-3)
    made.model.lora = replace(made.model.lora, dropout=0.0)
    job = chats.make_job(tmp_path / "ours", made, rows=40)
    expected = theirs(job, made, tmp_path / "theirs")
    train(job)
    ours = [json.loads(line) for line in job.metrics.read_text().splitlines()]
    assert len(ours) == len(expected) == STEPS
    assert ours[-1]["loss"] < 0.9 * ours[0]["loss"], "the curve goes somewhere"
    for one, other in zip(ours, expected, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-4)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
