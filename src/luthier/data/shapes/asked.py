"""A record of an exam as a question with options: the shapes in which public exams come.

Knows the columns of PIQA, WinoGrande, COPA, BoolQ, HellaSwag, ARC, MMLU, TruthfulQA, BLiMP, LLMBar, OpenCompass,
VLMEvalKit, inspect samples and plain questions with options; refuses to know which option is right: the cell that says
so is handed on as it stands. What a shape's records leave unsaid is added as words of ours and kept apart (`added`).
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import orjson

from luthier.data.reading.lines import Record
from luthier.schema import canonical

IDS = ("id", "item_id", "question_id", "qid", "qID", "idx", "ind", "index")
GROUPS = ("group", "group_id", "speaker", "speaker_id", "document_id", "doc_id", "passage_id", "thread_id", "video_id")
PASSAGES = ("before", "passage", "context", "article", "support", "paragraph", "hint")
ANSWERS = (
    *("answer", "label", "answerKey", "answer_key", "correct", "correct_answer", "target", "gold"),
    *("answer_idx", "answer_index", "correct_option"),
)
"""Columns that may say which option is right; the first that is there is read."""
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
NO_YES = ("no", "yes")
_BOOLQ = ("0", "1", *NO_YES, "false", "true", "none", "-1", "")
_QUESTIONS = ("question", "stem", "question_stem")
_ROLES = {"prompt": "question", "label": "answer"}
_PREFIX = re.compile(r"\(?([A-Z])[.):]\s*(.*)", re.DOTALL)
_COPA = {"cause": "What was the cause of this?", "effect": "What happened as a result?"}


@dataclass(frozen=True, slots=True)
class Asked:
    """What a record asks. `question`, `before` (a passage) and `options` are the file's own words, stripped.

    `key` is the cell that says which option is right, None where there is none; `base` how this shape counts its
    answers ("0" or "1"), "" where files of it differ; `labels` the options' names where the record gives them.
    """

    shape: str
    question: str
    options: tuple[str, ...]
    key: Any = None
    base: str = ""
    before: str = ""
    added: str = ""
    """A question of ours that follows the file's words, where these are no question."""
    labels: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """The question as a model is asked it."""
        return "\n".join(part for part in (self.question, self.added) if part)


def named(record: Record, columns: Mapping[str, str]) -> Record:
    """A record with the columns that `Source.columns` maps under the names that are read here."""
    own = {column: _ROLES.get(role, role) for role, column in columns.items()}
    return {own.get(name, name): value for name, value in record.items()} if own else record


def shaped(record: Record) -> Asked | None:
    """What an exam's record asks; None where no shape fits."""
    return next((found for shape in _SHAPES if (found := shape(record)) is not None), None)


def unprefixed(asked: Sequence[Asked]) -> list[Asked]:
    """Options without their "A: ", "B: " where 95 % of the items have them; a whole answer becomes its letter.

    The file decides: in one item alone, "A. Smith" and "B. Jones" may be names.
    """
    bare = [_bare(one.options) for one in asked]
    if 20 * sum(map(bool, bare)) < 19 * max(1, sum(bool(one.options) for one in asked)):
        return list(asked)
    found = []
    for one, options in zip(asked, bare, strict=True):
        whole = isinstance(one.key, str) and one.key.strip() in one.options
        key = LETTERS[one.options.index(one.key.strip())] if options and whole else one.key
        found.append(replace(one, options=options or one.options, key=key))
    return found


def own_id(record: Record) -> str:
    """The id that a record gives itself, or ""."""
    return _label(record, IDS)


def own_group(record: Record) -> str:
    """The group that a record gives itself, or ""."""
    return _label(record, GROUPS)


def content_name(asked: Asked, media: Iterable[str] = ()) -> str:
    """An id for an item that has none: 16 hex digits of what is asked, whatever the file's order and the answer."""
    text = canonical([asked.question, asked.before, list(asked.options), list(media)])
    return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()[:16]


