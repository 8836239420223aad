"""Luthier's verdict training and scoring beside a plain script in the users' manner: one command, one table.

    .venv/bin/python benchmarks/verdict/run.py [--rows 400] [--repeats 3] [--threads 1] [--out results.json]

Both sides start from one toy tuned on other rows, tune the same weights on the same rows in the same order, and score
the same held-out rows. README.md beside this file says what is compared and what is not. It knows nothing of gates:
it prints ratios, losses included.
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
DATA = ROOT.parent / "shared" / "data" / "speaking"
sys.path[:0] = [str(HERE), str(ROOT / "src")]
TABLES = {name: DATA / f"form-{name}.parquet" for name in ("1764-train", "1764-test", "1964-train")}
SEED, SCORE_BATCH, EPOCHS, RATE, BASE_EPOCHS, BASE_RATE = 17, 32, 5, 1e-3, 5, 2e-3
JOBS = (("lora", False), ("lora", True), ("full", False), ("full", True))
"""(what is tuned, whether log-mel is ready-made for both)."""


@dataclass
class Bench:
    """The rows of the comparison, the common base, and where work goes."""

    recordings: Any
    train: list[Any]
    test: list[Any]
    base: str
    work: Path
    lengths: dict[str, int] = field(default_factory=dict)
    """Sound tokens by recording, for the order of rows."""
    found: dict[str, list[float]] = field(default_factory=dict)
    """Every figure measured, one value a repeat."""

    def note(self, key: str, value: float) -> None:
        self.found.setdefault(key, []).append(value)


def main() -> int:
    """Run everything. Exit code 0, also where the recordings are absent, with the reason printed."""
    options = _options()
    missing = [path for path in TABLES.values() if not path.is_file()]
    if missing:
        print(f"bench-verdict did nothing: {missing[0]} is not there (the recordings are not part of the project)")
        return 0
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(prefix="bench-verdict-") as folder:
        bench = _prepare(options.rows, Path(folder))
        for repeat in range(options.repeats):
            for tuning, ready in JOBS:
                sides = [_ours, _theirs] if repeat % 2 else [_theirs, _ours]
                for side in sides:
                    side(bench, tuning, ready)
    result = {
        "machine": {
            "processors": os.cpu_count(),
            "threads": options.threads,
            "platform": platform.machine(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "rows": {"train": len(bench.train), "test": len(bench.test), "epochs": EPOCHS},
        "repeats": options.repeats,
        "figures": bench.found,
    }
    options.out.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(_table(bench))
    print(f"written: {options.out}")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=400, help="rows to train on")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="torch's threads, for both sides")
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    return parser.parse_args()


def _prepare(count: int, work: Path) -> Bench:
    """Read the rows, and tune the toy on others into a base that hears and writes legal answers."""
    import ours
    import users_manner

    settings = ours.recipe("toy:phi4-multimodal", "full", BASE_EPOCHS, BASE_RATE, SEED)
    recordings = ours.Recordings.read(TABLES, settings)
    train = ours.seeded_draw(recordings.rows["1764-train"], count, SEED)
    test = recordings.rows["1764-test"]
    taken, speakers = {row.id for row in train}, {row.group for row in test}
    others = [
        row
        for name in ("1764-train", "1964-train")
        for row in recordings.rows[name]
        if row.id not in taken and row.group not in speakers
    ]
    bench = Bench(recordings, train, test, settings.model.base, work)
    model, script = _their_model(bench, "full")
    order = [row for epoch in range(BASE_EPOCHS) for row in ours.seeded_draw(others, len(others), SEED + epoch)]
    rows = users_manner.Recordings(script, _clips(bench, order), ready=True)
    seconds = users_manner.tune(model, rows, _settings(BASE_RATE), str(work / "base-run"))
    bench.base = str(work / "base")
    side = ours.Ours.build(settings, recordings, work / "mel ready")
    bench.lengths = side.lengths([*train, *test])
    for part in (model.cpu().eval(), script.tokenizer, script.extractor):
        part.save_pretrained(bench.base)
    print(f"base: the toy tuned on {len(others)} other rows, {BASE_EPOCHS} epochs, {seconds:.0f} s", file=sys.stderr)
    return bench


def _their_model(bench: Bench, tuning: str) -> tuple[Any, Any]:
    """The bare or LoRA model with the same trainable weights as ours, and the script around it."""
    import ours
    import torch
    import users_manner
    from peft import LoraConfig, get_peft_model

    from luthier.models import adapters
    from luthier.models.load import load_base

    settings = ours.recipe(bench.base, tuning, EPOCHS, RATE, SEED)
    base = load_base(settings.model)
    lora = settings.model.lora
    torch.manual_seed(SEED)
    model = (
        adapters.attach(base, settings.model, {}, SEED)
        if tuning == "full"
        else get_peft_model(
            base.model,
            LoraConfig(
                r=lora.r,
                lora_alpha=lora.alpha,
                lora_dropout=lora.dropout,
                task_type="CAUSAL_LM",
                target_modules=base.family.decoder_pattern,
            ),
        )
    )
    script = users_manner.Script(
        base.tokenizer,
        base.extractor,
        lambda data: ours.load_audio(data, bench.recordings.limits),
        base.family.audio_token_id(base.model),
        base.tokenizer.convert_tokens_to_ids("<|end|>"),
        settings.task.instruction,
    )
    return model, script


def _clips(bench: Bench, rows: Sequence[Any]) -> list[Any]:
    import users_manner

    return [users_manner.Clip(row.text, bench.recordings.audio[row.media[0]], row.target.grade) for row in rows]


def _settings(rate: float) -> Any:
    """The recipe's arithmetic under the names of the script."""
    import ours
    import users_manner

    train = ours.recipe("", "full", EPOCHS, rate, SEED).train
    return users_manner.Settings(
        train.batch_size, rate, train.warmup_ratio, train.weight_decay, train.adam_beta2, train.adam_epsilon, SEED
    )


