"""The held-out answers of a chat stage: how likely they are before and after training, and the stage's record."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luthier.assess.metrics import bootstrap_ci
from luthier.console import say
from luthier.errors import LuthierError
from luthier.evaluate.answers import AnswerLosses, answer_losses
from luthier.files import read_jsonl, sha256_file, write_json, write_jsonl
from luthier.models import adapters
from luthier.models.lessons import Lessons
from luthier.recipe import Recipe
from luthier.records import ChatStageRecord
from luthier.rundir import RunDir, StageDir
from luthier.runtime.memory import measured_peak
from luthier.stages.chat_prepare import PreparedChat
from luthier.stages.chat_rows import rows_at
from luthier.stages.chat_samples import ask_after
from luthier.stages.describe_judge import Describing

Figures = NDArray[np.float64]


@dataclass(frozen=True)
class HeldOut:
    """What the scores of R held-out rows are made of."""

    id: list[str]
    source: list[str]
    group: list[str]
    bytes_R: NDArray[np.float64]
    """UTF-8 bytes of the text that the targets spell, each as its token weighs."""
    targets_R: NDArray[np.int64]
    """How many tokens are targets."""
    before: AnswerLosses
    after: AnswerLosses


def score_before(ready: PreparedChat, stage: StageDir) -> None:
    """Score the held-out rows before the stage is trained, once; a resumed run reads what was written."""
    if ready.held_out is None or stage.before.is_file():
        return
    found = answer_losses(
        ready.model, ready.held_out, ready.layout, ready.devices, "scoring before training", ready.supply
    )
    rows = zip(ready.held_out.names, found.sum_R.tolist(), found.weight_R.tolist(), strict=True)
    write_jsonl(stage.before, ({"id": name, "nll": nll, "weight": weight} for name, nll, weight in rows))


def judge_chat(
    ready: PreparedChat,
    run: RunDir,
    stage: StageDir,
    recipe: Recipe,
    describing: Describing | None,
    trained: dict[str, Any],
) -> None:
    """Predictions and scores of the held-out rows; stage.json last."""
    held_out = _held_out(ready, run, stage)
    if held_out is None:
        if ready.exams is None:
            say("no held-out rows: give data.test or data.validation_fraction, or nothing says whether it learned")
        found: dict[str, Any] = {}
    else:
        found = scores(held_out, recipe)
        ask_after(ready, run, stage, recipe)
    losses = [] if held_out is None else _predictions(held_out)
    if recipe.task.kind == "exam" and ready.exams is not None:  # its held-out items are those of its exams
        write_jsonl(stage.held_out, losses)
        write_jsonl(stage.predictions, ready.exams.predictions(trained["kept_step"]))
        found |= ready.exams.scores(trained["kept_step"])
    elif describing is not None:
        described, described_scores = describing.judge(stage)
        write_jsonl(stage.held_out, losses)
        write_jsonl(stage.predictions, described)
        found |= described_scores
    else:
        write_jsonl(stage.predictions, losses)
    write_json(stage.scores, found)
    lessons = ready.lessons
    write_json(
        stage.record,
        ChatStageRecord(
            name=stage.path.name,
            start_from=recipe.start_from,
            base=ready.base.name,
            trained=trained,
            trainable_parameters=sum(p.numel() for _, p in ready.model.tuned()),
            total_parameters=sum(p.numel() for p in ready.model.parameters()),
            rows=len(lessons),
            tokens=len(lessons.ids_T),
            target_tokens=lessons.target_tokens,
            dropped_at_encoding=lessons.about["dropped"],
            dropped_first=lessons.about["first"],
            shortened=lessons.about["shortened"],
            unstopped=lessons.about["unstopped"],
            tokens_per_second=round(trained["tokens"] / max(trained["seconds"], 1e-6), 1),
            peak_memory=measured_peak(ready.devices.device),
            adapter_sha256=sha256_file(stage.adapter / adapters.WEIGHTS),
            base_sha256=ready.base.digest,
            tokenizer_sha256=ready.base.tokenizer_digest,
            lessons_sha256=lessons.digest(),
            packing=recipe.train.packing,
            kind=recipe.task.kind,
            architecture=adapters.bare(ready.model.language_model).config.model_type,
        ).to_json(),
    )


def _held_out(ready: PreparedChat, run: RunDir, stage: StageDir) -> HeldOut | None:
    lessons = ready.held_out
    if lessons is None:
        return None
    before = {row["id"]: row for row in read_jsonl(stage.before)}
    strangers = sorted(set(before) ^ set(lessons.names))
    if strangers:
        raise LuthierError(
            f"{stage.before}: {len(strangers)} rows are not those that are held out now, such as {strangers[0]}",
            "the table or the tokenizer changed since the run began: begin a new run",
        )
    after = answer_losses(ready.model, lessons, ready.layout, ready.devices, "scoring after training", ready.supply)
    rows = [item.row for _, item in rows_at(run.data, lessons.numbers)]
    return HeldOut(
        lessons.names,
        [row.provenance.source for row in rows],
        [row.group for row in rows],
        weighed_bytes(lessons, ready.base.tokenizer),
        np.array([np.count_nonzero(lessons[i].weight_L) for i in range(len(lessons))]),
        AnswerLosses(*(np.array([before[name][key] for name in lessons.names]) for key in ("nll", "weight"))),
        after,
    )


def weighed_bytes(lessons: Lessons, tokenizer: Any) -> NDArray[np.float64]:
    """UTF-8 bytes of each row's targets, each as its token weighs."""
    found = []
    for lesson in (lessons[i] for i in range(len(lessons))):
        edges = [0, *(np.flatnonzero(np.diff(lesson.weight_L)) + 1).tolist(), len(lesson.ids_L)]
        total = 0.0
        for begin, end in pairwise(edges):  # stretches of one weight: an answer is one
            if lesson.weight_L[begin]:
                text = tokenizer.decode(lesson.ids_L[begin:end].tolist(), skip_special_tokens=True)
                total += float(lesson.weight_L[begin]) * max(1, len(text.encode()))
        found.append(total)
    return np.array(found)


