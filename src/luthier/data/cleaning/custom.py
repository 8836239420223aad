"""The step that calls a user's function, and which files such a function's result depends on.

Knows how Python finds modules; refuses to know what the function does. An edited function, or an edited helper that
it imports, makes other code and so another key: what was kept is then never used again.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import math
import site
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any, get_args

from luthier.data import exactjson
from luthier.data.cleaning.stepkit import ParameterError, Step, drop
from luthier.schema import NO_TARGET, Drop, Message, Part, PartType, Role, Row, Target

REASONS = ("custom", "step_failed")
_ROLES, _TYPES = get_args(Role), get_args(PartType)
_seen: dict[str, dict[Path, str]] = {}
"""For each module that was imported for a step, the hashes that its local files had then."""


def custom(function: str, **parameters: Any) -> Step:
    """Calls a function of your own, `def check(row, **parameters)`, for each row.

    It returns a row (the same one for no change), True to keep, False or None to drop with the reason `custom`, or a
    `Drop` of its own. An exception drops the row with its message. The folder of work is looked in for the module.
    The function's file and every local file that it imports are part of what a kept result depends on; data files
    that it opens are not.

    function: `module:function`.

    Drops: custom, step_failed.
    """
    call = _import(function)
    try:
        inspect.signature(call).bind(None, **parameters)
    except TypeError as error:
        raise ParameterError("", f"{function} {error}") from error

    def apply(row: Row) -> Row | Drop:
        try:
            found = call(row, **parameters)
            if isinstance(found, Row):
                return _checked(found, row)
            if isinstance(found, Drop):
                return _own_drop(found, row)
        except (Exception, SystemExit) as error:  # whatever a user's function raises costs its row, not the build
            return drop(row, "step_failed", _said(error))
        if found is True or (_is_numpy_bool(found) and bool(found)):
            return row
        if found is None or found is False or _is_numpy_bool(found):
            return drop(row, "custom", function)
        return drop(row, "step_failed", f"{function} returned {type(found).__name__}, not a Row, a Drop or a bool")

    return apply


def _checked(row: Row, before: Row) -> Row | Drop:
    """The row that a function made, or why no table could hold it. Where a row is from is not a function's to say."""
    if row is before:
        return row
    wrong = _wrong(row, set(before.media))
    if wrong:
        return drop(before, "step_failed", f"the row that the function returned: {wrong}"[:300])
    return replace(row, id=before.id, split=before.split, provenance=before.provenance)


def _wrong(row: Row, media: set[str]) -> str:
    """What of a row no table could hold, in words; "" for nothing."""
    if not isinstance(row.messages, tuple) or not row.messages:
        return "messages is not a tuple of at least one Message"
    for place, message in enumerate(row.messages, start=1):
        if not isinstance(message, Message):
            return f"message {place} is {type(message).__name__}, not a Message"
        if not isinstance(message.role, str) or message.role not in _ROLES:
            return f"message {place} has the role {message.role!r}, not one of {', '.join(_ROLES)}"
        if not isinstance(message.content, tuple):
            return f"the content of message {place} is {type(message.content).__name__}, not a tuple of Parts"
        for part in message.content:
            if wrong := _wrong_part(part, media):
                return f"message {place}: {wrong}"
        if not _is_object(message.more):
            return f"more of message {place} is neither empty nor the JSON of an object"
    if not _is_text(row.group):
        return "group is not text"
    if not _is_object(row.more):
        return "more is neither empty nor the JSON of an object"
    return "" if row.target is NO_TARGET else _wrong_target(row.target)


def _wrong_part(part: Part, media: set[str]) -> str:
    if not isinstance(part, Part):
        return f"{type(part).__name__} in place of a Part"
    if not isinstance(part.type, str) or part.type not in _TYPES:
        return f"a part of type {part.type!r}, not one of {', '.join(_TYPES)}"
    if part.type == "text":
        return "" if _is_text(part.text) and part.media is None else "a part of text without a text that can be written"
    known = isinstance(part.media, str) and part.media in media and part.text is None
    return "" if known else f"a part of type {part.type} does not refer to media that the row came with"


def _wrong_target(target: Target) -> str:
    if not isinstance(target, Target):
        return f"target is {type(target).__name__}, not a Target"
    if not all(value is None or _is_text(value) for value in (target.text, target.choice)):
        return "target.text and target.choice are texts or None"
    if not isinstance(target.raters, tuple) or not isinstance(target.held_back, tuple):
        return "target.raters and target.held_back are tuples of numbers"
    grades = (*target.raters, *target.held_back, *(() if target.grade is None else (target.grade,)))
    whole = all(isinstance(value, int | float) and math.isfinite(value) for value in grades)
    return "" if whole else "a grade of target is not a finite number"


