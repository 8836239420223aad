"""The data engine beside its peers: one command, one table.

    .venv/bin/python benchmarks/data/run.py [--rows 150496] [--repeats 3] [--python PEERS_PYTHON] [--out results.json]

Every side runs in a process of its own, alternating, and the kernel counts its CPU-seconds and memory. README.md beside
this file says what is compared, and gets the figures of a run at full size. It prints ratios, losses included.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT / "src")]

from measure import Failed, Spent, spent  # noqa: E402

from luthier.console import say, table  # noqa: E402

ROWS = 150_496
RECIPE = ROOT / "recipes" / "assistant.yaml"
SOURCES = {"finetome": "finetome", "sharegpt-english": "sharegpt-english", "ultrachat": "ultrachat"}
"""The recipe's name of a source -> the stem of the file that generate.py wrote."""
PLAIN = ("data.steps=[require_messages]", "data.duplicates.near=0")
"""What makes the recipe the peers' job: their filter, and exact copies alone."""
BUILD, WHOLE, AGAIN, NEAR, RATES = "build", "whole recipe", "again", "near", "rates"
MANNERS = (("best", 1), ("batched", 1), ("rows", 1), ("best", 2))
"""Of `datasets`, with the number of its processes."""
RATED = ("rows", "tokens", "mb")
BEGIN, END = "<!-- figures: written by run.py -->", "<!-- end of figures -->"


@dataclass
class Bench:
    """Where everything lies, and what was measured."""

    files: Path
    work: Path
    peers: str
    """The interpreter that has the peers."""
    figures: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Costs by `job | side`, one entry a repeat."""
    failures: list[str] = field(default_factory=list)

    def note(self, job: str, side: str, found: Spent, more: dict[str, Any] | None = None) -> None:
        self.figures.setdefault(f"{job} | {side}", []).append({**asdict(found), **(more or {})})

    def of(self, job: str, side: str, key: str = "cpu_s") -> list[float]:
        return [float(found[key]) for found in self.figures.get(f"{job} | {side}", [])]


def main() -> int:
    """Run the jobs asked for. Exit code 1 where a side did not run, or the two kept different rows."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="bench-data-") as folder:
        work = Path(folder)
        files = options.files or work / "files"
        if not (files / "truth.json").is_file():
            made = spent([sys.executable, str(HERE / "generate.py"), str(files), "--rows", str(options.rows)])
            say(f"generated {options.rows:,} rows: {made.wall_s:.0f} s")
        bench = Bench(files, work, options.python)
        for repeat in range(options.repeats):
            for name in options.jobs:
                say(f"repeat {repeat + 1}: {name}")
                _guarded(bench, name, partial(JOBS[name], repeat=repeat))
        sizes = {path.name: path.stat().st_size for path in sorted(files.iterdir()) if path.suffix != ".json"}
    result = {
        "machine": _machine(options.python),
        "files": sizes,
        "repeats": options.repeats,
        "figures": bench.figures,
        "details": details(bench),
    }
    text = json.dumps(result, indent=1, sort_keys=True).replace(str(work), "WORK").replace(str(files), "FILES")
    options.out.write_text(text + "\n", encoding="utf-8")
    lines = rows_of(bench)
    print("\n".join([table(HEADER, lines), *details(bench)]))
    print(f"written: {options.out}")
    if options.out == HERE / "results.json" and options.rows == ROWS:
        fill_readme(HERE / "README.md", lines, result)
    for failure in dict.fromkeys(bench.failures):
        say(failure)
    return 1 if bench.failures else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=ROWS, help="rows in all three files; fewer for a quick look")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--files", type=Path, help="a folder that generate.py wrote (default: generated anew)")
    parser.add_argument("--python", default=sys.executable, help="an interpreter that has datasets and datasketch")
    parser.add_argument("--jobs", nargs="+", choices=tuple(JOBS), default=list(JOBS))
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    return parser.parse_args()


def _guarded(bench: Bench, name: str, side: Callable[[Bench], None]) -> None:
    """A side that does not run is reported at the end; the others still run."""
    try:
        side(bench)
    except Failed as error:
        bench.failures.append(f"{name}: {error}")