def _predictions(items: HeldOut) -> list[dict[str, Any]]:
    return [
        {
            "id": items.id[i],
            "source": items.source[i],
            "group": items.group[i],
            "nll": float(items.after.sum_R[i]),
            "nll_before": float(items.before.sum_R[i]),
            "weight": float(items.after.weight_R[i]),
            "target_tokens": int(items.targets_R[i]),
            "target_bytes": float(items.bytes_R[i]),
        }
        for i in range(len(items.id))
    ]


def scores(items: HeldOut, recipe: Recipe) -> dict[str, Any]:
    """Loss in nats a target token, perplexity, and bits a byte, which tokenizers share; before, after, and the gain
    on the same rows, each with an interval over groups. `sources` has the losses of each source."""
    after, before, weight = items.after.sum_R, items.before.sum_R, items.after.weight_R
    bits = items.bytes_R * math.log(2.0)
    source, group = np.array(items.source), np.array(items.group)

    def score(above: Figures, below: Figures, of: NDArray[np.intp]) -> dict[str, Any]:
        interval = bootstrap_ci(
            lambda drawn: float(above[of[drawn]].sum() / below[of[drawn]].sum()),
            group[of],
            resamples=recipe.evaluate.resamples,
            seed=recipe.seed,
        )
        return {"value": float(above[of].sum() / below[of].sum()), "ci": _pair(interval), "n": len(of)}

    def losses(of: NDArray[np.intp]) -> dict[str, Any]:
        return {
            "loss": score(after, weight, of),
            "before.loss": score(before, weight, of),
            "gain.loss": score(before - after, weight, of),
        }

    everything = np.arange(len(after))
    found = losses(everything)
    loss = found["loss"]
    return {
        **found,
        "perplexity": {**loss, "value": math.exp(loss["value"]), "ci": [math.exp(x) for x in loss["ci"] or []] or None},
        "bits_per_byte": score(after, bits, everything),
        "before.bits_per_byte": score(before, bits, everything),
        "gain.bits_per_byte": score(before - after, bits, everything),
        "sources": {name: losses(np.flatnonzero(source == name)) for name in dict.fromkeys(items.source)},
    }


def _pair(interval: Sequence[float] | None) -> list[float] | None:
    return None if interval is None else list(interval)
