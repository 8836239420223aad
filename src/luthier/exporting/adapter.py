"""A stage's adapter as a folder that plain `peft` loads: the weights, their settings, the tokenizer, a card.

What was the run's alone stays behind: optimizer, state of the training, places on this machine. Names beside those of
PEFT (verdict.json, adapter_base.json) are ignored by it. This module loads no weights.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from luthier import __version__
from luthier.console import say
from luthier.errors import CheckpointError
from luthier.exporting.kinds import Subject, base_name, is_place
from luthier.files import MANIFEST, read_json, verify_folder, write_json, write_text
from luthier.models import adapters, package
from luthier.models.tokens import soft_prompt_names
from luthier.models.verdict import HEAD

READING = "reading.json"
"""How a verdict is asked for and read: what verdict.json does not say."""
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
_COPIED = (adapters.WEIGHTS, HEAD)


def about(subject: Subject, kind: str) -> dict[str, Any]:
    """What a manifest says beside the digests."""
    found = {"luthier": __version__, "kind": kind, "run": subject.run.path.resolve().name, "stage": subject.name}
    return {**found, "step": subject.step}


def fill_adapter(subject: Subject, folder: Path, base: str = "") -> list[str]:
    """Write the adapter's files into a folder that is being filled. Returns what is to be said of it."""
    wrong = verify_folder(subject.folder)
    if wrong is not None:
        raise CheckpointError(f"{subject.folder}: {wrong}", "take the folder from its origin again")
    for name in _COPIED:
        if (subject.folder / name).is_file():
            shutil.copyfile(subject.folder / name, folder / name)
    for name in TOKENIZER:
        # A checkpoint has no tokenizer of its own; the stage's does not change.
        if (subject.stage.adapter / name).is_file():
            shutil.copyfile(subject.stage.adapter / name, folder / name)
    name, note = base_name(subject, base)
    settings = read_json(subject.folder / adapters.CONFIG)
    revision = subject.recipe.model.revision if not is_place(subject.recipe.model.base) else ""
    settings |= {"base_model_name_or_path": name, "revision": settings.get("revision") or revision or None}
    write_json(folder / adapters.CONFIG, settings)
    notes = [note] if note else []
    if subject.of_text:
        facts = read_json(subject.folder / adapters.FACTS)
        write_json(folder / adapters.FACTS, {**facts, "name": name})
    else:
        notes += _fill_verdict(subject, folder, name)
    return notes


def _fill_verdict(subject: Subject, folder: Path, base: str) -> list[str]:
    stored = read_json(subject.stage.adapter / package.NAME)
    notes = []
    if subject.step is not None:
        stored["calibration"] = {**stored["calibration"], "temperature": 1.0, "accepted": False}
        notes.append(f"{subject.folder.name}: the calibration is of the final adapter, so this one goes without")
    write_json(folder / package.NAME, {**stored, "base": base})
    write_json(folder / READING, {**reading(subject), "dtype": subject.recipe.model.dtype})
    return notes


def reading(subject: Subject) -> dict[str, Any]:
    """How a verdict's prompt is written, and which recordings are taken."""
    task, learned, limits = subject.recipe.task, subject.recipe.model.learned_tokens, subject.recipe.data.limits
    return {
        "instruction": task.instruction,
        "soft_prompt": soft_prompt_names(learned),
        "readout_token": learned.readout,
        "scale": [task.scale.minimum, task.scale.maximum, task.scale.step, task.scale.pass_mark],
        "seconds": [limits.minimum_seconds, limits.maximum_seconds],
        "silence_peak": limits.silence_peak,
    }


def write_card(
    subject: Subject, folder: Path, relation: str, repo: str = "", receipt: Mapping[str, Any] | None = None
) -> None:
    """README.md: the stage's card, with the receipt on it; the receipt itself beside it as receipt.json."""
    from luthier.outcome.modelcard import model_card

    if receipt is not None:
        write_json(folder / "receipt.json", receipt)
    write_text(folder / "README.md", model_card(subject.stage.path, repo=repo, relation=relation, receipt=receipt))


def tell(out: Path, notes: list[str]) -> None:
    """Say what was made, and what is to be known of it.

    Whoever may read its manifest may read all of it: safetensors writes for its owner alone, whatever the umask, and a
    container that runs as somebody else could not load the weights.
    """
    usual = (out / MANIFEST).stat().st_mode
    for item in out.rglob("*.safetensors"):
        item.chmod(usual)
    for note in notes:
        say(f"note: {note}")
    say(f"{out}: {sum(item.stat().st_size for item in out.rglob('*') if item.is_file()):,} bytes, sealed by {MANIFEST}")
