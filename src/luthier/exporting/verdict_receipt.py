"""The receipt of a model that judges: the same held-out recordings through the trainer's model and the reloaded one.

The reloaded one is a plain `PeftModel` on a base of its own, from the exported folder; the read-out is the same code.
"""

from __future__ import annotations

import gc
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luthier.data.table import read_table
from luthier.evaluate.verdicts import Judge
from luthier.exporting.kinds import Subject
from luthier.exporting.receipt import FORMS, PROMPTS, heading, not_run
from luthier.files import sha256_bytes
from luthier.models.adapters import read
from luthier.models.encode import PromptEncoder, encode_rows
from luthier.models.load import Base, load_base
from luthier.models.package import NAME
from luthier.models.text_base import tokenizer_digest
from luthier.models.tokens import add_learned_tokens
from luthier.models.verdict import HEAD, VerdictModel
from luthier.models.verdict_features import verdict_features
from luthier.recipe import Recipe
from luthier.runtime.devices import Devices
from luthier.schema import Row, canonical
from luthier.stages.prepare import build_model

Probabilities = NDArray[np.float64]


@dataclass(frozen=True)
class Recordings:
    """What is judged: held-out rows, and the bytes of the media that they refer to."""

    rows: Sequence[Row]
    data: Mapping[str, bytes]

    @classmethod
    def of(cls, subject: Subject) -> Recordings:
        """Up to 20 of those that the run held out."""
        table = read_table(subject.run.data)
        rows = [item.row for item in table.select(subject.recipe.data.test, "test")[:PROMPTS]]
        return cls(rows, {row.media[0]: table.media_bytes(row.media[0]) for row in rows})


@dataclass(frozen=True)
class Trained:
    """What the trainer's model said."""

    p_pass: Probabilities
    tokenizer_sha256: str


def trainer_verdicts(subject: Subject, asked: Recordings) -> Trained:
    """The model as the run evaluates it. Its memory is given back."""
    recipe = replace(subject.recipe, train=replace(subject.recipe.train, gradient_checkpointing=False))
    base, model, _, _ = build_model(recipe, recipe.seed)
    model.load(subject.folder)
    found = Trained(judged(base, model, recipe, asked), tokenizer_digest(base.tokenizer))
    del base, model
    gc.collect()
    return found


def adapter_verdicts(subject: Subject, folder: Path, asked: Recordings) -> Probabilities:
    """The exported adapter's folder, reloaded."""
    base, model = reloaded_judge(subject, folder)
    found = judged(base, model, subject.recipe, asked)
    del base, model
    gc.collect()
    return found


def compare_verdicts(here: Probabilities, trained: Trained) -> dict[str, Any]:
    """How a form differs from the trainer's."""
    return {
        "ran": True,
        "recordings": len(here),
        "p_pass": here.tolist(),
        "recordings_that_differ": int(((here > 0.5) != (trained.p_pass > 0.5)).sum()),
        "max_p_gap": float(np.abs(here - trained.p_pass).max(initial=0.0)),
    }


def verdict_receipt(
    subject: Subject, asked: Recordings, trained: Trained, forms: Mapping[str, dict[str, Any]]
) -> dict[str, Any]:
    """The whole receipt. `forms`: what `compare_verdicts` gave, by FORMS."""
    references = [row.media[0] for row in asked.rows]
    return {
        **heading(subject),
        "recordings": {
            "count": len(references),
            "origin": f"held-out rows of {subject.recipe.name}",
            "sha256": sha256_bytes(canonical(references).encode()),
        },
        "tokenizer_sha256": trained.tokenizer_sha256,
        "forms": {name: forms.get(name) or not_run("not part of this export") for name in FORMS},
    }


def reloaded_judge(subject: Subject, folder: Path) -> tuple[Base, VerdictModel]:
    """The exported adapter on a base of its own by plain `PeftModel`, with the run's read-out."""
    from peft import PeftModel
    from safetensors.torch import load_file

    recipe = subject.recipe
    base = load_base(recipe.model)
    add_learned_tokens(base.tokenizer, base.model, recipe.model.learned_tokens)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of ties that our folders save whole
        tuned = PeftModel.from_pretrained(base.model, str(folder)).eval()
    model = VerdictModel(tuned, base.family, recipe.task, read(folder / NAME)["answers"])
    if model.head is not None:
        model.head.load_state_dict(load_file(str(folder / HEAD)))
    return base, model


def judged(base: Base, model: VerdictModel, recipe: Recipe, asked: Recordings) -> Probabilities:
    """p_pass of each recording, in order."""
    devices = Devices(recipe.model.dtype)
    devices.place(model)
    with tempfile.TemporaryDirectory(prefix="luthier-receipt-") as scratch:
        data = asked.data.__getitem__
        store, spelled = verdict_features(base, recipe, asked.rows, data, Path(scratch), frozen=False)
        examples, _ = encode_rows(asked.rows, PromptEncoder.of(base, recipe), spelled, lambda row: (0.0, 0))
        judge = Judge(model, store, devices, base.tokenizer.pad_token_id, batch_size=1)
        return judge(examples, "receipt").p_pass
