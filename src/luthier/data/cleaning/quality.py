"""Steps that tell prose from refuse by counting: repetition, word shapes, symbols (the Gopher and C4 rules).

Knows words, lines and characters; refuses to know meaning and language. The rules were made for web pages; in chats
that show code some of them fire on good answers, so look at `luthier data show` before trusting a bound.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from luthier.data.cleaning.stepkit import ParameterError, Step, Turns, drop, rewrite, texts
from luthier.schema import Drop, Row

REASONS = (
    "repeated_lines",
    "repeated_paragraphs",
    "repeated_ngrams",
    "odd_word_length",
    "too_many_symbols",
    "too_many_bullets",
    "too_many_ellipses",
    "too_few_alphabetic_words",
    "too_few_stop_words",
    "lorem_ipsum",
    "curly_bracket",
    "too_few_sentences",
    "nothing_left",
)
_TOP = {2: 0.20, 3: 0.18, 4: 0.16}
_REPEATED = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
_STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
_BULLETS = ("•", "-", "*", "●", "‣")
_SENTENCE_END = re.compile(r"[.!?。！？]+[\"'”’)\]]*(?:\s|$)")
_TERMINAL = (".", "!", "?", '"', "”", "'", "’")
_NOT_SYMBOLS = bytes(code for code in range(128) if chr(code).isalnum() or chr(code).isspace())
_SYMBOL = re.compile(r"[^\w\s]|_")


def repetition(
    turns: Turns = "assistant",
    minimum_words: int = 50,
    lines: float = 0.30,
    line_characters: float = 0.20,
    paragraph_characters: float = 0.20,
    ngrams: float = 1.0,
) -> Step:
    """Drops rows that say the same again and again (Rae et al. 2021, arXiv 2112.11446, table A1).

    Checked are the share of repeated lines and paragraphs, by count and by characters; the share of characters in the
    most frequent 2-, 3- and 4-gram (0.20, 0.18, 0.16); and the share in repeated 5- to 10-grams (0.15 down to 0.10,
    each character counted once). The first occurrence of a thing is not a repetition.

    turns: whose words are looked at, all of them together.
    minimum_words: shorter rows are kept as they are.
    lines: most repeated lines, and most repeated paragraphs, as a share of all.
    line_characters: most characters in repeated lines, as a share of all.
    paragraph_characters: most characters in repeated paragraphs, as a share of all.
    ngrams: factor on the paper's n-gram bounds, such as 1.5 for more leniency; 0 leaves n-grams out.

    Drops: repeated_lines, repeated_paragraphs, repeated_ngrams.
    """
    _shares(lines=lines, line_characters=line_characters, paragraph_characters=paragraph_characters)
    if not ngrams >= 0:
        raise ParameterError("ngrams", "is 0 or more")

    def apply(row: Row) -> Row | Drop:
        text = "\n\n".join(texts(row, turns))
        words = text.split()
        if len(words) < minimum_words or not words:
            return row
        for pieces, reason, most in (
            (text.split("\n\n"), "repeated_paragraphs", paragraph_characters),
            (text.split("\n"), "repeated_lines", line_characters),
        ):
            count, characters = _repeats([piece.strip() for piece in pieces if piece and not piece.isspace()])
            if count > lines or characters > most:
                return drop(row, reason, f"{count:.0%} by count, {characters:.0%} by characters")
        return (_grams(row, words, ngrams) if ngrams else None) or row

    return apply


def _repeats(pieces: Sequence[str]) -> tuple[float, float]:
    """Shares of pieces, and of their characters, that were there before."""
    if len(set(pieces)) == len(pieces):
        return 0.0, 0.0
    unique = dict.fromkeys(pieces)
    size = sum(map(len, pieces))
    return (len(pieces) - len(unique)) / len(pieces), (size - sum(map(len, unique))) / size


def _grams(row: Row, words: list[str], factor: float) -> Drop | None:
    sizes = list(map(len, words))
    total = sum(sizes)
    for n, most in _TOP.items():
        share = top_share(words, sizes, n, total, most * factor)
        if share > most * factor:
            return drop(row, "repeated_ngrams", f"{share:.0%} of the characters are one {n}-gram")
    for n, most in _REPEATED.items():
        share = repeated_share(words, sizes, n) / total
        if share > most * factor:
            return drop(row, "repeated_ngrams", f"{share:.0%} of the characters are in repeated {n}-grams")
        if share <= min(_REPEATED.values()) * factor:
            break  # what a repeated longer n-gram covers, its shorter ones cover too
    return None


def top_share(words: list[str], sizes: list[int], n: int, total: int, most: float = 0.0) -> float:
    """The share of characters in the most frequent n-gram (the longest of equals); 0 where none comes twice."""
    grams = list(zip(*(words[i:] for i in range(n)), strict=False))
    counts = Counter(grams)
    if not counts:
        return 0.0
    top = max(counts.values())
    if top < 2 or top * n * max(sizes) <= most * total:
        return 0.0
    longest = max(sum(map(len, gram)) for gram, count in counts.items() if count == top)
    return min(1.0, top * longest / total)


def repeated_share(words: list[str], sizes: list[int], n: int) -> int:
    """Characters of words that lie in an n-gram seen before, each word counted once."""
    grams = list(zip(*(words[i:] for i in range(n)), strict=False))
    if len(set(grams)) == len(grams):
        return 0
    seen: set[tuple[str, ...]] = set()
    covered = end = 0
    for start, gram in enumerate(grams):
        if gram in seen:
            covered += sum(sizes[max(start, end) : start + n])
            end = start + n
        else:
            seen.add(gram)
    return covered


def gopher(
    turns: Turns = "assistant",
    minimum_words: int = 50,
    word_length: list[float] = [3.0, 10.0],  # noqa: B006 -- read only
    symbols: float = 0.10,
    bullets: float = 0.90,
    ellipses: float = 0.30,
    alphabetic: float = 0.80,
    stop_words: int = 2,
) -> Step:
    """Drops rows whose words have odd shapes (the quality rules of Rae et al. 2021, arXiv 2112.11446, section A1.1).

    Words are what white space parts: long texts in Chinese, Japanese or Thai fall under odd_word_length.

    turns: whose words are looked at, all of them together.
    minimum_words: shorter rows are kept as they are.
    word_length: smallest and largest mean length of a word in characters.
    symbols: most hash signs, and most ellipses, per word.
    bullets: most lines that begin with a bullet, as a share.
    ellipses: most lines that end with an ellipsis, as a share.
    alphabetic: least share of words with a letter in them.
    stop_words: how many of the, be, to, of, and, that, have, with must be there; 0 for text in other languages.

    Drops: odd_word_length, too_many_symbols, too_many_bullets, too_many_ellipses, too_few_alphabetic_words,
    too_few_stop_words.
    """
    _shares(bullets=bullets, ellipses=ellipses, alphabetic=alphabetic)
    if len(word_length) != 2 or word_length[0] > word_length[1]:
        raise ParameterError("word_length", "is [smallest, largest], such as [3, 10]")
    low, high = word_length

    def apply(row: Row) -> Row | Drop:
        text = "\n".join(texts(row, turns))
        words = text.split()
        count = len(words)
        if count < minimum_words or not count:
            return row
        mean = sum(map(len, words)) / count
        if not low <= mean <= high:
            return drop(row, "odd_word_length", f"{mean:.1f} characters a word")
        share = max(text.count("#"), text.count("...") + text.count("…")) / count
        if share > symbols:
            return drop(row, "too_many_symbols", f"{share:.2f} hash signs or ellipses a word")
        lines = [line.strip() for line in text.split("\n") if line and not line.isspace()]
        share = sum(line.startswith(_BULLETS) for line in lines) / len(lines)
        if share > bullets:
            return drop(row, "too_many_bullets", f"{share:.0%} of the lines")
        share = sum(line.endswith(("...", "…")) for line in lines) / len(lines)
        if share > ellipses:
            return drop(row, "too_many_ellipses", f"{share:.0%} of the lines")
        share = sum(word.isalpha() or any(map(str.isalpha, word)) for word in words) / count
        if share < alphabetic:
            return drop(row, "too_few_alphabetic_words", f"{share:.0%} of the words")
        if stop_words:
            found = len(_STOP_WORDS.intersection(text.lower().split()))
            if found < stop_words:
                return drop(row, "too_few_stop_words", f"{found} of {len(_STOP_WORDS)}")
        return row

    return apply


def c4(
    turns: Turns = "assistant",
    lorem_ipsum: bool = True,
    curly_bracket: bool = True,
    javascript: bool = True,
    terminal_punctuation: bool = False,
    minimum_line_words: int = 0,
    minimum_sentences: int = 3,
) -> Step:
    """Drops and trims rows by the rules of C4 (Raffel et al. 2020, arXiv 1910.10683, section 2.2).

    The paper's rules for bad words, languages and repeated sentences are not here: see words_list, language and
    repetition. The rules that cut lists and code short are off. A row of which a whole text is taken out is dropped.

    turns: whose words are looked at and trimmed.
    lorem_ipsum: drops rows with the words "lorem ipsum".
    curly_bracket: drops rows with a curly bracket; turn it off for chats that show code.
    javascript: takes out lines with the word JavaScript, which on web pages ask to turn it on.
    terminal_punctuation: takes out lines that do not end in a mark that ends a sentence; lists and code go too.
    minimum_line_words: takes out lines of fewer words, 5 in the paper; 0 keeps them all.
    minimum_sentences: fewest sentences that must be left in all the texts together.

    Drops: lorem_ipsum, curly_bracket, too_few_sentences, nothing_left.
    """
    cuts = terminal_punctuation or minimum_line_words > 0

    def keeps(line: str) -> bool:
        if javascript and "javascript" in line.lower():
            return False
        if not cuts or not line.strip():
            return True
        if len(line.split()) < minimum_line_words:
            return False
        return not terminal_punctuation or line.rstrip().endswith(_TERMINAL)

    def trim(text: str) -> str:
        if not cuts and "javascript" not in text.lower():
            return text
        return "\n".join(line for line in text.split("\n") if keeps(line))

    def apply(row: Row) -> Row | Drop:
        found = texts(row, turns)
        if curly_bracket and any("{" in text or "}" in text for text in found):
            return drop(row, "curly_bracket")
        if lorem_ipsum and any("lorem ipsum" in text.lower() for text in found):
            return drop(row, "lorem_ipsum")
        if javascript or cuts:
            trimmed = rewrite(row, turns, trim)
            # An answer that is empty now would be learnt as one.
            if trimmed is not row and _said(texts(trimmed, turns)) < _said(found):
                return drop(row, "nothing_left", "no line of a text is left")
            row = trimmed
        if minimum_sentences:
            count = 0
            for text in texts(row, turns):
                count += len(_SENTENCE_END.findall(text))
            if count < minimum_sentences:
                return drop(row, "too_few_sentences", f"{count}, at least {minimum_sentences} are asked for")
        return row

    return apply


def _said(found: Sequence[str]) -> int:
    return sum(not text.isspace() for text in found)


def symbol_ratio(turns: Turns = "assistant", maximum: float = 0.30) -> Step:
    """Drops rows with too many characters that are neither letter, digit nor white space.

    Marks that belong to a letter, such as accents and the vowels of Hindi and Thai, are no symbols.

    turns: whose words are looked at, all of them together.
    maximum: the most of them, as a share of all characters.

    Drops: too_many_symbols.
    """
    _shares(maximum=maximum)

    def apply(row: Row) -> Row | Drop:
        symbols = size = 0
        for text in texts(row, turns):
            size += len(text)
            if text.isascii():
                symbols += len(text.encode().translate(None, _NOT_SYMBOLS))
            else:
                found = Counter(_SYMBOL.findall(text))
                symbols += sum(n for mark, n in found.items() if unicodedata.category(mark)[0] != "M")
        if symbols > maximum * size:
            return drop(row, "too_many_symbols", f"{symbols / size:.0%} of the characters")
        return row

    return apply


def _shares(**values: float) -> None:
    for name, value in values.items():
        if not 0.0 <= value <= 1.0:
            raise ParameterError(name, f"{value:g} is not a share from 0 to 1")
