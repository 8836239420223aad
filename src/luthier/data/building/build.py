"""Builds a table: every source to a stage, duplicates over the stages, splits, balance, shards, manifest, ledger.

Knows the order of the work and what depends on what; refuses to know formats, steps and how duplicates are found.
A table that is there already and was made from the same things is used as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from luthier import files
from luthier.console import say
from luthier.data.building.decide import decide
from luthier.data.building.ingest import ingest
from luthier.data.building.layout import lay_out
from luthier.data.building.mixture import MANIFEST, Mixture, mixture_of, read_mixture
from luthier.data.building.outcomes import outcomes
from luthier.data.building.request import TableRequest
from luthier.data.building.shards import write_shards
from luthier.data.building.stage import EVENTS, Stage
from luthier.data.building.stagecache import TOUCHED, StageCache, stage_key, untouched
from luthier.data.ledger import Counts, Ledger, read_events
from luthier.errors import ExistsError

LEDGER = "ledger.jsonl"


@dataclass(frozen=True)
class Built:
    """A table on disk, the sums of its ledger, and how its sources are mixed (None for graded rows)."""

    folder: Path
    ledger: Ledger
    mixture: Mixture | None
    manifest: dict[str, Any]
    reused: bool = False


def build(request: TableRequest, folder: Path, cache: Path | None = None) -> Built:
    """Build a table in `folder`, all or nothing; stages are kept in `cache` where one is given.

    Raises SourceError for a source that cannot be read, DataError where a source has no usable row, ExistsError where
    `folder` holds something else than the table that would be built.
    """
    if folder.exists() and not (folder / MANIFEST).is_file():
        raise ExistsError(f"{folder}: exists already, and is no table", "name another folder")
    if folder.parent.is_dir():
        files.remove_leftovers(folder.parent, f"{folder.name}-", seconds=24 * 3600.0)
    stages_at = StageCache(cache, beside=folder.parent)
    try:
        stages = [ingest(source, split, request, stages_at) for source, split in request.sources]
        key = stage_key(request.table_key([stage.key for stage in stages]))
        if folder.exists():
            return _existing(folder, key)
        about: dict[str, Any] = {"format": 2, "inputs": key}
        with files.atomic_folder(folder, about, MANIFEST) as place:
            ledger, mixture = _fill(place, stages, request, stages_at, about)
        return Built(folder, ledger, mixture, about)
    finally:
        stages_at.close()


def _existing(folder: Path, key: str) -> Built:
    manifest = files.read_json(folder / MANIFEST)
    if manifest.get("inputs") != key or not untouched(folder):
        raise ExistsError(f"{folder}: exists already, made from other sources or settings", "name another folder")
    wrong = files.verify_folder(folder, MANIFEST)
    if wrong:
        raise ExistsError(f"{folder}: exists already, and {wrong}", "remove it, or name another folder")
    say(f"{folder} is up to date: nothing it was made from has changed")
    ledger = Ledger()
    for line in read_events(folder / LEDGER):
        if "in" not in line:
            break
        ledger.counts[line["source"]] = Counts.from_json(line)
    return Built(folder, ledger, read_mixture(folder), manifest, reused=True)


def _fill(
    place: Path, stages: Sequence[Stage], request: TableRequest, cache: StageCache, about: dict[str, Any]
) -> tuple[Ledger, Mixture | None]:
    decisions = decide(stages, request, cache)
    layout = lay_out(stages, decisions, request)
    ledger, events = Ledger(), place / ".events"
    with events.open("wb") as stream:
        stream.writelines(outcomes(decisions, layout, ledger))
    about |= write_shards(layout, place)
    ledger.write(place / LEDGER, _all_events(stages, events))
    events.unlink()
    mixing = _mixing(request)
    mixture = mixture_of(place, mixing) if mixing else None
    about |= {
        "splits": layout.counts(),
        "classes": layout.classes,
        "mixing": mixing,
        "mix": mixture.plan.to_json() if mixture else {},
        "sources": {stage.source: _source(stage, ledger) for stage in stages},
        "steps": request.steps_key(),
        "duplicates": {**asdict(request.duplicates), "found": decisions.summary},
        "seed": request.seed,
    }
    _carry_touched(stages, place)
    return ledger, mixture


def _source(stage: Stage, ledger: Ledger) -> dict[str, Any]:
    """What the manifest says of a source: what it is, and what became of its records."""
    return {**stage.about, "split": stage.split, **ledger.counts[stage.source].to_json()}


def _mixing(request: TableRequest) -> dict[str, Any]:
    """What the manifest keeps of how training rows are mixed; nothing for graded rows."""
    if request.graded:
        return {}
    train = [source for source, split in request.sources if split == "train"]
    # A list: an order of epochs depends on that of the sources, and a manifest's keys are sorted.
    shares = [{"name": s.name, "weight": s.weight, "cap": s.cap, "epochs": s.epochs} for s in train]
    return {**asdict(request.mix), "seed": request.seed, "sources": shares}


def _all_events(stages: Sequence[Stage], late: Path) -> Iterator[bytes]:
    for path in (*(stage.folder / EVENTS for stage in stages), late):
        with path.open("rb") as stream:
            yield from stream


def _carry_touched(stages: Sequence[Stage], place: Path) -> None:
    """The media files that the stages were read from, so that a change of one is seen later."""
    found = [
        item
        for stage in stages
        if (stage.folder / TOUCHED).is_file()
        for item in files.read_json(stage.folder / TOUCHED)
    ]
    if found:
        (place / TOUCHED).write_bytes(orjson.dumps(found))
