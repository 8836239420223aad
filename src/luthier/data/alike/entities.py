"""Tells siblings from copies: two texts of one template that differ in a name, a number or a recurring word.

Knows words; refuses to know rows, files and similarity. An entity is a word with a digit (with the arithmetic sign
before it), a capitalised word that does not begin a sentence, a spelled-out number, a weekday or month, and a word
glued to another by @ / _ or a dot (addresses, file names). Two texts are siblings where one entity stands in the place
of another, where entities have changed places or moved along (3 and 2 became 4 and 3), where a lower-case word is
replaced by another one in at least two places of the same surroundings, or where nothing differs but words that begin
sentences and may be names. An entity that one text merely lacks makes no siblings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from luthier.data.alike.shingles import CAPITAL, LOWER, Hashes, Words, hash_words, marked, mix, pieces, split_words

NUMBERS = (
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million billion dozen "
    "first second third fourth fifth sixth seventh eighth ninth tenth half twice "
    "monday tuesday wednesday thursday friday saturday sunday january february april june july august september "
    "october november december"
).split()
"""Entities in any case. March and May are left to their capital."""
STARTERS = (
    "a about above accordingly additionally after afterwards again all almost already also although always am an and "
    "another answer any anyone anything are as ask assume at avoid back based be because before begin below besides "
    "best better between big both briefly but by calculate call can certainly change check choose click clearly come "
    "compare complete compute consequently consider could create dear define describe did do does done due during each "
    "either else enter even eventually every everyone everything evidently example explain fewer final finally find "
    "following for from further furthermore generally generate get give given go good great had hardly has have he "
    "hello help hence her here hers hi his hopefully how however i identify if imagine important in include indeed "
    "initially input inside instead is it its just keep large last lastly later least less let like likewise list "
    "little long look make many may maybe me meanwhile might mine moreover most mostly much must my name near nearly "
    "need never nevertheless new next no nobody none nonetheless normally not note nothing now obviously of off often "
    "ok okay old on once only open or other others otherwise our ours out output over overall part perhaps please "
    "possible possibly previous prior probably provide put question quite rather read really recall remember remove "
    "result return right run same say see select set several shall she should show similarly simply since small "
    "so solution solve some someone something sometimes somewhat soon sorry start step still stop such summary suppose "
    "sure surely take tell than thank thanks that the their theirs them then there therefore these they think this "
    "those though through throughout thus till tip to today together tomorrow tonight too translate try turn typically "
    "under unfortunately unless unlike until up upon us use used usually very visit wait was we well were what "
    "whatever when whenever where whereas wherever whether which while who whoever whom whose why will with within "
    "without work would write wrong yes yesterday yet you your yours"
).split()
"""What often begins a sentence and is no name."""
_TITLES = "Mr Mrs Ms Dr Prof St Sr Jr Mt A B C D E F G H J K L M N O P Q R S T U V W X Y Z".split()
_SIGNS = b"+-*/=<>%^$"
_GLUED = np.uint64(0xA24BAED4963EE407)


@dataclass(frozen=True, slots=True)
class Signature:
    """What is compared of a text: per word its hash as written and in lower case, and which words are entities."""

    written: Hashes
    """(words,) as written; of entities, with what glues or signs them."""
    lower: Hashes
    entity: NDArray[np.bool_]
    opening: NDArray[np.bool_]
    """Words that begin a sentence with a capital and may be names, as far as their letters tell."""
    words: frozenset[int]
    """The words in lower case, each once."""
    often: frozenset[int]
    """Those of them that come at least twice."""

    @property
    def key(self) -> int:
        """One number for the set of entities; equal sets have equal numbers."""
        found = np.unique(self.written[self.entity])
        return int(mix(found).sum()) if len(found) else 0


def signatures(texts: Sequence[str]) -> list[Signature]:
    """The signatures of texts, in order."""
    found: list[Signature] = []
    for piece in pieces([marked(text) for text in texts]):
        words = split_words(piece)
        written, lower = hash_words(words), hash_words(_lowered(piece, words), LOWER)
        entity, opening, salted = _entities(words, written, lower)
        for at, stop in zip(words.row_starts[:-1].tolist(), words.row_starts[1:].tolist(), strict=True):
            ranked = np.sort(lower[at:stop])
            often = frozenset(ranked[1:][ranked[1:] == ranked[:-1]].tolist())
            one = slice(at, stop)
            several = frozenset(ranked.tolist())
            found.append(Signature(salted[one], lower[one], entity[one], opening[one], several, often))
    return found


def _lowered(piece: Sequence[bytes], words: Words) -> Words:
    """The same words with their letters beyond ASCII folded too; folding moves no border of a word."""
    if all(map(bytes.isascii, piece)):
        return words
    plain = [text.decode("utf-8", "surrogatepass").replace(CAPITAL, "").casefold() for text in piece]
    return split_words([text.encode("utf-8", "surrogatepass") for text in plain])


def _entities(words: Words, written: Hashes, lower: Hashes) -> tuple[NDArray[np.bool_], NDArray[np.bool_], Hashes]:
    """Which words are entities, which may be names that begin a sentence, and hashes with what glues or signs them."""
    data, start, end = words.data, words.start, words.end
    if not len(start):
        return np.zeros(0, dtype=bool), np.zeros(0, dtype=bool), written
    digit = _any(data, start, end, _DIGIT)
    capital = _CAPITALS[data[start]]
    # What stands before each word: from the end of the word before (or the piece's begin) to its start.
    before = np.concatenate([[0], end[:-1]])
    stop = _any(data, before, start, _STOPS)
    titled = np.concatenate([[False], _in(written[:-1], _word_hashes(tuple(_TITLES)))])
    one_dot = (start - before == 2) & (data[before] == ord("."))
    begins = stop & ~(titled & one_dot)
    begins[words.row_starts[:-1][np.diff(words.row_starts) > 0]] = True
    glue = _GLUE[data[before]] & (start - before == 1)
    glue |= (start - before == 3) & (data[before] == ord(":")) & (data[start - 1] == ord("/"))
    glued = glue | np.concatenate([glue[1:], [False]])
    number = _in(lower, _word_hashes(tuple(NUMBERS)))
    named = capital & ~begins & ~_in(written, _word_hashes(("I",)))
    salted = written.copy()
    salted[glued & ~digit] ^= _GLUED
    for at in np.flatnonzero(digit & _any(data, before, start, _SIGN)).tolist():
        signs = data[before[at] : start[at]].tobytes().translate(None, _NOT_SIGNS)
        salted[at] ^= np.uint64(hash_signs(signs))
    salted[number & ~named] = lower[number & ~named]
    entity = digit | named | number | glued
    opening = capital & begins & ~entity
    first = np.flatnonzero(opening)
    starter = _in(lower[first], _word_hashes(tuple(STARTERS)))
    opening[first] = ~(starter | _inflected(data, start[first], end[first]))
    return entity, opening, salted


def _inflected(data: NDArray[np.uint8], start: NDArray[np.int64], end: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which words end in -ly or -ing and have at least six letters (Finally, and not Sally)."""
    x, y, z = (LOWER[data[np.maximum(end - k, 0)]] for k in (3, 2, 1))
    adverb = (y == ord("l")) & (z == ord("y"))
    participle = (x == ord("i")) & (y == ord("n")) & (z == ord("g"))
    return np.asarray((end - start >= 6) & (adverb | participle))


