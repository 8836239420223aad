"""Builds a table: every source to a stage, duplicates over the stages, splits, balance, shards, manifest, ledger.

Knows the order of the work and what depends on what; refuses to know formats, steps and how duplicates are found.
A table that is there already and was made from the same things is used as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from luthier import files
from luthier.console import say
from luthier.data import balance as balancing
from luthier.data.decide import Decisions, decide
from luthier.data.ingest import EVENTS, Stage, ingest
from luthier.data.ledger import Counts, Ledger, event, read_events
from luthier.data.mixture import MANIFEST, Mixture, mixture_of, read_mixture
from luthier.data.request import TableRequest
from luthier.data.shards import Layout, write_shards
from luthier.data.split import split_of
from luthier.data.stagecache import TOUCHED, StageCache, stage_key, untouched
from luthier.errors import DataError, ExistsError
from luthier.recipe import Scale

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
    layout, labels = _lay_out(stages, decisions, request)
    held = np.array([stage.split == "test" for stage in stages])
    owner = np.repeat(np.arange(len(stages)), [stage.rows for stage in stages])
    ledger, events = Ledger(), place / ".events"
    with events.open("wb") as stream:
        for line in _outcomes(stages, decisions, layout, owner, held, ledger):
            stream.write(line)
    about |= write_shards(layout, place)
    ledger.write(place / LEDGER, _all_events(stages, events))
    events.unlink()
    mixing = _mixing(request)
    mixture = mixture_of(place, mixing) if mixing else None
    about |= {
        "splits": dict(sorted(Counter(layout.split[layout.rank >= 0].tolist()).items())),
        "classes": labels,
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


def _lay_out(
    stages: Sequence[Stage], decisions: Decisions, request: TableRequest
) -> tuple[Layout, dict[str, dict[str, int]]]:
    """Split, balance and rank every row that stays. The second value counts classes per split."""
    total = sum(stage.rows for stage in stages)
    split = np.full(total, "", dtype="<U10")
    labels, ids = np.full(total, "", dtype=object), np.zeros(total, dtype=np.uint64)
    at = 0
    for stage in stages:
        for batch in stage.batches(["id", "group", "target"]):
            hexes = "".join(batch.column("id").to_pylist())
            ids[at : at + batch.num_rows] = np.frombuffer(bytes.fromhex(hexes), dtype=">u8")
            pairs = zip(batch.column("group").to_pylist(), batch.column("target").to_pylist(), strict=True)
            for place, (group, target) in enumerate(pairs, start=at):
                label = labels[place] = label_of(target, request.balance.by, request.scale)
                split[place] = stage.split if stage.split == "test" else _split(request, group, label)
            at += batch.num_rows
    alive = decisions.into < 0
    weight, repeats = np.ones(total), np.ones(total, dtype=np.int32)
    train = np.flatnonzero(alive & (split == "train"))
    if request.balance.method:
        found = balancing.balance([str(labels[i]) for i in train], request.balance.method, request.seed)
        weight[train], repeats[train] = found.weights, found.repeats
        alive[train[~found.keep]] = False
        say(found.table())
    rank = np.full(total, -1, dtype=np.int64)
    kept = np.flatnonzero(alive)
    order = kept if request.graded else kept[np.argsort(_mixed(ids[kept], request.seed), kind="stable")]
    rank[order] = np.arange(len(order))
    classes: dict[str, Counter[str]] = {}
    for name, label in zip(split[kept], labels[kept], strict=True):
        if label:
            classes.setdefault(str(name), Counter())[str(label)] += 1
    return Layout(stages, rank, split, weight, repeats), {
        k: dict(sorted(v.items())) for k, v in sorted(classes.items())
    }


def _split(request: TableRequest, group: str, label: str) -> str:
    if not request.validation_fraction and not request.test_fraction:
        return "train"
    return split_of(request.seed, group, request.validation_fraction, request.test_fraction)


def label_of(target: str, by: str, scale: Scale) -> str:
    """The class of a row for balancing, from its target's JSON; "" where it has none."""
    if target == "{}":
        return ""
    found = orjson.loads(target)
    if by == "choice" or "grade" not in found:
        return str(found.get("choice", ""))
    grade = float(found["grade"])
    return f"{grade:g}" if by == "grade" else ("pass" if grade >= scale.pass_mark else "fail")


def _mixed(ids: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """The order of a shuffle that depends on each row's id and the seed alone (SplitMix64's finaliser)."""
    found = ids ^ np.uint64((seed * 0x9E3779B97F4A7C15) % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        found = (found ^ (found >> np.uint64(shift))) * np.uint64(factor)
    return found ^ (found >> np.uint64(31))


def _outcomes(
    stages: Sequence[Stage],
    decisions: Decisions,
    layout: Layout,
    owner: NDArray[np.int64],
    held: NDArray[np.bool_],
    ledger: Ledger,
) -> Iterator[bytes]:
    """Close the ledger's sums, and give a line for each row that was merged, or dropped after its stage."""
    found = [
        np.array(batch.column("id").to_pylist(), dtype="S16") for stage in stages for batch in stage.batches(["id"])
    ]
    ids = np.concatenate(found)
    at = 0
    for number, stage in enumerate(stages):
        counts = ledger.open(stage.source)
        counts.seen += stage.seen
        counts.dropped.update(stage.dropped)
        for batch in stage.batches(["origin"]):
            span = range(at, at + batch.num_rows)
            at = span.stop
            gone = (np.flatnonzero(layout.rank[span.start : span.stop] < 0) + span.start).tolist()
            counts.kept += batch.num_rows - len(gone)
            for i in gone:
                about = {
                    "source": stage.source,
                    "origin": batch.column("origin")[i - span.start].as_py(),
                    "id": ids[i].decode(),
                }
                rep = int(decisions.into[i])
                if rep < 0:
                    counts.dropped["balanced_away"] += 1
                    yield event(
                        {**about, "reason": "balanced_away", "detail": "its class has more rows", "step": "balance"}
                    )
                    continue
                into = {
                    "into": ids[rep].decode(),
                    "how": decisions.how_of(i),
                    "similarity": float(decisions.similarity[i]),
                }
                if held[owner[rep]] and not held[number]:
                    counts.dropped["in_test"] += 1
                    detail = f"the held-out source {stages[owner[rep]].source} has it"
                    yield event({**about, "reason": "in_test", "detail": detail, "step": "duplicates", **into})
                else:
                    counts.merged += 1
                    yield event({**about, **into})
    for stage in stages:
        if not ledger.counts[stage.source].kept:
            raise DataError(
                f"source {stage.source}: no row of it is left: {ledger.counts[stage.source].merged:,} merged, "
                f"{ledger.counts[stage.source].why()}",
                "take the source out, or loosen data.duplicates and data.steps",
            )


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
