"""A tokenizer as llama.cpp can carry it, found by what its tokenizer.json does, never by a model's name.

Two kinds have a place there: byte-level BPE whose pre-tokenizer is one that llama.cpp has built in (it knows them by
name only), and BPE over whole texts with spaces as `▁` and bytes as a fallback, as SentencePiece makes it. Anything
else is refused with the reason: a GGUF with a near tokenizer answers, and answers worse. Knows no weights.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from luthier.errors import RequestError
from luthier.exporting.gguf_shapes import CONVERTER

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""llama.cpp's token types."""

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPELLED = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_PLAIN = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+END|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*END"
_CASED_REST = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS = {
    rf"{_WORDS}|{_PLAIN}|\p{{N}}{{1,3}}|{_REST}": ("smaug-bpe", "llama-bpe"),
    rf"{_WORDS}|{_PLAIN}|\p{{N}}|{_REST}": ("qwen2", ""),
    rf"{_CASED.replace('END', _WORDS + '?')}|\p{{N}}{{1,3}}|{_CASED_REST}": ("gpt-4o", ""),
    rf"{_CASED.replace('END', '')}|\p{{N}}|{_CASED_REST}": ("", "tekken"),
}
"""Regular expressions of byte-level pre-tokenizers: llama.cpp's name without and with `ignore_merges`, which it ties
to the name."""


@dataclass
class Vocabulary:
    """What a GGUF says of a tokenizer. `tokens` has one entry a row of the embedding."""

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    space_prefix: bool | None = None
    ids: dict[str, int] = field(default_factory=dict)
    """bos, eos, eot, eom, unk, pad: where there is one."""
    adds: dict[str, bool] = field(default_factory=dict)
    """bos, eos: whether the tokenizer adds it to every text."""
    template: str = ""
    strips: bool = False
    """Whether blanks after its special tokens are dropped, as Phi-3's tokenizer does."""
    notes: list[str] = field(default_factory=list)

    def write(self, writer: Any, name: str) -> None:
        """Into a `gguf.GGUFWriter`. llama.cpp goes by the model's name to know whether blanks are dropped, and fails
        on a name with `phi-3` in it where Phi-3's tokens are missing: the name is made to fit."""
        fitting = re.sub("(?i)phi-?3", "phi 3", name)
        writer.add_name(f"{fitting} (phi-3)" if self.strips else fitting)
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.merges:
            writer.add_token_merges(self.merges)
        if self.scores:
            writer.add_token_scores(self.scores)
        if self.space_prefix is not None:
            writer.add_add_space_prefix(self.space_prefix)
        names = {"unk": "unknown", "pad": "padding"}
        for name, token in self.ids.items():
            writer.add_uint32(f"tokenizer.ggml.{names.get(name, name)}_token_id", token)
        for name, added in self.adds.items():
            writer.add_bool(f"tokenizer.ggml.add_{name}_token", added)
        writer.add_chat_template(self.template) if self.template else None


