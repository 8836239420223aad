"""What a table is made from: the data part of a recipe, checked, with its steps bound.

Knows recipes; refuses to know files and rows.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from luthier.data.steps import BoundStep, make_steps
from luthier.errors import RecipeError
from luthier.recipe import Recipe, Scale
from luthier.recipe_data import Balance, Columns, Duplicates, Limits, Mix, Source
from luthier.recipe_describe import DescribeSettings


@dataclass(frozen=True)
class TableRequest:
    """Sources with the split that each is for ("train" or "test"), and what is done to their rows."""

    sources: tuple[tuple[Source, str], ...]
    columns: Columns = field(default_factory=Columns)
    scale: Scale = field(default_factory=Scale)
    limits: Limits = field(default_factory=Limits)
    steps: tuple[BoundStep, ...] = ()
    duplicates: Duplicates = field(default_factory=Duplicates)
    balance: Balance = field(default_factory=Balance)
    mix: Mix = field(default_factory=Mix)
    validation_fraction: float = 0.0
    test_fraction: float = 0.0
    seed: int = 17
    graded: bool = True
    """Rows are graded media: small tables, kept in the order of their sources and split when a stage is prepared."""
    describe: DescribeSettings | None = None
    """Of a recipe whose sources are descriptions unless they say otherwise."""

    @classmethod
    def of(cls, recipe: Recipe) -> TableRequest:
        """The request of a whole recipe. Raises RecipeError for steps that are not there or wrongly set."""
        data, problems = recipe.data, list[str]()
        steps = make_steps(data.steps, problems)
        if problems:
            raise RecipeError(recipe.name, problems)
        named = [(name, split) for split in ("train", "test") for name in getattr(data, split)]
        graded = recipe.task.kind == "verdict"
        return cls(
            sources=tuple((data.sources[name], split) for name, split in named),
            columns=data.columns,
            scale=recipe.task.scale,
            limits=data.limits,
            steps=tuple(steps),
            duplicates=data.duplicates,
            balance=data.balance,
            mix=data.mix,
            validation_fraction=0.0 if graded else data.validation_fraction,
            test_fraction=0.0 if graded else data.test_fraction,
            seed=recipe.seed,
            graded=graded,
            describe=recipe.task.describe if recipe.task.kind == "describe" else None,
        )

    @property
    def per_source(self) -> bool:
        """Whether duplicates are looked for inside each source alone."""
        return self.duplicates.scope == "source" or (not self.duplicates.scope and self.graded)

    def reading_key(self, source: Source, split: str) -> dict[str, Any]:
        """What the stage of one source depends on, beside the bytes of its files."""
        ignored = {"weight", "cap", "epochs", "path"}  # where a file lies, and how its rows are mixed, is no content
        return {
            "source": {key: value for key, value in asdict(source).items() if key not in ignored},
            "split": split,
            "columns": asdict(self.columns),
            "scale": asdict(self.scale),
            "limits": asdict(self.limits),
            "steps": self.steps_key(),
            "graded": self.graded,
            **({"describe": asdict(self.describe)} if self.describe else {}),
        }

    def steps_key(self) -> list[dict[str, Any]]:
        """Each step by name, parameters and code."""
        return [{"name": s.name, "parameters": s.parameters, "code": list(s.code)} for s in self.steps]

    def table_key(self, stages: list[str]) -> dict[str, Any]:
        """What the table depends on: its stages in order, and what is done over all of them."""
        return {
            "stages": stages,
            "duplicates": asdict(self.duplicates),
            "per_source": self.per_source,
            "balance": asdict(self.balance),
            "mix": asdict(self.mix),
            "shares": {s.name: [s.weight, s.cap, s.epochs] for s, _ in self.sources},
            "fractions": [self.validation_fraction, self.test_fraction],
            "seed": self.seed,
            "graded": self.graded,
        }
