"""A fictional encyclopedia, and two exams on it whose right answers can be learned from its text alone.

Creatures, towns and persons with invented names have four facts each. Every fact is told in prose, several times and
in several wordings. Of two facts an entry's article also has the reader's question with its answer; of the third the
question stands only in the first exam, of the fourth only in the second. A model that answers has therefore put a fact
that it read as prose together with a kind of question that it saw on other entries (the setting of Allen-Zhu and Li
2023, arXiv 2309.14316). Nothing but facts helps: over an exam every value of an attribute is the wrong option as
often as it is the right one, and each place holds the right option equally often. Refuses to know models and tokens.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.errors import RequestError
from luthier.files import atomic_folder, write_jsonl

CORPUS, CHOOSING, REPORT = "corpus.jsonl", "encyclopedia-dev.jsonl", "encyclopedia-test.jsonl"
"""The files of `write_encyclopedia`: the text, the exam that a checkpoint is chosen by, the exam that is reported."""
ENTRIES, ARTICLES = 48, 6
"""Entries of each kind, and articles on each entry."""
SHARE = 24
"""Every combination of an attribute's six values with its four uses comes equally often."""
_ONSETS = "b br d dr f g gl h k l m n p r s t tr v z w".split()
_VOWELS = "a e i o u ea ou".split()
_CODAS = "l n r m s th ng ck d t".split()
_ENDS = ("", "n", "r", "l", "s")


@dataclass(frozen=True, slots=True)
class Attribute:
    """What can be told of an entry. `{n}` is its name, `{v}` the value; `answer` goes with `question`."""

    values: tuple[str, ...]
    sentences: tuple[str, ...]
    question: str
    answer: str


def _attribute(values: str, question: str, answer: str, *sentences: str) -> Attribute:
    return Attribute(tuple(values.split(", ")), sentences, question, answer)


KINDS: dict[str, tuple[Attribute, ...]] = {
    "creature": (
        _attribute(
            *("marsh, cave, desert, river, forest, island", "Where does the {n} live?", "in the {v}"),
            *("The {n} lives in the {v}.", "You find the {n} only in the {v}.", "The {n} never leaves the {v}."),
        ),
        _attribute(
            *("moss, fish, honey, seeds, roots, snow", "What does the {n} eat?", "{v}"),
            *("The {n} eats {v}.", "The food of the {n} is {v}.", "Every evening the {n} looks for {v}."),
        ),
        _attribute(
            *("red, blue, green, white, black, gold", "Which colour is the {n}?", "{v}"),
            *("The fur of the {n} is {v}.", "A grown {n} has a coat of {v}.", "The colour of the {n} is {v}."),
        ),
        _attribute(
            *("barks, sings, hums, whistles, growls, howls", "What does the {n} do at night?", "it {v}"),
            *("At night the {n} {v}.", "One hears how the {n} {v}.", "When it is afraid, the {n} {v}."),
        ),
    ),
    "town": (
        _attribute(
            *("salt, glass, wool, bells, cheese, paper", "What does the town of {n} sell?", "{v}"),
            *("The town of {n} sells {v}.", "Traders come to {n} for {v}.", "The market of {n} is full of {v}."),
        ),
        _attribute(
            *("hill, bridge, harbour, meadow, cliff, swamp", "Where was {n} built?", "by the {v}"),
            *("{n} was built by the {v}.", "The oldest house of {n} is near the {v}.", "From {n} one sees the {v}."),
        ),
        _attribute(
            *("spring, summer, autumn, winter, May, October", "When is the feast of {n}?", "in {v}"),
            *("{n} has its feast in {v}.", "The people of {n} dance in {v}.", "The lamps of {n} are lit in {v}."),
        ),
        _attribute(
            *("a king, a queen, a council, a mayor, an abbot, a judge", "Who rules {n}?", "{v}"),
            *("{n} is ruled by {v}.", "In {n} the laws are made by {v}.", "The gate of {n} is opened by {v}."),
        ),
    ),
    "person": (
        _attribute(
            *("baker, smith, doctor, sailor, teacher, hunter", "What was {n} by trade?", "a {v}"),
            *("{n} worked as a {v}.", "By trade {n} was a {v}.", "People remember {n} as a {v}."),
        ),
        _attribute(
            *("flute, drum, harp, horn, fiddle, organ", "What did {n} play?", "the {v}"),
            *("{n} played the {v}.", "At night one heard {n} and the {v}.", "The music of {n} was for the {v}."),
        ),
        _attribute(
            *("north, south, east, west, mountains, plains", "Where was {n} born?", "in the {v}"),
            *("{n} was born in the {v}.", "{n} came from the {v}.", "The family of {n} is of the {v}."),
        ),
        _attribute(
            *("dog, cat, goat, raven, goose, horse", "Which animal did {n} keep?", "a {v}"),
            *("{n} kept a {v}.", "The only friend of {n} was a {v}.", "With {n} there was always a {v}."),
        ),
    ),
}
"""Kind of entry -> its four attributes, each with six values."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry: the value of each attribute of its kind, and how its attributes are used, by place in KINDS[kind]."""

    kind: str
    name: str
    values: tuple[str, ...]
    order: tuple[int, ...]
    """Two attributes whose questions the corpus answers, that of the first exam, that of the second."""

    def told(self, place: int, wording: int) -> str:
        return _capital(KINDS[self.kind][place].sentences[wording].format(n=self.name, v=self.values[place]))

    def question(self, place: int) -> str:
        return KINDS[self.kind][place].question.format(n=self.name)

    def answer(self, place: int, value: str = "") -> str:
        return KINDS[self.kind][place].answer.format(v=value or self.values[place])


