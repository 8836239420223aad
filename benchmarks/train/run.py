"""Chat training beside TRL and beside Unsloth on a processor: one command, one table.

    .venv/bin/python benchmarks/train/run.py [--repeats 3] [--steps 9] [--threads 2] [--vocabularies 32k 128k]
    .venv/bin/python benchmarks/train/run.py --settings          # every setting tried once, to find the best ones

Every training is a process of its own, sides alternate, and no figure counts before the losses of all steps are equal.
README.md beside this file says what is compared. It prints ratios, losses included.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT / "src"), str(HERE.parent / "data")]

from measure import Failed, spent  # noqa: E402

from luthier.console import say, table  # noqa: E402

STEPS, SEED = 9, 17
EQUAL = 1e-4
"""How far the loss of any step may be from ours."""
PEERS = {"trl": "TRL", "unsloth": "Unsloth"}
BEST: dict[str, tuple[str, ...]] = {"ours": (), "trl": (), "unsloth": ()}
"""The settings that each side was fastest with (`--settings`; README.md)."""
TRIED: dict[str, tuple[tuple[str, ...], ...]] = {
    "ours": ((), ("--micro", "1"), ("--micro", "2"), ("--tokens", "0"), ("--padded",)),
    "trl": (
        (),
        ("--micro", "2"),
        ("--micro", "4"),
        ("--micro", "8"),
        ("--micro", "8", "--padding-free"),
        ("--workers", "1"),
        ("--compile",),
    ),
    "unsloth": ((), ("--micro", "2"), ("--micro", "4"), ("--micro", "8"), ("--workers", "1"), ("--compile",)),
}
HEADER = [
    *("vocabulary", "beside", "ours tokens/s", "theirs", "ratio", "spread", "by CPU-s"),
    *("ours MB", "theirs", "memory", "above model", "loss apart"),
]
BEGIN, END = "<!-- figures: written by run.py -->", "<!-- end of figures -->"


@dataclass
class Bench:
    """Where everything lies, and what was measured."""

    files: Path
    pythons: dict[str, str]
    """The interpreter of each side."""
    threads: int
    figures: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """What each side reported, by `vocabulary | side`, one entry a repeat."""
    reads: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def train(self, side: str, vocabulary: str, words: Sequence[str]) -> dict[str, Any]:
        """One training in a process of its own. Raises Failed where it did not end well."""
        script = [str(HERE / "ours.py")] if side == "ours" else [str(HERE / "theirs.py"), side]
        command = [self.pythons[side], *script, str(self.files / vocabulary), "--threads", str(self.threads), *words]
        found = spent(command, {"OMP_NUM_THREADS": str(self.threads)}).said
        if "tokens_per_s" not in found:
            raise Failed(f"{side} reported nothing")
        return found

    def of(self, vocabulary: str, side: str, key: str) -> list[float]:
        return [float(found[key]) for found in self.figures.get(f"{vocabulary} | {side}", [])]


def main() -> int:
    """Run what is asked for. Exit code 1 where a side did not run, or the losses differ."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="bench-train-") as folder:
        make = [sys.executable, str(HERE / "generate.py"), folder, "--steps", str(options.steps)]
        rows = spent([*make, "--seed", str(SEED)]).said
        say(f"{rows['rows']['count']} rows, {rows['rows']['tokens']:,} tokens, {rows['rows']['learned_share']} learned")
        pythons = {"ours": sys.executable, "trl": options.trl, "unsloth": options.unsloth}
        bench = Bench(Path(folder), pythons, options.threads)
        if options.settings:
            _try_settings(bench, options.vocabularies)
        else:
            _repeat(bench, options.repeats, options.vocabularies)
            _count(bench, options.vocabularies[0])
    result = {
        "machine": {"processors": os.cpu_count(), "platform": platform.machine(), "threads": options.threads},
        "seed": SEED,
        "steps": options.steps,
        "work": rows,
        "repeats": options.repeats,
        "best": BEST,
        "figures": bench.figures,
        "reads": bench.reads,
        "settings": bench.settings,
    }
    _write(options, bench, result)
    for failure in dict.fromkeys(bench.failures):
        say(failure)
    return 1 if bench.failures else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=STEPS, help="optimizer steps; the first is not timed")
    parser.add_argument("--threads", type=int, default=2, help="torch's threads, for all sides")
    parser.add_argument("--vocabularies", nargs="+", choices=("32k", "128k"), default=["32k", "128k"])
    parser.add_argument("--trl", default=str(ROOT / ".venv-trl" / "bin" / "python"), help="TRL's interpreter")
    parser.add_argument("--unsloth", default=str(ROOT / ".venv-unsloth" / "bin" / "python"))
    parser.add_argument("--settings", action="store_true", help="try every setting once instead")
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    return parser.parse_args()


def _repeat(bench: Bench, repeats: int, vocabularies: Sequence[str]) -> None:
    """All sides with their best settings, in turn; the order is turned round at every repeat."""
    for repeat in range(repeats):
        for vocabulary in vocabularies:
            for side in list(BEST)[:: -1 if repeat % 2 else 1]:
                say(f"repeat {repeat + 1}: {vocabulary}, {side}")
                try:
                    found = bench.train(side, vocabulary, BEST[side])
                except Failed as error:
                    bench.failures.append(f"{vocabulary}, {side}: {error}")
                else:
                    bench.figures.setdefault(f"{vocabulary} | {side}", []).append(found)
    for vocabulary in vocabularies:
        for side in PEERS:
            if not apart(bench, vocabulary, side) <= EQUAL:
                bench.failures.append(f"{vocabulary}, {side}: its losses are not ours; no figure of it counts")


