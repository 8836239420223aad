"""Whether llama.cpp reads texts as the model's own tokenizer does: some hundred texts through both.

The texts are made on the spot: prose, code, numbers, blanks, many scripts, emoji, special tokens amid text.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.engines.llamacpp import gguf_ids
from luthier.engines.llamaserver import has_llamacpp

_PIECES = (
    "The speaker's answer wasn't long, but it'll do.",
    "I'VE said: we'Re HERE, they'd go; it's he'll",
    "def add(a, b):\n    return a + b\n\n\n\tprint(add(2, 3))  # 5",
    '{"id": 17, "p": [0.25, -3e-4], "ok": true}',
    "3 33 333 3333 33333 1,234,567.89 0x1F 12:30 ½ ²³",
    "   three  spaces\t\ttabs \n newline \r\n\r\n end   ",
    "...!!! ??? ---- ====== '''''' ``` \"\" «quote» “curly” ‘single’",
    "Österreich, señor, façade, Ångström, naïve",
    "нещо на Български, Привет мир",
    "我想在apple工作1314151天～ 日本語のテキスト 한국어 문장",
    "កាន់តែពិសេសអាច हिन्दी में वाक्य العربية עברית ไทย",
    "🚀 😶‍🌫️ ✅ 🦙🦙 👩‍👩‍👧 🇳🇴",
    "e\u0301 composed \u00e9 zero\u200bwidth \u00a0nbsp \ufeffbom",
    "CamelCaseWord snake_case_word kebab-case HTTPServer2Go",
    "https://example.org/a?b=c&d=%20e#f mail@example.org",
)


@dataclass(frozen=True)
class TokenCheck:
    """How many texts were read by both, how many differ, and the first that does; `reason` where it was not run."""

    texts: int = 0
    differ: int = 0
    first: str = ""
    reason: str = ""

    def notes(self) -> tuple[str, ...]:
        """What a reader of the export should know."""
        if self.reason:
            return (f"the tokenizer was not compared with llama.cpp's: {self.reason}",)
        if self.differ:
            return (f"{self.differ} of {self.texts} texts are read otherwise by llama.cpp, first: {self.first!r}",)
        return ()


def check_tokens(model_folder: Path, gguf: Path, count: int = 300) -> TokenCheck:
    """Read `count` texts with the tokenizer of a folder and with llama.cpp from a GGUF."""
    from luthier.models.chat import load_tokenizer

    if not has_llamacpp():
        return TokenCheck(reason="no llama.cpp is installed here")
    tokenizer = load_tokenizer(str(model_folder))
    texts = sample_texts(count, list(tokenizer.added_tokens_encoder))
    wanted: Sequence[Any] = [tokenizer(text, verbose=False)["input_ids"] for text in texts]
    found = gguf_ids(gguf, texts)
    bad = [text for text, one, other in zip(texts, wanted, found, strict=True) if one != other]
    return TokenCheck(len(texts), len(bad), bad[0][:80] if bad else "")


def sample_texts(count: int, specials: Sequence[str], seed: int = 5) -> list[str]:
    """The pieces themselves, then cut and joined at random, some around special tokens. The same for the same seed."""
    rng = random.Random(seed)
    texts = list(_PIECES)
    while len(texts) < count:
        parts = []
        for piece in rng.choices(_PIECES, k=rng.randint(1, 3)):
            start = rng.randrange(len(piece))
            parts.append(piece[start : start + rng.randint(1, 40)])
        joint = rng.choice(specials) if specials and rng.random() < 0.2 else rng.choice(("", " ", "\n"))
        texts.append(joint.join(parts))
    return texts[:count]
