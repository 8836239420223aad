"""The card of a stage's model: front matter for the hub, and what a reader must know, from the run's records alone.

What the records lack is said to be unknown. This module refuses to know models, and writes no file; what each section
says is in `cardparts`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from luthier.outcome import cardparts
from luthier.outcome.cardparts import Told, headline, plain
from luthier.outcome.cards import exam_card
from luthier.outcome.exams.view import of_stage
from luthier.outcome.pagerecords import Json, Records
from luthier.recipefile import read_tree, resolve, stage_recipes

_LIBRARY = {"adapter": "peft", "quantized": "gguf"}
_BESIDE = ("before.", "gain.", "constant.", "over_constant.")
"""Scores of what the model is held against."""


def model_card(stage: Path, repo: str = "", relation: str = "adapter", receipt: Mapping[str, Any] | None = None) -> str:
    """README.md of the model of RUN/stages/NAME, as Markdown with YAML front matter.

    `relation` to its base: adapter, finetune (merged), quantized. `receipt`: receipt.json of an export. Equal records
    give equal cards.
    """
    told = _read(stage, repo, relation)
    parts = [
        f"# {plain(repo.rpartition('/')[2] or f'{told.recipe.name} {told.name}')}",
        cardparts.what_part(told),
        cardparts.use_part(told),
        cardparts.reading_part(told),
        cardparts.form_part(told),
        cardparts.data_part(told),
        cardparts.scores_part(told),
        told.exams,
        cardparts.receipt_part(receipt),
        cardparts.limits_part(told),
    ]
    return front_matter(stage, told) + "\n\n".join(part.strip() for part in parts if part) + "\n"


def front_matter(stage: Path, told: Told) -> str:
    """The YAML block between two lines of ---, as huggingface_hub writes it; its keys are the hub's."""
    from huggingface_hub.repocard_data import ModelCardData

    recipe = told.recipe
    hubs = told.hubs([name for one in (*told.earlier.values(), recipe) for name in one.data.train])
    tuning = "dora" if recipe.model.lora.use_dora else recipe.model.tuning
    results = _results(stage, told)
    data = ModelCardData(
        base_model=told.base or None,
        base_model_relation=told.relation if told.base else None,
        library_name=_LIBRARY.get(told.relation, "transformers"),
        pipeline_tag=_task(told),
        license=recipe.publish.license or None,
        datasets=hubs or None,
        tags=["luthier", recipe.task.kind, tuning],
        model_name=(told.repo or f"{recipe.name}-{told.name}") if results else None,
        eval_results=results or None,
    )
    return f"---\n{data.to_yaml()}\n---\n\n"


def _task(told: Told) -> str:
    """The hub's word for what the model does."""
    if told.verdict:
        return "audio-classification"
    return "image-text-to-text" if told.sees else "text-generation"


def _results(stage: Path, told: Told) -> list[Any]:
    """model-index: the scores, and each exam. An interval has no key there, so it stands in the metric's name."""
    from huggingface_hub.repocard_data import EvalResult

    def result(name: str, place: str, figure: Json, title: str) -> Any:
        interval = "" if figure["low"] is None else f", 95% interval {figure['low']:.4g} to {figure['high']:.4g}"
        return EvalResult(
            task_type=_task(told),
            dataset_type=place,
            dataset_name=title,
            dataset_split="test",
            metric_type=name,
            metric_value=round(figure["value"], 6),
            metric_name=f"{name}{interval}, n = {figure['n']}",
        )

    tested = told.recipe.data.test
    hubs = told.hubs(tested)
    title, place = ", ".join(tested) or "held-out rows", hubs[0] if len(hubs) == 1 else "private"
    own = [one for one in headline(told.scores) if not one[0].startswith(_BESIDE)]
    found = [result(name, place, figure, title) for name, figure in own]
    for view in of_stage(Records(stage)):
        if view.picked:
            found.append(result("accuracy", "exam", view.picked.accuracy, view.name))
    return found


def _read(stage: Path, repo: str, relation: str) -> Told:
    run = stage.parent.parent
    records, whole = Records(stage), Records(run)
    stages = stage_recipes(resolve(read_tree(run / "recipe.yaml"), []))
    manifest = whole.document("data/manifest.json")
    earlier, name = {}, stages[stage.name].start_from
    while name in stages and name not in earlier:
        earlier[name], name = stages[name], stages[name].start_from
    return Told(
        stage.name,
        repo,
        relation,
        stages[stage.name],
        dict(reversed(earlier.items())),
        whole.document("run.json"),
        records.document("stage.json"),
        records.document("scores.json"),
        manifest.get("sources", {}),
        records.document("adapter/verdict.json"),
        exam_card(stage),
        (*records.notes, *whole.notes),
    )