def _ours(bench: Bench, tuning: str, ready: bool) -> None:
    """One run of ours. What is cached is made within the time; log-mel beforehand where `ready`."""
    import ours

    settings = ours.recipe(bench.base, tuning, EPOCHS, RATE, SEED)
    side = ours.Ours.build(settings, bench.recordings, bench.work / ("mel ready" if ready else "from files"))
    train, test = (side.examples(rows, bench.lengths) for rows in (bench.train, bench.test))
    bench.note(f"{tuning} logit difference", side.largest_difference(test[:8]))
    side.forget(mel=not ready)
    name = f"{tuning}{' ready' if ready else ''}"
    seconds, prepared = side.tune(bench.train, bench.work / "run", train if ready else None)
    bench.note(f"{name} train ours", len(train) * EPOCHS / seconds)
    bench.note(f"{name} train ours, seconds of it before the first step", prepared)
    p_pass, seconds = side.judge(bench.test, SCORE_BATCH, test if ready else None)
    bench.note(f"{name} score ours", len(test) / seconds)
    bench.note(f"{name} auroc ours", _auroc(bench, p_pass))
    if ready:
        bench.note(f"{name} score again ours", len(test) / side.judge(bench.test, SCORE_BATCH, test)[1])


def _theirs(bench: Bench, tuning: str, ready: bool) -> None:
    """One run of the users' script, on the rows of our batches in our order."""
    import numpy as np
    import ours
    import users_manner

    settings = ours.recipe(bench.base, tuning, EPOCHS, RATE, SEED)
    plan = ours.Ours.build(settings, bench.recordings, bench.work / "mel ready")
    order = [bench.train[row] for row in plan.order(plan.examples(bench.train, bench.lengths))]
    model, script = _their_model(bench, tuning)
    name = f"{tuning}{' ready' if ready else ''}"
    rows = users_manner.Recordings(script, _clips(bench, order), ready)
    seconds = users_manner.tune(model, rows, _settings(RATE), str(bench.work / "trainer"))
    bench.note(f"{name} train theirs", len(order) / seconds)
    test = users_manner.Recordings(script, _clips(bench, bench.test), ready)
    found, seconds = users_manner.verdicts(model, test, SCORE_BATCH)
    bench.note(f"{name} score theirs", len(test) / seconds)
    bench.note(f"{name} unreadable theirs", sum(p is None for p in found))
    bench.note(f"{name} auroc theirs", _auroc(bench, np.array([0.5 if p is None else p for p in found])))
    if ready:
        bench.note(f"{name} score again theirs", len(test) / users_manner.verdicts(model, test, SCORE_BATCH)[1])


def _auroc(bench: Bench, p_pass: Any) -> float:
    import numpy as np

    from luthier.assess.metrics import auroc

    found = auroc(p_pass, np.array([float(row.target.grade >= 4) for row in bench.test]))
    if found is None:
        raise ValueError("the held-out rows have one class only")
    return found


def _table(bench: Bench) -> str:
    """Answers a second of both sides and their ratio; medians over repeats, spread of the ratio in brackets."""
    from luthier.console import table

    rows = []
    for tuning, ready in JOBS:
        name = f"{tuning}{' ready' if ready else ''}"
        for what in ("train", "score", *(["score again"] if ready else [])):
            mine, theirs = bench.found[f"{name} {what} ours"], bench.found[f"{name} {what} theirs"]
            ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
            aurocs = [f"{statistics.median(bench.found[f'{name} auroc {side}']):.3f}" for side in ("ours", "theirs")]
            rows.append(
                [
                    tuning,
                    "log-mel ready" if ready else "from files",
                    what,
                    f"{statistics.median(theirs):.0f}",
                    f"{statistics.median(mine):.0f}",
                    f"{statistics.median(ratios):.2f}x",
                    f"{min(ratios):.2f}-{max(ratios):.2f}",
                    *aurocs,
                ]
            )
    worst = max(value for key, found in bench.found.items() if key.endswith("logit difference") for value in found)
    header = ["tuned", "starts", "what", "theirs/s", "ours/s", "ratio", "spread", "AUROC ours", "theirs"]
    return f"{table(header, rows)}\nlargest logit difference to transformers' own forward: {worst:.1e}"


if __name__ == "__main__":
    sys.exit(main())
