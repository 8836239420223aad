"""What the report says of a describe stage: scores beside the best constants, and sample answers with their pictures.

Reads records of a stage, and the pictures of the answers that it shows; knows no model. The samples are those that a
tracker is shown too: some drawn by chance, the worst, and answers that are not in the form.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from luthier.assess.described import WITHIN, log_error, same_category, token_f1, within_name
from luthier.outcome import describecharts, figures
from luthier.outcome.pagerecords import Records
from luthier.outcome.thumbnails import thumbnail
from luthier.recipe_describe import amount

SAMPLES = 12
"""Answers of each kind that are shown."""
KINDS = {"chance": "Drawn by chance", "worst": "The worst", "unparseable": "Not in the form"}
WORDS = {
    "unparseable": ("answers not in the form", "lower"),
    "token_f1": ("words in common (F1)", "higher"),
    "edit_similarity": ("letters in common (1 − edits / length)", "higher"),
    "accuracy": ("right", "higher"),
    "median_log_error": ("median |ln(answer / truth)|", "lower"),
    "p90_log_error": ("90th percentile of |ln(answer / truth)|", "lower"),
    **{within_name(share): (f"within {share:.0%}", "higher") for share in WITHIN},
}
"""What a score is called, and which way is better."""
_READ = {"id", "answer", "read", "truth", "scores"}
Json = dict[str, Any]


def part(records: Records, base: str, settings: Json, scores: Json, seed: int) -> Json:
    """What the page shows; `rows` is empty where nothing was described. `settings` is task.describe of the recipe."""
    lines = [line for line in records.lines(f"{base}/predictions.jsonl") if line.keys() >= _READ]
    kinds, shown = {str(name): str(kind) for name, kind in settings["kinds"].items()}, chosen(lines, seed)
    pictures = _pictures(records, {line["id"] for group in shown.values() for line in group})
    return {
        "prompt": settings.get("prompt"),
        "template": settings.get("template"),
        "rows": score_rows(scores, kinds),
        "n": len(lines),
        "charts": [
            (name, Markup(describecharts.ratio_chart(f"{name}: answer / truth", list(_ratios(lines, name)))))
            for name, kind in kinds.items()
            if kind == "amount"
        ],
        "samples": [
            {
                "title": KINDS[kind],
                "all": sum(line["read"] is None for line in lines) if kind == "unparseable" else None,
                "items": [
                    {
                        "line": line,
                        "picture": thumbnail(records.run, pictures.get(line["id"], "")),
                        "fields": [_field(line, name, kind) for name, kind in kinds.items()],
                    }
                    for line in group
                ],
            }
            for kind, group in shown.items()
            if group
        ],
    }


def headline(name: str, part: Json) -> str:
    """The scores of a stage in a sentence, each beside the best that can be said without a look; "" for none."""
    told = [row for row in part["rows"] if row["score"] in ("accuracy", within_name(WITHIN[0]))]
    if not part["rows"]:
        return ""
    said = [
        f"{row['field']} is {row['name']} for {row['after']['value']:.1%}{figures.interval(row['after'])}"
        + (f" (the best constant: {row['constant']['value']:.1%})" if row["constant"] else "")
        for row in told
    ]
    lost = part["rows"][0]["after"]
    said.append(f"{lost['value']:.1%} of the answers are not in the form and count as wrong")
    return f"Stage {name}, on {part['n']:,} held-out pictures: {'; '.join(said)}."


def chosen(lines: Sequence[Json], seed: int, most: int = SAMPLES) -> dict[str, list[Json]]:
    """At most `most` answers of each of KINDS; one that is shown is not shown again under the next."""
    drawn = sorted(lines, key=lambda line: hashlib.sha256(f"{seed}:{line['id']}".encode()).hexdigest())
    found, seen = {"chance": drawn[:most]}, {line["id"] for line in drawn[:most]}
    rest = [line for line in drawn if line["id"] not in seen]
    found["worst"] = sorted((line for line in rest if line["read"] is not None), key=_badness, reverse=True)[:most]
    found["unparseable"] = [line for line in rest if line["read"] is None][:most]
    return found


def sample_table(run: Path, lines: Sequence[Json], seed: int) -> tuple[list[str], list[list[Any]]]:
    """The same samples for a tracker: names of columns, and rows of texts and pictures (JPEG bytes)."""
    lines = [line for line in lines if line.keys() >= _READ]
    names = list(lines[0]["truth"]) if lines else []
    columns = ["picture", "shown as", "answer"]
    columns += [f"{name}, {what}" for name in names for what in ("truth", "answer")] + ["id"]
    shown = chosen(lines, seed)
    pictures = _pictures(Records(run), {line["id"] for group in shown.values() for line in group})
    rows = []
    for kind, group in shown.items():
        for line in group:
            read = line["read"] or {}
            pairs = [text for name in names for text in (line["truth"][name], read.get(name, ""))]
            picture = thumbnail(run, pictures.get(line["id"], "")).data
            rows.append([picture, KINDS[kind], line["answer"], *pairs, line["id"]])
    return columns, rows


def _pictures(records: Records, ids: set[str]) -> dict[str, str]:
    """Row id -> the reference of its first picture."""
    found = {}
    for name, messages in records.messages(ids).items():
        parts = [part for message in messages for part in message.get("content", []) if part.get("type") == "image"]
        if parts:
            found[name] = str(parts[0].get("media"))
    return found


def score_rows(scores: Json, kinds: Mapping[str, str]) -> list[Json]:
    """Lines of the table of scores, in the order of the fields."""
    wanted = [("", "unparseable")] + [(name, score) for name in kinds for score in WORDS if score != "unparseable"]
    found = []
    for name, score in wanted:
        key = f"{name}.{score}" if name else score
        after = figures.score(scores.get(key))
        if not after:
            continue
        over = figures.score(scores.get(f"over_constant.{key}"))
        found.append(
            {
                "field": name,
                "score": score,
                "name": WORDS[score][0],
                "better": WORDS[score][1],
                "after": after,
                "before": figures.score(scores.get(f"before.{key}")),
                "constant": figures.score(scores.get(f"constant.{key}")),
                "over": over,
                "verdict": _verdict(over),
            }
        )
    return found


def _verdict(over: Json) -> str:
    if not over or over["low"] is None:
        return "–"
    return "better" if over["low"] > 0 else "worse" if over["high"] < 0 else "cannot be told apart"


def _badness(line: Json) -> float:
    """How far an answer is off, over all its scores: shares that are missing, and logarithms."""
    missing = (value if name.endswith("log_error") else 1.0 - value for name, value in line["scores"].items())
    return float(sum(missing))


def _ratios(lines: Sequence[Json], name: str) -> Iterator[float]:
    for line in lines:
        said, truth = amount((line["read"] or {}).get(name, "")), amount(line["truth"].get(name, ""))
        if said and truth:
            yield said / truth


def _field(line: Json, name: str, kind: str) -> Json:
    """A field of one answer: what is true, what was said, and how it is marked (right, near or wrong)."""
    truth, said = str(line["truth"].get(name, "")), (line["read"] or {}).get(name)
    found = {"name": name, "truth": truth, "said": said, "mark": "wrong", "note": "not said"}
    if said is None:
        return found
    if kind == "amount":
        right, value = amount(truth), amount(said)
        if right and value:
            near = abs(value - right) <= WITHIN[0] * right
            error = log_error(value, right)
            found |= {"mark": "right" if near else "near" if error < WITHIN[1] else "wrong"}
            found["note"] = "exact" if value == right else f"{value / right - 1:+.0%}"
            if error >= 1:
                found["note"] = f"× {value / right:.2g}"
    elif kind == "category":
        right_one = same_category(said, truth)
        found |= {"mark": "right" if right_one else "wrong", "note": "right" if right_one else "wrong"}
    else:
        shared = token_f1(said, truth)
        mark = "right" if same_category(said, truth) else "near" if shared >= 0.5 else "wrong"
        found |= {"mark": mark, "note": f"F1 {shared:.2f}"}
    return found
