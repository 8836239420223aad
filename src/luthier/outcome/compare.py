"""Runs side by side on the same items: what differs between them, what their scores can bear, item by item.

What is not comparable is refused with its reason: training losses over different rows, exams with other questions,
items that only one run answered. Reads records alone: a run of last month compares with today's. The probe's losses
and the answers to prompts are made elsewhere and handed in.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from luthier.console import WIDTH, table
from luthier.outcome import figures
from luthier.outcome.comparing import differences
from luthier.outcome.comparing.examined import exams
from luthier.outcome.comparing.flips import flips
from luthier.outcome.comparing.items import match_descriptions, match_losses, match_verdicts, ranking
from luthier.outcome.comparing.pairs import Drawing, judge, judge_ranking
from luthier.outcome.comparing.probe import Probe
from luthier.outcome.comparing.runrecords import Json, RunStage

SPELLED = 6
"""Pairs up to which a terminal gets a sentence each."""
SAID = 200
"""Letters of an answer that are shown."""
ONE_SEED = (
    "Each recipe has one seed here: what is told apart are these models, and another seed of the same recipe may land "
    "elsewhere."
)


@dataclass(frozen=True)
class Scored:
    """A probe with what every run makes of it: lines of id, group, nll (nats) and target_bytes, run by run."""

    probe: Probe
    lines: Sequence[Sequence[Json]]
    texts: Mapping[str, str] = field(default_factory=dict)
    """Row id -> its turns, for rows that are in no run's table."""


def compare(runs: Sequence[RunStage], scored: Scored | None, drawing: Drawing) -> Json:
    """Everything but answers and votes, as one mapping; docs/compare.md says what its keys are."""
    recipes = differences.recipes(runs)
    drawing = replace(drawing, recipes=recipes)
    classes, reasons = differences.loss_classes(runs)
    sat, refused = exams(runs, drawing)
    found: Json = {
        "runs": [_about(run) for run in runs],
        "settings": differences.settings(runs),
        "origins": differences.origins(runs),
        "costs": differences.costs(runs),
        "scores": differences.scores(runs),
        "losses": {"classes": classes, "reasons": reasons},
        "verdicts": _verdicts(runs, drawing) if runs[0].kind == "verdict" else None,
        "descriptions": _descriptions(runs, drawing) if all(run.described for run in runs) else None,
        "exams": sat,
        "probe": None if scored is None else _probe(runs, scored, drawing),
        "refused": refused,
    }
    if reasons:
        found["refused"].append(
            "The training losses are not laid over one another: they are means over other tokens, and a lower one "
            f"would say nothing ({'; '.join(reasons)})."
        )
    found["headline"] = _headline(found)
    if len(set(recipes.values())) == len(recipes):
        found["headline"].append(ONE_SEED)
    return found


def _about(run: RunStage) -> Json:
    return {
        "run": run.label,
        "path": str(run.run.path),
        "stage": run.stage.path.name,
        "task": run.recipe.task.kind,
        "base": run.recipe.model.base,
        "adapter_sha256": run.adapter_digest,
        "command": run.manifest.get("command", ""),
    }


def _verdicts(runs: Sequence[RunStage], drawing: Drawing) -> Json:
    matched = match_verdicts(runs)
    found = judge(matched, drawing)
    if found["measures"]:
        area = judge_ranking(matched, *ranking(runs, matched.ids), drawing)
        found["measures"][1:1] = [area] if area else []
    lines = [{str(line["id"]): line for line in run.verdicts} for run in runs]

    def said(name: str, place: int) -> str:
        line = lines[place][name]
        return f"P(pass) {line['p_pass']:.2f}, grade {line['grade']:g}"

    return {**found, "flips": flips(matched, lambda ids: _texts(runs, ids), said)}


