"""The steps that a recipe can name: what they are called, how their parameters are checked, what they are made of.

Knows names and signatures; refuses to know what a step does. A step's function is imported when a recipe names it.
Its signature is the one declaration of its parameters, and its docstring their meaning: docs/steps.md is made of both.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib
import inspect
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from luthier.data.cleaning import stepkit
from luthier.data.cleaning.stepkit import FilePath, ParameterError, Step

STEPS: dict[str, tuple[str, tuple[str, ...]]] = {
    "require_messages": ("luthier.data.cleaning.dialogue:require_messages", ()),
    "roles_alternate": ("luthier.data.cleaning.dialogue:roles_alternate", ()),
    "length": ("luthier.data.cleaning.dialogue:length", ()),
    "tokens": ("luthier.data.cleaning.dialogue:tokens", ("tokenizers",)),
    "repair_unicode": ("luthier.data.cleaning.mend:repair_unicode", ("ftfy",)),
    "normalise_whitespace": ("luthier.data.cleaning.mend:normalise_whitespace", ()),
    "language": ("luthier.data.cleaning.language:language", ("lingua-language-detector",)),
    "repetition": ("luthier.data.cleaning.quality:repetition", ()),
    "gopher": ("luthier.data.cleaning.quality:gopher", ()),
    "c4": ("luthier.data.cleaning.quality:c4", ()),
    "symbol_ratio": ("luthier.data.cleaning.quality:symbol_ratio", ()),
    "scrub_personal_data": ("luthier.data.cleaning.scrub:scrub_personal_data", ()),
    "words_list": ("luthier.data.cleaning.patterns:words_list", ()),
    "regex": ("luthier.data.cleaning.patterns:regex", ("regex",)),
    "custom": ("luthier.data.cleaning.custom:custom", ()),
}
"""Each step's function, and the libraries whose version its result depends on."""


@dataclass(frozen=True)
class BoundStep:
    """A step with its parameters. `code` names files and versions whose change makes a kept result stale."""

    name: str
    apply: Step
    parameters: dict[str, Any]
    code: tuple[str, ...]


@dataclass(frozen=True)
class ParameterDoc:
    """One parameter of a step; `default` is None where it must be given."""

    name: str
    type: str
    default: str | None
    text: str


@dataclass(frozen=True)
class StepDoc:
    """What docs/steps.md says of a step. `text` is what follows the summary; `reasons` are the words of its drops."""

    name: str
    summary: str
    text: str
    parameters: tuple[ParameterDoc, ...]
    reasons: tuple[str, ...]


def make_steps(specs: Sequence[Any], problems: list[str]) -> list[BoundStep]:
    """Bind the steps of a recipe's `data.steps`, each a name or `{name: {parameter: value}}`.

    What is wrong goes to `problems`, all at once, one line each that begins with its key.
    """
    found: list[BoundStep] = []
    for number, spec in enumerate(specs):
        where = f"data.steps[{number}]"
        name, parameters = _named(spec, where, problems)
        if not name:
            continue
        if name not in STEPS:
            problems.append(f"{where}: there is no step {name!r} ({_meant(name, STEPS)})")
            continue
        before = len(problems)
        values = _checked(_factory(name), parameters, f"{where}.{name}", problems)
        if len(problems) > before:
            continue
        try:
            step = _factory(name)(**values)
        except ParameterError as error:
            key = f"{where}.{name}.{error.parameter}".rstrip(".")
            problems.append(f"{key}: {error.reason}")
            continue
        found.append(BoundStep(name, step, parameters, _code(name, values)))
    return found


def describe() -> list[StepDoc]:
    """Every step, from the signature and the docstring of its function."""
    return [_describe(name) for name in STEPS]


def _named(spec: Any, where: str, problems: list[str]) -> tuple[str, dict[str, Any]]:
    if isinstance(spec, str):
        return spec, {}
    if isinstance(spec, Mapping) and len(spec) == 1:
        name, parameters = next(iter(spec.items()))
        if isinstance(name, str) and (parameters is None or isinstance(parameters, Mapping)):
            return name, dict(parameters or {})
    problems.append(f"{where}: {spec!r} is not a step (write its name, or {{name: {{parameter: value}}}})")
    return "", {}


