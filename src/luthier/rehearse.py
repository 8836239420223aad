"""`luthier rehearse`: the same recipe end to end at toy size, so that its mistakes show before a GPU is paid for.

Each base becomes its toy twin; at most 64 rows of each source are read; a source that cannot be reached is replaced
by rows made up under the same column names, and an exam by made-up questions. What a processor cannot do (float16,
paged optimizers, kernels that are not installed) is replaced and said. What is being rehearsed stays: read-out,
targets, tuning, data steps, batches.
"""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from luthier.console import say
from luthier.data.building.context import Context
from luthier.data.building.request import TableRequest
from luthier.data.cards import COLUMNS, write_cards
from luthier.data.exams import read_exam, write_standin_exam
from luthier.data.readers import columns_seen, open_source, peek
from luthier.data.shapes import described, graded
from luthier.data.simulate import write_forms
from luthier.data.standins import write_standin
from luthier.errors import SourceError
from luthier.files import read_jsonl, write_jsonl
from luthier.recipe import Recipe
from luthier.recipe_data import Columns, Source
from luthier.recipe_describe import PICTURE, DescribeSettings
from luthier.recipe_exam import ExamSettings
from luthier.recipe_model import ModelConfig
from luthier.recipefile import stage_recipes, to_tree
from luthier.schema import Drop
from luthier.stages.sources import table_request

ROWS = 64
STEPS = 24
"""Optimizer steps of a chat: enough for two checkpoints ten steps apart, and for the loss to fall."""
TOY_RATE = 1.0e-2
"""Lowest learning rate of a chat: at the rates of real models a toy of random weights learns nothing to be seen."""
TOY_TOKENS_PER_WORD = 8
"""More than most words have in the toys' vocabulary of some six hundred pieces."""
TWINS = (
    (r"qwen-?3-?vl", "toy:qwen3-vl"),
    (r"qwen-?2[._-]?5-?vl", "toy:qwen2.5-vl"),
    (r"qwen-?2?-?vl", "toy:qwen2-vl"),
    (r"llava-?onevision", "toy:llava-onevision"),
    (r"smol-?vlm", "toy:smolvlm"),
    (r"idefics-?3", "toy:idefics3"),
    (r"phi-?3(\.5)?-?(v\b|vision)", "toy:phi3-vision"),
    (r"phi-?4-?(mm|multimodal)", "toy:phi4-multimodal"),
    (r"qwen-?3", "toy:qwen3"),
    (r"qwen", "toy:qwen2"),
    (r"gemma-?3-?(text|1b|270m)", "toy:gemma3"),
    (r"gemma-?3(-(4b|12b|27b)|$)", "toy:gemma3-vision"),  # a folder's model_type ends so
    (r"gemma-?3", "toy:gemma3"),
    (r"gemma-?2", "toy:gemma2"),
    (r"phi-?[34]", "toy:phi3"),
    (r"mistral", "toy:mistral"),
    (r"llama", "toy:llama"),
)
"""What a base's name, or the model_type of a folder's config.json, says of its family; the first that fits counts."""
Tree = dict[str, Any]


def rehearsal(recipe: Recipe, folder: Path) -> Tree:
    """The recipe's tree at toy size. Stand-in tables are written to `folder`."""
    tree = deepcopy(to_tree(recipe))
    stages = stage_recipes(recipe)
    notes: list[str] = []
    first = next(iter(stages.values()))
    _merge(tree, _smaller(first, notes))
    for name, stage in tree["stages"].items():
        stage.get("data", {}).pop("sources", None)  # all of them are written out below, as the stages resolve them
        _merge(stage, _smaller(stages[name], notes))
    for note in dict.fromkeys(notes):
        say(f"rehearsal: {note}")
    request = table_request(stages)
    with ThreadPoolExecutor() as pool:  # a hub that is silent costs its patience once, not once for each source
        reasons = list(pool.map(lambda item: _unreachable(item[0], request), request.sources))
    for number, ((source, split), reason) in enumerate(zip(request.sources, reasons, strict=True)):
        tree["data"]["sources"][source.name] = where = asdict(source) | _less_of(source, first.model.max_tokens)
        if not reason:
            continue
        if request.graded:
            say(f"{source.name}: {reason}; simulated answers stand in for it")
            path = _answers(source.name, split == "test", request.columns, folder, 1000 + number)
        elif request.describe is not None and source.format in ("auto", "described"):
            say(f"{source.name}: {reason}; drawn product cards stand in for it")
            path = _cards(request.describe, folder / source.name, 1000 + number)
        else:
            kind = "texts" if source.format == "text" else "chats"
            say(f"{source.name}: {reason}; made-up {kind} stand in for it")
            path = folder / f"{source.name}.jsonl"
            write_standin(source, path, ROWS, 1000 + number)
        where |= {"hub": "", "path": str(path), "streaming": False}
    for stage in stages.values():
        _examine_less(tree, stage, folder)
    return tree


