"""Steps that look for given words and patterns.

Knows word lists and regular expressions; refuses to know which words are bad: the list is the user's.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from luthier.data.cleaning.stepkit import FilePath, ParameterError, Step, Turns, drop, rewrite, texts
from luthier.schema import Drop, Row

REASONS = ("listed_word", "pattern_found", "pattern_missing", "pattern_timeout")
# Everything that parts words becomes a space: ASCII marks, Latin-1 marks, general and CJK punctuation.
_ASCII = (*range(0x20), *range(0x21, 0x30), *range(0x3A, 0x41), *range(0x5B, 0x61), *range(0x7B, 0x80))
_LATIN = tuple(code for code in range(0x80, 0xC0) if code not in (0xAA, 0xB2, 0xB3, 0xB5, 0xB9, 0xBA))
_PARTING = dict.fromkeys(
    (*_ASCII, *_LATIN, *range(0x2000, 0x2070), *range(0x3000, 0x3005), *range(0x3008, 0x3021)), " "
)


def words_list(
    file: FilePath, action: Literal["drop", "mask"] = "drop", mask: str = "***", turns: Turns = "all"
) -> Step:
    """Drops rows with a word of a list, or masks the words; the hook for profanity and for names.

    Whole words are compared, upper and lower case alike; a line of several words is a phrase. Chinese, Japanese and
    Thai put no spaces between words, and their words are not found.

    file: UTF-8 text with one word or phrase a line; empty lines and lines that begin with # are left out.
    action: drop the row, or mask each word.
    mask: what stands in place of a masked word.
    turns: whose words are looked at.

    Drops: listed_word.
    """
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ParameterError("file", f"{file} cannot be read: {error}") from error
    entries = [_plain(line).split() for line in lines if not line.startswith("#")]
    words = {entry[0] for entry in entries if len(entry) == 1}
    phrases = [" ".join(entry) for entry in entries if len(entry) > 1]
    if not words and not phrases:
        raise ParameterError("file", f"{file} holds no words")
    # Each entry as its words with whatever parts them; longest first, so that a phrase goes before its words.
    spelled = sorted((r"[\W_]+".join(map(re.escape, entry)) for entry in entries if entry), key=len, reverse=True)
    pattern = re.compile(rf"(?<![^\W_])(?:{'|'.join(spelled)})(?![^\W_])", re.IGNORECASE)

    def listed(text: str) -> str:
        found = _plain(text).split()
        if not words.isdisjoint(found):
            return next(word for word in found if word in words)
        if phrases:
            joined = f" {' '.join(found)} "
            return next((phrase for phrase in phrases if f" {phrase} " in joined), "")
        return ""

    def masked(text: str) -> str:
        return pattern.sub(lambda _: mask, text) if listed(text) else text

    def apply(row: Row) -> Row | Drop:
        if action == "mask":
            return rewrite(row, turns, masked)
        for text in texts(row, turns):
            if word := listed(text):
                return drop(row, "listed_word", word)
        return row

    return apply


def _plain(text: str) -> str:
    return text.lower().translate(_PARTING)


def regex(
    pattern: str,
    action: Literal["drop", "keep", "replace"] = "drop",
    replacement: str = "",
    ignore_case: bool = False,
    turns: Turns = "all",
    timeout: float = 0.5,
) -> Step:
    """Drops rows in which a pattern is found, or in which it is not, or replaces what it finds.

    Patterns are those of the `regex` library, searched for in each text by itself. One that takes too long on a text
    drops the row, so that a pattern which explodes on some input costs that row and not the build.

    pattern: the regular expression; `^` and `$` are the ends of the text, with `(?m)` those of lines.
    action: drop where it is found; keep only where it is found in some text; replace what is found.
    replacement: what stands in its place; `\\1` is the first group.
    ignore_case: upper and lower case alike.
    turns: whose words are looked at.
    timeout: most seconds of processor time for one text; on a busy machine the clock shows more.

    Drops: pattern_found, pattern_missing, pattern_timeout.
    """
    import regex as library  # type: ignore[import-untyped]

    try:
        compiled = library.compile(pattern, library.IGNORECASE if ignore_case else 0)
        if action == "replace":
            compiled.sub(replacement, "")
            library.compile(f"(?:{pattern})|").sub(replacement, "")  # matches, so that a bad group is found now
    except (library.error, IndexError) as error:
        raise ParameterError("pattern", f"{pattern!r} is no regular expression: {error}") from error
    if not timeout > 0:
        raise ParameterError("timeout", "is above 0")

    def replaced(text: str) -> str:
        return str(compiled.sub(replacement, text, timeout=timeout))

    def apply(row: Row) -> Row | Drop:
        try:
            if action == "replace":
                return rewrite(row, turns, replaced)
            for text in texts(row, turns):
                if match := compiled.search(text, timeout=timeout):
                    return row if action == "keep" else drop(row, "pattern_found", match.group()[:80])
        except TimeoutError:
            return drop(row, "pattern_timeout", f"more than {timeout:g} s on one text")
        return drop(row, "pattern_missing") if action == "keep" else row

    return apply
