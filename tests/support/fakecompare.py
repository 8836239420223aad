"""Records of finished runs, made up from a few figures, for comparisons that load no model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet

from luthier import files
from luthier.exam_records import ExamPrediction, ExamRecord
from luthier.outcome.compare import Scored, compare
from luthier.outcome.comparing.pairs import Drawing
from luthier.outcome.comparing.probe import default_probe, recorded_losses
from luthier.outcome.comparing.runrecords import RunStage, open_runs
from luthier.recipe import Recipe
from luthier.recipe_data import Source
from luthier.recipefile import to_yaml
from luthier.rundir import ExamDir

DIGEST = "ab" * 32
ATTACK = "<script>alert('x')</script> & more"
QUICK = Drawing(resamples=300)


@dataclass
class FakeRun:
    """What a run is made of; `rows` are (id, group, split, text), `held_out` lines of predictions.jsonl."""

    folder: Path
    recipe: Recipe
    rows: Sequence[tuple[str, str, str, str]] = ()
    held_out: Sequence[dict[str, Any]] = ()
    about: dict[str, Any] = field(default_factory=dict)
    losses: Sequence[float] = (3.0, 2.0, 1.5)

    def write(self) -> Path:
        recipe, stage = self.recipe, self.folder / "stages" / "main"
        files.write_text(self.folder / "recipe.yaml", to_yaml(recipe))
        manifest = {
            "status": "finished",
            "seed": recipe.seed,
            "hashes": {"data": DIGEST},
            "versions": {"torch": "2.15"},
        }
        files.write_json(self.folder / "run.json", {**manifest, "command": "luthier run x.yaml"})
        table = [
            {
                "id": name,
                "group": group,
                "split": split,
                "source": "chats",
                "weight": 1.0,
                "repeats": 1,
                "messages": json.dumps([{"role": "user", "content": [{"type": "text", "text": text}]}]),
            }
            for name, group, split, text in [*self.rows, ("learned", "learned", "train", "x")]
        ]
        (self.folder / "data").mkdir()
        parquet.write_table(pa.Table.from_pylist(table), self.folder / "data/rows-00000.parquet")
        sources = {"chats": {"kept": len(table), "files_read": {"chats.jsonl": recipe.data.sources["chats"].path}}}
        files.write_json(
            self.folder / "data/manifest.json", {"rows": len(table), "sources": sources, "mixing": {"seed": 1}}
        )
        files.write_jsonl(stage / "predictions.jsonl", self.held_out)
        lines = [{"step": n, "loss": loss, "tokens": 100 * n, "seconds": n} for n, loss in enumerate(self.losses, 1)]
        files.write_jsonl(stage / "metrics.jsonl", lines)
        trained = {"steps": 3, "seconds": 3.0, "tokens": 300, "epochs": 1.0}
        about = {"trained": trained, "adapter_sha256": DIGEST, "base_sha256": DIGEST, "lessons_sha256": DIGEST}
        files.write_json(
            stage / "stage.json", {**about, "peak_memory": 10**9, "trainable_parameters": 2048, **self.about}
        )
        files.write_json(stage / "adapter/adapter_base.json", {"tokenizer_sha256": DIGEST, "added_tokens": {}})
        return self.folder


def chat_recipe(path: str = "one", **keys: Any) -> Recipe:
    """A chat recipe on one source; `keys` are those of the recipe itself."""
    found = Recipe(**keys)
    found.task.kind = "chat"
    found.model.base = "toy:llama"
    found.data.sources = {"chats": Source(name="chats", path=path)}
    found.data.train = ["chats"]
    return found


def losses_of(bits: Sequence[float], size: float = 10.0) -> list[dict[str, Any]]:
    """Held-out lines of so many bits a byte each, one group a row."""
    nats = 0.6931471805599453
    return [
        {"id": f"row-{n:03}", "group": f"g{n}", "nll": value * nats * size, "target_bytes": size, "weight": 1.0}
        for n, value in enumerate(bits)
    ]


def write_exam(folder: ExamDir, correct: dict[str, Sequence[bool]], digest: str = DIGEST, **settings: Any) -> None:
    """An exam of two options each, of which candidates (by name) have these right; the first option is the answer."""
    count = len(next(iter(correct.values())))
    asked = {"method": "letters", "prompts": ["question"], **settings}
    record = ExamRecord("quiz", digest, "piqa", "0", count, [2], 0.5, 0.5, [], {}, asked)
    files.write_json(folder.exam, record.to_json())
    items = [{"id": f"q{n}", "question": f"What is {n}?", "options": ["yes", "no"], "answer": 0} for n in range(count)]
    files.write_jsonl(folder.items, items)
    for name, right in correct.items():
        sat = folder.candidate(name)
        lines = [
            ExamPrediction(f"q{n}", 0, int(not good), [-0.2, -1.7] if good else [-1.4, -0.3], bool(good))
            for n, good in enumerate(right)
        ]
        files.write_jsonl(sat.predictions, [line.to_json() for line in lines])
        files.write_json(sat.record, {"name": name})


def chat_run(folder: Path, bits: Any, **options: Any) -> Path:
    """A chat run whose held-out rows are known by so many bits a byte, and lie in its table."""
    lines = losses_of(bits)
    rows = [(line["id"], line["group"], "test", f"{ATTACK} {line['id']}") for line in lines]
    recipe = options.pop("recipe", None) or chat_recipe()
    return FakeRun(folder, recipe, [*rows, *options.pop("trained", [])], lines, **options).write()


def verdict_run(folder: Path, p: Any, grades: Any, event: str = "rater", drop: int = 0) -> Path:
    recipe = Recipe()
    recipe.model.base = "toy:phi4-multimodal"
    recipe.task.event = event
    recipe.data = chat_recipe().data
    lines = [
        {
            "id": f"a{n}",
            "group": f"s{n}",
            "grade": float(grade),
            "pass": bool(grade >= 4),
            "p_pass": float(value),
            "event": event,
        }
        for n, (value, grade) in enumerate(zip(p, grades, strict=True))
    ]
    return FakeRun(folder, recipe, (), lines[drop:]).write()


def by_records(paths: list[Path], drawing: Drawing = QUICK) -> tuple[dict[str, Any], list[RunStage]]:
    runs = open_runs(paths)
    scored = None
    if runs[0].kind == "chat":
        probe = default_probe(runs)
        scored = Scored(probe, recorded_losses(probe, runs))
    return compare(runs, scored, drawing), runs
