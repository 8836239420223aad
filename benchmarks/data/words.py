"""Invented prose at the speed of numpy: Zipf's law over some 50,000 words, sentences, paragraphs, names and numbers.

Knows words and how often they come; refuses to know rows, turns and files. Every text is a pure function of the
generator that is handed in.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FREQUENT = (
    "the of and to a in is that it for was on are as with be this by you have or from at not an which can but they we "
    "their your has will one all would there if more when what about who other some time into only its than them may "
    "these two up then do first any my now such like our over me even most made after also did many before must "
    "through back where how much should people well each just those because still between being under never same "
    "another know while last might us great old year off come since against go came right used take three here "
    "example answer question number value list result problem system data model function state work world point"
).split()
NAMES = (
    "Aiko Alma Anders Bela Boris Carla Chidi Dana Dmitri Elif Emil Fatima Felix Gita Goran Hana Hugo Ines Ivan Jamal "
    "Jonas Kofi Lena Liang Luca Mara Mateo Mei Nadia Nils Olga Omar Pavel Petra Quentin Rosa Rui Sana Selma Stefan "
    "Tamar Tariq Tom Ursula Vera Viktor Wanda Yara Yusuf Zora Berlin Cairo Denver Hanoi Lagos Lima Lisbon Madrid Oslo "
    "Prague Quito Riga Seoul Sofia Tokyo Vienna Warsaw Zurich"
).split()
# No sharp s, no dotless i: they fold to other letters, and rules for that differ between libraries.
FOREIGN = (
    "über schön café naïve garçon mañana niño señal höhe où déjà élève år ö život šest może książka "
    "привет мир вопрос ответ книга город время слово 你好 世界 问题 答案 時間 言葉 학교 대답 سلام γειά λόγοι λέξη 🙂 🚀"
).split()
SIZE = 50_000
NUMBERS = 600
ENTITY_SHARE = 0.025
"""How much of a text is names and numbers."""
_ENDINGS = (" ", ", ", ". ", "? ", ".\n\n", ":\n- ")
_PLAIN, _COMMA, _STOP = 0, 1, 2
_ONSETS = "b br c ch cl d dr f fl g gr h j k l m n p pl pr qu r s sh sk st t th tr v w".split()
_VOWELS = "a e i o u ai ea ou".split()
_CODAS = ["", "l", "n", "r", "s", "t", "m", "nd", "st", "ck"]
_TAILS = ["", "", "", "s", "ed", "ing", "er", "ly", "tion", "ment", "able", "ness"]
ENTITY = re.compile(rf"(?<=[a-z,] )(?:{'|'.join(NAMES)})\b|\b\d+\b")
"""A name inside a sentence, or a number."""


@dataclass(frozen=True)
class Vocabulary:
    """Words, the law they are drawn by, and every word with every ending ready to be joined."""

    words: list[str]
    """SIZE words in lower case, most frequent first, then names, numbers and foreign words."""
    law: NDArray[np.int32]
    """(2^20,) word numbers; a uniform index into it draws by Zipf's law."""
    forms: NDArray[np.object_]
    """(words * 2 * endings,) a word as it stands in a text: capital or not, with what follows it."""

    @classmethod
    def make(cls, seed: int) -> Vocabulary:
        rng = np.random.default_rng([seed, 1])
        words = [*FREQUENT, *_invent(SIZE - len(FREQUENT), rng)]
        rank = np.arange(1, SIZE + 1)
        cumulative = np.cumsum(1.0 / (rank + 2.7))
        cumulative /= cumulative[-1]
        law = np.searchsorted(cumulative, (np.arange(1 << 20) + 0.5) / (1 << 20)).astype(np.int32)
        words += [*NAMES, *(str(n) for n in rng.permutation(9_000)[:NUMBERS] + 2), *FOREIGN]
        forms = [
            spelled + ending for word in words for spelled in (word, word[:1].upper() + word[1:]) for ending in _ENDINGS
        ]
        table = np.empty(len(forms), dtype=object)
        table[:] = forms
        return cls(words, law, table)

    @property
    def bytes_per_word(self) -> float:
        """The mean length of a word with what follows it, in bytes."""
        return float(np.array([len(word) for word in self.words])[self.law].mean()) + 1.22

    def texts(self, lengths: NDArray[np.int64], foreign: NDArray[np.bool_], rng: np.random.Generator) -> list[str]:
        """(N,) lengths in words and whether foreign words are strewn in -> N texts. Ends with a full stop."""
        total = int(lengths.sum())
        number = self.law[rng.integers(0, 1 << 20, total, dtype=np.int32)]
        chance = rng.random(total, dtype=np.float32)
        entity = chance < ENTITY_SHARE
        number[entity] = SIZE + rng.integers(0, len(NAMES) + NUMBERS, int(entity.sum()))
        strewn = np.repeat(foreign, lengths) & (chance > 0.85)
        number[strewn] = len(self.words) - 1 - rng.integers(0, len(FOREIGN), int(strewn.sum()))
        ending = rng.choice(
            np.array([_PLAIN] * 840 + [_COMMA] * 80 + [_STOP] * 60 + [3] * 6 + [4] * 9 + [5] * 5, dtype=np.int32), total
        )
        ends = np.cumsum(lengths)
        starts = ends - lengths
        ending[ends - 1] = _STOP
        capital = np.ones(total, dtype=np.int32)
        capital[1:] = ending[:-1] >= _STOP
        capital[starts] = 1
        found: list[str] = self.forms[(number * 2 + capital) * len(_ENDINGS) + ending].tolist()
        return ["".join(found[a:b])[:-1] for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]

    def code(self, rng: np.random.Generator) -> str:
        """A fenced block of invented Python."""
        a, b, c = (self.words[i] for i in rng.integers(len(FREQUENT), 5_000, 3))
        lines = [f"def {a}_{b}({c}, limit={rng.integers(2, 99)}):", "    found = []"]
        for n in rng.integers(0, 900, int(rng.integers(2, 12))).tolist():
            lines.append(f"    if {c} % {n + 2} == {n % 7}:\n        found.append({c} * {n} + len(found))")
        return "\n".join(["```python", *lines, "    return found[:limit]", "```"])


def _invent(count: int, rng: np.random.Generator) -> list[str]:
    """Words of one to three syllables, the short ones first, none twice."""
    known, made = set(FREQUENT), []
    syllables = np.array([a + b + c for a, b, c in itertools.product(_ONSETS, _VOWELS, _CODAS)])
    while len(made) < count:
        parts = 1 if len(made) < 800 else 2 if len(made) < 30_000 else 3
        for picked, tail in zip(
            rng.choice(syllables, (4_000, parts)).tolist(), rng.choice(_TAILS, 4_000).tolist(), strict=True
        ):
            word = "".join(picked) + (tail if parts > 1 else "")
            if word not in known:
                known.add(word)
                made.append(word)
    return made[:count]
