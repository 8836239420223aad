"""Exams beside lm-evaluation-harness on a processor: one command, one table.

    .venv/bin/python benchmarks/exam/run.py [--repeats 2] [--questions 162] [--threads 2] [--jobs equal speed sweep]
    .venv/bin/python benchmarks/exam/run.py --jobs settings      # every batch size of the harness, once

Every measurement is a process of its own, sides alternate, and no figure counts before the log-likelihoods of all
options are equal. README.md beside this file says what is compared. It prints ratios, the smallest included.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import struct
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT / "src"), str(HERE.parent / "data")]

from cases import CASES  # noqa: E402
from fill import fill_readme, rows_of_speed, rows_of_sweep  # noqa: E402
from measure import Failed, Spent, spent  # noqa: E402

from luthier.console import say, table  # noqa: E402

QUESTIONS, ADAPTERS = 162, 22
TIMED = 54
"""How many of the questions the large base is timed on; over all of them a prefix that is read once would gain more."""
EQUAL = 2e-5
"""How far any option's log-likelihood may be from ours, in nats, beside the last place of the harness's float32 sum."""
SPEED = ("letters", "letters-5", "text", "text-5")
BEST = {"letters": 8, "letters-5": 2, "text": 8, "text-5": 2}
"""The batch sizes that the harness was fastest with (`--jobs settings`; README.md)."""
BATCHES = (1, 2, 4, 8, 16)
SWEPT = 16
"""The harness's batch size for the small bases: from here on its time does not change."""
JOBS = ("equal", "speed", "sweep", "settings")


@dataclass
class Bench:
    """Where everything lies, and what was measured: figures by `job | case | side`, one entry a repeat."""

    files: Path
    peer: str
    threads: int
    questions: int
    commands: int
    """How many of the harness's 22 commands are run."""
    figures: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    apart: dict[str, float] = field(default_factory=dict)
    """The largest difference of a log-likelihood, in nats, by base and case."""
    failures: list[str] = field(default_factory=list)

    def note(self, key: str, found: dict[str, Any]) -> None:
        self.figures.setdefault(key, []).append(found)

    def one(self, side: str, base: str, case: str, words: Sequence[str] = ()) -> dict[str, Any]:
        """One exam in a process of its own; its log-likelihoods are kept beside the files."""
        python, script = (sys.executable, "ours.py") if side == "ours" else (self.peer, "theirs.py")
        command = [python, str(HERE / script), str(self.files), base, case, "--threads", str(self.threads), *words]
        answers = str(self.kept(side, base, case))
        return self.run([*command, "--answers", answers]).said

    def run(self, command: Sequence[str]) -> Spent:
        offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_DATASETS_CACHE": str(self.files / "cache")}
        return spent(command, {"OMP_NUM_THREADS": str(self.threads), **offline})

    def kept(self, side: str, base: str, case: str) -> Path:
        return self.files / f"answers-{side}-{base}-{case}.json"

    def compare(self, base: str, case: str, pairs: Iterable[tuple[Any, Any]]) -> None:
        """Take down how far the two sides are apart, and fail where that is too far."""
        key, count = f"{base} | {case}", 0
        for mine, theirs in pairs:
            for a, b in zip(mine, theirs, strict=True):
                count += 1
                self.apart[key] = max(self.apart.get(key, 0.0), abs(a - b))
                if not abs(a - b) <= EQUAL + last_place(b):
                    self.failures.append(f"{key}: log-likelihoods differ ({a} and {b}); no figure of it counts")
        if not count:
            self.failures.append(f"{key}: there is nothing to compare")


def last_place(value: float) -> float:
    """What the last bit of a float32 of this size is worth: the harness sums in float32."""
    (bits,) = struct.unpack("<i", struct.pack("<f", abs(value)))
    return float(struct.unpack("<f", struct.pack("<i", bits + 1))[0] - abs(value))


