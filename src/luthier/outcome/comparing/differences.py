"""What differs between runs besides their scores: settings, data, software, cost; and whether losses may be compared.

Training losses of two runs are one curve's business only where both learned the same rows, masked and weighed alike:
else the loss has another floor, and a lower curve says nothing. Nothing is computed from a model here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from luthier.outcome.comparing.runrecords import Json, RunStage
from luthier.recipefile import to_tree

MISSING = "not recorded"
Read = Callable[[RunStage], Any]


def settings(runs: Sequence[RunStage]) -> list[Json]:
    """Keys of the recipe in which the runs differ, each with a value a run: {"key", "values"}.

    A source or an exam that some run has not is one line, and not one for each of its keys.
    """
    columns = [dict(_flat(to_tree(run.recipe))) for run in runs]
    for prefix in ("data.sources.", "evaluate.exams."):
        names: list[set[str]] = [
            {key.removeprefix(prefix).split(".")[0] for key in own if key.startswith(prefix)} for own in columns
        ]
        for name in sorted({name for own in names for name in own if not all(name in other for other in names)}):
            for own in columns:
                parts = {key: own.pop(key) for key in list(own) if key.startswith(f"{prefix}{name}.")}
                if parts:
                    own[prefix + name] = (
                        parts.get(f"{prefix}{name}.path") or parts.get(f"{prefix}{name}.hub") or "there"
                    )
    return _differing(columns, "not there")


def origins(runs: Sequence[RunStage]) -> list[Json]:
    """The same of what the runs were made from and with: data, base, versions, machine."""
    return _differing([dict(_origin(run)) for run in runs])


def costs(runs: Sequence[RunStage]) -> list[Json]:
    """What each run took, one mapping a run; None where its records do not say."""
    return [_cost(run) for run in runs]


def scores(runs: Sequence[RunStage]) -> list[Json]:
    """scores.json of every run, by key: {"key", "values"}; each is over the run's own held-out items."""
    keys = list(dict.fromkeys(key for run in runs for key, value in run.scores.items() if _is_score(value)))
    return [{"key": key, "values": [run.scores.get(key) for run in runs]} for key in keys]


def _is_score(value: Any) -> bool:
    """Means by grade and losses by source lie beside the scores."""
    return isinstance(value, dict) and "value" in value


def loss_classes(runs: Sequence[RunStage]) -> tuple[list[list[str]], list[str]]:
    """Labels of runs whose training losses may be laid over one another, and why the others may not.

    Every run is in one class; a class of one is compared with nothing, and so is a run whose records do not say all.
    A reason is a sentence of one fact.
    """
    facts = [{what: read(run) for what, read in _floor(run.kind)} for run in runs]
    classes: list[tuple[Json, list[str]]] = []
    for run, own in zip(runs, facts, strict=True):
        known = MISSING not in own.values()
        mine = next((labels for first, labels in classes if known and first == own), None)
        if mine is None:
            classes.append((own, [run.label]))
        else:
            mine.append(run.label)
    unknown = {what for own in facts for what, value in own.items() if value == MISSING}
    reasons = [
        f"{what}: " + ", ".join(f"{shortened(own[what])} in {run.label}" for own, run in zip(facts, runs, strict=True))
        for what in facts[0]
        if what in unknown or any(own[what] != facts[0][what] for own in facts)
    ]
    return [labels for _, labels in classes], reasons


def recipes(runs: Sequence[RunStage]) -> dict[str, int]:
    """Label -> number of its recipe. Runs of one number were made from the same files, base and settings, and differ
    by nothing but their seed: what differs in their scores is chance in training."""
    keys = [_recipe(run) for run in runs]
    return {run.label: keys.index(key) for run, key in zip(runs, keys, strict=True)}


def _recipe(run: RunStage) -> tuple[Json, Any, Any]:
    """Where files lie is no matter where their digests are known; nor is who watches, and where it is published."""
    read = {name: source.get("files_read") for name, source in (run.table.get("sources") or {}).items()}
    own = {
        key: value
        for key, value in _flat(to_tree(run.recipe))
        if key != "seed"
        and key.partition(".")[0] not in ("track", "publish")
        and not (read and key.startswith("data.sources.") and key.endswith(".path"))
    }
    return own, read, run.about.get("base_sha256")


