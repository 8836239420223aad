"""What the report says of a chat stage: its sentence, figures, charts and answers, from records that were read for it.

No file is opened here and no model is known; a record that is missing reads as a dash or "not run".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import yaml
from markupsafe import Markup

from luthier.outcome import charts, figures

SAMPLES = 24
"""Questions on the page at most."""
Json = dict[str, Any]


def kinds(recipe: str, names: Sequence[str]) -> dict[str, str]:
    """Stage -> task.kind by the text of recipe.yaml: a stage that has not finished has no record that says it."""
    return {name: str(of_stage(recipe, name, "task", "kind") or "verdict") for name in names}


def of_stage(recipe: str, stage: str, *keys: str) -> Any:
    """What recipe.yaml's text says at some keys for a stage, or else for all; None where it says nothing."""
    try:
        tree = yaml.safe_load(recipe)
    except yaml.YAMLError:
        return None
    return _at(tree, "stages", stage, *keys) or _at(tree, *keys)


def _at(tree: Any, *keys: str) -> Any:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def stage(name: str, about: Json, scores: Json, metrics: list[Json], samples: list[Json]) -> Json:
    """What the page shows of a chat stage; `ran` is false where it left no record."""
    trained = about.get("trained") or {}
    loss = charts.loss_chart(
        f"Loss of stage {name} by step", series(metrics, "loss"), series(metrics, "validation_loss")
    )
    rate = rate_chart(f"Learning rate of stage {name} by step", series(metrics, "learning_rate"))
    return {
        "name": name,
        "kind": "chat",
        "about": about,
        "trained": trained,
        "learning": trained.get("learning") or {},
        "share": _share(about.get("target_tokens"), about.get("tokens")),
        "scores": scores,
        "rows": _rows(scores),
        "samples": samples[:SAMPLES],
        "charts": [
            ("Loss", Markup(loss), "Nats a learned token. The dashed points are held-out rows."),
            ("Learning rate", Markup(rate), "As the schedule gave it, warm-up included."),
        ],
        "ran": bool(about or scores or metrics or samples),
    }


def series(metrics: Sequence[Json], key: str) -> list[charts.Point]:
    """One column of metrics.jsonl by step, where both are numbers."""
    return [
        (float(row["step"]), float(row[key]))
        for row in metrics
        if figures.finite(row.get("step")) and figures.finite(row.get(key))
    ]


def headline(stages: Sequence[Json]) -> str:
    """What the last scored chat stage learned: held-out loss before and after, and the gain on the same rows."""
    scored = [one for one in stages if figures.score(one["scores"].get("loss"))]
    if not scored:
        untold = any(one["about"] for one in stages)
        return "Nothing was held out, so nothing says whether it learned." if untold else "No chat has been scored yet."
    scores = scored[-1]["scores"]
    after, before = figures.score(scores["loss"]), figures.score(scores.get("before.loss"))
    line = f"Stage {scored[-1]['name']}: the loss on held-out answers is {_said(after)} nats a token after training"
    gain = figures.score(scores.get("gain.loss"))
    if not before or not gain:
        return line + "; how it was before is not recorded."
    line += (
        f" and was {_said(before)} before. On the same {_rows_said(gain['n'])} the gain is {_said(gain, sign='+')}: "
    )
    return (
        line
        + {
            "better": "it learned.",
            "worse": "training made it worse.",
            "": "the two cannot be told apart, as the interval holds 0.",
            "?": "there is no interval to judge it by.",
        }[verdict(gain)]
    )


def _rows_said(count: int) -> str:
    return "row" if count == 1 else f"{count:,} rows"


def verdict(gain: Json) -> str:
    """better, worse, "" where the interval of a gain holds 0, ? where there is none, or one of a single row."""
    if not gain or gain["low"] is None or gain["n"] == 1:
        return "?"
    return "better" if gain["low"] > 0 else "worse" if gain["high"] < 0 else ""


def _said(figure: Json, sign: str = "") -> str:
    return f"{figure['value']:{sign}.3f}{figures.interval(figure)}"


def _rows(scores: Json) -> list[Json]:
    """Lines of the held-out table: all rows in both units, then each source, whose rows alone are compared."""
    found = [_row("All, nats a learned token", scores, "loss"), _row("All, bits a byte", scores, "bits_per_byte")]
    sources = scores.get("sources") or {}
    if len(sources) > 1:
        found += [_row(name, sources[name], "loss") for name in sorted(sources)]
    return [row for row in found if row["after"]]


def _row(name: str, scores: Json, key: str) -> Json:
    gain = figures.score(scores.get(f"gain.{key}"))
    return {
        "name": name,
        "after": figures.score(scores.get(key)),
        "before": scores.get(f"before.{key}"),
        "afterwards": scores.get(key),
        "gain": scores.get(f"gain.{key}"),
        "verdict": {"better": "better", "worse": "worse", "": "cannot be told apart", "?": "–"}[verdict(gain)],
    }


def rate_chart(title: str, points: Sequence[charts.Point]) -> str:
    """The learning rate over the step, in units of its power of ten; points are (step, rate)."""
    highest = max((rate for _, rate in points), default=0.0)
    if highest <= 0:
        return ""
    power = math.floor(math.log10(highest))
    shown = charts.thin([(step, rate / 10.0**power) for step, rate in points])
    x_ticks = charts.nice_ticks(0, shown[-1][0])
    y_ticks = charts.nice_ticks(0, max(rate for _, rate in shown))
    desc = f"from {points[0][1]:.2e} at step {points[0][0]:g} to {points[-1][1]:.2e} at step {points[-1][0]:g}, "
    frame = charts.Frame(title, desc + f"highest {highest:.2e}", (0, x_ticks[-1]), (0, y_ticks[-1]))
    path = " ".join(f"{frame.x(step):.1f},{frame.y(rate):.1f}" for step, rate in shown)
    return frame.svg(
        frame.y_axis(y_ticks, f"learning rate, × 1e{power}"),
        frame.x_axis(x_ticks, "optimizer step"),
        f'<polyline class="line s1" points="{path}"/>',
    )


def _share(part: Any, whole: Any) -> str:
    """A part of a whole in per cent, or a dash."""
    return f"{part / whole:.0%}" if figures.finite(part) and figures.finite(whole) and whole else "–"


def size(value: Any) -> str:
    """Bytes in GB, or a dash."""
    return f"{value / 1e9:.2f} GB" if figures.finite(value) else "–"