def read_vocabulary(folder: Path, tokenizer: Any, rows: int, stops: list[int]) -> Vocabulary:
    """The vocabulary of a model folder. `tokenizer` is transformers' of the same folder, `rows` the height of the
    embedding, `stops` the ids that end an answer. Raises RequestError where llama.cpp cannot carry it exactly.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise RequestError(f"{file}: there is none", "save the fast tokenizer beside the weights")
    # Some classes of transformers split by a rule of their own, whatever the file says: what they do counts.
    facts = json.loads(tokenizer.backend_tokenizer.to_str())
    saved = json.loads(file.read_text(encoding="utf-8"))
    if facts["model"]["type"] != "BPE":
        _refuse(file, f"a {facts['model']['type']} tokenizer; BPE alone is written")
    found = _sentencepiece(file, facts) if facts["model"].get("byte_fallback") else _byte_level(file, facts)
    _tokens(found, file, facts, rows)
    _special(found, tokenizer, stops)
    if any(saved.get(part) != facts.get(part) for part in ("normalizer", "pre_tokenizer")):
        found.notes.append(
            f"transformers loads this tokenizer as {type(tokenizer).__name__}, which splits texts otherwise than its "
            "tokenizer.json says; written as transformers does"
        )
    _strips(found, facts)
    return found


def _byte_level(file: Path, facts: dict[str, Any]) -> Vocabulary:
    notes = []
    normalizer = (facts.get("normalizer") or {}).get("type")
    if normalizer == "NFC":
        notes.append("letters typed as base and accent are composed (NFC) by transformers, not by llama.cpp")
    elif normalizer:
        _refuse(file, f"its normalizer {normalizer}")
    merges = facts["model"]["merges"]
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in merges]
    found = Vocabulary("gpt2", _pre_tokenizer(file, facts), [], [], merges=[" ".join(pair) for pair in pairs])
    found.notes.extend(notes)
    return found


def _pre_tokenizer(file: Path, facts: dict[str, Any]) -> str:
    """llama.cpp's name of what splits a text into words."""
    top = facts.get("pre_tokenizer") or {}
    parts = top.get("pretokenizers", [top])
    whole = bool(facts["model"].get("ignore_merges"))
    last = parts[-1]
    if last.get("type") == "ByteLevel" and not last.get("add_prefix_space"):
        before = parts[:-1]
        if last.get("use_regex", True) and not whole:
            if not before:
                return "gpt-2"
            if [(one["type"], one.get("individual_digits")) for one in before] == [("Digits", True)]:
                return "smollm"
        if not last.get("use_regex", True) and len(before) == 1 and before[0]["type"] == "Split":
            pattern = before[0]["pattern"].get("Regex", "").replace(_SPELLED, _WORDS)
            isolated = before[0]["behavior"] == "Isolated" and not before[0].get("invert")
            name = _SPLITS.get(pattern, ("", ""))[whole] if isolated else ""
            if name:
                return name
    _refuse(file, "its pre-tokenizer is not one that llama.cpp has built in")


def _sentencepiece(file: Path, facts: dict[str, Any]) -> Vocabulary:
    """llama.cpp merges neighbours by the score of what they make; the rank of that merge is such a score."""
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in facts["model"]["merges"]]
    rank: dict[str, int] = {}
    for number, pair in enumerate(merges):
        made = "".join(pair)
        if rank.setdefault(made, number) != number and "".join(merges[number - 1]) != made:
            _refuse(file, f"its merges into {made!r} have different ranks, and llama.cpp has one score a token")
    found = Vocabulary("llama", "default", [], [])
    alone = _made_alone(facts, {(left, right) for left, right in merges})
    if alone:
        found.notes.append(
            f"llama.cpp makes {len(alone)} tokens of neighbours that transformers keeps apart, such as {alone[0]!r}"
        )
    found.space_prefix = _space_prefix(file, facts, found.notes)
    last = float(len(rank))
    vocabulary = sorted(facts["model"]["vocab"].items(), key=lambda item: item[1])
    found.scores = [-float(rank[token]) if token in rank else -last for token, _ in vocabulary]
    return found


def _made_alone(facts: dict[str, Any], merges: set[tuple[str, str]]) -> list[str]:
    """Tokens that llama.cpp merges from any two neighbours that make them, listed as a merge or not."""
    vocabulary = facts["model"]["vocab"]
    apart = {one["content"] for one in facts["added_tokens"]} | {facts["model"].get("unk_token")}
    found = []
    for token in vocabulary:
        if token in apart or (token.startswith("<0x") and len(token) == 6):
            continue
        cuts = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        if any(
            (left in vocabulary or len(left) == 1)
            and (right in vocabulary or len(right) == 1)
            and (left, right) not in merges
            for left, right in cuts
        ):
            found.append(token)
    return found