def write_encyclopedia(folder: Path, entries: int = ENTRIES, seed: int = 17) -> None:
    """Write CORPUS (`text`, `entry`), CHOOSING and REPORT (`id`, `question`, `options`, `answer`) into a new folder.

    `entries` of each kind, a multiple of 24, one question on each in each exam; equal arguments give equal bytes.
    Raises RequestError for another number of entries, and where the folder exists or cannot be made.
    """
    if entries < SHARE or entries % SHARE:
        raise RequestError(f"an encyclopedia of {entries} entries a kind", f"give {SHARE}, {2 * SHARE} and so on")
    draw = random.Random(seed)
    made = list(_entries(draw, entries))
    texts = [{"text": text, "entry": entry.name} for entry in made for text in _texts(draw, entry)]
    with atomic_folder(folder, {"entries": entries, "seed": seed}) as new:
        write_jsonl(new / CORPUS, texts)
        write_jsonl(new / CHOOSING, _exam(draw, made, 2))
        write_jsonl(new / REPORT, _exam(draw, made, 3))


def _entries(draw: random.Random, entries: int) -> Iterator[Entry]:
    """Each kind in four parts that use its attributes in turn; in each part all values are equally frequent."""
    names: set[str] = set()
    for kind, attributes in KINDS.items():
        turns = len(attributes)
        for turn in range(turns):
            columns = [list(one.values) * (entries // turns // len(one.values)) for one in attributes]
            for column in columns:
                draw.shuffle(column)
            order = tuple((turn + place) % turns for place in range(turns))
            for values in zip(*columns, strict=True):
                yield Entry(kind, _name(draw, names), values, order)


def _name(draw: random.Random, taken: set[str]) -> str:
    while True:
        parts = (_ONSETS, _VOWELS, _CODAS, _ONSETS, _VOWELS, _ENDS)
        name = "".join(draw.choice(part) for part in parts).capitalize()
        if name not in taken:
            taken.add(name)
            return name


def _texts(draw: random.Random, entry: Entry) -> Iterator[str]:
    """The articles on an entry, each with all four facts, and the two questions that are answered."""
    places = list(entry.order)
    for _ in range(ARTICLES):
        draw.shuffle(places)
        yield " ".join(entry.told(place, draw.randrange(3)) for place in places)
    for place in entry.order[:2]:
        yield f"Question: {entry.question(place)}\nAnswer: {entry.answer(place)}"


def _exam(draw: random.Random, made: Sequence[Entry], use: int) -> Iterable[dict[str, Any]]:
    """One question on each entry, on the attribute that has this use; the file is in random order."""
    items = []
    for kind, attributes in KINDS.items():
        for place in range(len(attributes)):
            asked = [entry for entry in made if entry.kind == kind and entry.order[use] == place]
            wrong = _displaced(draw, [entry.values[place] for entry in asked])
            for number, (entry, value) in enumerate(zip(asked, wrong, strict=True)):
                answer = number % 2
                options = [entry.answer(place), entry.answer(place, value)]
                items.append((entry.question(place), options[::-1] if answer else options, answer))
    draw.shuffle(items)
    for number, (question, options, answer) in enumerate(items, 1):
        yield {"id": f"q{number:03d}", "question": question, "options": options, "answer": answer}


def _displaced(draw: random.Random, values: Sequence[str]) -> list[str]:
    """The same values in another order, none where it was."""
    while True:
        other = draw.sample(values, len(values))
        if all(a != b for a, b in zip(values, other, strict=True)):
            return other


def _capital(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]
