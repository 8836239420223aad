"""The same training by Luthier's own parts: packed rows, the head only where something is learned, our loop.

    .venv/bin/python benchmarks/train/ours.py FOLDER [--micro 8] [--tokens 2048] [--count]

The model is built as a recipe's would be; rows come as token ids, as they do for the peers. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "src")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from meter import Meter  # noqa: E402
from peft import load_peft_weights, set_peft_model_state_dict  # noqa: E402
from rows import Work  # noqa: E402

from luthier.models.chat_batches import ChatFeed, Layout  # noqa: E402
from luthier.models.lessons import Lesson, Lessons  # noqa: E402
from luthier.recipe import Recipe  # noqa: E402
from luthier.runtime.checkpoints import Checkpoints  # noqa: E402
from luthier.runtime.devices import Devices  # noqa: E402
from luthier.stages.chat_prepare import build_chat_model  # noqa: E402
from luthier.train.loop import Job, train  # noqa: E402
from luthier.train.optim import make_optimizer  # noqa: E402
from luthier.train.plan import make_plan  # noqa: E402

NEVER = 10**9
LIBRARIES = ("torch", "transformers", "peft", "accelerate")


def main() -> int:
    options = _options()
    torch.set_num_threads(options.threads)
    work = Work.read(options.folder)
    settings = recipe(work, (options.micro, options.tokens), options.padded, options.count)
    devices = Devices(settings.model.dtype)
    _, learner = build_chat_model(settings, devices, settings.seed)
    result = set_peft_model_state_dict(learner.language_model, load_peft_weights(work.adapter, device="cpu"))
    if result.unexpected_keys:
        raise RuntimeError(f"the adapter does not fit: {result.unexpected_keys[:3]}")
    meter = Meter(work, options.count)
    optimizer = make_optimizer(learner, settings.train, settings.model.learned_tokens.learning_rate)
    optimizer.register_step_post_hook(lambda *_: meter.step())
    order = np.array([row for rows in work.steps() for row in rows])
    made = settings.train
    layout = Layout(made.batch_size, made.micro_batch_size, made.micro_batch_tokens, made.packing)
    with tempfile.TemporaryDirectory() as folder:
        job = Job(
            learner=learner,
            optimizer=optimizer,
            plan=make_plan(len(order), settings.train),
            settings=settings.train,
            seed=settings.seed,
            feed=ChatFeed(lessons(work), lambda _epoch: order, layout, settings.seed),
            devices=devices,
            checkpoints=Checkpoints(Path(folder) / "checkpoints", settings.model.base, every=NEVER),
            metrics=Path(folder) / "metrics.jsonl",
            mirror=lambda record: meter.losses.append(torch.tensor(record.loss, dtype=torch.float64)),
        )
        meter.begin()
        train(job)
    meter.report({"versions": {name: version(name) for name in LIBRARIES}})
    return 0


def recipe(work: Work, micro: tuple[int, int], padded: bool, count: bool) -> Recipe:
    """The peers' settings as a recipe; `micro` is most rows and tokens. A counted run logs as recipes do."""
    made = Recipe(name="bench-train", seed=work.settings.seed)
    made.model.base, made.model.tuning, made.model.dtype = work.model, "lora", "float32"
    made.model.lora.r, made.model.lora.alpha = work.settings.lora_r, work.settings.lora_alpha
    made.model.lora.dropout = 0.0
    made.train.epochs, made.train.learning_rate = 1, work.settings.learning_rate
    made.train.schedule, made.train.warmup_ratio, made.train.weight_decay = "constant", 0.0, 0.0
    made.train.adam_beta1, made.train.adam_beta2 = 0.9, 0.999
    made.train.max_grad_norm = work.settings.max_grad_norm
    made.train.batch_size = work.settings.rows_per_step
    made.train.micro_batch_size, made.train.micro_batch_tokens = micro
    made.train.packing = not padded
    if not count:
        made.train.log_every = 1
    return made


def lessons(work: Work) -> Lessons:
    """The rows as the encoder would have left them: a token weighs 1 where it is learned."""
    found = []
    for row in range(len(work.lengths)):
        weight_L = work.learned(row).astype(np.float32)
        weight_L[0] = 0.0
        found.append(Lesson(str(row), work.ids(row).astype(np.int32), weight_L))
    return Lessons.of(found)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--micro", type=int, default=8, help="most rows in a forward pass")
    parser.add_argument("--tokens", type=int, default=2_048, help="most tokens in a forward pass; 0: no limit")
    parser.add_argument("--padded", action="store_true", help="rows side by side in place of end to end")
    parser.add_argument("--count", action="store_true", help="count host reads instead of taking the time")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