def _space_prefix(file: Path, facts: dict[str, Any], notes: list[str]) -> bool:
    """Whether a text gets a space in front of it."""
    normalizer = facts.get("normalizer") or {}
    steps = [one["type"] for one in normalizer.get("normalizers", [normalizer] if normalizer else [])]
    splitter = facts.get("pre_tokenizer") or {}
    if splitter.get("type") == "Metaspace" and not steps and not splitter.get("split", True):
        scheme = splitter.get("prepend_scheme", "always")
        if scheme == "first":
            notes.append("after a special token llama.cpp writes a space before the text, transformers does not")
        return bool(scheme != "never")
    if splitter and splitter.get("type") != "Split":
        _refuse(file, f"its pre-tokenizer {splitter.get('type')}")
    if steps not in (["Replace"], ["Prepend", "Replace"]):
        _refuse(file, f"its normalizer {'+'.join(steps) or 'none'}")
    return bool(steps[0] == "Prepend")


def _tokens(found: Vocabulary, file: Path, facts: dict[str, Any], rows: int) -> None:
    """Fill in tokens and types: rows without a token are UNUSED, as their scores are never asked for."""
    entries = {number: token for token, number in facts["model"]["vocab"].items()}
    added = {one["id"]: one for one in facts["added_tokens"]}
    highest = max([*entries, *added])
    if highest >= rows:
        _refuse(file, f"it has a token {highest}, and the embedding {rows} rows")
    unknown = facts["model"].get("unk_token")
    scores = dict(zip(sorted(entries), found.scores, strict=False))
    for number in range(rows):
        token, kind = entries.get(number, f"[PAD{number}]"), NORMAL if number in entries else UNUSED
        if number in added:
            token, kind = added[number]["content"], CONTROL if added[number]["special"] else USER_DEFINED
        if found.model == "llama" and token == unknown:
            kind = UNKNOWN
        elif found.model == "llama" and kind == NORMAL and len(token) == 6 and token.startswith("<0x"):
            kind = BYTE
        found.tokens.append(token)
        found.types.append(kind)
    if found.model == "llama":
        found.scores = [scores.get(number, -1e4) for number in range(rows)]


def _special(found: Vocabulary, tokenizer: Any, stops: list[int]) -> None:
    for name in ("bos", "eos", "unk", "pad"):
        token = getattr(tokenizer, f"{name}_token_id")
        if token is not None:
            found.ids[name] = token
    others = [token for token in dict.fromkeys(stops) if token != found.ids.get("eos")]
    found.ids |= dict(zip(("eot", "eom"), others, strict=False))
    if len(others) > 2:
        found.notes.append(f"of {len(others) + 1} tokens that end an answer a GGUF names three")
    ids = tokenizer("a")["input_ids"]
    found.adds = {
        "bos": ids[:1] == [found.ids.get("bos")],
        "eos": len(ids) > 1 and ids[-1:] == [found.ids.get("eos")],
    }
    found.template = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else ""


def _strips(found: Vocabulary, facts: dict[str, Any]) -> None:
    """Blanks beside added tokens: llama.cpp knows none that are dropped, or those of Phi-3."""
    dropping = {one["content"] for one in facts["added_tokens"] if one.get("lstrip") or one.get("rstrip")}
    left = any(one.get("lstrip") for one in facts["added_tokens"])
    special = {one["content"] for one in facts["added_tokens"]}
    plain = {"<unk>", "<s>", "<|endoftext|>"}
    found.strips = not left and dropping == special - plain and {"</s>", *plain} <= special
    if dropping and not found.strips:
        found.notes.append(
            f"{', '.join(sorted(dropping)[:4])}: transformers drops blanks beside it, llama.cpp does not"
        )


def _refuse(file: Path, what: str) -> NoReturn:
    raise RequestError(f"{file}: {what}: llama.cpp would read texts otherwise", CONVERTER)
