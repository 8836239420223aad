"""A table of products with pictures to rows: what is asked about the picture, and the answer in the recipe's form.

Knows the form and which columns fill it; refuses to know how answers are scored. A row whose answer could not be read
back to the values it was written from is dropped: nothing could be judged by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from luthier.data.building.context import Adapter, Context, Record
from luthier.data.shapes.parts import Supply, Unusable, as_text, finish
from luthier.errors import MediaError
from luthier.recipe_describe import PICTURE, DescribeSettings, amount
from luthier.schema import Draft, Drop, Message, Part

REASONS = ("missing_field", "bad_amount", "unclear_answer", "missing_media")
"""Beside what can be wrong with a picture."""


def adapter(context: Context) -> Adapter:
    """The picture and `task.describe.prompt` are the user's turn, the filled template is the assistant's.

    Values stand as the table has them. A row is of the group of its product (`task.describe.group`), or else of all
    rows with its first text.
    """
    settings = context.describe
    named = {PICTURE: settings.column(PICTURE), **({"group": settings.group} if settings.group else {})}
    own = replace(context, source=replace(context.source, columns=named))

    def read(origin: str, record: Record) -> Draft:
        if settings.group and settings.group not in record:
            raise Unusable("missing_field", f"task.describe.group: {settings.group} is not there ({_names(record)})")
        values = _values(settings, record)
        answer = settings.form.write(values)
        if settings.form.read(answer) != values:
            raise Unusable("unclear_answer", f"{answer[:200]!r} can be read in more than one way")
        supply = Supply(own, record)
        if not supply.waiting:
            there = "is empty" if named[PICTURE] in record else f"is not there ({_names(record)})"
            raise Unusable("missing_media", f"{PICTURE}: {named[PICTURE]} {there}")
        pictures = tuple(supply.take(kind) for kind in supply.waiting)
        supply.used.update(settings.column(name) for name in values)
        said = [
            Message("user", (*pictures, Part("text", settings.prompt))),
            Message("assistant", (Part("text", answer),)),
        ]
        draft = finish(own, origin, record, said, supply, {})
        if draft.row.group:
            return draft
        return replace(draft, row=replace(draft.row, group=_likeness(settings, values)))

    def outcome(origin: str, record: Record) -> Draft | Drop:
        try:
            return read(origin, record)
        except (Unusable, MediaError) as problem:
            return context.drop(origin, problem.reason, problem.detail)

    return outcome


def _values(settings: DescribeSettings, record: Record) -> dict[str, str]:
    """The fields of a record as text. Raises Unusable (missing_field, bad_amount, not_text, ...)."""
    kinds, found = settings.kinds, dict[str, str]()
    for name in settings.form.fields:
        column = settings.column(name)
        cell = record.get(column)
        if cell is None or cell != cell or not str(cell).strip():
            there = "is empty" if column in record else f"is not there ({_names(record)})"
            raise Unusable("missing_field", f"{name}: {column} {there}")
        found[name] = as_text(cell, column).strip()
        if kinds[name] == "amount" and amount(found[name]) is None:
            raise Unusable("bad_amount", f"{name}: {column} is {found[name][:60]!r}, no number above 0")
    return found


def _names(record: Record) -> str:
    return f"columns: {', '.join(map(str, record))}"


def _likeness(settings: DescribeSettings, values: Mapping[str, str]) -> str:
    """The first text (or else field) of a product that no column names, folded."""
    texts = [name for name in settings.form.fields if settings.kinds[name] == "text"]
    return " ".join(values[(texts or settings.form.fields)[0]].casefold().split())
