"""The public API of collecting: one function a verb."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from luthier.collect.client import Politeness
from luthier.collect.pictures import PictureRequest, collect_pictures
from luthier.console import say
from luthier.errors import RequestError
from luthier.recipe_data import Limits, Source
from luthier.recipefile import load_recipe


@dataclass(frozen=True)
class PicturesAsked:
    """What `luthier collect pictures` was told."""

    table: Path
    """A recipe, or a table."""
    out: Path
    source: str = ""
    column: str = ""
    group: str = ""
    validation: float = 0.1
    limit: int = 0
    seconds_between: float = 1.0
    contact: str = ""


def pictures(asked: PicturesAsked, resume: bool = False) -> dict[str, Any]:
    """A local table of a source whose pictures are addresses. Returns its figures; errors as `collect_pictures`."""
    if not 0 <= asked.validation < 1:
        raise RequestError(f"--validation {asked.validation} is outside 0..1", "give a share of the products, as 0.1")
    if asked.seconds_between < 0.1:
        raise RequestError("--seconds-between is below 0.1", "give servers time: 1 is usual")
    source, column, group, limits = _source(asked)
    request = PictureRequest(
        replace(source, limit=asked.limit or source.limit),
        asked.out,
        asked.column or column,
        asked.group or group,
        asked.validation,
        limits=limits,
        politeness=Politeness(asked.contact, asked.seconds_between),
    )
    if not asked.contact:
        say("servers are told no address of yours: --contact MAIL is better manners")
    found = collect_pictures(request, resume)
    say(f"{found.folder}: {found.rows['train']:,} rows to train on, {found.rows['validation']:,} to validate on")
    say(f"read it in a recipe with --set data.sources.{source.name}.path={found.folder}")
    return found.as_json()


def _source(asked: PicturesAsked) -> tuple[Source, str, str, Limits]:
    """The source, and what its recipe says of the columns."""
    if asked.table.suffix not in (".yaml", ".yml"):
        return Source(name=asked.table.stem, path=str(asked.table)), "", "", Limits()
    recipe = load_recipe(asked.table)
    sources = recipe.data.sources
    name = asked.source or next(iter(sources), "")
    if name not in sources:
        raise RequestError(f"{asked.table} has no source {name!r}", f"choose one of {', '.join(sources)}")
    return (
        sources[name],
        sources[name].columns.get("image", ""),
        sources[name].columns.get("group", ""),
        recipe.data.limits,
    )
