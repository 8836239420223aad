"""Toy Whispers: the real classes and special tokens at toy size, in folders as tuning leaves them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

_TASKS = ["<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
_LANGUAGES = ["<|en|>", "<|zh|>", "<|no|>"]
_STAMPS = [f"<|{0.02 * step:.2f}|>" for step in range(1501)]


def write_whisper(folder: Path, multilingual: bool = True, stamps: bool = True, seed: int = 0) -> None:
    """A Whisper of 16 wide layers that writes up to 24 tokens of a small byte-level vocabulary."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=320, show_progress=False, initial_alphabet=alphabet)
    # With the space before each: faster-whisper never writes a space alone, as it may begin a bracket.
    bpe.train_from_iterator([" what is the weather today", " open the door please"] * 3, trainer)
    bpe.save(str(folder / "bpe.json"))
    made = json.loads((folder / "bpe.json").read_text())["model"]
    (folder / "bpe.json").unlink()
    tokenizer = WhisperTokenizer(vocab=made["vocab"], merges=[tuple(pair) for pair in made["merges"]])
    languages = _LANGUAGES if multilingual else []
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|endoftext|>", "<|startoftranscript|>", *languages, *_TASKS]}
    )
    tokenizer.add_tokens(_STAMPS)
    of = tokenizer.convert_tokens_to_ids
    end = of("<|endoftext|>")
    config = WhisperConfig(
        vocab_size=len(tokenizer),
        d_model=16,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_target_positions=448,
        decoder_start_token_id=of("<|startoftranscript|>"),
        eos_token_id=end,
        bos_token_id=end,
        pad_token_id=end,
        suppress_tokens=None,
        begin_suppress_tokens=None,
        init_std=0.4,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = WhisperForConditionalGeneration(config).eval()
    facts = {"no_timestamps_token_id": of("<|notimestamps|>"), "alignment_heads": [[1, 0], [1, 1]]} if stamps else {}
    if multilingual:
        facts |= {
            "lang_to_id": {token: of(token) for token in _LANGUAGES},
            "task_to_id": {"transcribe": of("<|transcribe|>"), "translate": of("<|translate|>")},
        }
    model.generation_config = GenerationConfig(
        decoder_start_token_id=config.decoder_start_token_id,
        eos_token_id=end,
        bos_token_id=end,
        pad_token_id=end,
        is_multilingual=multilingual,
        max_length=24,
        prev_sot_token_id=of("<|startofprev|>"),
        max_initial_timestamp_index=50,
        begin_suppress_tokens=[end],
        suppress_tokens=[],
        **facts,
    )
    model.save_pretrained(str(folder))
    WhisperProcessor(WhisperFeatureExtractor(), tokenizer).save_pretrained(str(folder))


def teach(folder: Path, said: Mapping[str, np.ndarray], steps: int = 50) -> None:
    """Let an English-only toy in this folder learn these recordings by heart."""
    processor = WhisperProcessor.from_pretrained(folder)
    model = WhisperForConditionalGeneration.from_pretrained(folder).train()
    tokenizer = processor.tokenizer
    heard = processor.feature_extractor(list(said.values()), sampling_rate=16_000, return_tensors="pt").input_features
    cut = heard.clone()  # faster-whisper fills the window up with zeros behind the features, not with silence before
    for features, wave in zip(cut, said.values(), strict=True):
        features[:, len(wave) // 160 + 1 :] = 0
    heard = torch.cat([heard, cut])
    rows = []
    for text, wave in said.items():
        words = tokenizer.encode(" " + text, add_special_tokens=False)
        stamps = ["<|0.00|>", f"<|{len(wave) // 320 * 0.02:.2f}|>", "<|endoftext|>"]
        first, last, end = tokenizer.convert_tokens_to_ids(stamps)
        rows.append([model.config.decoder_start_token_id, first, *words, last, end])
    longest = max(map(len, rows))
    ids = torch.tensor([row + [end] * (longest - len(row)) for row in rows * 2])
    labels = torch.tensor([row + [-100] * (longest - len(row)) for row in rows * 2])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        loss = model(input_features=heard, decoder_input_ids=ids[:, :-1], labels=labels[:, 1:]).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval().save_pretrained(str(folder))
