"""Pictures in training: stored vectors beside live ones and TRL, and decoding beside the library's processors.

    .venv/bin/python benchmarks/vision/run.py [--pictures 8] [--toy 1000] [--repeats 2] [--threads 2]
    .venv/bin/python benchmarks/vision/run.py --jobs decode      # one of: toy large decode

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
sys.path[:0] = [str(ROOT / "src"), str(HERE.parent / "data"), str(HERE)]

from measure import Failed, spent  # noqa: E402

from luthier.console import say, table  # noqa: E402

SEED, EPOCHS = 17, 5
PICTURES, TOY = 8, 1000
EQUAL = {"live": 1e-5, "TRL": 1e-4, "TRL, oneDNN": 1e-4}
"""How far the loss of any step may be from that with stored vectors."""
ROWS_PER_STEP = {"toy": 16, "large": 4}
SIDES = {"stored": ("--store", "on"), "live": ("--store", "off"), "TRL": (), "TRL, oneDNN": ("--onednn",)}
HEADER = [
    *("encoder", "beside", "stored images/s", "theirs", "ratio", "spread", "by CPU-s"),
    *("preparing s", "disk MB", "loss apart"),
]
DECODING = ["family", "beside", "ours images/s", "theirs", "ratio", "spread", "values apart"]
BEGIN, END = "<!-- figures: written by run.py -->", "<!-- end of figures -->"


@dataclass
class Bench:
    """Where everything lies, and what was measured."""

    files: Path
    trl: str
    """TRL's interpreter."""
    threads: int
    work: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """What each side reported, by `encoder | side`, one entry a repeat."""
    decoding: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def make(self, eyes: str, pictures: int) -> None:
        """Write the pictures and the model of one encoder."""
        words = ("--eyes", eyes, "--pictures", str(pictures), "--rows-per-step", str(ROWS_PER_STEP[eyes]))
        more = ("--epochs", str(EPOCHS), "--seed", str(SEED))
        found = spent([sys.executable, str(HERE / "generate.py"), str(self.files / eyes), *words, *more]).said
        self.work[eyes] = found
        say(f"{eyes}: {found['pictures']} pictures, encoder of {found['encoder_parameters']:,} parameters")

    def train(self, eyes: str, side: str) -> None:
        """One training in a process of its own."""
        peer = side.startswith("TRL")
        script = [self.trl, str(HERE / "theirs.py")] if peer else [sys.executable, str(HERE / "ours.py")]
        command = [*script, str(self.files / eyes), "--threads", str(self.threads), *SIDES[side]]
        try:
            found = spent(command, {"OMP_NUM_THREADS": str(self.threads)}).said
        except Failed as error:
            self.failures.append(f"{eyes}, {side}: {error}")
            return
        self.figures.setdefault(f"{eyes} | {side}", []).append(found)
        say(f"{eyes}, {side}: {found['images_per_s']:.2f} images/s")

    def of(self, eyes: str, side: str, key: str) -> list[Any]:
        return [found[key] for found in self.figures.get(f"{eyes} | {side}", [])]