def told_apart(names: Sequence[str], origins: Sequence[str]) -> list[str]:
    """Names that differ: one that comes twice has its place added."""
    counts = Counter(names)
    return [f"{name} ({origin})" if counts[name] > 1 else name for name, origin in zip(names, origins, strict=True)]


def _piqa(record: Record) -> Asked | None:
    if "goal" not in record or "sol1" not in record:
        return None
    return _asked("piqa", record["goal"], _numbered(record, "sol"), _key(record), base="0")


def _winogrande(record: Record) -> Asked | None:
    if "sentence" not in record or "option1" not in record:
        return None
    return _asked("winogrande", record["sentence"], _numbered(record, "option"), _key(record), base="1")


def _copa(record: Record) -> Asked | None:
    """The premise, and a question after it: COPA's own is the word "cause" or "effect" alone."""
    if "premise" not in record or "choice1" not in record:
        return None
    asks = record.get("question") or record.get("asks-for")
    added = _COPA.get(str(asks), str(asks or "").strip())
    return _asked("copa", record["premise"], _numbered(record, "choice"), _key(record), base="0", added=added)


def _hellaswag(record: Record) -> Asked | None:
    if "ctx" not in record or "endings" not in record:
        return None
    return _asked("hellaswag", record["ctx"], _choices(record["endings"])[0], _key(record), base="0")


def _blimp(record: Record) -> Asked | None:
    if "sentence_good" not in record or "sentence_bad" not in record:
        return None
    options = tuple(_cell(record[name]) for name in ("sentence_good", "sentence_bad"))
    return _asked("blimp", "", options, 0, base="0", added="Which of these sentences is correct?")


def _llmbar(record: Record) -> Asked | None:
    if not {"input", "output_1", "output_2"} <= record.keys():
        return None
    added = "Which output follows this instruction better?"
    return _asked("llmbar", record["input"], _numbered(record, "output_"), _key(record), base="1", added=added)


def _mc1(record: Record) -> Asked | None:
    """TruthfulQA's single true answer: its place is that of the one label that is 1."""
    targets = record.get("mc1_targets")
    if not isinstance(targets, Mapping):
        return None
    marks = targets.get("labels")
    right = [place for place, mark in enumerate(marks) if mark == 1] if isinstance(marks, list) else []
    key = right[0] if len(right) == 1 else None
    return _asked("mc1", record.get("question"), _choices(targets.get("choices"))[0], key, base="0")


def _inspect(record: Record) -> Asked | None:
    """A sample of inspect: its input is a text, or a conversation of which the user's last turn is taken."""
    if "input" not in record or "choices" not in record:
        return None
    asks: object = record["input"]
    if isinstance(asks, list):
        turns = [turn.get("content") for turn in asks if isinstance(turn, Mapping) and turn.get("role") == "user"]
        asks = turns[-1] if turns else None
    return _asked("inspect", asks, _choices(record["choices"])[0], _key(record))


def _questioned(record: Record) -> Asked | None:
    """A question with options in a list, under letters or numbers; with none, a question of yes or no or a free one."""
    asks = _key(record, _QUESTIONS)
    if isinstance(asks, Mapping):  # ARC as it was first published: the choices lie inside the question
        options, labels = _choices(asks.get("choices"))
        return _asked("arc", asks.get("stem"), options, _key(record), labels=labels)
    if "messages" in record or "conversations" in record:
        return None
    before = "\n".join(record[name].strip() for name in PASSAGES if isinstance(record.get(name), str)).strip()
    column = next((name for name in ("options", "choices") if record.get(name)), "")
    shape, (options, labels) = "options", _choices(record.get(column))
    if options and isinstance(record[column], Mapping) and "text" in record[column]:
        shape = "arc"
    elif options and column == "choices" and "subject" in record:
        shape = "mmlu"
    elif not options and "A" in record and "B" in record:
        shape, options = "letters", _trimmed([record[letter] for letter in _run(record, LETTERS)], (None, ""))
    elif not options:
        shape, options = "numbered", _numbered(record, "option") or _numbered(record, "choice")
    key, base = _key(record), ""
    if not options:
        shape = "question"
        if isinstance(key, bool) or (before and str(key).strip().lower() in _BOOLQ):
            shape, options, base = "boolq", NO_YES, "0"
    return _asked(shape, asks, options, key, base=base, before=before, labels=labels)


