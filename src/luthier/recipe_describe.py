"""What a recipe says of descriptions: what is asked about a picture, and the form in which the answer must come.

The form is a template with named fields; it writes the answers that are learned and reads those that a model gives.
It is read strictly: an answer is in the form or it is not, and nothing is guessed. Checks that need nothing but these
keys are in `describe_problems`. This module knows no files and no scores.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from string import Formatter

FIELD_KINDS = ("text", "category", "amount")
PICTURE = "image"
"""The name under which `columns` has the pictures' column."""
_OURS = (PICTURE, "constant", "over_constant", "before", "gain")
"""Names that no field may have: the picture's column, and what scores begin with."""
_CURRENCY = r"[$€£¥]|[A-Z]{3}"
_AMOUNT = re.compile(
    rf"(?P<before>{_CURRENCY})? ?(?P<number>[0-9]{{1,3}}(?:,[0-9]{{3}})+|[0-9]+)(?P<part>\.[0-9]+)? ?"
    rf"(?P<after>{_CURRENCY})?"
)


@dataclass
class DescribeSettings:
    """How a picture is described (task.kind: describe)."""

    prompt: str = "What is shown in this image?"
    """What is asked about every picture."""
    template: str = "Product: {title}, Category: {category}, Full Price: {price}"
    """The answer: fields in braces, with some text between any two of them."""
    kinds: dict[str, str] = field(default_factory=lambda: {"title": "text", "category": "category", "price": "amount"})
    """What each field is and so how it is scored: text (similarity), category (right or wrong) or amount (a number
    above 0: error of its logarithm)."""
    columns: dict[str, str] = field(default_factory=dict)
    """Where a table has the fields and the pictures (`image`), where its names differ from these."""
    group: str = ""
    """The column that names the product: rows of one product are never on both sides of a split, and are drawn
    together for intervals. Empty: rows with the same first text are one product."""

    @property
    def form(self) -> AnswerForm:
        """The template as something that writes and reads answers."""
        return AnswerForm(self.template, tuple(self.kinds.items()))

    def column(self, name: str) -> str:
        """The column of a field, or of `image`."""
        return self.columns.get(name, name)


@dataclass(frozen=True)
class AnswerForm:
    """A template and the kinds of its fields."""

    template: str
    kinds: tuple[tuple[str, str], ...]

    @cached_property
    def _parts(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The text before each field and after the last, and the fields."""
        pieces = list(Formatter().parse(self.template))
        fields = tuple(name for _, name, _, _ in pieces if name is not None)
        literals, text = list[str](), ""
        for literal, name, _, _ in pieces:  # "{{" comes as a piece of its own
            text += literal
            if name is not None:
                literals.append(text)
                text = ""
        return (*literals, text), fields

    @property
    def between(self) -> tuple[str, ...]:
        """The text between one field and the next."""
        return self._parts[0][1:-1]

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of the fields in their order."""
        return self._parts[1]

    def write(self, values: Mapping[str, str]) -> str:
        """The answer with these values."""
        literals, fields = self._parts
        return "".join(text + values[name] for text, name in zip(literals, fields, strict=False)) + literals[-1]

    def read(self, answer: str) -> dict[str, str] | None:
        """The values of an answer in this form, stripped; None where it is not in it.

        White space around the answer is left out. An answer that can be read in two ways (a value that holds the text
        between two fields) is in no form, nor is one with an empty field or with an amount that is no number above 0.
        """
        text = answer.strip()
        first, last = self._from_the_left(text), self._from_the_right(text)
        if first is None or first != last:  # equal ends leave no other reading between them
            return None
        found = {name: value.strip() for name, value in first.items()}
        kinds = dict(self.kinds)
        right = all(value and (kinds[name] != "amount" or amount(value)) for name, value in found.items())
        return found if right else None

    def _from_the_left(self, text: str) -> dict[str, str] | None:
        """Every field as short as can be, from the first on."""
        (begin, *between, end), fields = self._parts
        begin, end = begin.lstrip(), end.rstrip()
        at, stop, found = len(begin), len(text) - len(end), dict[str, str]()
        if not text.startswith(begin) or not text.endswith(end):
            return None
        for name, literal in zip(fields, between, strict=False):
            to = text.find(literal, at + 1, stop)
            if to < 0:
                return None
            found[name], at = text[at:to], to + len(literal)
        found[fields[-1]] = text[at:stop]
        return found if at < stop else None

    def _from_the_right(self, text: str) -> dict[str, str] | None:
        """Every field as short as can be, from the last on."""
        (begin, *between, end), fields = self._parts
        start, stop = len(begin.lstrip()), len(text) - len(end.rstrip())
        found = dict[str, str]()
        for name, literal in zip(reversed(fields[1:]), reversed(between), strict=True):
            at = text.rfind(literal, start + 1, stop - 1)
            if at < 0:
                return None
            found[name], stop = text[at + len(literal) : stop], at
        found[fields[0]] = text[start:stop]
        return {name: found[name] for name in fields} if start < stop else None


def amount(text: str) -> float | None:
    """A number above 0 as prices are written: `1290`, `1,290.00`, `$1290`, `1290 USD`; None for anything else.

    A comma parts thousands and a point is decimal, always: `1.290,00` is refused, not read as 1.29. One sign or code
    of a currency may stand before or after, and is not looked at.
    """
    found = _AMOUNT.fullmatch(text.strip())
    if found is None or (found["before"] and found["after"]):
        return None
    value = float(found["number"].replace(",", "") + (found["part"] or ""))
    return value if 0 < value < float("inf") else None


def describe_problems(settings: DescribeSettings) -> list[str]:
    """Everything wrong with these keys, as `key: reason (mend)` lines."""
    where, found = "task.describe", list[str]()
    if not settings.prompt.strip():
        found.append(f"{where}.prompt: is empty (say what is asked)")
    try:
        pieces = list(Formatter().parse(settings.template))
    except ValueError as error:
        return [*found, f"{where}.template: {error} (write {{{{ and }}}} for braces that name no field)"]
    names = [name for _, name, _, _ in pieces if name is not None]
    odd = [name for _, name, spec, how in pieces if name is not None and (spec or how or not name.isidentifier())]
    if odd or not names or len(set(names)) < len(names):
        found.append(f"{where}.template: needs fields such as {{title}}, each once and with a plain name")
    if not all(settings.form.between):
        found.append(f"{where}.template: two fields have no text between them, so no answer could be read")
    if set(settings.kinds) != set(names):
        found.append(f"{where}.kinds: names {', '.join(settings.kinds) or 'none'}, the template {', '.join(names)}")
    for name, kind in settings.kinds.items():
        if kind not in FIELD_KINDS:
            found.append(f"{where}.kinds.{name}: {kind!r} is not one of {', '.join(FIELD_KINDS)}")
    strangers = [name for name in settings.columns if name not in (*names, PICTURE)]
    if strangers:
        found.append(f"{where}.columns: {', '.join(strangers)} is no field of the template (nor {PICTURE})")
    found += [
        f"{where}.template: {name} has another meaning (call the field otherwise)" for name in names if name in _OURS
    ]
    return found