def main() -> int:
    """Run what is asked for. Exit code 1 where a side did not run, or the log-likelihoods differ."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="bench-exam-") as folder:
        wanted = {"equal": ["small"], "speed": ["big"], "sweep": ["small", "toy"], "settings": ["big"]}
        bases = dict.fromkeys(base for job in options.jobs for base in wanted[job])
        make = [sys.executable, str(HERE / "generate.py"), f"{folder}/files", "--questions", str(options.questions)]
        about = spent([*make, "--adapters", str(ADAPTERS), "--bases", *bases]).said
        bench = Bench(Path(folder) / "files", options.peer, options.threads, options.questions, options.commands)
        for name, job in (("equal", equal), ("speed", speed), ("sweep", sweep), ("settings", settings)):
            if name in options.jobs:
                try:
                    job(bench, options.repeats)
                except Failed as error:
                    bench.failures.append(f"{name}: {error}")
    result = {
        "machine": {"processors": os.cpu_count(), "platform": platform.machine(), "threads": options.threads},
        "questions": options.questions,
        "repeats": options.repeats,
        "commands": options.commands,
        "batch": BEST,
        "bases": about,
        "apart": bench.apart,
        "figures": bench.figures,
    }
    _write(options, bench, result)
    for failure in list(dict.fromkeys(bench.failures))[:20]:
        say(failure)
    return 1 if bench.failures else 0


def equal(bench: Bench, _repeats: int) -> None:
    """Every case on a small base, both sides: what they answer, not how fast."""
    for case in CASES:
        bench.one("ours", "small", case)
        bench.one("theirs", "small", case, ["--batch", str(SWEPT)])
        _compare_kept(bench, "small", case)


def _compare_kept(bench: Bench, base: str, case: str) -> None:
    mine, theirs = (json.loads(bench.kept(side, base, case).read_text()) for side in ("ours", "theirs"))
    bench.compare(base, case, zip(mine, theirs, strict=True))


def speed(bench: Bench, repeats: int) -> None:
    """The large base, one adapterless exam a process; the harness once more with the switch that we set."""
    for repeat in range(repeats):
        for case in SPEED:
            batch = ["--batch", str(BEST[case])]
            part = ["--questions", str(min(TIMED, bench.questions))]
            sides = [("ours", part), ("theirs", [*part, *batch]), ("theirs, oneDNN", [*part, *batch, "--onednn", "1"])]
            for name, words in sides[:: -1 if repeat % 2 else 1]:
                say(f"repeat {repeat + 1}: {case}, {name}")
                bench.note(f"speed | {case} | {name}", bench.one(name.split(",")[0], "big", case, words))
            _compare_kept(bench, "big", case)


def sweep(bench: Bench, repeats: int) -> None:
    """All adapters of a small base: our command, the harness's loop in one process, and its commands."""
    for repeat in range(repeats):
        for base in ("toy", "small"):
            for side in ("ours", "loop", "requests", "commands")[:: -1 if repeat % 2 else 1]:
                say(f"repeat {repeat + 1}: {ADAPTERS} adapters on {base}, {side}")
                bench.note(f"sweep | {base} | {side}", _swept(bench, base, side, repeat))
            place = bench.files / f"out-{base}-{repeat}" / "exams" / "questions"
            kept = json.loads(bench.kept("theirs", base, "letters").read_text())
            for name, theirs in kept.items():
                lines = (place / name / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
                bench.compare(base, "sweep", zip([json.loads(line)["logprobs"] for line in lines], theirs, strict=True))


def _swept(bench: Bench, base: str, side: str, repeat: int) -> dict[str, Any]:
    files, model = bench.files, bench.files / base
    if side == "ours":
        words = [str(files / "exams" / "questions.jsonl"), "--model", str(model), "--adapter", f"{model}-adapters"]
        out = files / f"out-{base}-{repeat}"
        more = ["--plain", "--one-order", "--no-cache", "--out", str(out)]
        found = bench.run([sys.executable, "-m", "luthier.cli", "exam", *words, *more])
        records = [json.loads(path.read_text()) for path in out.glob("exams/questions/step-*/candidate.json")]
        return _costs(found, sum(record["seconds"] for record in records))
    if side in ("loop", "requests"):
        words = [str(files), base, "letters", "--threads", str(bench.threads), "--batch", str(SWEPT)]
        more = ["--sweep", "1" if side == "loop" else "2", "--answers", str(bench.kept("theirs", base, "letters"))]
        found = bench.run([bench.peer, str(HERE / "theirs.py"), *words, *more])
        return _costs(found, found.said["seconds"])
    runs = []
    for number in range(1, bench.commands + 1):
        adapter = f"{model}-adapters/step-{50 * number:06d}"
        words = ["--model", "hf", "--model_args", f"pretrained={model},peft={adapter},dtype=float32"]
        words += ["--tasks", "letters", "--include_path", str(files / "tasks"), "--device", "cpu"]
        more = ["--batch_size", str(SWEPT), "--output_path", str(files / "commands")]
        runs.append(bench.run([bench.peer, "-m", "lm_eval", "run", *words, *more]))
    share = ADAPTERS / len(runs)
    whole = Spent(sum(run.cpu_s for run in runs) * share, sum(run.wall_s for run in runs) * share, 0.0, {})
    return _costs(whole, math.nan)


def _costs(found: Spent, answering: float) -> dict[str, Any]:
    """`answering`: seconds between the first adapter and the last answer, without start-up and tables."""
    inside = {} if math.isnan(answering) else {"answering_s": round(answering, 3)}
    return {"cpu_s": round(found.cpu_s, 2), "wall_s": round(found.wall_s, 2), **inside}


def settings(bench: Bench, _repeats: int) -> None:
    """Every batch size of the harness on a part of the questions."""
    for case in SPEED:
        for batch in BATCHES:
            words = ["--batch", str(batch), "--questions", "24" if case.endswith("5") else "48"]
            found = bench.one("theirs", "big", case, words)
            say(f"{case}, batch {batch}: {found['seconds']:.1f} s, {found['cpu_seconds']:.1f} CPU-s")
            bench.note(f"settings | {case} | batch {batch}", found)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--questions", type=int, default=QUESTIONS)
    parser.add_argument("--threads", type=int, default=2, help="torch's threads, for both sides")
    parser.add_argument("--commands", type=int, default=2, help="how many of the harness's 22 commands are run")
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS[:3]))
    parser.add_argument("--peer", default=str(ROOT / ".venv-lm-eval" / "bin" / "python"))
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    return parser.parse_args()


def _write(options: argparse.Namespace, bench: Bench, result: dict[str, Any]) -> None:
    """The tables, results.json, and README.md where the whole benchmark was run."""
    for header, lines in (rows_of_speed(result), rows_of_sweep(result)):
        if lines:
            print(table(header, lines))
    for key, value in bench.apart.items():
        print(f"largest difference of a log-likelihood, {key}: {value:.1e} nats")
    if options.jobs == ["settings"] and options.out == HERE / "results.json":
        return  # the figures of the comparison stay
    text = json.dumps(result, indent=1, sort_keys=True)
    options.out.write_text(f"{text}\n", encoding="utf-8")
    print(f"written: {options.out}")
    whole = options.questions == QUESTIONS and set(JOBS[:3]) <= set(options.jobs)
    if whole and options.out == HERE / "results.json" and not bench.failures:
        fill_readme(HERE / "README.md", result)


if __name__ == "__main__":
    sys.exit(main())