_SHAPES: tuple[Callable[[Record], Asked | None], ...] = (
    *(_piqa, _winogrande, _copa, _hellaswag, _blimp, _llmbar, _mc1, _inspect),
    _questioned,
)


def _asked(shape: str, question: object, options: tuple[str, ...], key: Any, **more: Any) -> Asked | None:
    key = key[0] if isinstance(key, list) and len(key) == 1 else key
    return Asked(shape, question.strip(), options, key, **more) if isinstance(question, str) else None


def _key(record: Record, names: Iterable[str] = ANSWERS) -> Any:
    return next((record[name] for name in names if name in record), None)


def _run(record: Record, names: Iterable[str]) -> Iterator[str]:
    """Names up to the first that is no column."""
    for name in names:
        if name not in record:
            return
        yield name


def _numbered(record: Record, stem: str) -> tuple[str, ...]:
    """The values of `stem1`, `stem2` and so on; what is empty at the end is padding."""
    names = list(_run(record, (f"{stem}{n}" for n in count(1))))
    if f"{stem}0" in record:
        names.insert(0, f"{stem}0")
    return _trimmed([record[name] for name in names], (None, ""))


def _trimmed(cells: Sequence[Any], padding: tuple[Any, ...] = (None,)) -> tuple[str, ...]:
    """Cells as texts, without the padding at the end; within, it stays, as places must not move."""
    end = len(cells)
    while end and cells[end - 1] in padding:
        end -= 1
    return tuple(_cell(cell) for cell in cells[:end])


def _cell(value: object) -> str:
    return "" if value is None else str(value).strip()


def _choices(value: object) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(options, their names or none) of a list, of lists under `text` and `label`, of records with a `text`, by name.

    In a text (a csv cell) the list is written as JSON or as Python writes it.
    """
    if isinstance(value, str):
        value = written_list(value)
    labels: list[Any] = []
    if isinstance(value, Mapping) and isinstance(value.get("text"), list):
        named = value.get("label")
        labels, value = named if isinstance(named, list) else [], value["text"]
    elif isinstance(value, Mapping):
        labels, value = list(value), list(value.values())
    elif isinstance(value, list | tuple) and value and all(isinstance(cell, Mapping) for cell in value):
        labels = [cell["label"] for cell in value if cell.get("label") is not None]
        value = [cell.get("text") for cell in value]
    if not isinstance(value, list | tuple):
        return ((_cell(value),) if value not in (None, "") else ()), ()
    options = _trimmed(list(value))
    names = tuple(map(_cell, labels[: len(options)]))
    return options, names if len(set(names)) == len(options) else ()


def written_list(text: str) -> object:
    """A list or object that a text spells as JSON or as Python does; any other text as it is."""
    if not text.lstrip().startswith(("[", "{")):
        return text
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        pass  # pandas writes lists as Python spells them
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def _bare(options: tuple[str, ...]) -> tuple[str, ...]:
    """Options without their letters, or () where they have none from A on."""
    found = [_PREFIX.fullmatch(option) for option in options]
    letters = "".join(match[1] for match in found if match)
    return tuple(match[2].strip() for match in found if match) if letters == LETTERS[: len(options)] else ()


def _label(record: Record, names: Iterable[str]) -> str:
    for name in names:
        value = record.get(name)
        if isinstance(value, str) and value.strip():
            return value.strip()
        if type(value) is int:
            return str(value)
    return ""
