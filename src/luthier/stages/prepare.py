"""A stage's model and rows, ready to train or judge; everything that can be refused is refused here."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from luthier.assess.targets import TargetMethod, make_target
from luthier.console import say
from luthier.data.building.rows import TableRow
from luthier.data.split import check_groups, check_media, validation_split
from luthier.data.table import Table
from luthier.errors import DataError
from luthier.evaluate.verdicts import Judge
from luthier.models import adapters, package
from luthier.models.encode import Example, PromptEncoder, encode_rows
from luthier.models.load import Base, load_base
from luthier.models.tokens import add_learned_tokens, answer_ids, initialise_learned_tokens
from luthier.models.verdict import VerdictModel, level_count
from luthier.models.verdict_features import media_parts, verdict_features
from luthier.recipe import Recipe
from luthier.rundir import RunDir, StageDir
from luthier.runtime.devices import Devices
from luthier.schema import Row


@dataclass
class Prepared:
    """A stage's model and rows, ready to train or judge."""

    base: Base
    model: VerdictModel
    judge: Judge
    examples: dict[str, list[Example]]
    """By role: train, validation, test."""
    dropped: Counter[str]
    method: TargetMethod
    about: package.Package
    truth: dict[str, dict[str, float]]
    """Numeric columns carried along, by row id: simulated answers bring their true probabilities."""


def prepare(run: RunDir, name: str, recipe: Recipe, table: Table, trained: Sequence[str]) -> Prepared:
    """Load, encode and check everything of a stage."""
    rows = split_rows(recipe, table, trained)
    seed = recipe.seed + sum(name.encode())
    base, model, about, fresh_tokens = build_model(recipe, seed)
    devices = Devices(recipe.model.dtype)
    devices.place(model)
    method = make_target(recipe.task.target, recipe.task.scale)
    every = [row for found in rows.values() for row in found]
    frozen = adapters.sound_is_frozen(recipe.model)
    store, spelled = verdict_features(base, recipe, every, table.media_bytes, run.features, frozen)
    encoder = PromptEncoder.of(base, recipe)
    examples, dropped = {}, Counter[str]()
    for role, found in rows.items():
        examples[role], lost = encode_rows(found, encoder, spelled, functools.partial(_label, method, recipe))
        dropped.update(lost)
        if not examples[role] and role != "validation":
            raise DataError(
                f"stage {name}: no {role} rows are left after encoding ({dict(dropped)})",
                "raise model.max_tokens, or look at the prompts",
            )
    examples["train"] = _balanced(examples["train"], table)
    levels = Counter(example.level for example in examples["train"])
    model.initialise_head([levels[k] for k in range(level_count(recipe.task.scale))])
    if recipe.start_from:
        _start_from(run.stage(recipe.start_from), recipe, model, base, about, fresh_tokens)
    about.judges = media_parts(every)[0].type
    judge = Judge(model, store, devices, base.tokenizer.pad_token_id, recipe.evaluate.batch_size)
    truth = {item.row.id: item.aux for item in table.select(recipe.data.test, "test")}
    return Prepared(base, model, judge, examples, dropped, method, about, truth)


def build_model(recipe: Recipe, seed: int) -> tuple[Base, VerdictModel, package.Package, torch.Tensor]:
    """Base, read-out and learned tokens as the recipe says, not yet trained. The last value is new tokens' rows."""
    base = load_base(recipe.model)
    answers = answer_ids(base.tokenizer, recipe.task.answers)
    tokens = add_learned_tokens(base.tokenizer, base.model, recipe.model.learned_tokens)
    initialise_learned_tokens(base.tokenizer, base.model, tokens, seed)
    rows = base.model.get_input_embeddings().weight[sorted(tokens.values())].detach().clone()
    tuned = adapters.attach(base, recipe.model, tokens, seed)
    if recipe.train.gradient_checkpointing:
        adapters.checkpoint_activations(base.model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = VerdictModel(tuned, base.family, recipe.task, answers)
    return base, model, package.describe(base, recipe, answers, tokens), rows


def _start_from(
    earlier: StageDir,
    recipe: Recipe,
    model: VerdictModel,
    base: Base,
    about: package.Package,
    fresh_tokens: torch.Tensor,
) -> None:
    before = package.Package.read(earlier.adapter)
    package.check(before, about.base_sha256, about.learned_tokens, earlier.adapter)
    model.load(earlier.adapter)
    if recipe.learned_tokens == "new":
        adapters.reset_tokens(model.language_model, base, about.learned_tokens, fresh_tokens)


def _label(method: TargetMethod, recipe: Recipe, row: Row) -> tuple[float, int]:
    scale, grade = recipe.task.scale, float(row.target.grade or 0.0)
    place = (grade - scale.minimum) / scale.step
    if recipe.task.readout == "ordinal" and abs(place - round(place)) > 1e-6:
        raise DataError(
            f"row {row.id}: grade {grade:g} is between the steps of the scale ({scale.step:g})",
            "set task.scale.step, or choose task.readout tokens or head",
        )
    return method(grade, row.target.raters), round(place)


def split_rows(recipe: Recipe, table: Table, trained: Sequence[str]) -> dict[str, list[Row]]:
    """Rows by role, each once. Test rows are checked against all that the stage or an ancestor was trained on."""
    train_rows = _once(table.select(recipe.data.train, "train"))
    test_rows = _once(table.select(recipe.data.test, "test"))
    before = table.select(trained, "train")
    check_groups(before, test_rows)
    check_media(before, test_rows)
    kept, validation = validation_split(train_rows, recipe.data.validation_fraction, recipe.seed)
    return {
        "train": [r.row for r in kept],
        "validation": [r.row for r in validation],
        "test": [r.row for r in test_rows],
    }


def _balanced(examples: list[Example], table: Table) -> list[Example]:
    """Training rows with the weights and repeats that balancing gave them; validation rows stay as they are."""
    said = {item.row.id: item for item in table.rows if (item.weight, item.repeats) != (1.0, 1)}
    if not said:
        return examples
    return [
        replace(example, weight=said[example.id].weight) if example.id in said else example
        for example in examples
        for _ in range(said[example.id].repeats if example.id in said else 1)
    ]


def _once(items: Sequence[TableRow]) -> list[TableRow]:
    """Rows that stand in two sources are one row; what falls away is said."""
    found = {item.row.id: item for item in reversed(items)}
    if len(found) < len(items):
        say(f"{len(items) - len(found)} rows stand in two sources and are used once")
    return [item for item in items if found[item.row.id] is item]