def _floor(kind: str) -> list[tuple[str, Read]]:
    """What decides the loss of a row, whatever the weights of the model are."""
    common: list[tuple[str, Read]] = [
        ("training rows", lambda run: run.training_rows or MISSING),
    ]
    if kind == "verdict":
        return [
            *common,
            ("rows held back for validation", _held_back),
            ("base and its tokenizer", lambda run: run.about.get("base_sha256", MISSING)),
            ("target", lambda run: asdict(run.recipe.task.target)),
            ("scale", lambda run: asdict(run.recipe.task.scale)),
            ("prompt", lambda run: [run.recipe.task.instruction, run.recipe.task.answers]),
            *((f"task.{name}", _task(name)) for name in ("event", "readout", "mass_weight", "ranking_weight")),
        ]
    return [
        *common,
        ("tokenizer and chat template", lambda run: run.adapter.get("tokenizer_sha256", MISSING)),
        ("added tokens", lambda run: run.adapter.get("added_tokens", MISSING)),
        ("tokens and mask of the rows", lambda run: run.about.get("lessons_sha256", MISSING)),
        *((f"train.{name}", _train(name)) for name in ("packing", "truncation", "label_smoothing")),
        ("mixture of sources", _mixture),
    ]


def _held_back(run: RunStage) -> Any:
    """Graded rows are split by the seed when a stage is prepared."""
    fraction = run.recipe.data.validation_fraction
    return f"{fraction:g} by seed {run.recipe.seed}" if fraction else "none"


def _mixture(run: RunStage) -> Any:
    """How often each source's rows come; the seed decides only their order."""
    found = run.table.get("mixing")
    return MISSING if found is None else {key: value for key, value in found.items() if key != "seed"}


def _task(name: str) -> Read:
    return lambda run: getattr(run.recipe.task, name)


def _train(name: str) -> Read:
    return lambda run: getattr(run.recipe.train, name)


def _origin(run: RunStage) -> Iterator[tuple[str, Any]]:
    hashes, table = run.manifest.get("hashes", {}), run.table
    yield "data: digest of the table", hashes.get("data", MISSING)
    yield "data: training rows, in any order", run.training_rows or MISSING
    yield "data: rows", table.get("rows", MISSING)
    for split, count in (table.get("splits") or {}).items():
        yield f"data: {split} rows", count
    for name, source in (table.get("sources") or {}).items():
        yield f"data: rows kept of {name}", source.get("kept", MISSING)
    yield "base: digest", run.about.get("base_sha256", MISSING)
    yield "tokenizer and chat template", run.adapter.get("tokenizer_sha256", MISSING)
    for what in ("versions", "machine"):
        yield from ((f"{what}: {name}", value) for name, value in (run.manifest.get(what) or {}).items())


def _cost(run: RunStage) -> Json:
    trained, last = run.trained, run.metrics[-1] if run.metrics else {}
    seconds, tokens = trained.get("seconds"), trained.get("tokens", last.get("tokens"))
    return {
        "run": run.label,
        "seconds": seconds,
        "steps": trained.get("steps"),
        "epochs": trained.get("epochs"),
        "tokens": tokens,
        "tokens_per_second": tokens / seconds if seconds and tokens else None,
        "peak_memory": run.about.get("peak_memory"),
        "trainable_parameters": run.about.get("trainable_parameters"),
        "total_parameters": run.about.get("total_parameters"),
    }


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of a tree under dotted keys; the recipe's other stages and its name are none of a stage's settings."""
    for key, item in value.items():
        if isinstance(item, dict) and item:
            yield from _flat(item, f"{prefix}{key}.")
        elif prefix or key not in ("stages", "name"):
            yield f"{prefix}{key}", item


def _differing(columns: Sequence[Mapping[str, Any]], missing: str = MISSING) -> list[Json]:
    keys = list(dict.fromkeys(key for column in columns for key in column))
    lines = [{"key": key, "values": [column.get(key, missing) for column in columns]} for key in keys]
    return [line for line in lines if any(value != line["values"][0] for value in line["values"])]


def shortened(value: Any) -> str:
    """A value as a person reads it; digests by their beginning."""
    text = str(value)
    return text[:12] if len(text) == 64 and " " not in text else text