def _descriptions(runs: Sequence[RunStage], drawing: Drawing) -> Json:
    matched = match_descriptions(runs)
    lines = [{str(line["id"]): line for line in run.described} for run in runs]

    def said(name: str, place: int) -> str:
        return str(lines[place][name]["answer"])[:SAID]

    return {**judge(matched, drawing), "flips": flips(matched, lambda ids: _texts(runs, ids), said)}


def _probe(runs: Sequence[RunStage], scored: Scored, drawing: Drawing) -> Json:
    matched = match_losses([run.label for run in runs], scored.lines)
    place = {name: i for i, name in enumerate(matched.ids)}

    def said(name: str, run: int) -> str:
        return f"{matched.measures[0].value_KN[run, place[name]]:.3f} bits a byte"

    def texts(ids: set[str]) -> dict[str, str]:
        return _texts(runs, ids - scored.texts.keys()) | {n: scored.texts[n] for n in ids & scored.texts.keys()}

    found = {**scored.probe.to_json(), **judge(matched, drawing), "flips": flips(matched, texts, said)}
    if not scored.probe.ids:
        found["notes"].append("No row was held out that no run was trained on: name rows with --probe FILE.")
    return found


def _texts(runs: Sequence[RunStage], ids: set[str]) -> dict[str, str]:
    """Row id -> its turns, from whichever run's table has it."""
    found: dict[str, str] = {}
    for run in runs:
        found |= run.texts(ids - found.keys())
    return found


def _headline(found: Json) -> list[str]:
    """The first measure of each comparison in a sentence a pair, or by letters where there are many runs."""
    said = []
    parts = [
        ("held-out answers", found["verdicts"]),
        ("held-out pictures", found["descriptions"]),
        ("the probe", found["probe"]),
    ]
    for where, part in [*parts, *((f"the exam {exam['name']}", exam) for exam in found["exams"])]:
        if not part or not part["measures"]:
            continue
        first = part["measures"][0]
        one = len(first["pairs"]) == 1
        said.append(f"On {part['n']} items of {where}: {first['pairs'][0]['verdict'] if one else grouped(first)}")
    return said or ["The runs have no item in common: nothing says which of them is better."]


def grouped(measure: Json) -> str:
    """A sentence on many runs: groups of those that cannot be told apart, best first."""
    letters = sorted({letter for own in measure["letters"].values() for letter in own}, key=lambda x: (len(x), x))
    members = [[run for run, own in measure["letters"].items() if letter in own] for letter in letters]
    if len(members) == 1:
        return f"no two of {', '.join(members[0])} can be told apart in {measure['name']}."
    shown = "; ".join(f"{letter} ({', '.join(runs)})" for letter, runs in zip(letters, members, strict=True))
    return f"in {measure['name']} the groups are, best first, {shown}; runs of one group cannot be told apart."


def table_text(found: Json) -> str:
    """The comparison for a terminal, in at most 100 columns: a table a measure, then its sentences."""
    parts = list[str]()
    sections = [
        ("held-out answers", found["verdicts"]),
        ("held-out pictures", found["descriptions"]),
        ("probe", found["probe"]),
    ]
    for name, part in [*sections, *((f"exam {exam['name']}", exam) for exam in found["exams"])]:
        for measure in part["measures"] if part else []:
            rows = [
                [
                    run["run"],
                    f"{run['value']:.4f}{figures.interval(figures.score(run))}",
                    ", ".join(measure["letters"][run["run"]]),
                ]
                for run in measure["runs"]
            ]
            parts.append("\n" + table([f"{name} (n = {part['n']})", measure["name"], "group"], rows))
            few = len(measure["pairs"]) <= SPELLED
            parts += map(_filled, [pair["verdict"] for pair in measure["pairs"]] if few else [grouped(measure)])
        parts += map(_filled, part["notes"] if part else [])
    last = [ONE_SEED] if ONE_SEED in found["headline"] else []
    return "\n".join([*parts, "", *map(_filled, [*last, *found["refused"]])])


def _filled(sentence: str) -> str:
    return textwrap.fill(sentence, WIDTH)
