"""How the offline pages are rendered from their templates, with the filters that they share.

Absent records come through as undefined values, and the filters print those as a dash.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from jinja2 import ChainableUndefined, Environment, PackageLoader

from luthier.outcome import chatpart, figures


def render(template: str, context: Mapping[str, Any]) -> str:
    """The page of one template, as text."""
    page = environment().get_template(template).render(context)
    # Half of a surrogate pair may stand in a text, and no UTF-8 file can hold it.
    return page.encode("utf-8", "replace").decode("utf-8")


@functools.cache
def environment() -> Environment:
    """What pages are rendered in: everything is escaped, and what a record lacks is undefined, never an error."""
    found = Environment(
        loader=PackageLoader("luthier", "outcome/templates"),
        autoescape=True,
        undefined=ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters.update(
        number=figures.number,
        percent=figures.percent,
        score=figures.score,
        count=figures.count,
        duration=figures.duration,
        bytes=chatpart.size,
    )
    return found