def _any(
    data: NDArray[np.uint8], start: NDArray[np.int64], end: NDArray[np.int64], table: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Whether a byte of `table` lies in each data[start:end]."""
    total = np.concatenate([[0], np.cumsum(table[data], dtype=np.int64)])
    return np.asarray(total[end] > total[start])


def _in(values: Hashes, known: Hashes) -> NDArray[np.bool_]:
    """Whether each value is one of a few sorted known ones."""
    at = np.minimum(np.searchsorted(known, values), len(known) - 1)
    return np.asarray(known[at] == values)


def _table(chosen: bytes) -> NDArray[np.bool_]:
    return np.isin(np.arange(256), list(chosen))


_DIGIT, _STOPS, _GLUE, _SIGN = _table(b"0123456789"), _table(b".?!\n"), _table(b"@/_.\\"), _table(_SIGNS)
_CAPITALS = _table(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ\x01")
_NOT_SIGNS = bytes(i for i in range(256) if i not in _SIGNS)


@lru_cache(maxsize=256)
def hash_signs(signs: bytes) -> int:
    """A number for the arithmetic signs before a number."""
    return int(mix(np.array([int.from_bytes(signs[-8:], "big") + 1], dtype=np.uint64))[0])


@lru_cache(maxsize=8)
def _word_hashes(words: tuple[str, ...]) -> Hashes:
    return np.sort(hash_words(split_words([" ".join(words).encode()])))


def siblings(first: Signature, second: Signature) -> bool:
    """Whether two texts, known to be alike, are fillings of one template and not copies of each other."""
    a, b = first.written[first.entity].tolist(), second.written[second.entity].tolist()
    if a != b:
        # A name may begin a sentence in one of the texts: both are read for the entities of either.
        chosen = set(a) | set(b)
        a = [word for word in first.written.tolist() if word in chosen]
        b = [word for word in second.written.tolist() if word in chosen]
        if _within(a, b) or _within(b, a):
            pass
        elif _substituted(a, b) or _moved_along(first, second, chosen):
            return True
    return _renamed(first, second) or _opened(first, second)


def _substituted(a: list[int], b: list[int]) -> bool:
    """Whether an entity stands in another's place, or two have changed places."""
    gone, come = Counter[int](), Counter[int]()
    for what, i, j, k, m in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if what == "replace":
            return True
        gone.update(a[i:j] if what == "delete" else ())
        come.update(b[k:m] if what == "insert" else ())
    return bool(gone & come)


def _moved_along(a: Signature, b: Signature, chosen: set[int]) -> bool:
    """Whether entities stand in each other's place where both texts are read as templates, with slots for entities.

    What `_substituted` cannot see: 3 ... 2 that became 4 ... 3 has one number new, one kept and one gone.
    """
    words_a, slots_a = _template(a, chosen)
    words_b, slots_b = _template(b, chosen)
    same = 0
    while same < min(len(words_a), len(words_b)) and words_a[same] == words_b[same]:
        same += 1
    back = max(0, same - 1)  # one shared word stays before what differs
    runs = [(0, 0, same)] + [
        (back + run.a, back + run.b, run.size)
        for run in SequenceMatcher(None, words_a[back:], words_b[back:]).get_matching_blocks()
    ]
    whole = len(words_a) == len(words_b) == 1
    for at, other, size in runs:
        if size < 2 and not whole:  # a slot alone, with no shared word beside it, has no place
            continue
        for k in range(size):
            ours, theirs = slots_a.get(at + k, []), slots_b.get(other + k, [])
            if ours != theirs and not _within(ours, theirs) and not _within(theirs, ours):
                return True
    return False


def _template(text: Signature, chosen: set[int]) -> tuple[list[int], dict[int, list[int]]]:
    """The words in lower case, with 0 in place of each run of chosen entities; and what stood in each 0."""
    found: list[int] = []
    slots: dict[int, list[int]] = {}
    for written, lower in zip(text.written.tolist(), text.lower.tolist(), strict=True):
        if written not in chosen:
            found.append(lower)
            continue
        if len(found) - 1 not in slots:
            slots[len(found)] = []
            found.append(0)
        slots[len(found) - 1].append(written)
    return found, slots


def _opened(a: Signature, b: Signature) -> bool:
    """Whether nothing differs but words that begin sentences and may be names in both texts."""
    if len(a.lower) != len(b.lower):
        return False
    apart = a.lower != b.lower
    return bool(apart.any() and (a.opening & b.opening)[apart].all())


def _within(small: list[int], large: list[int]) -> bool:
    """Whether `small` is what is left of `large` when items are taken out."""
    if len(small) > len(large):
        return False
    rest = iter(large)
    return all(item in rest for item in small)


def _renamed(a: Signature, b: Signature) -> bool:
    """Whether a word of `a`, gone from `b`, gave way to a word new in `b`, at least twice in the same surroundings."""
    only_a, only_b = a.often - b.words, b.often - a.words
    if not only_a or not only_b:
        return False
    around_a, around_b = (_around(text.lower, only_a | only_b) for text in (a, b))
    return any(
        (around_a[gone] & around_b[come]).total() >= 2
        for gone in only_a & around_a.keys()
        for come in only_b & around_b.keys()
    )


def _around(words: Hashes, chosen: frozenset[int]) -> dict[int, Counter[tuple[int, int]]]:
    """For each chosen word its (left, right) neighbours, counted; a neighbour that is chosen itself reads as 0."""
    listed = [0, *words.tolist(), 0]
    found: dict[int, Counter[tuple[int, int]]] = {}
    for i, word in enumerate(listed):
        if word in chosen:
            left, right = (0 if listed[k] in chosen else listed[k] for k in (i - 1, i + 1))
            found.setdefault(word, Counter())[(left, right)] += 1
    return found
