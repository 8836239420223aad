"""verdict.json: what an adapter folder must say of itself so that it can be used without its recipe."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from luthier.errors import CheckpointError, RequestError
from luthier.files import read_json, verify_folder, write_json
from luthier.models.load import Base
from luthier.recipe import Recipe

NAME = "verdict.json"


@dataclass
class Package:
    """Facts of a trained verdict adapter. Ids are checked against the tokenizer before it is used."""

    base: str
    revision: str
    builtin_adapter: str
    base_sha256: str
    tuning: str
    readout: str
    event: str
    target_method: str
    answers: dict[str, int]
    learned_tokens: dict[str, int]
    calibration: dict[str, Any]
    judges: str = "audio"
    """What it was trained to judge: audio, image or video."""

    def write(self, folder: Path) -> None:
        write_json(folder / NAME, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> Package:
        """Raises RequestError when the folder is not a verdict adapter, CheckpointError when it was changed."""
        if not (folder / NAME).is_file():
            raise RequestError(f"{folder}: not a verdict adapter (no {NAME})", "name a finished stage")
        wrong = verify_folder(folder)
        if wrong is not None:
            raise CheckpointError(f"{folder}: {wrong}", "take the folder from its origin again")
        return cls(**read_json(folder / NAME))


def describe(base: Base, recipe: Recipe, answers: dict[str, int], tokens: dict[str, int]) -> Package:
    """The package of a stage about to be trained."""
    model, task = recipe.model, recipe.task
    return Package(
        model.base,
        model.revision,
        model.builtin_adapter,
        base.digest,
        model.tuning,
        task.readout,
        task.event,
        task.target.method,
        answers,
        tokens,
        {},
    )


def check(package: Package, digest: str, tokens: dict[str, int], folder: Path) -> None:
    """Refuse an adapter on another base, or whose learned tokens have other ids here."""
    if package.base_sha256 != digest:
        raise RequestError(
            f"{folder}: was trained on {package.base} with other weights than the base given here",
            "give the base, revision and builtin_adapter that its verdict.json names",
        )
    for name, index in package.learned_tokens.items():
        if name in tokens and tokens[name] != index:
            raise RequestError(
                f"{folder}: the learned token {name} had id {index} and has {tokens[name]} here",
                "use the same tokenizer and model.learned_tokens",
            )
    if set(package.learned_tokens) != set(tokens):
        raise RequestError(
            f"{folder}: has the learned tokens {', '.join(package.learned_tokens)}, the recipe {', '.join(tokens)}",
            "use the same model.learned_tokens in both stages",
        )
