"""YAML and `a.b=c` overrides -> `Recipe`. Knows nothing of what the keys mean, only of their names and types.

An unknown key is an error with a suggestion; every problem of a file is reported at once, with its line.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from luthier.errors import RecipeError, RequestError
from luthier.files import json_text, sha256_bytes
from luthier.recipe import Recipe, repository_problems, start_problems

_STAGE_ONLY = ("start_from", "learned_tokens")
_FOLDER = re.compile(r"\w[\w.-]*")
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read, override, and check a recipe with all of its stages. Raises RecipeError with every problem."""
    tree = read_tree(path)
    problems: list[str] = []
    for override in overrides:
        _apply(tree, override, problems)
    recipe = resolve(tree, problems)
    earlier: list[str] = []
    for name in recipe.stages:
        problems += _stage_problems(tree, recipe, name, earlier, problems)
        earlier.append(name)
    if not problems:
        stages = stage_recipes(recipe)
        problems += start_problems(stages) if recipe.stages else recipe.problems()
        problems += repository_problems(stages)
        problems += _unused(recipe, overrides)
    if problems:
        raise RecipeError(str(path), _with_lines(path, list(dict.fromkeys(problems))))
    return recipe


def _stage_problems(tree: dict[str, Any], recipe: Recipe, name: str, earlier: list[str], known: list[str]) -> list[str]:
    """What is wrong with one stage. A mistake outside the stages is said once, without a stage's name."""
    prefix, found = f"stages.{name}.", list[str]()
    if not _FOLDER.fullmatch(name):
        found.append(f"stages.{name}: a stage's name becomes a folder (letters, digits, dots, - and _)")
    stage = resolve(tree, found, stage=name)
    start = stage.start_from
    if start and start not in earlier:
        found.append(f"{prefix}start_from: {start!r} is not an earlier stage (there: {', '.join(earlier) or 'none'})")
    if stage.learned_tokens not in ("reuse", "new"):
        found.append(f"{prefix}learned_tokens: {stage.learned_tokens!r} is not reuse or new")
    if not found:
        general = set(recipe.problems())
        found = [line if line in general else prefix + line for line in stage.problems()]
    return [line for line in found if line.removeprefix(prefix) not in known]


def _unused(recipe: Recipe, overrides: Sequence[str]) -> list[str]:
    """A source that --set names and nothing reads is a slip of the pen: the real one would still come from the hub."""
    stages = stage_recipes(recipe).values()
    used = {name for stage in stages for name in (*stage.data.train, *stage.data.test)}
    for stage in stages:
        used |= {*stage.evaluate.exams, *(exam.pool for exam in stage.evaluate.exams.values())} - {""}
    named = {override.split(".")[2] for override in overrides if re.match(r"data\.sources\.[^.=]+\.", override)}
    return [
        f"data.sources.{name}: no train or test list names it, nor an exam ({_suggest(name, sorted(used))})"
        for name in sorted(named - used)
    ]


def stage_recipes(recipe: Recipe) -> dict[str, Recipe]:
    """The stages in order, each as a whole recipe of its own; one called "main" where none are named."""
    tree = to_tree(recipe)
    names = list(recipe.stages) or ["main"]
    problems: list[str] = []
    found = {name: resolve(tree, problems, stage=name if recipe.stages else "") for name in names}
    if problems:
        raise RecipeError(recipe.name, problems)
    return found


def read_tree(path: Path) -> dict[str, Any]:
    """The YAML mapping of a file, read with the safe loader."""
    if not path.is_file():
        raise RequestError(f"{path}: no such recipe", "luthier new speaking writes one to start from")
    try:
        tree = _string_keys(yaml.load(path.read_text(encoding="utf-8"), _Loader))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise RequestError(f"{where}: not YAML: {getattr(error, 'problem', error)}", "mend the line") from error
    except RecursionError as error:
        raise RequestError(f"{path}: not YAML that can be read: it contains itself", "write the part out") from error
    if not isinstance(tree, dict):
        raise RequestError(f"{path}: a recipe is a mapping of keys", "luthier new speaking writes one to start from")
    return tree


