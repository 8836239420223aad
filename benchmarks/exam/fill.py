"""Tables of the exam benchmark, and README.md's figures, from what was measured. Knows numbers alone."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- figures: written by run.py -->", "<!-- end of figures -->"
SPEED_HEADER = [
    *("exam, 135M base", "ours s", "theirs s", "ratio", "spread", "by CPU-s", "with our switch", "read", "asked"),
    "apart",
]
SWEEP_HEADER = ["22 adapters on", "beside", "ours CPU-s", "theirs", "ratio", "spread", "by wall", "answering alone"]
BESIDE = {
    "commands": "22 commands of the harness",
    "loop": "its simple_evaluate in a loop",
    "requests": "its loglikelihood over ready requests",
}


def rows_of_speed(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Medians of seconds; ratios are taken within a repeat, above 1 ours is faster."""
    lines = []
    figures = result["figures"]
    for key in figures:
        job, case, side = key.split(" | ")
        if job != "speed" or side != "ours":
            continue
        mine = figures[key]
        theirs, helped = (figures[f"speed | {case} | {name}"] for name in ("theirs", "theirs, oneDNN"))
        ratios = _ratios(mine, theirs, "seconds")
        lines.append(
            [
                *(case, *(f"{_median(one, 'seconds'):.1f}" for one in (mine, theirs))),
                *_spread(ratios),
                f"{statistics.median(_ratios(mine, theirs, 'cpu_seconds')):.1f}x",
                f"{statistics.median(_ratios(mine, helped, 'cpu_seconds')):.1f}x",
                *(f"{mine[-1][name]:,}" for name in ("read_tokens", "prompt_tokens")),
                f"{result['apart'][f'big | {case}']:.0e}",
            ]
        )
    return SPEED_HEADER, lines


def rows_of_sweep(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Whole processes by CPU-seconds; the last column leaves start-up, tables and pages out."""
    lines = []
    figures = result["figures"]
    for base in ("toy", "small"):
        mine = figures.get(f"sweep | {base} | ours", [])
        for side, name in BESIDE.items():
            theirs = figures.get(f"sweep | {base} | {side}", [])
            if not mine or not theirs:
                continue
            inside = "answering_s" in theirs[0]
            lines.append(
                [
                    *(base, name, *(f"{_median(one, 'cpu_s'):.1f}" for one in (mine, theirs))),
                    *_spread(_ratios(mine, theirs, "cpu_s")),
                    f"{statistics.median(_ratios(mine, theirs, 'wall_s')):.1f}x",
                    f"{statistics.median(_ratios(mine, theirs, 'answering_s')):.1f}x" if inside else "",
                ]
            )
    return SWEEP_HEADER, lines


def _median(found: Sequence[dict[str, Any]], key: str) -> float:
    return statistics.median(one[key] for one in found)


def _ratios(mine: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]], key: str) -> list[float]:
    return [b[key] / a[key] for a, b in zip(mine, theirs, strict=False)]


def _spread(ratios: Sequence[float]) -> list[str]:
    return [f"{statistics.median(ratios):.1f}x", f"{min(ratios):.1f}-{max(ratios):.1f}"]


def fill_readme(path: Path, result: dict[str, Any]) -> None:
    """Replace what stands between the two marks of README.md."""
    text = path.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    machine = result["machine"]
    block = [
        BEGIN,
        f"{machine['processors']} processors ({machine['platform']}), threads: {machine['threads']}, float32; medians "
        f"of {result['repeats']} alternating runs; of the 22 commands {result['commands']} were run and multiplied.",
        "",
    ]
    for header, lines in (rows_of_speed(result), rows_of_sweep(result)):
        block += [f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *lines)] + [""]
    largest = max(result["apart"].items(), key=lambda pair: pair[1])
    block += [f"* largest difference of any log-likelihood: {largest[1]:.1e} nats ({largest[0]})"]
    for side in ("ours", "theirs"):
        versions = result["figures"][f"speed | letters | {side}"][-1]["versions"]
        block.append(f"* {side}: " + ", ".join(f"{name} {value}" for name, value in versions.items()))
    path.write_text(before + "\n".join([*block, END]) + after, encoding="utf-8")