def _build(bench: Bench, repeat: int) -> None:
    """Standardise, filter, drop exact copies, shuffle, write: ours and each manner of `datasets`."""
    theirs = [partial(_datasets, manner=manner, processes=count) for manner, count in MANNERS]
    sides = [partial(_ours, job=BUILD, settings=PLAIN), *theirs]
    for side in sides if repeat % 2 == 0 else sides[::-1]:
        _guarded(bench, BUILD, side)
    built = [found for key, every in bench.figures.items() if key.startswith(f"{BUILD} | ") for found in every]
    digests = {found["digest"] for found in built}
    if len(digests) > 1:
        bench.failures.append(f"{BUILD}: the sides kept different rows; see the digests in the results")


def _whole(bench: Bench, repeat: int) -> None:
    """The shipped recipe as it is, near duplicates included; then the same command once more."""
    _ours(bench, WHOLE, (), again=True)


def _ours(bench: Bench, job: str, settings: Sequence[str], again: bool = False) -> None:
    out, cache = bench.work / "ours", bench.work / "cache"
    for place in (out, cache):
        shutil.rmtree(place, ignore_errors=True)
    named = [f"data.sources.{name}.path={_file(bench.files, stem)}" for name, stem in SOURCES.items()]
    words = [item for setting in (*named, *settings) for item in ("--set", setting)]
    command = [sys.executable, "-m", "luthier.cli", "data", "build", str(RECIPE), *words, "--out", str(out), "--json"]
    where = {"PYTHONPATH": str(ROOT / "src"), "LUTHIER_CACHE": str(cache), "XDG_CACHE_HOME": str(cache)}
    found = spent(command, where)
    bench.note(job, "ours", found, _kept(out))
    if again:
        bench.note(AGAIN, "ours", spent(command, where))
    shutil.rmtree(bench.work / "built", ignore_errors=True)
    out.rename(bench.work / "built")


def _datasets(bench: Bench, manner: str, processes: int) -> None:
    out = bench.work / "datasets"
    shutil.rmtree(out, ignore_errors=True)
    script = [bench.peers, str(HERE / "peers_datasets.py"), str(bench.files), str(out)]
    found = spent([*script, "--manner", manner, "--processes", str(processes)])
    side = f"datasets, {manner}" + (f", {processes} processes" if processes > 1 else "")
    bench.note(BUILD, side, found, _kept(out))
    if not (bench.work / "built").exists():
        out.rename(bench.work / "built")


def _kept(folder: Path) -> dict[str, Any]:
    found = spent([sys.executable, str(HERE / "kept.py"), str(folder)]).said
    return {"kept_rows": found["rows"], "digest": found["digest"]}


def _near(bench: Bench, repeat: int) -> None:
    """near.py measures both of its sides itself; what it prints is taken over as it is.

    Its last line is `{"ours": {...}, "theirs": {...}}`, each with cpu_s, wall_s, peak_mb and what else it found.
    """
    script = HERE / "near.py"
    if not script.is_file():
        raise Failed("benchmarks/data/near.py is not there")
    found = spent([bench.peers, str(script), str(bench.files)], {"PYTHONPATH": str(ROOT / "src")}).said
    if not {"ours", "theirs"} <= set(found):
        raise Failed(f"near.py printed {', '.join(found) or 'nothing'} in place of ours and theirs")
    for side in ("ours", "theirs"):
        name = "ours" if side == "ours" else "datasketch"
        bench.figures.setdefault(f"{NEAR} | {name}", []).append(found[side])


def _rates(bench: Bench, repeat: int) -> None:
    """Rendering and tokenising, on rows that a build before it left behind."""
    folder = bench.work / "built"
    if not folder.exists():
        _datasets(bench, "best", 1)
    for side in ("ours", "theirs") if repeat % 2 == 0 else ("theirs", "ours"):
        command = [sys.executable, str(HERE / "rates.py"), side, str(folder)]
        name = side if side == "ours" else "transformers"
        _guarded(bench, f"{RATES}, {name}", partial(_rate, command=command, name=name))


