"""What both sides share: their command lines, the clock, the line they print. Knows nothing of models."""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

from cases import CASES


class Clock:
    """Wall and processor seconds since it was made."""

    def __init__(self) -> None:
        self._begun = time.perf_counter(), time.process_time()

    def spent(self) -> dict[str, float]:
        return {
            "seconds": round(time.perf_counter() - self._begun[0], 3),
            "cpu_seconds": round(time.process_time() - self._begun[1], 3),
        }


def options(about: str | None, more: tuple[str, ...] = ()) -> argparse.Namespace:
    """FILES BASE CASE and the common flags; each of `more` is a flag with a number."""
    parser = argparse.ArgumentParser(description=(about or "").splitlines()[0])
    parser.add_argument("files", type=Path, help="what generate.py wrote")
    parser.add_argument("base", help="a folder below it")
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--questions", type=int, default=0, help="the first so many; 0: all")
    parser.add_argument("--answers", type=Path, help="where log-likelihoods are kept")
    for name in more:
        parser.add_argument(name, type=int, default=0)
    return parser.parse_args()


def report(given: argparse.Namespace, spent: dict[str, float], logprobs: Any, **more: Any) -> None:
    """Keep the log-likelihoods where asked to, and print the figures as one line of JSON."""
    if given.answers is not None:
        given.answers.write_text(json.dumps(logprobs), encoding="utf-8")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    print(f"\n{json.dumps({**spent, 'threads': given.threads, 'peak_mb': round(peak, 1), **more})}")
