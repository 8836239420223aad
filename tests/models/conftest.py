"""Shared by the tests of the models floor: recordings of numpy, and a toy verdict model with its encoded rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from luthier.models.adapters import sound_is_frozen
from luthier.models.batches import Batch, collate
from luthier.models.encode import Example, PromptEncoder, encode_rows
from luthier.models.features import FeatureStore
from luthier.models.learner import StepWeights
from luthier.models.load import Base, load_base
from luthier.models.package import Package
from luthier.models.verdict import VerdictModel, grade_levels
from luthier.recipe import Recipe
from luthier.recipe_model import ModelConfig
from luthier.schema import Message, Part, Provenance, Row, Target
from luthier.stages.prepare import build_model

TOY = "toy:phi4-multimodal"
SECONDS = (0.5, 1.1, 1.9, 2.4)
"""Four lengths, one for each number of silence-padded quanta from 1 to 4."""
GRADES = (4.0, 3.5, 2.0, 4.5, 3.0, 5.0, 1.0, 3.5)
QUESTIONS = ("Describe the picture.", "What do you do on Sundays, and why do you like it?", "Why?")


@dataclasses.dataclass
class Bench:
    """A toy verdict model and what feeds it."""

    recipe: Recipe
    base: Base
    model: VerdictModel
    about: Package
    fresh_tokens: torch.Tensor
    store: FeatureStore
    examples: list[Example]

    def batch(self, rows: Sequence[int] | None = None, pairs: Sequence[tuple[int, int]] = ()) -> Batch:
        rows = range(len(self.examples)) if rows is None else rows
        return collate([self.examples[i] for i in rows], self.store, self.base.tokenizer.pad_token_id, pairs)

    def train(self, steps: int, learning_rate: float = 1e-2) -> None:
        """A few steps of Adam over all rows."""
        optimizer = torch.optim.Adam([p for p in self.model.parameters() if p.requires_grad], lr=learning_rate)
        batch = self.batch()
        for _ in range(steps):
            optimizer.zero_grad()
            self.model.loss(batch, StepWeights(len(self.examples), 0.0))[0].backward()
            optimizer.step()


def _recording(name: str) -> np.ndarray:
    """A tone with overtones and noise; pitch and length follow from the number that ends the name."""
    number = int(name.rpartition(":")[2])
    time = np.arange(int(SECONDS[number % len(SECONDS)] * 16_000)) / 16_000
    rng = np.random.default_rng(number)
    tone = sum(np.sin(2 * np.pi * (110 + 60 * number) * k * time) / k for k in range(1, 6))
    return (0.1 * tone + 0.02 * rng.standard_normal(len(time))).astype(np.float32)


def _row(number: int) -> Row:
    content = (Part("text", QUESTIONS[number % len(QUESTIONS)]), Part("audio", media=f"sha256:{number}"))
    return Row(
        f"row{number}",
        (Message("user", content),),
        Target(grade=GRADES[number % len(GRADES)]),
        f"speaker{number}",
        "train",
        Provenance("made", f"made:{number}"),
    )


@pytest.fixture(scope="session")
def recording() -> Callable[[str], np.ndarray]:
    return _recording


@pytest.fixture(scope="session")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder of features for the whole session: a recording is encoded once."""
    return tmp_path_factory.mktemp("features")


@pytest.fixture(scope="session")
def toy() -> Base:
    """The bare toy, to be read and never changed."""
    return load_base(ModelConfig(base=TOY))


def _recipe(changes: dict[str, Any]) -> Recipe:
    recipe = Recipe()
    recipe.model.base, recipe.model.lora.dropout = TOY, 0.0
    for key, value in changes.items():
        *path, last = key.split(".")
        node: Any = recipe
        for name in path:
            node = getattr(node, name)
        assert hasattr(node, last), key
        setattr(node, last, value)
    return recipe


@pytest.fixture(scope="session")
def recipe_of() -> Callable[[dict[str, Any]], Recipe]:
    """A toy recipe with some keys changed, such as `{"task.readout": "head"}`."""
    return _recipe


@pytest.fixture(scope="session")
def bench(features: Path) -> Callable[..., Bench]:
    """A factory: `bench({"task.readout": "head"}, rows=8)` builds the model of `build_model` and encodes its rows."""

    def make(
        changes: dict[str, Any] | None = None, *, rows: int = 8, seed: int = 3, frozen: bool | None = None
    ) -> Bench:
        recipe = _recipe(changes or {})
        base, model, about, fresh = build_model(recipe, seed)
        frozen = sound_is_frozen(recipe.model) if frozen is None else frozen
        store = FeatureStore(features, base.family, base.extractor, _recording, base.model, frozen=frozen)
        table = [_row(i) for i in range(rows)]
        encoder = PromptEncoder.of(base, recipe)
        levels = grade_levels(recipe.task.scale)
        examples, dropped = encode_rows(
            table,
            encoder,
            store.prepare(r.media[0] for r in table),
            lambda row: (row.target.grade / 5, levels.index(row.target.grade)),
        )
        assert not dropped
        model.initialise_head([sum(e.level == k for e in examples) for k in range(len(levels))])
        return Bench(recipe, base, model, about, fresh, store, examples)

    return make
