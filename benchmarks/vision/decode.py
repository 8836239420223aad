"""From the bytes of a product picture to what an encoder takes: ours beside the library's processors, one process.

    .venv/bin/python benchmarks/vision/decode.py [--pictures 24] [--rounds 3] [--threads 1]

JPEGs of 800 x 1,200 pixels are made on the spot; settings are those that each family publishes. Ways take turns, and
the outputs are compared before a rate counts. Prints one line of JSON. It knows pictures and processors, no training.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[2] / "src")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from PIL import Image  # noqa: E402

from luthier.data.drawing import COLOURS, GARMENTS, PATTERNS, Look, draw_card  # noqa: E402
from luthier.data.mediasource import MediaSource  # noqa: E402
from luthier.models.phi3_vision import Phi3VConfig, Phi3VImageProcessor  # noqa: E402
from luthier.models.phi3_vision.image import CLIP_DEVIATION, CLIP_MEAN  # noqa: E402
from luthier.models.senses.base import Senses  # noqa: E402
from luthier.models.senses.idefics3 import Idefics3Senses  # noqa: E402
from luthier.models.senses.phi3_vision import Phi3VisionSenses  # noqa: E402
from luthier.models.senses.qwen_vl import QwenSenses  # noqa: E402
from luthier.models.toys import build_toy  # noqa: E402
from luthier.recipe_data import Frames, Limits  # noqa: E402

WIDTH, HEIGHT, SEED = 800, 1200, 17
SIDE, TILES = 336, 16
"""Of Phi-3-vision's HD transform, as published."""
Way = Callable[[bytes], torch.Tensor]


def main() -> int:
    options = _options()
    torch.set_num_threads(options.threads)
    pictures = [product(number) for number in range(options.pictures)]
    found = {}
    with tempfile.TemporaryDirectory(prefix="bench-decode-") as folder:
        for family, ways in (("Phi-3-vision", phi3()), ("Qwen2-VL", qwen(folder)), ("SmolVLM", smolvlm(folder))):
            found[family] = {"rates": rates(ways, pictures, options.rounds), "apart": apart(ways, pictures[0])}
    size = sum(map(len, pictures)) / len(pictures)
    about = {"pictures": len(pictures), "width": WIDTH, "height": HEIGHT, "bytes": round(size), "seed": SEED}
    versions = {name.__name__: name.__version__ for name in (torch, transformers, Image)}
    print(json.dumps({"families": found, "about": about, "threads": options.threads, "versions": versions}))
    return 0


def product(number: int) -> bytes:
    """A product picture as shops have them: a card at 800 x 1,200, with the grain that a camera leaves."""
    draw = random.Random(f"{SEED}/{number}")
    look = Look(draw.choice(GARMENTS), draw.choice(list(COLOURS)), draw.choice(PATTERNS), f"${draw.randint(10, 999)}0")
    large = np.asarray(draw_card(look, draw).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), dtype=np.float32)
    grain = np.random.default_rng([SEED, number]).normal(0.0, 6.0, large.shape)
    packed = io.BytesIO()
    Image.fromarray(np.clip(large + grain, 0, 255).astype(np.uint8)).save(packed, "JPEG", quality=90)
    return packed.getvalue()


def phi3() -> dict[str, Way]:
    """The published processor is remote code: beside it stand torchvision's calls that its description names."""
    tokenizer = build_toy("toy:phi3-vision", SEED)[1]
    senses = Phi3VisionSenses(Phi3VConfig(), tokenizer, Phi3VImageProcessor())
    return {"ours": ours(senses, "tiles"), "torchvision calls": hd_by_torchvision}


