"""The models of a Space: their names, where their files are, and what must be known to ask each of them.

Files that no hub has are put into the Space's folder. Knows no page and no requirements.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from luthier.engines.torch_verdict import find_zone
from luthier.exporting.adapter import fill_adapter, reading
from luthier.exporting.kinds import ExportRequest, Subject
from luthier.files import read_json
from luthier.models import adapters, package
from luthier.models.chat import ChatTemplate, load_tokenizer
from luthier.models.tokens import GROWTH

ANSWER_TOKENS = 512
CONTEXT = 4096
"""Tokens that a GGUF is given room for: memory for more is taken from the weights on a small host."""
WHISPER = "base"


def name_of(subject: Subject) -> str:
    """RUN/STAGE, or RUN/STAGE@step-000050, as a page shows it."""
    step = f"@{subject.folder.name}" if subject.step else ""
    return f"{subject.run.path.resolve().name}/{subject.name}{step}"


def sources(
    request: ExportRequest, subjects: Sequence[Subject], folder: Path, notes: list[str]
) -> list[tuple[Subject, dict[str, Any]]]:
    """Each model with its name and where its adapter is; adapters that no hub has are put into the folder."""
    found = []
    for number, subject in enumerate(subjects):
        label = re.sub(r"[^A-Za-z0-9._-]+", "-", subject.label).strip("-.") or "model"
        source = request.from_hub[number] if request.from_hub else f"models/{number + 1}-{label}"
        if not request.from_hub:
            place = folder / source
            place.mkdir(parents=True)
            notes += [note for note in fill_adapter(subject, place, request.base_name) if note not in notes]
        found.append((subject, {"name": name_of(subject), "source": source, "revision": ""}))
    return found


def chat_settings(subject: Subject) -> dict[str, Any]:
    """What all models of a Space that chats share. Raises RequestError where there is no chat template."""
    tokenizer = load_tokenizer(str(subject.stage.adapter))
    template = ChatTemplate.of(tokenizer)
    template.require_chats()
    added = adapters.read(subject.folder / adapters.FACTS).get("added_tokens", {})
    most = max(map(int, added.values()), default=-1) + 1
    stops = {template.stop, tokenizer.eos_token_id} - {None}
    return {
        "rows": -(-most // GROWTH) * GROWTH,
        "stop_ids": sorted(int(token) for token in stops if token is not None),
        "content_as_parts": not template.takes_strings,
        "max_new_tokens": ANSWER_TOKENS,
        "whisper": WHISPER,
    }


def judges(request: ExportRequest, subjects: Sequence[Subject], folder: Path, notes: list[str]) -> list[dict[str, Any]]:
    """Each model that judges, with how it is asked and read. A checkpoint has no calibration and no zone."""
    found = []
    for subject, said in sources(request, subjects, folder, notes):
        recipe, stored = subject.recipe, read_json(subject.stage.adapter / package.NAME)
        zone = None if subject.step else find_zone(subject.stage, recipe.task.scale)
        about = {
            "readout": recipe.task.readout,
            "event": recipe.task.event,
            "answers": stored["answers"],
            "temperature": 1.0 if subject.step else stored["calibration"].get("temperature", 1.0),
            "max_tokens": recipe.model.max_tokens,
            "zone": asdict(zone) if zone else None,
        }
        found.append({**said, **reading(subject), **about})
    return found


def ggufs(
    request: ExportRequest, subjects: Sequence[Subject], folder: Path, models: list[dict[str, Any]], notes: list[str]
) -> dict[str, Any]:
    """Put a GGUF of each model beside its tokenizer, in place of its adapter."""
    from luthier.exporting.gguf_export import space_gguf

    stops: set[int] = set()
    for subject, model in zip(subjects, models, strict=True):
        if request.from_hub:
            model["file"] = f"{subject.label}-{request.type}.gguf"
            continue
        place = folder / model["source"]
        model["file"], more = space_gguf(request, subject, place, notes)
        stops.update(more)
        for name in (adapters.WEIGHTS, adapters.CONFIG, adapters.FACTS):
            (place / name).unlink()
    return {"context": CONTEXT, **({"stop_ids": sorted(stops)} if stops else {})}
