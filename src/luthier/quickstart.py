"""`luthier quickstart`: data made on the spot, a toy model, stages, a report. No hub, no download."""

from __future__ import annotations

import itertools
from importlib import resources
from pathlib import Path
from typing import Any

from luthier.console import table
from luthier.files import read_json, write_text
from luthier.rundir import refuse_existing

QUICKSTARTS = {"speaking": "quickstart", "expert": "encyclopedia", "describer": "cards"}
"""Kinds of work that have a quickstart, each with its recipe."""
_BESIDE = ("constant", "over_constant", "before", "gain")
"""What scores of a describe stage begin with that stand beside others."""


def shipped_recipes() -> dict[str, str]:
    """The recipes that come with the package, name -> text."""
    folder = resources.files("luthier") / "recipes"
    return {
        item.name.removesuffix(".yaml"): item.read_text(encoding="utf-8")
        for item in sorted(folder.iterdir(), key=lambda item: item.name)
        if item.name.endswith(".yaml")
    }


def lay_out(out: Path, kind: str = "speaking") -> Path:
    """Write a kind's quickstart recipe and its synthetic tables into a new folder. Returns the recipe's path."""
    refuse_existing(out)
    if kind == "expert":
        from luthier.data.encyclopedia import write_encyclopedia

        write_encyclopedia(out / "data")
    elif kind == "describer":
        from luthier.data.cards import write_cards

        write_cards(out / "data" / "cards", 2000, 17)
        write_cards(out / "data" / "unseen", 500, 18)
    else:
        from luthier.data.simulate import write_forms

        write_forms(out / "data")
    name = QUICKSTARTS[kind]
    text = shipped_recipes()[name].replace("path: data/", f"path: {out / 'data'}/")
    write_text(out / f"{name}.yaml", text)
    return out / f"{name}.yaml"


def free_folder(name: str) -> Path:
    """`name`, or `name-2`, `name-3` and so on where it is taken."""
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(path for path in map(Path, names) if not path.exists())


def headline(run: Path) -> str:
    """The table printed last: a line of scores for each stage."""
    verdicts, chats, exams, described = [], [], [], []
    for scores_file in sorted(run.glob("stages/*/scores.json")):
        scores, name = read_json(scores_file), scores_file.parent.name
        reference = scores.get("reference", {})
        if "exams" in scores:
            for exam, own in scores["exams"].items():
                majority = f"{own['majority']['value']:.3f}"
                exams.append([name, exam, shown(own.get("accuracy")), majority, shown(own.get("log_loss"))])
        elif "unparseable" in scores:
            described += _described(name, scores)
        elif "accuracy" in scores:
            own = [shown(scores.get(key)) for key in ("accuracy", "auroc", "brier")]
            verdicts.append([name, *own, shown(reference.get("bayes.auroc")), shown(reference.get("ratio.auroc"))])
        else:
            chats.append([name, *(shown(scores.get(key)) for key in ("before.loss", "loss", "gain.loss"))])
    parts = []
    if verdicts:
        parts.append(table(["stage", "accuracy", "AUROC", "Brier", "Bayes AUROC", "share"], verdicts))
    if exams:
        parts.append(table(["stage", "exam", "accuracy", "majority answer", "log loss"], exams))
    if described:
        parts.append(table(["stage", "score", "held-out pictures", "best constant", "over the constant"], described))
    if chats:
        parts.append(table(["stage", "held-out loss before", "after", "gain on the same rows"], chats))
    return "\n".join(parts)


def _described(name: str, scores: dict[str, Any]) -> list[list[str]]:
    """Lines of a describe stage: each score of a field beside the best constant's."""
    fields = [key for key in scores if "." in key and key.partition(".")[0] not in _BESIDE]
    return [
        [name, key, *(shown(scores.get(beside + key)) for beside in ("", "constant.", "over_constant."))]
        for key in ("unparseable", *fields)
    ]


def shown(score: dict[str, object] | None) -> str:
    """A score as `0.912 [0.880, 0.940]`, or a dash."""
    if not score:
        return "–"
    interval = score.get("ci")
    inside = f" [{interval[0]:.3f}, {interval[1]:.3f}]" if isinstance(interval, list) else ""
    return f"{score['value']:.3f}{inside}"