class _Loader(yaml.SafeLoader):
    """The safe loader (no tag makes an object), which refuses a key that is there twice: the last would win unseen."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                twice = f"the key {key.value!r} is there twice"
                raise yaml.constructor.ConstructorError(None, None, twice, key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def _string_keys(value: Any, name: str = "") -> Any:
    """Stages, sources and variables may have numbers for names; a table of targets has grades, which stay numbers."""
    if isinstance(value, dict):
        return {key if name == "table" else str(key): _string_keys(item, str(key)) for key, item in value.items()}
    return [_string_keys(item) for item in value] if isinstance(value, list) else value


def resolve(tree: dict[str, Any], problems: list[str], stage: str = "") -> Recipe:
    """The recipe of a tree, or of one of its stages: overrides merged, then `${vars}` put in."""
    merged = deepcopy(tree)
    if stage:
        over = merged["stages"].get(stage) or {}
        if not isinstance(over, dict):
            problems.append(f"stages.{stage}: a mapping of keys is expected, not {over!r}")
            over = {}
        merged = _merge(merged, over)
        merged["stages"] = {}
        variables = merged.get("vars") or {}
        variables = {str(k): str(v) for k, v in variables.items()} if isinstance(variables, dict) else {}
        merged = _substitute(merged, variables, problems, f"stages.{stage}.")
    stages = merged.get("stages") or {}
    if isinstance(stages, dict):
        stages = {str(name): value or {} for name, value in stages.items()}
    merged["stages"] = stages
    recipe: Recipe = _build(Recipe, merged, f"stages.{stage}." if stage else "", problems)
    if not stage and not recipe.stages:
        variables = {str(k): str(v) for k, v in recipe.vars.items()}
        recipe = _build(Recipe, _substitute(merged, variables, problems, ""), "", problems)
    for name, source in recipe.data.sources.items():
        source.name = name
    return recipe


def to_tree(recipe: Recipe) -> dict[str, Any]:
    """A recipe as plain mappings, every default filled in."""
    return asdict(recipe)


def to_yaml(recipe: Recipe) -> str:
    """The resolved recipe as YAML."""
    return yaml.safe_dump(to_tree(recipe), sort_keys=False, allow_unicode=True, width=110)


def digest(recipe: Recipe) -> str:
    """sha256 of the resolved recipe."""
    return sha256_bytes(json_text(to_tree(recipe)).encode())


def _apply(tree: dict[str, Any], override: str, problems: list[str]) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        problems.append(f"--set {override}: expected key=value, such as train.learning_rate=1e-4")
        return
    try:
        value = text if not text or re.fullmatch(r"0\d+", text) else yaml.safe_load(text)  # 0520 is no octal here
    except yaml.YAMLError:
        value = text
    node: dict[str, Any] = tree
    *parents, last = key.split(".")
    stages = [str(name) for name in tree.get("stages") or {}]
    if parents[:1] == ["stages"] and len(parents) > 1 and parents[1] not in stages:
        problems.append(f"--set {key}: there is no stage {parents[1]} ({_suggest(parents[1], stages)})")
        return
    for name in parents:
        child = node.setdefault(name, {})
        if child is None:
            child = node[name] = {}
        if not isinstance(child, dict):
            problems.append(f"--set {key}: {name} is not a mapping")
            return
        node = child
    node[last] = value


def _merge(base: Any, over: Any) -> Any:
    if isinstance(base, dict) and isinstance(over, dict):
        return {**base, **{key: _merge(base.get(key), value) for key, value in over.items()}}
    return over


def _substitute(value: Any, variables: dict[str, str], problems: list[str], where: str) -> Any:
    if isinstance(value, dict):
        return {key: _substitute(item, variables, problems, f"{where}{key}.") for key, item in value.items()}
    if isinstance(value, list):
        return [_substitute(item, variables, problems, where) for item in value]
    if isinstance(value, str):
        for name in _VARIABLE.findall(value):
            if name not in variables:
                problems.append(f"{where.rstrip('.')}: ${{{name}}} is not in vars ({_suggest(name, variables)})")
        return _VARIABLE.sub(lambda match: variables.get(match[1], match[0]), value)
    return value


def _build(cls: type, tree: dict[str, Any], where: str, problems: list[str]) -> Any:
    hints = get_type_hints(cls)
    names = [item.name for item in fields(cls)]
    if cls is Recipe and not where:
        names = [name for name in names if name not in _STAGE_ONLY] + list(_STAGE_ONLY)
    values: dict[str, Any] = {}
    for key, value in tree.items():
        key = str(key)
        if key not in names:
            problems.append(f"{where}{key}: unknown key ({_suggest(key, names)})")
        else:
            values[key] = _convert(hints[key], value, f"{where}{key}", problems)
    return cls(**{key: value for key, value in values.items() if value is not _BAD})


_BAD = object()


def _convert(hint: Any, value: Any, where: str, problems: list[str]) -> Any:
    """A YAML value as the field's type, or `_BAD` with a problem noted."""
    if is_dataclass(hint):
        if value is None:
            value = {}
        if isinstance(value, dict):
            return _build(hint, value, f"{where}.", problems)  # type: ignore[arg-type]
        problems.append(f"{where}: a mapping of keys is expected, not {value!r}")
        return _BAD
    origin = get_origin(hint)
    if origin is dict:
        item = get_args(hint)[1]
        if not isinstance(value, dict):
            problems.append(f"{where}: a mapping is expected, not {value!r}")
            return _BAD
        if is_dataclass(item):
            return {
                str(k): _build(item, v or {}, f"{where}.{k}.", problems)  # type: ignore[arg-type]
                for k, v in value.items()
                if _is_mapping(v, f"{where}.{k}", problems)
            }
        return {str(k): str(v) for k, v in value.items()} if item is str else dict(value)
    if origin is list:
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list):
            problems.append(f"{where}: a list is expected, not {value!r}")
            return _BAD
        return items if get_args(hint)[0] is Any else [str(item) for item in items]
    if origin is Literal:  # YAML reads on and off, where they stand without quotes, as true and false
        value = {True: "on", False: "off"}[value] if isinstance(value, bool) else value
        if value in get_args(hint):
            return value
        problems.append(f"{where}: {value!r} is not one of {', '.join(get_args(hint))}")
        return _BAD
    return _scalar(hint, value, where, problems)


