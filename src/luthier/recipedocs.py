"""The reference of every recipe key, made from the strings below the fields (docs/recipe.md)."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

from luthier.recipe import Recipe


@cache
def field_docs(cls: type) -> dict[str, str]:
    """The string below each field of a dataclass, by field name."""
    body = ast.parse(inspect.getsource(cls)).body[0]
    assert isinstance(body, ast.ClassDef)
    docs: dict[str, str] = {}
    for node, after in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
        ):
            docs[node.target.id] = str(after.value.value)
    return docs


def reference() -> str:
    """All keys as Markdown: key, default, meaning."""
    lines = [
        "# Every key of a recipe",
        "",
        "Made by `make docs` from `src/luthier/recipe.py` and its `recipe_*.py`.",
        "",
    ]
    lines += ["| key | default | meaning |", "|---|---|---|"]
    lines += [f"| `{key}` | {default} | {text} |" for key, default, text in _keys(Recipe, "")]
    return "\n".join(lines) + "\n"


def _keys(cls: type, where: str) -> Iterator[tuple[str, str, str]]:
    hints, docs = get_type_hints(cls), field_docs(cls)
    for item in fields(cls):
        hint = hints[item.name]
        if isinstance(hint, type) and is_dataclass(hint):
            yield from _keys(hint, f"{where}{item.name}.")
        elif get_origin(hint) is dict and is_dataclass(get_args(hint)[1]):
            yield from _keys(get_args(hint)[1], f"{where}{item.name}.NAME.")
        else:
            default: Any = item.default_factory() if item.default_factory is not MISSING else item.default
            shown = "" if default in ("", [], {}) else f"`{default}`".replace("|", "\\|")
            yield f"{where}{item.name}", shown, docs.get(item.name, "").replace("\n    ", " ").replace("|", "\\|")


if __name__ == "__main__":
    print(reference(), end="")