def _own_drop(found: Drop, before: Row) -> Drop:
    if not (_is_text(found.reason) and found.reason.strip() and _is_text(found.detail)):
        return drop(
            before, "step_failed", "the Drop that the function returned needs a reason, and words as its detail"
        )
    return drop(before, found.reason, found.detail)


def _is_text(value: object) -> bool:
    """Text that a file can hold: no half of a surrogate pair, no NUL."""
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_object(value: object) -> bool:
    if not isinstance(value, str):
        return False
    try:
        return value == "" or isinstance(exactjson.loads(value), dict)
    except ValueError:
        return False


def _is_numpy_bool(value: object) -> bool:
    kind = type(value)
    return kind.__module__ == "numpy" and kind.__name__ in ("bool", "bool_")


def _said(error: BaseException) -> str:
    try:
        words = str(error)
    except Exception:  # an exception's own words may fail too
        words = "(no message)"
    return f"{type(error).__name__}: {words}"[:300].encode(errors="replace").decode()


def _import(function: str) -> Callable[..., Any]:
    module_name, _, name = function.partition(":")
    if not module_name or not name:
        raise ParameterError("function", f"{function!r} is not of the form module:function")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    importlib.invalidate_caches()
    if module_name in _seen and _seen[module_name] != _hashes(local_files(module_name)):
        for stale in [key for key, value in sys.modules.items() if _file(value) in _seen[module_name]]:
            del sys.modules[stale]
    # Compiled files are told apart by second and size alone: a quick edit would run the old code.
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a module runs when it is imported, and may raise anything
        raise ParameterError("function", f"{module_name} cannot be imported: {error}") from error
    finally:
        sys.dont_write_bytecode = before
    found = getattr(module, name, None)
    if not callable(found):
        raise ParameterError("function", f"{module_name} has no function {name}")
    _seen[module_name] = _hashes(local_files(module_name))
    return found  # type: ignore[no-any-return]


def local_code(function: str) -> tuple[str, ...]:
    """`name sha256` of the function's file and of every local file that it imports, in a fixed order."""
    found = _hashes(local_files(function.partition(":")[0]))
    return tuple(sorted(f"{path.name} {digest}" for path, digest in found.items()))


def local_files(module: str) -> list[Path]:
    """The module's file and, by their import statements, every file it leads to outside libraries. Imports nothing."""
    found: dict[Path, None] = {}
    waiting = [module]
    asked = set(waiting)
    while waiting:
        name = waiting.pop()
        for spec in _specs(name):
            path = Path(spec.origin).resolve() if spec.origin and spec.has_location else None
            if path is None or path in found or path.suffix != ".py" or _in_library(path):
                continue
            found[path] = None
            package = spec.name if spec.submodule_search_locations is not None else spec.name.rpartition(".")[0]
            for other in _imports(path, package):
                if other not in asked:
                    asked.add(other)
                    waiting.append(other)
    return list(found)


def _specs(name: str) -> Iterator[ModuleSpec]:
    """The specs of a dotted name, outermost package first, as far as there are any."""
    head, *rest = name.split(".")
    if head in sys.stdlib_module_names or head == "luthier":  # the package's own code is in every key already
        return
    loaded = getattr(sys.modules.get(head), "__spec__", None)
    spec = PathFinder.find_spec(head) or loaded
    full = head
    while spec is not None:
        yield spec
        if not rest or spec.submodule_search_locations is None:
            return
        full = f"{full}.{rest[0]}"
        spec = PathFinder.find_spec(full, list(spec.submodule_search_locations))
        rest = rest[1:]


def _imports(path: Path, package: str) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return  # importing it says so
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".") if package else []
            base = parents[: len(parents) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            if stem:
                yield stem
                yield from (f"{stem}.{alias.name}" for alias in node.names)


def _in_library(path: Path) -> bool:
    if {"site-packages", "dist-packages"} & set(path.parts):
        return True
    folders = [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), *site.getsitepackages()]
    return any(path.is_relative_to(Path(folder).resolve()) for folder in folders if folder)


def _hashes(paths: Sequence[Path]) -> dict[Path, str]:
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def _file(module: object) -> Path | None:
    name = getattr(module, "__file__", None)
    return Path(name).resolve() if isinstance(name, str) else None
