"""The pages of a comparison, each one file that opens offline: the comparison itself, and ballots for blind votes.

The ballots' page says nothing of whose answers it shows, and its only script writes the votes into a file that the
browser saves. This module refuses to know models and how figures were made.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment
from markupsafe import Markup

from luthier import files
from luthier.outcome import chatpart, comparecharts, figures, pages
from luthier.outcome.comparing.ballots import Ballots
from luthier.outcome.comparing.differences import shortened
from luthier.outcome.comparing.runrecords import Json, RunStage

_DIFFERENCES = 45
"""Pairs that a chart of differences shows; a table has them all."""


def write_comparison(path: Path, found: Json, runs: Sequence[RunStage]) -> None:
    """The page of `compare.compare`'s findings."""
    metrics = {run.label: run.metrics for run in runs}
    page = (
        _environment()
        .get_template("compare.html.j2")
        .render(
            found=found,
            labels=[run.label for run in runs],
            sections=_sections(found),
            curves=[_curves(labels, metrics) for labels in found["losses"]["classes"] if len(labels) > 1],
        )
    )
    files.write_text(path, page)


def write_ballots(path: Path, ballots: Ballots) -> None:
    """A page on which somebody votes without knowing for whom."""
    environment = _environment()
    assert environment.loader is not None
    script = environment.loader.get_source(environment, "ballots.js.j2")[0]
    seal = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = environment.get_template("ballots.html.j2").render(
        ballots=ballots.ballots, page=ballots.page, script=Markup(script), seal=seal
    )
    files.write_text(path, page)


def _environment() -> Environment:
    """That of all pages, with this page's words for texts and p-values."""
    found = pages.environment().overlay()
    found.filters = {**found.filters, "plain": _plain, "p": _p}
    return found


def _sections(found: Json) -> list[Json]:
    """Everything that was measured on shared items, in the order of the page."""
    sections = []
    if found["verdicts"]:
        sections.append({"title": "Held-out answers", "kind": "flip", **found["verdicts"]})
    if found["descriptions"]:
        measures = found["descriptions"]["measures"]
        kind = "row" if measures and measures[0]["lower_is_better"] else "flip"
        sections.append({"title": "Held-out pictures", "kind": kind, **found["descriptions"]})
    for exam in found["exams"]:
        sections.append({"title": f"Exam {exam['name']}", "kind": "flip", **exam})
    if found["probe"]:
        sections.append({"title": "Loss on one fixed probe", "kind": "row", **found["probe"]})
    for section in sections:
        section["charts"] = [_differences(section["title"], measure) for measure in section["measures"]]
    return sections


def _differences(title: str, measure: Json) -> Markup:
    rows = []
    for pair in (pair for pair in measure["pairs"] if pair["difference"]["ci"]):
        low, high = pair["difference"]["ci"]
        name = f"{pair['b']} − {pair['a']}"
        rows.append(comparecharts.Difference(name, pair["difference"]["value"], low, high, pair["apart"]))
    better = "lower is better" if measure["lower_is_better"] else "higher is better"
    svg = comparecharts.difference_chart(
        f"{title}: paired differences in {measure['name']}",
        rows[:_DIFFERENCES],
        f"difference in {measure['name']}, {better}",
    )
    return Markup(svg)


def _curves(labels: Sequence[str], metrics: dict[str, list[Json]]) -> Markup:
    series = [(label, chatpart.series(metrics[label], "loss")) for label in labels]
    title = f"Training loss of {', '.join(labels)}"
    return Markup(comparecharts.curves_chart(title, series, ("optimizer step", "training loss")))


def _plain(value: object) -> str:
    """A setting as YAML would have it, digests by their beginning."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ", ".join(map(_plain, value)) or "none"
    return shortened(value) if value not in ("", None) else "(empty)"


def _p(value: object) -> str:
    """A p-value as people write it."""
    if not figures.finite(value):
        return "–"
    return "< 0.001" if float(value) < 0.001 else f"{float(value):.3f}"  # type: ignore[arg-type]
