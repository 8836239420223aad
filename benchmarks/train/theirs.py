"""The same training by a peer: TRL's SFTTrainer, or Unsloth's on a processor. Runs in the peer's own environment.

    PEER_PYTHON benchmarks/train/theirs.py trl|unsloth FOLDER [--micro 1] [--padding-free] [--compile] [--count]

Rows come as token ids with labels, in our order, so tokenising and shuffling cost nothing. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
LIBRARIES = ("trl", "transformers", "peft", "accelerate")


def main() -> int:
    options = _options()
    os.environ.update({"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "UNSLOTH_FORCE_CPU": "1"})
    if options.compile:
        os.environ["UNSLOTH_CPU_COMPILE"] = "1"
    if options.side == "unsloth":
        import unsloth  # noqa: F401 - before transformers and TRL, which it changes
    import torch
    from meter import Meter
    from rows import Work

    torch.set_num_threads(options.threads)
    if options.onednn:
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    work = Work.read(options.folder)
    model = (_unsloth if options.side == "unsloth" else _peft)(work)
    meter = Meter(work, options.count)
    with tempfile.TemporaryDirectory() as out:
        trainer = _trainer(work, model, options, out)
        _watch(trainer, meter)
        meter.begin()
        trainer.train()
    names = (*LIBRARIES, *(("unsloth", "unsloth_zoo") if options.side == "unsloth" else ()))
    meter.report({"versions": {name: version(name) for name in names}})
    return 0


def _peft(work: Any) -> Any:
    """transformers' model with the common adapter, as TRL's documentation has it."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(work.model, dtype=torch.float32, attn_implementation="sdpa")
    return PeftModel.from_pretrained(base, work.adapter, is_trainable=True)


def _unsloth(work: Any) -> Any:
    """Unsloth's own way to a model with an adapter, then the common adapter's weights."""
    import torch
    from peft import load_peft_weights, set_peft_model_state_dict
    from unsloth import FastLanguageModel

    base, _ = FastLanguageModel.from_pretrained(
        work.model, dtype=torch.float32, load_in_4bit=False, use_gradient_checkpointing=False
    )
    settings = work.settings
    model = FastLanguageModel.get_peft_model(
        base, r=settings.lora_r, lora_alpha=settings.lora_alpha, lora_dropout=0.0, use_gradient_checkpointing=False
    )
    result = set_peft_model_state_dict(model, load_peft_weights(work.adapter, device="cpu"))
    if result.unexpected_keys:
        raise RuntimeError(f"the adapter does not fit: {result.unexpected_keys[:3]}")
    return model


def _trainer(work: Any, model: Any, options: argparse.Namespace, out: str) -> Any:
    """SFTTrainer with what only slows it turned off: checkpoints, logs, bars, recomputation."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    settings = work.settings
    order = [row for rows in work.steps() for row in rows]
    rows = Dataset.from_dict({"input_ids": [work.ids(i) for i in order], "labels": [work.labels(i) for i in order]})
    config = SFTConfig(
        output_dir=out,
        max_steps=settings.steps,
        per_device_train_batch_size=options.micro,
        gradient_accumulation_steps=settings.rows_per_step // options.micro,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=settings.max_grad_norm,
        optim="adamw_torch_fused",
        seed=settings.seed,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        torch_compile=options.compile and options.side == "trl",
        train_sampling_strategy="sequential",
        max_length=None,
        packing=False,
        padding_free=options.padding_free,
        dataset_kwargs={"skip_prepare_dataset": True},
        dataloader_num_workers=options.workers,
        dataloader_pin_memory=False,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    tokenizer = AutoTokenizer.from_pretrained(work.model)
    return SFTTrainer(model=model, args=config, train_dataset=rows, processing_class=tokenizer)


def _watch(trainer: Any, meter: Any) -> None:
    """Take each micro-batch's share of the loss as the trainer returns it, and the time at each step's end."""
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
    parser.add_argument("side", choices=("trl", "unsloth"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--micro", type=int, default=1, help="rows in a forward pass")
    parser.add_argument("--workers", type=int, default=0, help="processes that collate")
    parser.add_argument("--padding-free", action="store_true")
    parser.add_argument("--compile", action="store_true", help="torch.compile, in the peer's own way")
    parser.add_argument("--onednn", action="store_true", help="a help from outside: products through oneDNN (README)")
    parser.add_argument("--count", action="store_true", help="count host reads instead of taking the time")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
