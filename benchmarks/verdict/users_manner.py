"""A plain script in the users' manner: transformers' Trainer on answers written as text, generation to score.

The verdict is the text `label,confidence` of a fixed table; the loss is ordinary next-token cross-entropy over the
whole vocabulary; the sound encoder runs for every row of every epoch; a verdict is generated and read back with a
regular expression. It imports nothing of Luthier and knows nothing of how it is timed.

Their data set decodes a recording and makes its log-mel at every access; `Recordings(..., ready=True)` does it once
beforehand instead, which they do not, but could. Left out is what only costs them time or accuracy: gradient
checkpointing, saving, labels padded with a real token, and room for 320 new tokens where an answer has seven.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Trainer, TrainingArguments

ANSWERS = {
    1.0: "0,0.99",
    1.5: "0,0.80",
    2.0: "0,0.80",
    2.5: "0,0.70",
    3.0: "0,0.70",
    3.5: "0,0.50",
    4.0: "1,0.65",
    4.5: "1,0.75",
    5.0: "1,0.95",
}
"""The users' table: grade -> what is written as the answer."""
PATTERN = re.compile(r"(\d+),(\d+\.\d+)")
WORKERS = 2
"""Processes (training) or threads (scoring) that decode and make log-mel; ours has as many threads."""
NEW_TOKENS = 7
"""`1,0.75` and the end of the turn, one token a character."""


@dataclass(frozen=True)
class Settings:
    """The arithmetic of a tuning; names as in `TrainingArguments`."""

    batch_size: int
    learning_rate: float
    warmup_ratio: float
    weight_decay: float
    beta2: float
    epsilon: float
    seed: int


@dataclass(frozen=True)
class Clip:
    """One graded recording as it lies in the table: the bytes of its file, its question and grade."""

    question: str
    audio: bytes
    grade: float


@dataclass
class Script:
    """Everything of the script that is made once. `decode` turns a file's bytes into 16 kHz mono samples."""

    tokenizer: Any
    extractor: Any
    decode: Callable[[bytes], Any]
    audio_token_id: int
    end_token_id: int
    instruction: str

    def row(self, clip: Clip) -> dict[str, Any]:
        """A row of the data set: the recording decoded, its log-mel (T, F), the prompt, and the answer as text."""
        sound = self.extractor([self.decode(clip.audio)], sampling_rate=16_000, return_tensors="pt")
        sound_tokens = int(sound["audio_embed_sizes"][0])
        audio = self.tokenizer.convert_ids_to_tokens(self.audio_token_id)
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": f"{self.instruction}\n{clip.question}\n{audio}"}],
            tokenize=False,
            add_generation_prompt=True,
        )
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        at = ids.index(self.audio_token_id)
        ids = [*ids[:at], *[self.audio_token_id] * sound_tokens, *ids[at + 1 :]]
        answer = [*self.tokenizer.encode(ANSWERS[clip.grade], add_special_tokens=False), self.end_token_id]
        return {
            "prompt": ids,
            "answer": answer,
            "mel": sound["audio_input_features"][0].float(),
            "sound_tokens": sound_tokens,
        }

    def training_batch(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Padded on the right; only the answer carries labels."""
        sequences = [row["prompt"] + row["answer"] for row in rows]
        longest = max(map(len, sequences))
        ids = torch.full((len(rows), longest), self.tokenizer.pad_token_id)
        labels = torch.full((len(rows), longest), -100)
        mask = torch.zeros((len(rows), longest), dtype=torch.long)
        for i, (row, sequence) in enumerate(zip(rows, sequences, strict=True)):
            ids[i, : len(sequence)] = torch.tensor(sequence)
            labels[i, len(row["prompt"]) : len(sequence)] = torch.tensor(row["answer"])
            mask[i, : len(sequence)] = 1
        return {"input_ids": ids, "attention_mask": mask, "labels": labels, **_sound(rows)}

    def prompt_batch(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Prompts alone, padded on the left as generation needs it."""
        longest = max(len(row["prompt"]) for row in rows)
        ids = torch.full((len(rows), longest), self.tokenizer.pad_token_id)
        mask = torch.zeros((len(rows), longest), dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, longest - len(row["prompt"]) :] = torch.tensor(row["prompt"])
            mask[i, longest - len(row["prompt"]) :] = 1
        return {"input_ids": ids, "attention_mask": mask, **_sound(rows)}


class Recordings(torch.utils.data.Dataset[dict[str, Any]]):
    """Rows in a fixed order, made at every access, or once beforehand where `ready`."""

    def __init__(self, script: Script, clips: Sequence[Clip], ready: bool) -> None:
        self.script, self.clips = script, clips
        made: dict[Clip, dict[str, Any]] = {}
        for clip in clips if ready else ():
            if clip not in made:
                made[clip] = script.row(clip)
        self.rows = [made[clip] for clip in clips] if ready else None

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index] if self.rows is not None else self.script.row(self.clips[index])


def tune(model: Any, rows: Recordings, settings: Settings, folder: str) -> float:
    """Tune in place on rows in the order given (one pass: the caller lists epochs one after another).

    Returns the seconds of `Trainer.train` alone.
    """
    arguments = TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=settings.batch_size,
        num_train_epochs=1,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=settings.warmup_ratio,
        weight_decay=settings.weight_decay,
        adam_beta1=0.9,
        adam_beta2=settings.beta2,
        adam_epsilon=settings.epsilon,
        max_grad_norm=1.0,
        seed=settings.seed,
        logging_steps=10,
        save_strategy="no",
        report_to=[],
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        dataloader_num_workers=WORKERS if rows.rows is None else 0,
        train_sampling_strategy="sequential",
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, data_collator=rows.script.training_batch)
    begin = time.perf_counter()
    trainer.train()
    return time.perf_counter() - begin


@torch.no_grad()
def verdicts(model: Any, rows: Recordings, batch_size: int) -> tuple[list[float | None], float]:
    """(P(pass) of every row by generation, None where the text cannot be read; seconds).

    Recordings of similar file size share a batch.
    """
    model.eval()
    script = rows.script
    begin = time.perf_counter()
    order = sorted(range(len(rows)), key=lambda i: len(rows.clips[i].audio))
    found: list[float | None] = [None] * len(rows)
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        with ThreadPoolExecutor(WORKERS) as pool:
            read = list(pool.map(rows.__getitem__, part))
        batch = {name: value.to(model.device) for name, value in script.prompt_batch(read).items()}
        ids = model.generate(
            **batch,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=script.end_token_id,
            pad_token_id=script.tokenizer.pad_token_id,
        )
        texts = script.tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        for i, text in zip(part, texts, strict=True):
            found[i] = _probability(text)
    return found, time.perf_counter() - begin


def _sound(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Log-mel padded to the longest with the encoder's own padding mask."""
    frames = [len(row["mel"]) for row in rows]
    mel = torch.nn.utils.rnn.pad_sequence([row["mel"] for row in rows], batch_first=True)
    mask = torch.arange(max(frames))[None] < torch.tensor(frames)[:, None]
    return {
        "audio_input_features": mel,
        "audio_attention_mask": mask,
        "audio_embed_sizes": torch.tensor([row["sound_tokens"] for row in rows]),
    }


def _probability(text: str) -> float | None:
    found = PATTERN.search(text)
    if found is None or float(found[2]) > 1:
        return None
    return float(found[2]) if found[1] == "1" else 1 - float(found[2])