def _rate(bench: Bench, command: list[str], name: str) -> None:
    found = spent(command, {"PYTHONPATH": str(ROOT / "src")})
    bench.note(RATES, name, found, found.said)  # its own CPU-seconds: loading is no part of the rate


JOBS: dict[str, Callable[..., None]] = {"build": _build, "whole": _whole, "near": _near, "rates": _rates}
HEADER = ["job", "beside", "ours CPU-s", "theirs", "ratio", "spread", "ours wall", "theirs", "ours MB", "theirs"]


def rows_of(bench: Bench) -> list[list[str]]:
    """The table's lines: medians of CPU-seconds and of peak memory; the ratio is theirs over ours, within a repeat."""
    found = []
    jobs = dict.fromkeys(key.split(" | ")[0] for key in bench.figures)
    for job in jobs:
        sides = [key.split(" | ")[1] for key in bench.figures if key.startswith(f"{job} | ")]
        for side in [side for side in sides if side != "ours"] or [""]:
            mine, theirs = bench.of(job, "ours"), bench.of(job, side)
            ratios = [b / a for a, b in zip(mine, theirs, strict=False)]
            found.append(
                [
                    job,
                    side,
                    _median(mine, "{:.2f}"),
                    _median(theirs, "{:.2f}"),
                    _median(ratios, "{:.2f}x"),
                    f"{min(ratios):.2f}-{max(ratios):.2f}" if ratios else "",
                    _median(bench.of(job, "ours", "wall_s"), "{:.2f}"),
                    _median(bench.of(job, side, "wall_s"), "{:.2f}"),
                    _median(bench.of(job, "ours", "peak_mb"), "{:.0f}"),
                    _median(bench.of(job, side, "peak_mb"), "{:.0f}"),
                ]
            )
    return found


def details(bench: Bench) -> list[str]:
    """What the table has no column for: rates of rendering and tokenising, and what near.py's two sides found."""
    found = []
    for key, every in bench.figures.items():
        if key.startswith(f"{RATES} | "):
            parts = [f"{statistics.median(one[f'{what}_per_s'] for one in every):,.0f} {what}/s" for what in RATED]
            found.append(f"{key.replace(' | ', ', ')}: {', '.join(parts)}")
        if key.startswith(f"{NEAR} | "):
            other = {name: value for name, value in every[-1].items() if name not in ("cpu_s", "wall_s", "peak_mb")}
            found.append(
                f"{key.replace(' | ', ', ')}: " + ", ".join(f"{name} {value}" for name, value in other.items())
            )
    return found


def _median(values: Sequence[float], form: str) -> str:
    return form.format(statistics.median(values)) if values else ""


def fill_readme(path: Path, lines: Sequence[Sequence[str]], result: dict[str, Any]) -> None:
    """Replace what stands between the two marks of README.md."""
    text = path.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    about = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    marked = [f"| {' | '.join(line)} |" for line in (HEADER, ["---"] * len(HEADER), *lines)]
    more = ["", *(f"* {line}" for line in result["details"])] if result["details"] else []
    block = [BEGIN, f"{about}; medians of {result['repeats']} alternating runs.", "", *marked, *more, END]
    path.write_text(before + "\n".join(block) + after, encoding="utf-8")


def _machine(peers: str) -> dict[str, Any]:
    """Processors and versions; those of the peers as their own interpreter has them."""
    names = ("datasets", "datasketch", "pyarrow", "transformers")
    code = (
        "import json, sys, importlib.metadata as m\n"
        "there = {d.metadata['Name'].lower(): d.version for d in m.distributions()}\n"
        "print(json.dumps({name: there.get(name, 'absent') for name in sys.argv[1:]}))"
    )
    versions = spent([peers, "-c", code, *names]).said
    mine = {"processors": os.cpu_count(), "platform": platform.machine(), "python": platform.python_version()}
    return {**mine, **versions}


def _file(folder: Path, stem: str) -> Path:
    return next(path for path in sorted(folder.glob(f"{stem}.*")) if path.suffix in (".parquet", ".jsonl"))


if __name__ == "__main__":
    sys.exit(main())
