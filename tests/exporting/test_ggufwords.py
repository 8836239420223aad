"""Vocabularies in GGUF: llama.cpp reads some hundred texts as the tokenizer does, or the export refuses or says so."""

from __future__ import annotations

import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from luthier.errors import RequestError
from luthier.exporting.gguf_check import check_tokens, sample_texts
from luthier.exporting.gguf_file import write_gguf
from luthier.exporting.gguf_vocabulary import _SPLITS, read_vocabulary
from support.ggufs import model_folder
from support.templates import PHI3, tokenizer_of

pytest.importorskip("gguf")
TEXTS = sample_texts(400, ["x"], seed=9)
REGEX = {names[0] or names[1]: (pattern, not names[0]) for pattern, names in _SPLITS.items()}


def byte_level(*before: Any, use_regex: bool = True, whole: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE, trained on the spot, with these steps before its bytes."""
    core = Tokenizer(models.BPE(ignore_merges=whole))
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    core.pre_tokenizer = pre_tokenizers.Sequence([*before, last])
    core.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False))
    return finished(core)


def sentencepiece(prefix: bool, bos: bool = True) -> PreTrainedTokenizerFast:
    """A BPE over whole texts with bytes as a fallback, as SentencePiece's are in tokenizer.json."""
    core = Tokenizer(models.BPE())
    steps = [normalizers.Prepend("▁")] * prefix + [normalizers.Replace(" ", "▁")]
    core.normalizer = normalizers.Sequence(steps)
    split = pre_tokenizers.Split(Regex("(?=▁)|[.,!?]"), "isolated")
    core.pre_tokenizer = split
    trainer = trainers.BpeTrainer(vocab_size=300, show_progress=False, max_token_length=8)
    core.train_from_iterator(TEXTS, trainer)
    learned = {token for token in core.get_vocab() if len(token) > 1}
    letters = sorted({letter for token in learned for letter in token})
    read = sorted(learned, key=lambda token: (len(token), token))
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *read]
    vocabulary = {token: number for number, token in enumerate(pieces)}
    merges = [
        (token[:cut], token[cut:])
        for token in pieces
        for cut in range(1, len(token))
        if len(token) > 1 and not token.startswith("<") and token[:cut] in vocabulary and token[cut:] in vocabulary
    ]
    core = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.normalizer = normalizers.Sequence(steps)
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return finished(core, "<s>" if bos else None, "<unk>")


def finished(core: Tokenizer, bos: str | None = None, unknown: str | None = None) -> PreTrainedTokenizerFast:
    specials = ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>", *([bos] if bos else [])]
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    if bos:
        core.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, core.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=bos, eos_token="<|endoftext|>", unk_token=unknown, chat_template=PHI3
    )


KINDS = {
    "gpt-2": lambda: byte_level(),
    "smollm": lambda: byte_level(pre_tokenizers.Digits(individual_digits=True)),
    **{
        name: lambda pattern=pattern, whole=whole: byte_level(
            pre_tokenizers.Split(Regex(pattern), "isolated"), use_regex=False, whole=whole
        )
        for name, (pattern, whole) in {**REGEX, "llama-bpe": (REGEX["smaug-bpe"][0], True)}.items()
    },
    "llama": lambda: sentencepiece(True),
    "gemma": lambda: sentencepiece(False),
}


MARKS_APART = ("gpt-4o", "tekken")
"""llama.cpp's own forms of these two leave combining marks out of words: the check finds it, and the export says it."""