def _is_mapping(value: Any, where: str, problems: list[str]) -> bool:
    if value is None or isinstance(value, dict):
        return True
    problems.append(f"{where}: a mapping of keys is expected, not {value!r} (write {where}.path={value})")
    return False


def _scalar(hint: Any, value: Any, where: str, problems: list[str]) -> Any:
    if hint is str and isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return str(value)
    if hint is str and value is None:
        return ""
    if hint is bool and isinstance(value, bool):
        return value
    if hint in (int, float) and not isinstance(value, bool):
        try:
            number = float(value)
            if hint is float and not math.isfinite(number):
                problems.append(f"{where}: must be a finite number")
                return _BAD
            if hint is float or number == int(number):
                return hint(number)
        except (TypeError, ValueError, OverflowError):
            pass  # falls through to the message below
    problems.append(f"{where}: {value!r} is not {'a whole number' if hint is int else 'of type ' + hint.__name__}")
    return _BAD


def _suggest(name: str, names: Any) -> str:
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else f"one of: {', '.join(names)}"


def _with_lines(path: Path, problems: list[str]) -> list[str]:
    """Put `line N` behind a problem whose last key occurs once in the file, within the key that the problem names."""
    lines = path.read_text(encoding="utf-8").splitlines()
    found = []
    for problem in problems:
        *_, above, key = ["", *problem.partition(":")[0].split(".")]
        hits = [n for n, line in enumerate(lines) if re.match(rf"\s*[\"']?{re.escape(key.strip())}[\"']?\s*:", line)]
        known = len(hits) == 1 and _within(lines, hits[0]) in ("", above.split()[-1] if above.strip() else "")
        found.append(f"{problem} [line {hits[0] + 1}]" if known else problem)
    return found


def _within(lines: list[str], place: int) -> str:
    """The key that holds the key in line `place`; empty at the top. A value from --set has no line in the file."""
    indent = len(lines[place]) - len(lines[place].lstrip())
    for line in reversed(lines[:place]):
        text = line.lstrip()
        if text and not text.startswith("#") and len(line) - len(text) < indent:
            return text.partition(":")[0].strip("\"' ")
    return ""
