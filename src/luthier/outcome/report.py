"""The report of a run: one HTML file that opens offline, made from the run folder's records.

A stage or file that is missing reads "not run" and one that cannot be read is named at the end; neither
raises. Recordings are embedded within fixed limits, so that the page stays one that can be sent by mail.
This module refuses to know how the records were made: no model, no data reader, no metric is computed here
beyond what a chart counts.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from markupsafe import Markup

from luthier import files
from luthier.errors import SourceError
from luthier.outcome import charts, chatpart, clips, describepage, figures, pages, pngs
from luthier.outcome.exams import part as exampart
from luthier.outcome.pagerecords import Records

PAGE_BYTES, WORST = 3 * 1024 * 1024, 8
METRICS = (
    ("accuracy", "Accuracy", "share right at one half; higher is better"),
    ("auroc", "AUROC", "a random pass ranks above a random fail; higher is better"),
    ("log_loss", "Log loss", "nats; lower is better"),
    ("calibrated.log_loss", "Log loss, calibrated", "nats; lower is better"),
    ("brier", "Brier", "mean squared error of the probability; lower is better"),
    ("ece", "ECE", "mean gap of predicted and observed rate; lower is better"),
    ("borderline.accuracy", "Borderline accuracy", "as accuracy, near the cut only"),
    ("borderline.auroc", "Borderline AUROC", "as AUROC, near the cut only"),
    (
        "closer",
        "Closer side",
        "share of grades one step below the mark put on the side that held-back raters took",
    ),
)
DEFAULT_SCALE = {"pass_mark": 4.0, "step": 0.5}
"""For runs whose records name none."""
Json = dict[str, Any]


def write_report(run: Path) -> Path:
    """Write `run/report.html` and its charts as PNGs beside it, durably, and return its path.

    Raises SourceError when `run` is no folder and DiskError when the file cannot be written.
    """
    if not run.is_dir():
        raise SourceError(f"{run} is not a run folder", "name the folder that `luthier run` printed")
    context = _context(Records(run))
    files.write_text(run / "report.html", pages.render("report.html.j2", context))
    pngs.write_pngs(run / "report.html", _named_charts(context["stages"]))
    return run / "report.html"


def _named_charts(stages: list[Json]) -> dict[str, str]:
    """Every chart of the page under the name of its file."""
    found = {f"{stage['name']}-{heading}": svg for stage in stages for heading, svg, _ in stage.get("charts", [])}
    for stage in stages:
        found |= {f"{stage['name']}-{name}": svg for name, svg in stage.get("described", {}).get("charts", [])}
        found |= exampart.named_charts(stage["exams"], f"{stage['name']}-")
    return found


def _context(records: Records) -> Json:
    manifest = records.document("run.json")
    folder = records.run / "stages"
    there = sorted(item.name for item in folder.iterdir() if item.is_dir()) if folder.is_dir() else []
    names = [str(name) for name in manifest.get("stages") or there]
    names += [name for name in there if name not in names]
    recipe = records.text("recipe.yaml")
    kinds = chatpart.kinds(recipe, names)
    stages = [_stage(records, name, kinds[name], recipe) for name in names]
    verdicts = [stage for stage in stages if stage["kind"] == "verdict"]
    chats = [stage for stage in stages if stage["kind"] == "chat"]
    budget = PAGE_BYTES // max(1, len(verdicts))
    for stage in verdicts:
        stage["worst"] = _worst(records, stage["predictions"], budget)
    exams = [exam for stage in stages for exam in stage["exams"]]
    sentences = [_headline(verdicts)] if verdicts or not chats else []
    # Where exams judge a stage, having held nothing out is no news.
    if chats and (not exams or any(stage["rows"] for stage in chats)):
        sentences += [
            describepage.headline(stage["name"], stage["described"]) for stage in chats if "described" in stage
        ]
        sentences.append(chatpart.headline(chats))
    sentences += [f"Exam {exam['name']}: {exam['sentences'][0]}" for exam in exams if exam["ran"]]
    return {
        "run": manifest,
        "folder": records.run.resolve().name,
        "stages": stages,
        "verdicts": verdicts,
        "chats": chats,
        "metrics": METRICS,
        "rows": _score_rows(verdicts),
        "headline": " ".join(filter(None, sentences)),
        "ledger": _ledger(records),
        "recipe": recipe,
        "notes": records.notes,
        "worst_count": WORST,
        "clip_kb": clips.CLIP_BYTES // 1024,
    }


def _stage(records: Records, name: str, kind: str, recipe: str) -> Json:
    """Everything the page shows of one stage, of the kind that its record says, or else the recipe."""
    base = f"stages/{name}"
    about = records.document(f"{base}/stage.json")
    scores = records.document(f"{base}/scores.json")
    metrics = records.lines(f"{base}/metrics.jsonl")
    if about.get("kind", kind) in ("chat", "exam", "describe"):  # trained alike
        stage = chatpart.stage(name, about, scores, metrics, records.lines(f"{base}/samples.jsonl"))
    else:
        stage = _verdict_stage(records, name, about, scores, metrics)
    described = chatpart.of_stage(recipe, name, "task", "describe")
    if about.get("kind", kind) == "describe" and isinstance(described, dict) and "kinds" in described:
        seed = chatpart.of_stage(recipe, name, "seed")
        stage["described"] = describepage.part(records, base, described, scores, seed)
    asked = chatpart.of_stage(recipe, name, "evaluate", "exams")
    kept = (about.get("trained") or {}).get("kept_step")
    stage["exams"] = exampart.parts(records, base, asked if isinstance(asked, dict) else (), metrics, kept)
    return stage


def _verdict_stage(records: Records, name: str, about: Json, scores: Json, metrics: list[Json]) -> Json:
    """What the page shows of a verdict stage; `ran` is false when the stage left no record."""
    base = f"stages/{name}"
    predictions = [
        row
        for row in records.lines(f"{base}/predictions.jsonl")
        if figures.finite(row.get("p_pass")) and figures.finite(row.get("pass"))
    ]
    stage: Json = {
        "name": name,
        "kind": "verdict",
        "about": about,
        "predictions": predictions,
        "scores": scores,
        "others": {},
    }
    for path in sorted((records.run / base).glob("scores-*.json")):
        stage["others"][path.stem.removeprefix("scores-")] = records.document(f"{base}/{path.name}")
    by_grade: dict[float, list[float]] = defaultdict(list)
    for row in predictions:
        if figures.finite(row.get("grade")):
            by_grade[float(row["grade"])].append(float(row["p_pass"]))
    series = []
    for key, label in (("p_pass", "raw"), ("p_pass_calibrated", "calibrated")):
        pairs = [(float(row[key]), bool(row["pass"])) for row in predictions if figures.finite(row.get(key))]
        series.append((label, figures.equal_mass_bins([p for p, _ in pairs], [y for _, y in pairs])))
    scale = stage["about"].get("scale") or DEFAULT_SCALE
    mark, below = float(scale["pass_mark"]), float(scale["pass_mark"] - scale["step"])
    near = {grade: values for grade, values in by_grade.items() if grade in (below, mark)}
    stage["charts"] = [
        (heading, Markup(svg), note)
        for heading, svg, note in (  # charts escape their text
            (
                "Loss",
                charts.loss_chart(
                    f"Loss of stage {name} by step",
                    chatpart.series(metrics, "loss"),
                    chatpart.series(metrics, "validation_loss"),
                ),
                "The training loss is against the soft target, whose own entropy is its floor.",
            ),
            (
                "Reliability",
                charts.reliability_chart(f"Reliability of stage {name}", series),
                "Bins of equal counts with 95% Wilson intervals; on the dotted line, predictions come true.",
            ),
            (
                "Probability by grade",
                charts.grade_chart(f"Probability by grade, stage {name}", dict(by_grade)),
                "Each point is one test answer; bars are means.",
            ),
            (
                "At the borderline",
                charts.borderline_chart(f"Grades {below:g} and {mark:g} of stage {name}", near),
                "The grades either side of the cut; the dotted line is one half.",
            ),
        )
    ]
    stage["ran"] = bool(stage["about"] or stage["scores"] or metrics or predictions)
    return stage


def _score_rows(stages: list[Json]) -> list[Json]:
    """The rows of the score table: each stage, its other test sources, and the Bayes limit where known."""
    rows = []
    for stage in stages:
        rows.append({"name": f"Stage {stage['name']}", "scores": stage["scores"], "kind": "stage"})
        for label, scores in [("", stage["scores"]), *stage["others"].items()]:
            if label:
                rows.append({"name": f"Stage {stage['name']} on {label}", "scores": scores, "kind": "other"})
            reference = scores.get("reference") or {}
            limits = {key.removeprefix("bayes."): value for key, value in reference.items() if key.startswith("bayes.")}
            if limits:
                name = f"Bayes limit, {label or stage['name']}"
                rows.append({"name": name, "scores": limits, "kind": "bayes"})
            ratios = {key.removeprefix("ratio."): value for key, value in reference.items() if key.startswith("ratio.")}
            if ratios:
                rows.append({"name": "Ratio to Bayes", "scores": ratios, "kind": "bayes"})
    return rows


def _headline(stages: list[Json]) -> str:
    """One or two sentences on the last scored stage, and on how it stands to the first."""
    scored = [(stage["name"], stage["scores"]) for stage in stages if figures.score(stage["scores"].get("auroc"))]
    if not scored:
        return "No stage of this run has been scored yet."
    name, scores = scored[-1]
    auroc, accuracy = figures.score(scores["auroc"]), figures.score(scores.get("accuracy"))
    line = f"Stage {name} ranks a pass above a fail with AUROC {auroc['value']:.3f}{figures.interval(auroc)}"
    line += f" and decides {accuracy['value']:.1%} of the answers rightly." if accuracy else "."
    limit = figures.score((scores.get("reference") or {}).get("bayes.auroc"))
    if limit:
        line += f" The best any judge could reach on these recordings (Bayes) is {limit['value']:.3f}."
    if len(scored) > 1:
        first, before = scored[0][0], figures.score(scored[0][1]["auroc"])
        gap = auroc["value"] - before["value"]
        line += f" Stage {first} has {before['value']:.3f}{figures.interval(before)} on its own test set"
        if auroc["low"] is not None and before["low"] is not None:
            apart = auroc["low"] > before["high"] or before["low"] > auroc["high"]
            line += "; the intervals do not overlap" if apart else "; the intervals overlap"
        line += f" (difference {gap:+.3f})."
    return line


def _ledger(records: Records) -> Json:
    """Counts per source with whether they add up, and the single drops behind them."""
    lines = records.lines("data/ledger.jsonl")
    sources = []
    for line in (line for line in lines if "in" in line):
        dropped = Counter(line.get("dropped") or {})
        accounted = int(line.get("kept") or 0) + int(line.get("merged") or 0) + dropped.total()
        sources.append(
            {
                **line,
                "rows": line["in"],
                "dropped": dropped,
                "total": dropped.total(),
                "gap": int(line["in"] or 0) - accounted,
            }
        )
    return {
        "sources": sources,
        "drops": [line for line in lines if "reason" in line],
        "reasons": sorted({reason for source in sources for reason in source["dropped"]}),
    }


def _worst(records: Records, predictions: list[Json], budget: int) -> list[Json]:
    """The predictions farthest from the truth, with question and recordings (`budget` bytes for all)."""
    ordered = sorted(predictions, key=lambda row: (-abs(row["p_pass"] - row["pass"]), str(row.get("id"))))
    ordered = ordered[:WORST]
    messages = records.messages({str(row["id"]) for row in ordered if "id" in row})
    shown = []
    for row in ordered:
        parts = [
            part
            for message in messages.get(str(row.get("id")), [])
            if message.get("role") == "user"
            for part in message.get("content", [])
        ]
        item: Json = {
            "row": row,
            "found": str(row.get("id")) in messages,
            "clips": [],
            "question": "\n".join(part.get("text") or "" for part in parts if part.get("type") == "text"),
        }
        for part in parts:
            if part.get("type") == "audio":
                clip = clips.embed(records.run, str(part.get("media")), min(clips.CLIP_BYTES, budget))
                budget -= clip.size
                item["clips"].append(clip)
        shown.append(item)
    return shown