def apart(bench: Bench, vocabulary: str, side: str) -> float:
    """The largest difference between a side's loss and ours at any step of any repeat; NaN where there is none."""
    mine, theirs = (bench.figures.get(f"{vocabulary} | {name}", []) for name in ("ours", side))
    pairs = [pair for a in mine for b in theirs for pair in zip(a["losses"], b["losses"], strict=True)]
    return max((abs(a - b) for a, b in pairs), default=float("nan"))


def _count(bench: Bench, vocabulary: str) -> None:
    """Host reads of each side, in a run that is not timed."""
    for side in BEST:
        try:
            bench.reads[side] = bench.train(side, vocabulary, [*BEST[side], "--count"])["reads"]
        except Failed as error:
            bench.failures.append(f"host reads, {side}: {error}")


def _try_settings(bench: Bench, vocabularies: Sequence[str]) -> None:
    for vocabulary in vocabularies:
        for side, every in TRIED.items():
            for words in every:
                name = " ".join(words) or "as it is"
                say(f"{vocabulary}, {side}: {name}")
                try:
                    found = bench.train(side, vocabulary, words)
                except Failed as error:  # a setting that does not run is a finding
                    say(f"did not run: {str(error).splitlines()[-1]}")
                    found = {"failed": str(error).splitlines()[-1]}
                bench.settings.setdefault(f"{vocabulary} | {side}", []).append({"setting": name, **found})


def rows_of(bench: Bench) -> list[list[str]]:
    """The table's lines: medians; ratios are taken within a repeat, above 1 ours is faster, below 1 ours is smaller."""
    found = []
    for vocabulary in dict.fromkeys(key.split(" | ")[0] for key in bench.figures):
        for side, name in PEERS.items():
            mine, theirs = (bench.of(vocabulary, one, "tokens_per_s") for one in ("ours", side))
            if not mine or not theirs:
                continue
            ratios = _ratios(mine, theirs)
            cpu = _ratios(*(bench.of(vocabulary, one, "tokens_per_cpu_s") for one in ("ours", side)))
            peaks = [bench.of(vocabulary, one, "peak_mb") for one in ("ours", side)]
            loaded = [bench.of(vocabulary, one, "loaded_mb") for one in ("ours", side)]
            above = [[p - q for p, q in zip(*pair, strict=True)] for pair in zip(peaks, loaded, strict=True)]
            found.append(
                [
                    *(vocabulary, name, f"{statistics.median(mine):.0f}", f"{statistics.median(theirs):.0f}"),
                    f"{statistics.median(ratios):.2f}x",
                    f"{min(ratios):.2f}-{max(ratios):.2f}",
                    f"{statistics.median(cpu):.2f}x",
                    *(f"{statistics.median(peak):.0f}" for peak in peaks),
                    f"{statistics.median(_ratios(*peaks)):.2f}x",
                    f"{statistics.median(_ratios(*above)):.2f}x",
                    f"{apart(bench, vocabulary, side):.0e}",
                ]
            )
    return found


def _ratios(mine: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(mine, theirs, strict=False)]


def details(bench: Bench) -> list[str]:
    """Host reads for each side, and the settings where they were tried."""
    found = []
    for side, reads in bench.reads.items():
        places = ", ".join(f"{place} {count:g}" for place, count in list(reads["where"].items())[:4])
        values, shapes = reads["values"], reads["shapes"]
        found.append(
            f"host reads a step, {side}: {values:g} of values, {shapes:g} of shapes{places and f' ({places})'}"
        )
    for key, every in bench.settings.items():
        for one in every:
            speeds = [one.get(name, 0.0) for name in ("tokens_per_s", "tokens_per_cpu_s", "peak_mb")]
            speed = "{:.0f} tokens/s, {:.0f} a CPU-second, {:.0f} MB".format(*speeds)
            found.append(f"{key}, {one['setting']}: {one.get('failed', speed)}")
    return found


def _write(options: argparse.Namespace, bench: Bench, result: dict[str, Any]) -> None:
    """results.json, the table, and README.md where the whole benchmark was run."""
    lines, more = rows_of(bench), details(bench)
    if options.settings:
        print("\n".join(more))
        if options.out == HERE / "results.json":
            return  # the figures of the comparison stay
    else:
        print("\n".join([table(HEADER, lines), *more]))
    text = json.dumps(result, indent=1, sort_keys=True).replace(str(bench.files), "FILES").replace(str(ROOT), "ROOT")
    options.out.write_text(f"{text}\n", encoding="utf-8")
    print(f"written: {options.out}")
    whole = options.out == HERE / "results.json" and options.steps == STEPS and len(options.vocabularies) == 2
    if whole and not bench.failures:
        fill_readme(HERE / "README.md", lines, more, result)


def fill_readme(path: Path, lines: Sequence[Sequence[str]], more: Sequence[str], result: dict[str, Any]) -> None:
    """Replace what stands between the two marks of README.md."""
    text = path.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    versions = [f"{side}: {_versions(every[-1])}" for side, every in _by_side(result["figures"]).items()]
    machine = result["machine"]
    about = f"{machine['processors']} processors ({machine['platform']}), {machine['threads']} threads, float32; "
    marked = [f"| {' | '.join(line)} |" for line in (HEADER, ["---"] * len(HEADER), *lines)]
    head = [BEGIN, f"{about}medians of {result['repeats']} alternating runs.", "", *marked, ""]
    block = [*head, *(f"* {line}" for line in (*more, *versions)), END]
    path.write_text(before + "\n".join(block) + after, encoding="utf-8")


def _by_side(figures: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    return {key.split(" | ")[1]: every for key, every in figures.items()}


def _versions(found: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in {"torch": found["torch"], **found["versions"]}.items())


if __name__ == "__main__":
    sys.exit(main())
