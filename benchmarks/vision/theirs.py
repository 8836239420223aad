"""The same five epochs by TRL's SFTTrainer, in TRL's own environment.

    .venv-trl/bin/python benchmarks/vision/theirs.py FOLDER [--threads 2] [--onednn]

Pictures are given as paths, which TRL decodes and prepares as its batches ask for them. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
LIBRARIES = ("torch", "trl", "transformers", "peft", "accelerate", "torchvision", "pillow")


def main() -> int:
    options = _options()
    os.environ.update({"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"})
    import torch
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText
    from work import Meter, Work

    torch.set_num_threads(options.threads)
    if options.onednn:
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    work = Work.read(options.folder)
    base = AutoModelForImageTextToText.from_pretrained(work.model, dtype=torch.float32, attn_implementation="sdpa")
    model = PeftModel.from_pretrained(base, work.adapter, is_trainable=True)
    meter = Meter(work)
    with tempfile.TemporaryDirectory() as out:
        trainer = _trainer(work, model, options, out)
        _watch(trainer, meter)
        meter.begin()
        trainer.train()
    meter.report({"versions": {name: version(name) for name in LIBRARIES}})
    return 0


def _trainer(work: Any, model: Any, options: argparse.Namespace, out: str) -> Any:
    """SFTTrainer with what only slows it turned off: checkpoints, logs, bars, recomputation."""
    from datasets import Dataset, Image
    from transformers import AutoProcessor
    from trl import SFTConfig, SFTTrainer
    from work import PROMPT

    settings = work.settings
    turns = [
        [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": row["answer"]}] for row in work.rows
    ]
    columns = {"messages": turns, "image": [str(work.folder / row["image"]) for row in work.rows]}
    rows = Dataset.from_dict(columns).cast_column("image", Image(mode="RGB"))
    config = SFTConfig(
        output_dir=out,
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.rows_per_step,
        gradient_accumulation_steps=1,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=settings.max_grad_norm,
        optim="adamw_torch_fused",
        seed=settings.seed,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        train_sampling_strategy="sequential",
        max_length=None,
        packing=False,
        assistant_only_loss=True,
        dataloader_num_workers=options.workers,
        dataloader_pin_memory=False,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    return SFTTrainer(
        model=model, args=config, train_dataset=rows, processing_class=AutoProcessor.from_pretrained(work.model)
    )


def _watch(trainer: Any, meter: Any) -> None:
    """Take the loss of each step as the trainer returns it, and the time at its end."""
    from transformers import TrainerCallback

    class Steps(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            meter.step()

    plain = trainer.training_step

    def training_step(*args: Any, **kwargs: Any) -> Any:
        loss = plain(*args, **kwargs)
        meter.losses.append(loss.detach())
        return loss

    trainer.training_step = training_step
    trainer.add_callback(Steps())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=0, help="processes that collate")
    parser.add_argument("--onednn", action="store_true", help="a help from outside: products through oneDNN (README)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