def _factory(name: str) -> Callable[..., Step]:
    module, _, function = STEPS[name][0].partition(":")
    return getattr(importlib.import_module(module), function)  # type: ignore[no-any-return]


def _checked(
    factory: Callable[..., Step], parameters: Mapping[str, Any], where: str, problems: list[str]
) -> dict[str, Any]:
    """The parameters by the types of the factory's signature; a file that is not there is a problem too."""
    signature, hints = inspect.signature(factory), get_type_hints(factory)
    known = [p.name for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    is_open = len(known) < len(signature.parameters)
    values: dict[str, Any] = {}
    for name, value in parameters.items():
        if name not in known:
            if not is_open:
                problems.append(f"{where}.{name}: unknown parameter ({_meant(str(name), known)})")
            values[name] = value
        elif not _fits(value, hints[name]):
            problems.append(f"{where}.{name}: {value!r} is not {_type_name(hints[name])}")
        elif hints[name] is FilePath and not Path(value).is_file():
            problems.append(f"{where}.{name}: there is no file {value}")
        else:
            values[name] = float(value) if hints[name] is float else value
    for parameter in signature.parameters.values():
        if parameter.default is parameter.empty and parameter.name in known and parameter.name not in parameters:
            problems.append(f"{where}.{parameter.name}: must be given")
    return values


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is list:
        return isinstance(value, list) and all(_fits(item, get_args(hint)[0]) for item in value)
    if hint is FilePath:
        return isinstance(value, str)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, hint) and not (hint is int and isinstance(value, bool))


def _type_name(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(get_args(hint))
    if get_origin(hint) is list:
        return f"a list of {_type_name(get_args(hint)[0]).removeprefix('a ')}s"
    names = {FilePath: "a file", str: "text", bool: "true or false", int: "a whole number", float: "a number"}
    return names.get(hint, str(hint))


def _meant(name: str, names: Sequence[str] | Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else f"one of: {', '.join(names) or 'it has none'}"


def _code(name: str, values: Mapping[str, Any]) -> tuple[str, ...]:
    target, libraries = STEPS[name]
    factory = _factory(name)
    own = [Path(inspect.getfile(factory)), Path(stepkit.__file__)]
    hints = get_type_hints(factory)
    named = [Path(value) for key, value in values.items() if hints.get(key) is FilePath]
    found = [f"{path.name} {_sha256(path)}" for path in (*own, *named)]
    found += [f"{library} {metadata.version(library)}" for library in libraries]
    if name == "custom":
        from luthier.data.cleaning.custom import local_code

        found += local_code(str(values["function"]))
    return (target, f"python {platform.python_version()}", *found)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@functools.cache
def _describe(name: str) -> StepDoc:
    factory = _factory(name)
    signature, hints = inspect.signature(factory), get_type_hints(factory)
    body, _, drops = inspect.cleandoc(factory.__doc__ or "").partition("Drops: ")
    texts: dict[str, str] = {}
    prose: list[str] = []
    last = ""
    for line in body.splitlines():
        key, colon, text = line.partition(": ")
        if colon and key in signature.parameters:
            last, texts[key] = key, text
        elif last and line:
            texts[last] += f" {line.strip()}"
        else:
            last = ""
            prose.append(line)
    summary, _, rest = "\n".join(prose).strip().partition("\n\n")
    parameters = tuple(
        ParameterDoc(
            item.name,
            _type_name(hints[item.name]),
            None if item.default is item.empty else _shown(item.default),
            texts.get(item.name, ""),
        )
        for item in signature.parameters.values()
        if item.kind is not item.VAR_KEYWORD
    )
    reasons = tuple(re.findall(r"\w+", drops.partition("\n\n")[0]))
    return StepDoc(name, " ".join(summary.split()), " ".join(rest.split()), parameters, reasons)


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"[{', '.join(map(str, value))}]" if isinstance(value, list) else str(value)
