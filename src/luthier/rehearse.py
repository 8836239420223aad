"""`luthier rehearse`: the same recipe end to end at toy size, so that its mistakes show before a GPU is paid for.

The base becomes its toy twin; at most 64 rows of each source are read; a source that cannot be reached is
replaced by simulated answers under the same column names.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from luthier.console import say
from luthier.data.building.context import Context
from luthier.data.readers import columns_seen, open_source, peek
from luthier.data.shapes import graded
from luthier.data.simulate import write_forms
from luthier.errors import SourceError
from luthier.recipe import Recipe
from luthier.recipe_data import Columns, Source
from luthier.recipefile import stage_recipes, to_tree
from luthier.stages.sources import table_request

ROWS = 64


def rehearsal(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """The recipe's tree at toy size. Stand-in tables are written to `folder`."""
    tree = deepcopy(to_tree(recipe))
    _smaller(tree)
    for stage in tree["stages"].values():
        _smaller(stage)
    request = table_request(stage_recipes(recipe))
    columns = request.columns
    standins: dict[str, Path] = {}
    for stage in tree["stages"].values():
        stage.get("data", {}).pop("sources", None)  # all of them are written out below, as the stages resolve them
    for source, split in request.sources:
        name = source.name
        tree["data"]["sources"][name] = where = asdict(source) | {"limit": ROWS}
        reason = _unreachable(source, columns)
        if reason:
            say(f"{name}: {reason}; simulated answers stand in for it")
            tested = split == "test"
            where |= {"hub": "", "path": str(_standin(name, tested, columns, folder, standins))}
    return tree


def _smaller(tree: dict[str, Any]) -> None:
    """The settings that make a recipe cheap; what is being rehearsed (read-out, targets, tuning) stays."""
    if "model" in tree:
        tree["model"] |= {"base": "toy:phi4-multimodal", "revision": "", "builtin_adapter": "", "dtype": "float32"}
    if "train" in tree:
        tree["train"] |= {"epochs": 1, "max_steps": 0, "log_every": 1}
    if "evaluate" in tree:
        tree["evaluate"] |= {"resamples": 200}
    if "publish" in tree:
        tree["publish"] |= {"push": False}


def _unreachable(source: Source, columns: Columns) -> str:
    """Why the source cannot be read, or an empty text."""
    try:
        first = peek(open_source(source), ROWS)
        graded.adapter(Context(source, found=columns_seen(first), columns=columns))
    except SourceError as error:
        return error.message
    return "" if first else "has no rows that can be read"


def _standin(name: str, tested: bool, columns: Columns, folder: Path, made: dict[str, Path]) -> Path:
    """A simulated table under the recipe's own column names; each source gets speakers of its own."""
    seed = 1000 + len(made)
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
    made[name] = folder / f"{name}.parquet"
    pq.write_table(table, made[name])
    return made[name]