def hd_by_torchvision(data: bytes) -> torch.Tensor:
    """(T, 3, S, S) by torchvision's own functions on PIL pictures, as the published preprocessing is described."""
    from torchvision.transforms import functional

    image = opened(data)
    turned = image.width < image.height
    image = image.transpose(Image.Transpose.TRANSPOSE) if turned else image
    ratio = image.width / image.height
    scale = max(number for number in range(1, TILES + 1) if number * math.ceil(number / ratio) <= TILES)
    image = functional.resize(image, [int(scale * SIDE / ratio), scale * SIDE])
    missing = math.ceil(image.height / SIDE) * SIDE - image.height
    image = functional.pad(image, [0, missing // 2, 0, missing - missing // 2], fill=[255, 255, 255])
    image = image.transpose(Image.Transpose.TRANSPOSE) if turned else image
    values = functional.normalize(functional.to_tensor(image), CLIP_MEAN, CLIP_DEVIATION)
    whole = torch.nn.functional.interpolate(values[None], (SIDE, SIDE), mode="bicubic")
    rows, columns = values.shape[1] // SIDE, values.shape[2] // SIDE
    cut = values.reshape(3, rows, SIDE, columns, SIDE).permute(1, 3, 0, 2, 4).reshape(-1, 3, SIDE, SIDE)
    return torch.cat([whole, cut])


def qwen(folder: str) -> dict[str, Way]:
    """At the sizes that Qwen2-VL publishes: 56 x 56 to 12.8 million pixels."""
    model, tokenizer, _ = build_toy("toy:qwen2-vl", SEED)
    size = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 16384}
    place = Path(folder) / "qwen"
    transformers.Qwen2VLImageProcessor(size=size).save_pretrained(place)
    transformers.Qwen2VLVideoProcessor().save_pretrained(place)
    senses = QwenSenses.of(model, tokenizer, str(place), "")
    return {"ours": ours(senses, "pixels_NP"), **library(place, lambda made: made["pixel_values"])}


def smolvlm(folder: str) -> dict[str, Way]:
    """At the sizes that SmolVLM publishes: tiles of 384, four of them on the longer edge."""
    model, tokenizer, _ = build_toy("toy:smolvlm", SEED)
    place = Path(folder) / "smolvlm"
    sizes = {"size": {"longest_edge": 4 * 384}, "max_image_size": {"longest_edge": 384}}
    transformers.SmolVLMImageProcessor(**sizes).save_pretrained(place)
    sight = SimpleNamespace(patch_size=14)
    config = SimpleNamespace(
        vision_config=sight, scale_factor=3, image_token_id=model.config.image_token_id, model_type="smolvlm"
    )
    senses = Idefics3Senses.of(SimpleNamespace(config=config), tokenizer, str(place))
    return {"ours": ours(senses, "pixel_values"), **library(place, lambda made: made["pixel_values"][0])}


def library(place: Path, take: Callable[[Any], torch.Tensor]) -> dict[str, Way]:
    """The library's two processors of a folder, as its users call them."""
    found: dict[str, Way] = {}
    for backend in ("torchvision", "pil"):
        made = transformers.AutoImageProcessor.from_pretrained(place, backend=backend)
        found[f"library, {backend}"] = lambda data, made=made: take(made(images=[opened(data)], return_tensors="pt"))
    return found


def opened(data: bytes) -> Image.Image:
    """A picture as users open it."""
    return Image.open(io.BytesIO(data)).convert("RGB")


def ours(senses: Senses, name: str) -> Way:
    """Bounds, EXIF and torn files are looked after on this way; `name` is the input that is compared."""
    kept: dict[str, bytes] = {}
    source = MediaSource(kept.__getitem__, Limits(), Frames())

    def way(data: bytes) -> torch.Tensor:
        kept["one"] = data
        return senses.prepare("image", source.load("image", "one")).inputs[name]

    return way


def rates(ways: dict[str, Way], pictures: list[bytes], rounds: int) -> dict[str, list[float]]:
    """Pictures a second of each way and round. Ways take turns, and the order is turned round each time."""
    for way in ways.values():
        way(pictures[0])
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds):
        for name in list(ways)[:: -1 if turn % 2 else 1]:
            begin = time.perf_counter()
            for data in pictures:
                ways[name](data)
            found[name].append(round(len(pictures) / (time.perf_counter() - begin), 3))
    return found


def apart(ways: dict[str, Way], data: bytes) -> dict[str, float]:
    """The largest difference of each way's values from ours; infinite where shapes differ."""
    mine, *others = ways
    wanted = ways[mine](data)
    return {name: _apart(wanted, ways[name](data)) for name in others}


def _apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max()) if a.shape == b.shape else float("inf")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pictures", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="torch's threads, for all ways")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