def _examine_less(tree: Tree, stage: Recipe, folder: Path) -> None:
    """At most ROWS items of a stage's exams and of the pools of their solved questions, made up where they are not
    there. Answers are counted as the whole file says: the first items alone might not tell."""
    trees = [tree, *tree["stages"].values()]
    for name, settings in stage.evaluate.exams.items():
        for role in filter(None, (name, settings.pool)):
            source, own = stage.data.sources[role], settings if role == name else ExamSettings()
            where = tree["data"]["sources"][role] = asdict(source)
            try:
                exam = read_exam(source, role, own.labels, own.answers)
            except SourceError as error:
                say(f"{role}: {error.message}; made-up questions stand in for it")
                path = folder / f"{role}.jsonl"
                write_standin_exam(path, "options", ROWS, len(role))
                where |= asdict(Source(name=role, path=str(path)))
                over = {"labels": "", "answers": ""}
            else:
                where["limit"] = source.limit if own.labels else min(source.limit or ROWS, ROWS)
                over = {"answers": exam.answers}
            for part in trees if role == name else []:
                if name in part.get("evaluate", {}).get("exams", {}):
                    _merge(part["evaluate"]["exams"], {name: over})


def _less_of(source: Source, max_tokens: int) -> Tree:
    """A few rows of a source. The toy's tokens are short: passages of a real base's length would all be too long."""
    words = min(source.passage_words, max(1, max_tokens // TOY_TOKENS_PER_WORD))
    return {"limit": min(source.limit or ROWS, ROWS), "passage_words": words}


def twin(base: str) -> str:
    """The toy of a base's family, by the base's name; a folder says its family in its config.json. "" if unknown."""
    if base.startswith("toy:"):
        return base
    name, config = base.rpartition("/")[2].lower(), Path(base) / "config.json"
    if config.is_file():
        name = str(json.loads(config.read_text(encoding="utf-8")).get("model_type", name)).replace("_", "-")
    return next((toy for pattern, toy in TWINS if re.search(pattern, name)), "")


def _smaller(recipe: Recipe, notes: list[str]) -> Tree:
    """The settings that make a resolved stage cheap, as keys to override."""
    shared = {"evaluate": {"resamples": min(recipe.evaluate.resamples, 200)}, "publish": {"push": False}}
    if recipe.task.of_text:
        return {**shared, **_smaller_chat(recipe, notes)}
    model = {"base": "toy:phi4-multimodal", "revision": "", "builtin_adapter": "", "dtype": "float32"}
    return {**shared, "model": model, "train": {"epochs": 1, "max_steps": 0, "log_every": 1}}


def _smaller_chat(recipe: Recipe, notes: list[str]) -> Tree:
    train, data = recipe.train, recipe.data
    cheap: Tree = {
        "epochs": 1,
        "max_steps": min(train.max_steps or STEPS, STEPS),
        "learning_rate": max(train.learning_rate, TOY_RATE),
        "warmup_steps": min(train.warmup_steps, STEPS // 6),
        "log_every": 1,
        "save_every": min(train.save_every, 10),
        "validate_every": min(train.validate_every, 10),
        "optimizer": _optimizer(train.optimizer, notes),
        "torch_compile": False,
    }
    if cheap["learning_rate"] != train.learning_rate:
        notes.append(f"train.learning_rate: {TOY_RATE:g}, as a toy of random weights learns little at less")
    if recipe.track.trackers:
        notes.append("track.trackers: none is fed")
    return {
        "model": _smaller_model(recipe.model, notes),
        "train": cheap,
        "track": {"trackers": []},
        "data": {
            # A hundredth of 64 rows is none: the validation that the recipe asks for would not be rehearsed.
            "validation_fraction": data.validation_fraction and max(data.validation_fraction, 0.1),
            "mix": {"total": min(data.mix.total, ROWS)},
        },
    }


def _smaller_model(model: ModelConfig, notes: list[str]) -> Tree:
    toy = twin(model.base)
    if not toy:
        notes.append(f"model.base: toy:llama stands in for {model.base}, as its name tells no family that has a toy")
    # The name is all that a base says of this without its files.
    published = "nf4" if re.search(r"(bnb-?4bit|nf4)", model.base.lower()) else ""
    quantization = model.quantization or published
    if quantization and not _has_bitsandbytes():
        notes.append(f"model.quantization: {quantization} is left out, as bitsandbytes is not installed")
        quantization = ""
    dtype = model.dtype
    if dtype == "float16":
        notes.append("model.dtype: float32, as float16 is for GPUs")
        dtype = "float32"
    return {
        "base": toy or "toy:llama",
        "revision": "",
        "builtin_adapter": "",
        "dtype": dtype,
        "quantization": quantization,
    }


def _optimizer(name: str, notes: list[str]) -> str:
    """The optimizer that a processor has in place of one that needs a GPU, or a library that is not there."""
    found = name.removeprefix("paged_")
    if found.endswith("_8bit") and not _has_bitsandbytes():
        found = "adamw"
    if found != name:
        notes.append(f"train.optimizer: {found} in place of {name}")
    return found


def _has_bitsandbytes() -> bool:
    return find_spec("bitsandbytes") is not None


def _merge(tree: Tree, over: Tree) -> None:
    """Put the leaves of `over` into `tree`, section by section."""
    for key, value in over.items():
        if isinstance(value, dict):
            _merge(tree.setdefault(key, {}), value)
        else:
            tree[key] = value


def _unreachable(source: Source, request: TableRequest) -> str:
    """Why the source cannot be read, or an empty text."""
    try:
        reading = open_source(source)
        first = peek(reading, ROWS)
        if request.graded:
            graded.adapter(Context(source, found=columns_seen(first), columns=request.columns))
    except SourceError as error:
        return error.message
    if not first:
        return "has no rows that can be read"
    if request.describe is None or source.format not in ("auto", "described"):
        return ""
    where = Context(source, "train", reading.folder, reading.trusted, limits=request.limits, describe=request.describe)
    read = described.adapter(where)
    made = [read(f"row {number}", record) for number, record in enumerate(first[:8], 1)]
    lost = [one for one in made if isinstance(one, Drop)]
    return f"its rows cannot be used ({lost[0].reason}: {lost[0].detail})" if len(lost) == len(made) else ""


def _cards(settings: DescribeSettings, folder: Path, seed: int) -> Path:
    """Drawn product cards under the recipe's own column names, a field's by its kind."""
    table = write_cards(folder, ROWS, seed)
    kinds = {"text": "title", "category": "category", "amount": "price"}
    columns = {settings.column(name): COLUMNS[kinds[kind]] for name, kind in settings.kinds.items()}
    columns[settings.column(PICTURE)] = COLUMNS["image"]
    if settings.group:
        columns[settings.group] = COLUMNS["group"]
    rows = [{own: row[column] for own, column in columns.items()} for row in read_jsonl(table)]
    for row in rows:
        row[settings.column(PICTURE)] = f"{folder.name}/{row[settings.column(PICTURE)]}"
    path = folder.with_suffix(".jsonl")
    write_jsonl(path, rows)
    return path


def _answers(name: str, tested: bool, columns: Columns, folder: Path, seed: int) -> Path:
    """A simulated table under the recipe's own column names; each source gets speakers of its own."""
    forms = write_forms(folder / name, seed=seed, sizes={"1764": (ROWS, ROWS)})
    table = pq.read_table(forms["form-1764-test" if tested else "form-1764-train"])
    renamed = {
        "audio": columns.audio[0],
        "prompt": columns.prompt[0],
        "grade": columns.grade[0],
        "speaker": columns.group[0],
        "utt_id": columns.id[0],
    }
    index = table.column_names.index("speaker")
    speakers = [f"{name}-{speaker}" for speaker in table["speaker"].to_pylist()]
    table = table.set_column(index, "speaker", [speakers])
    table = table.rename_columns([renamed.get(column, column) for column in table.column_names])
    path = folder / f"{name}.parquet"
    pq.write_table(table, path)
    return path
