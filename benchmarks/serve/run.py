"""Luthier's engines and server beside plain transformers and the users' way: one command, four tables.

    .venv/bin/python benchmarks/serve/run.py [--repeats 5] [--threads 1] [--jobs chat swap verdicts load]

README.md beside this file says what is compared and what is not. It knows nothing of gates: it prints ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "src")]

import prepare  # noqa: E402
from measure import Measured, chat, load, swaps, verdicts  # noqa: E402

from luthier.console import say, table  # noqa: E402
from luthier.engines.base import ServedModel  # noqa: E402

JOBS = ("chat", "swap", "verdicts", "load")
BEGIN, END = "<!-- figures: written by run.py -->", "<!-- end of figures -->"
Table = tuple[list[str], list[list[str]]]


def main() -> int:
    options = _options()
    with tempfile.TemporaryDirectory(prefix="bench-serve-") as place:
        jobs = {"chat": _chat, "swap": _swap, "verdicts": _verdicts, "load": _load}
        found: dict[str, Any] = {}
        for name in options.jobs:
            say(f"measuring: {name}")
            folder = Path(place) / name
            folder.mkdir()
            found[name] = jobs[name](folder, options)
    tables = {name: TABLES[name](found[name]) for name in found}
    for header, lines in tables.values():
        print(table(header, lines))
    machine = {"processors": os.cpu_count(), "platform": platform.machine(), "threads": options.threads}
    result = {"machine": machine, "repeats": options.repeats, "figures": found}
    options.out.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    if set(options.jobs) == set(JOBS) and options.out == HERE / "results.json":
        _fill_readme(HERE / "README.md", result, tables)
    lost = found.get("load", {"requests": 0, "answered": 0})
    return int(lost["answered"] != lost["requests"])


def _chat(folder: Path, options: argparse.Namespace) -> dict[str, list[Measured]]:
    big = str(prepare.big_base(folder))
    [adapter] = prepare.adapters_on(big, folder / "adapters", 1)
    cases = {
        "135M base": (ServedModel("135M", "chat", big), 200, 48),
        "135M base, LoRA": (adapter, 200, 48),
        "toy:llama-large": (ServedModel("toy", "chat", "toy:llama-large"), 200, 200),
    }
    return {name: chat(*case, options.repeats, options.threads) for name, case in cases.items()}


def _swap(folder: Path, options: argparse.Namespace) -> dict[str, list[float]]:
    alike = prepare.adapters_on("toy:llama", folder / "alike", 6)
    others = prepare.adapters_on("toy:llama", folder / "others", 4, (4, 8))
    with_base = [part for one in alike[:3] for part in (one, ServedModel("base", "chat", "toy:llama"))]
    rounds = 5 * options.repeats
    return {
        "to an adapter of the same settings": swaps(alike, rounds, options.threads),
        "to the base alone and back": swaps(with_base, rounds, options.threads),
        "to an adapter of other settings": swaps(others, rounds, options.threads),
    }


def _verdicts(folder: Path, options: argparse.Namespace) -> list[Measured]:
    return verdicts(prepare.verdict_run(folder), 64, options.repeats, options.threads)


def _load(folder: Path, options: argparse.Namespace) -> Measured:
    return load(prepare.chat_run(folder), folder, options.requests, options.at_once)


def _chat_table(found: dict[str, list[Measured]]) -> Table:
    header = ["model", "first token ms", "generate", "tokens/s", "generate", "ratio", "spread", "by CPU-s"]
    lines = []
    for name, rounds in found.items():
        middle = {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
        ratios = [one["rate"] / one["their rate"] for one in rounds]
        by_cpu = statistics.median(one["their cpu"] / one["cpu"] for one in rounds)
        firsts = [f"{1e3 * middle[key]:.1f}" for key in ("first", "their first")]
        rates = [f"{middle[key]:.1f}" for key in ("rate", "their rate")]
        lines.append([name, *firsts, *rates, *_spread(ratios), f"{by_cpu:.2f}x"])
    return header, lines


def _swap_table(found: dict[str, list[float]]) -> Table:
    return ["swap, toy:llama", "median ms", "longest ms"], [
        [name, f"{statistics.median(times):.1f}", f"{max(times):.1f}"] for name, times in found.items()
    ]


def _verdict_table(found: list[Measured]) -> Table:
    lines = []
    for side, name in (("together", "64 in a call"), ("singly", "one a call")):
        rates = [f"{statistics.median(one[key] for one in found):.1f}" for key in (side, "written")]
        by_cpu = statistics.median(one["written cpu"] / one[f"{side} cpu"] for one in found)
        lines.append([name, *rates, *_spread([one[side] / one["written"] for one in found]), f"{by_cpu:.2f}x"])
    return ["recordings", "verdicts/s", "written and parsed", "ratio", "spread", "by CPU-s"], lines


def _load_table(found: Measured) -> Table:
    header = ["requests", "at once", "answered", "a second", "median ms", "p95 ms"]
    return header, [
        [f"{found[key]:.0f}" for key in ("requests", "at once", "answered", "a second", "median ms", "p95 ms")]
    ]


TABLES = {"chat": _chat_table, "swap": _swap_table, "verdicts": _verdict_table, "load": _load_table}


def _spread(ratios: list[float]) -> list[str]:
    return [f"{statistics.median(ratios):.2f}x", f"{min(ratios):.2f}-{max(ratios):.2f}"]


def _fill_readme(path: Path, result: dict[str, Any], tables: dict[str, Table]) -> None:
    """Replace what stands between the two marks of README.md."""
    before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    machine = result["machine"]
    block = [
        BEGIN,
        f"{machine['processors']} processors ({machine['platform']}), threads: {machine['threads']}, float32; medians "
        f"of {result['repeats']} alternating rounds.",
        "",
    ]
    for header, lines in tables.values():
        block += [f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *lines)] + [""]
    path.write_text(before + "\n".join([*block, END]) + rest.partition(END)[2], encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="torch's threads, for both sides")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
