"""Five epochs over the cards by Luthier's own parts, with stored vectors or with the encoder at every look.

    .venv/bin/python benchmarks/vision/ours.py FOLDER --store on|off|auto [--threads 2]

The model is built as a recipe's would be. What is counted begins when it is there: rows encoded, vectors made, steps.
Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "src")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from peft import load_peft_weights, set_peft_model_state_dict  # noqa: E402
from work import PROMPT, Meter, Work, recipe  # noqa: E402

from luthier.data.building.rows import TableRow  # noqa: E402
from luthier.data.mediasource import MediaSource  # noqa: E402
from luthier.models import adapters  # noqa: E402
from luthier.models.chat import ChatTemplate  # noqa: E402
from luthier.models.chat_batches import ChatFeed, Layout  # noqa: E402
from luthier.models.lessons import Encoder, Encoding, Lessons  # noqa: E402
from luthier.models.senses.spelling import Speller  # noqa: E402
from luthier.models.senses.supply import Supply  # noqa: E402
from luthier.models.senses.worth import Look, stock  # noqa: E402
from luthier.recipe_data import Frames, Limits  # noqa: E402
from luthier.runtime.checkpoints import Checkpoints  # noqa: E402
from luthier.runtime.devices import Devices  # noqa: E402
from luthier.schema import NO_TARGET, Message, Part, Provenance, Row  # noqa: E402
from luthier.stages.chat_prepare import build_chat_model  # noqa: E402
from luthier.train.loop import Job, train  # noqa: E402
from luthier.train.optim import make_optimizer  # noqa: E402
from luthier.train.plan import make_plan  # noqa: E402

NEVER = 10**9
LIBRARIES = ("torch", "transformers", "peft", "accelerate", "torchvision", "pillow")


def main() -> int:
    options = _options()
    torch.set_num_threads(options.threads)
    work = Work.read(options.folder)
    settings = recipe(work)
    devices = Devices(settings.model.dtype)
    base, learner = build_chat_model(settings, devices, settings.seed)
    result = set_peft_model_state_dict(learner.language_model, load_peft_weights(work.adapter, device="cpu"))
    if result.unexpected_keys:
        raise RuntimeError(f"the adapter does not fit: {result.unexpected_keys[:3]}")
    optimizer = make_optimizer(learner, settings.train, settings.model.learned_tokens.learning_rate)
    meter = Meter(work)
    optimizer.register_step_post_hook(lambda *_: meter.step())
    with tempfile.TemporaryDirectory(dir=work.folder) as folder:
        meter.begin()
        rows, source = table_rows(work)
        supply = Supply(learner.senses, source)
        lessons = encoded(
            rows, Encoder(ChatTemplate.of(base.tokenizer), 4096, "reject", Speller(supply.senses, source))
        )
        begin = time.perf_counter()
        features = Path(folder) / "features"
        look = Look(list(lessons.media()), work.settings.epochs, training=True)
        stock(supply, adapters.bare(learner.language_model), features, [look], options.store, "bench")
        preparing = time.perf_counter() - begin
        made, order = settings.train, np.arange(len(lessons))
        layout = Layout(made.batch_size, made.micro_batch_size, 0, made.packing, base.tokenizer.pad_token_id or 0)
        job = Job(
            learner=learner,
            optimizer=optimizer,
            plan=make_plan(len(order), made),
            settings=made,
            seed=settings.seed,
            feed=ChatFeed(lessons, lambda _epoch: order, layout, settings.seed, supply=supply),
            devices=devices,
            checkpoints=Checkpoints(Path(folder) / "checkpoints", settings.model.base, every=NEVER),
            metrics=Path(folder) / "metrics.jsonl",
            mirror=lambda record: meter.losses.append(record.loss),
        )
        train(job)
        size = sum(path.stat().st_size for path in features.rglob("*") if path.is_file()) if supply.stores else 0
    more: dict[str, Any] = {"preparing_s": preparing, "disk_bytes": size, "kept": bool(supply.stores)}
    tokens = {"tokens": len(lessons.ids_T), "slots": int(lessons.media_M["slots"].sum())}
    meter.report({**more, **tokens, "versions": {name: version(name) for name in LIBRARIES}})
    return 0


def table_rows(work: Work) -> tuple[list[TableRow], MediaSource]:
    """The rows as a table has them, and their pictures."""
    places: dict[str, Path] = {}
    found = []
    for number, row in enumerate(work.rows):
        path = work.folder / row["image"]
        reference = f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
        places[reference] = path
        asked = Message("user", (Part("image", media=reference), Part("text", PROMPT)))
        told = Message("assistant", (Part("text", row["answer"]),))
        one = Row(f"row-{number}", (asked, told), NO_TARGET, "", "train", Provenance("cards", str(number)))
        found.append(TableRow(one, 0.0))
    return found, MediaSource(lambda reference: places[reference].read_bytes(), Limits(), Frames())


def encoded(rows: list[TableRow], encoder: Encoder) -> Lessons:
    """All rows. Raises RuntimeError where one is lost."""
    found = Encoding()
    lessons = [lesson for _, lesson in encoder.encode(rows, found) if lesson is not None]
    if len(lessons) != len(rows):
        raise RuntimeError(f"rows were lost: {found.first}")
    return Lessons.of(lessons)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--store", choices=("on", "off", "auto"), default="on")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