def main() -> int:
    """Run what is asked for. Exit code 1 where a side did not run, or the losses or pixels differ."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="bench-vision-") as folder:
        bench = Bench(Path(folder), options.trl, options.threads)
        if "decode" in options.jobs:
            _decode(bench, options.decode)
        for eyes, pictures in (("toy", options.toy), ("large", options.pictures)):
            if eyes in options.jobs:
                bench.make(eyes, pictures)
                _repeat(bench, eyes, options)
    result = {
        "machine": {"processors": os.cpu_count(), "platform": platform.machine(), "threads": options.threads},
        "seed": SEED,
        "epochs": EPOCHS,
        "repeats": options.repeats,
        "work": bench.work,
        "figures": bench.figures,
        "decoding": bench.decoding,
    }
    _write(options, bench, result)
    for failure in dict.fromkeys(bench.failures):
        say(failure)
    return 1 if bench.failures else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--jobs", nargs="+", choices=("toy", "large", "decode"), default=["toy", "large", "decode"])
    parser.add_argument("--pictures", type=int, default=PICTURES, help="for the large encoder")
    parser.add_argument("--toy", type=int, default=TOY, help="pictures for the toy encoder")
    parser.add_argument("--decode", type=int, default=24, help="pictures to decode, a round")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2, help="torch's threads, for all sides")
    parser.add_argument("--sides", nargs="+", choices=tuple(SIDES)[1:], default=list(SIDES)[1:])
    parser.add_argument("--trl", default=str(ROOT / ".venv-trl" / "bin" / "python"), help="TRL's interpreter")
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    return parser.parse_args()


def _decode(bench: Bench, pictures: int) -> None:
    try:
        bench.decoding = spent([sys.executable, str(HERE / "decode.py"), "--pictures", str(pictures)]).said
    except Failed as error:
        bench.failures.append(f"decode: {error}")
        return
    for family, found in bench.decoding["families"].items():
        for way, apart in found["apart"].items():
            # The library's two backends resize differently; ours is held against the one that it says it is.
            if "pil" not in way and apart > 0:
                bench.failures.append(f"{family}: the values are not those of {way} (apart by {apart:.0e})")


def _repeat(bench: Bench, eyes: str, options: argparse.Namespace) -> None:
    """All sides in turn; the order is turned round at every repeat. TRL with a help from outside runs once."""
    for repeat in range(options.repeats):
        for side in ["stored", *options.sides][:: -1 if repeat % 2 else 1]:
            if side != "TRL, oneDNN" or repeat == 0:
                bench.train(eyes, side)
    for side in options.sides:
        if not apart(bench, eyes, side) <= EQUAL[side]:
            bench.failures.append(f"{eyes}, {side}: its losses are not ours; no figure of it counts")


def apart(bench: Bench, eyes: str, side: str) -> float:
    """The largest difference of a loss from that with stored vectors, at any step of any repeat; NaN without any."""
    mine, theirs = (bench.of(eyes, name, "losses") for name in ("stored", side))
    pairs = [pair for a in mine for b in theirs for pair in zip(a, b, strict=True)]
    return max((abs(a - b) for a, b in pairs), default=float("nan"))


def rows_of(bench: Bench) -> list[list[str]]:
    """The table's lines: medians; ratios are taken within a repeat, above 1 stored vectors are faster."""
    found = []
    for eyes in bench.work:
        for side in list(SIDES)[1:]:
            mine, theirs = (bench.of(eyes, one, "images_per_s") for one in ("stored", side))
            if not mine or not theirs:
                continue
            ratios = [a / b for a, b in zip(mine, theirs, strict=False)]
            cpu = zip(*(bench.of(eyes, one, "images_per_cpu_s") for one in ("stored", side)), strict=False)
            found.append(
                [
                    *(eyes, side, f"{statistics.median(mine):.2f}", f"{statistics.median(theirs):.2f}"),
                    *(f"{statistics.median(ratios):.2f}x", f"{min(ratios):.2f}-{max(ratios):.2f}"),
                    f"{statistics.median(a / b for a, b in cpu):.2f}x",
                    f"{statistics.median(bench.of(eyes, 'stored', 'preparing_s')):.1f}",
                    f"{bench.of(eyes, 'stored', 'disk_bytes')[0] / 1e6:.1f}",
                    f"{apart(bench, eyes, side):.0e}",
                ]
            )
    return found


def decoding_rows(bench: Bench) -> list[list[str]]:
    """The table of decoding; empty where it was not asked for."""
    if not bench.decoding:
        return []
    found = []
    for family, told in bench.decoding["families"].items():
        mine = told["rates"]["ours"]
        for name, values_apart in told["apart"].items():
            theirs = told["rates"][name]
            ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
            found.append(
                [
                    *(family, name, f"{statistics.median(mine):.1f}", f"{statistics.median(theirs):.1f}"),
                    *(f"{statistics.median(ratios):.2f}x", f"{min(ratios):.2f}-{max(ratios):.2f}"),
                    f"{values_apart:.2g}",
                ]
            )
    return found


def _write(options: argparse.Namespace, bench: Bench, result: dict[str, Any]) -> None:
    """results.json, the tables, and README.md where the whole benchmark was run."""
    tables = [(HEADER, rows_of(bench)), (DECODING, decoding_rows(bench))]
    print("\n\n".join(table(header, lines) for header, lines in tables if lines))
    text = json.dumps(result, indent=1, sort_keys=True).replace(str(bench.files), "FILES").replace(str(ROOT), "ROOT")
    options.out.write_text(f"{text}\n", encoding="utf-8")
    print(f"written: {options.out}")
    whole = options.out == HERE / "results.json" and len(options.jobs) == 3
    if whole and not bench.failures:
        fill_readme(HERE / "README.md", tables, result)


def fill_readme(path: Path, tables: Sequence[tuple[list[str], list[list[str]]]], result: dict[str, Any]) -> None:
    """Replace what stands between the two marks of README.md."""
    text = path.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    machine, work = result["machine"], result["work"]
    counts = ", ".join(f"{found['pictures']:,} pictures ({eyes})" for eyes, found in work.items())
    about = f"{machine['processors']} processors ({machine['platform']}), {machine['threads']} threads, float32, seed "
    about += f"{result['seed']}; {counts}, {result['epochs']} epochs; medians of {result['repeats']} alternating runs."
    block = [BEGIN, about]
    for header, lines in tables:
        block += ["", *(f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *lines))]
    block += ["", *(f"* {name}: {_versions(every[-1])}" for name, every in _by_side(result["figures"]).items()), END]
    path.write_text(before + "\n".join(block) + after, encoding="utf-8")


def _by_side(figures: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    sides = {"ours": "stored", "TRL": "TRL"}
    found = {key.split(" | ")[1]: every for key, every in figures.items()}
    return {name: found[side] for name, side in sides.items() if side in found}


def _versions(found: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in found["versions"].items())


if __name__ == "__main__":
    sys.exit(main())