@pytest.mark.parametrize("name", KINDS)
def test_llama_cpp_reads_texts_as_the_tokenizer_does(name: str, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    folder = model_folder(tmp_path / "model", "llama", KINDS[name](), vocab_size=1400)
    record = write_gguf(folder, tmp_path / "model.gguf", "f16")
    assert record.tokens.texts == 300
    if name in MARKS_APART:
        assert 0 < record.tokens.differ < 40
        assert any(unicodedata.category(letter).startswith("M") for letter in record.tokens.first)
    else:
        assert record.tokens.differ == 0, record.tokens.first
        assert record.notes == ()


def test_a_wrong_name_of_the_splitter_would_be_found(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    folder = model_folder(tmp_path / "model", "llama", KINDS["smollm"]())
    file = write_gguf(folder, tmp_path / "model.gguf", "f16").file
    other = model_folder(tmp_path / "other", "llama", KINDS["qwen2"]())
    found = check_tokens(other, file)
    assert found.differ > 100
    assert "are read otherwise" in found.notes()[0]


def test_a_classs_own_splitting_is_what_counts_and_is_told(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "qwen2", "qwen2")
    record = write_gguf(folder, tmp_path / "model.gguf", "f16")
    assert any("Qwen2Tokenizer" in note for note in record.notes)
    assert any("NFC" in note for note in record.notes)


def unigram() -> PreTrainedTokenizerFast:
    return finished(Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0), ("b", -2.0)], unk_id=0)))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (unigram, "a Unigram tokenizer"),
        (lambda: byte_level(pre_tokenizers.Punctuation()), "pre-tokenizer is not one"),
        (lambda: byte_level(whole=True), "pre-tokenizer is not one"),
        (lambda: byte_level(pre_tokenizers.Split(Regex(r"\p{N}{1,4}"), "isolated"), use_regex=False), "pre-tokenizer"),
    ],
)
def test_a_tokenizer_that_llama_cpp_cannot_carry_is_refused(make: Any, words: str, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", "llama", make())
    with pytest.raises(RequestError, match=words):
        write_gguf(folder, tmp_path / "model.gguf", "f16")


def test_tokens_that_llama_cpp_alone_would_make_are_told(tmp_path: Path) -> None:
    letters = ["<unk>", "<0x61>", "a", "b", "c", "ab", "abc"]
    core = Tokenizer(
        models.BPE({token: i for i, token in enumerate(letters)}, [("a", "b")], unk_token="<unk>", byte_fallback=True)
    )
    core.normalizer = normalizers.Replace(" ", "▁")
    tokenizer = finished(core, unknown="<unk>")
    tokenizer.save_pretrained(str(tmp_path))
    found = read_vocabulary(tmp_path, tokenizer, 16, [])
    assert any("'abc'" in note for note in found.notes)


def test_merges_that_one_score_a_token_cannot_order_are_refused(tmp_path: Path) -> None:
    letters = ["<unk>", "<0x61>", "a", "b", "c", "ab", "bc", "abc"]
    merges = [("a", "bc"), ("b", "c"), ("ab", "c"), ("a", "b")]
    core = Tokenizer(
        models.BPE({token: i for i, token in enumerate(letters)}, merges, unk_token="<unk>", byte_fallback=True)
    )
    core.normalizer = normalizers.Replace(" ", "▁")
    folder = model_folder(tmp_path / "model", "llama", finished(core, unknown="<unk>"))
    with pytest.raises(RequestError, match="different ranks"):
        write_gguf(folder, tmp_path / "model.gguf", "f16")


def test_blanks_that_tags_swallow_are_told_and_phi3s_are_carried(tmp_path: Path) -> None:
    swallowing = tokenizer_of(PHI3)
    swallowing.save_pretrained(str(tmp_path))
    found = read_vocabulary(tmp_path, swallowing, 768, [])
    assert any("drops blanks" in note for note in found.notes)
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.add_special_tokens([AddedToken(token, special=True) for token in ("<unk>", "<s>", "<|endoftext|>")])
    core.add_special_tokens([AddedToken(token, special=True, rstrip=True) for token in ("</s>", "<|end|>")])
    phi = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|endoftext|>")
    phi.save_pretrained(str(tmp_path / "phi"))
    assert read_vocabulary(tmp_path / "phi", phi, 8, []).strips


def test_the_model_is_never_named_so_that_llama_cpp_looks_for_phi3s_tokens(tmp_path: Path) -> None:
    import gguf

    folder = model_folder(tmp_path / "my-Phi3-tune", "llama")
    record = write_gguf(folder, tmp_path / "model.gguf", "f16")
    assert gguf.GGUFReader(record.file).fields["general.name"].contents() == "my-phi 3-tune"


def test_the_sample_texts_are_many_scripts_and_never_change() -> None:
    texts = sample_texts(300, ["<|end|>"])
    assert texts == sample_texts(300, ["<|end|>"])
    assert len(set(texts)) > 290
    assert sum("<|end|>" in text for text in texts) > 20
    assert {"\u0435", "\u00e9", "3", "\n", "🚀"} <= Counter("".join(texts)).keys()
