"""Stands in for `luthier run` in the tests of sweeps: records of a run, made from its settings in no time.

The validation loss has its minimum at a learning rate of 3e-4. A dropout of 0.5 fails, one of 0.9 kills itself.
FAKE_STEP_SECONDS slows it down; on SIGTERM it ends with 130, and goes on from there with --resume.
"""

import json
import math
import os
import signal
import sys
import time
from pathlib import Path

from luthier.files import append_jsonl, write_json
from luthier.recipefile import load_recipe, stage_recipes

STEPS = 6


def main(words: list[str]) -> int:
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    out = Path(words[words.index("--out") + 1])
    sets = [words[place + 1] for place, word in enumerate(words) if word == "--set"]
    stages = stage_recipes(load_recipe(Path(words[0]), sets))
    first = next(iter(stages.values()))
    if first.model.lora.dropout == 0.5:
        print("luthier: it cannot be\n  mend: do otherwise", file=sys.stderr)
        return 1
    if first.model.lora.dropout == 0.9:
        os.kill(os.getpid(), signal.SIGKILL)
    if (out / "run.json").is_file() != ("--resume" in words):
        return 2
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "run.json", {"status": "running", "starts": sets})
    if not (out / "data/manifest.json").is_file():
        write_json(out / "data/manifest.json", {"made": time.time()})
    for name, recipe in stages.items():
        metrics = out / "stages" / name / "metrics.jsonl"
        done = len(metrics.read_text().splitlines()) if metrics.is_file() else 0
        for step in range(done + 1, STEPS + 1):
            time.sleep(float(os.environ.get("FAKE_STEP_SECONDS", "0")))
            if stopped:
                return 130
            loss = (math.log10(recipe.train.learning_rate / 3e-4)) ** 2 + 1 / step + recipe.seed % 7 / 100
            line = {
                "step": step,
                "loss": loss + 0.1,
                "validation_loss": loss,
                "tokens": 100 * step,
                "seconds": step / 2,
            }
            append_jsonl(metrics, line)
        write_json(metrics.parent / "scores.json", {"accuracy": {"value": 1 / (1 + loss), "ci": [0, 1], "n": 9}})
    write_json(out / "run.json", {**json.loads((out / "run.json").read_text()), "status": "finished"})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
