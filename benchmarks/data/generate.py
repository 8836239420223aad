"""Writes three chat sets in the shapes and lengths of the published ones, with planted copies and a truth file.

    python benchmarks/data/generate.py FOLDER [--rows 150496] [--seed 17] [--finetome parquet|jsonl] ...

Nothing is downloaded: every word is invented. Rows, turns and bytes follow what the sets' cards state (README.md).
It knows what the files look like; it knows nothing of who reads them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import plants
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from plants import Talk
from words import Vocabulary

ROWS = 150_496
CHUNK = 2_000
"""Rows made at a time, and in a row group."""
COPIES, NEAR, SIBLINGS = 0.05, 0.05, 0.05
NON_ASCII, CODE = 0.02, 0.08
_TURN = pa.struct([("from", pa.string()), ("value", pa.string())])
_MESSAGE = pa.struct([("content", pa.string()), ("role", pa.string())])


@dataclass(frozen=True)
class Shape:
    """One published set: how many rows, how long, how many turns, and how it is written."""

    name: str
    rows: int
    bytes: float
    """Mean bytes of text in a row (its other columns set aside)."""
    sigma: float
    """Spread of the logarithm of a row's length."""
    turns: tuple[float, ...]
    """Share of rows with one, two, three... exchanges."""
    asked: float
    """Length of a user's turn beside an assistant's."""
    broken: float
    schema: pa.Schema
    format: str


SHAPES = (
    Shape(
        "finetome", 100_000, 2_330, 0.75, (0.86, 0.07, 0.04, 0.03), 0.40, 0.003,
        pa.schema([("conversations", pa.list_(_TURN)), ("source", pa.string()), ("score", pa.float64())]), "parquet",
    ),
    Shape(
        "sharegpt", 25_248, 3_830, 1.0, (0.34, 0.2, 0.14, 0.1, 0.08, 0.06, 0.04, 0.04), 0.30, 0.04,
        pa.schema([("id", pa.string()), ("conversations", pa.list_(_TURN))]), "jsonl",
    ),
    Shape(
        "ultrachat", 25_248, 6_600, 0.5, (0.0, 0.16, 0.36, 0.30, 0.12, 0.05, 0.01), 0.15, 0.003,
        pa.schema([("prompt", pa.string()), ("prompt_id", pa.string()), ("messages", pa.list_(_MESSAGE))]), "parquet",
    ),
)  # fmt: skip
_FILES = {"finetome": "finetome", "sharegpt": "sharegpt-english", "ultrachat": "ultrachat"}
_HUMANS, _MACHINES = ("human", "human", "human", "user"), ("gpt",) * 22 + ("chatgpt", "bing", "bard")
_SOURCES = ("infini-instruct-top-500k", "WebInstructSub_axolotl", "ultrainteract_trajectories_sharegpt", "NuminaMath")


@dataclass
class Truth:
    """Where everything planted lies. A row is `NAME#N`, N its record's number in its file, from 1."""

    exact: list[list[str]] = field(default_factory=list)
    """[row, its copy, same|case|space]"""
    near: list[list[Any]] = field(default_factory=list)
    """[row, its near copy, share of words edited]"""
    siblings: list[list[str]] = field(default_factory=list)
    """Rows of one template, equal but for names and numbers."""
    broken: list[list[str]] = field(default_factory=list)
    """[row, way in which it is broken]"""


def main() -> int:
    options = _options()
    options.folder.mkdir(parents=True, exist_ok=True)
    formats = {shape.name: getattr(options, shape.name) for shape in SHAPES}
    found = generate(options.folder, options.rows, options.seed, formats)
    print(json.dumps(found))
    return 0


def generate(folder: Path, rows: int, seed: int, formats: dict[str, str]) -> dict[str, Any]:
    """Write the three files and truth.json. Returns rows, paths and bytes; the same call writes the same bytes."""
    words, truth, bank = Vocabulary.make(seed), Truth(), _Bank()
    written: dict[str, Any] = {}
    for which, shape in enumerate(SHAPES):
        count = max(20, round(rows * shape.rows / ROWS)) if rows != ROWS else shape.rows
        form = formats.get(shape.name, shape.format)
        path = folder / f"{_FILES[shape.name]}.{form}"
        talks = _talks(shape, count, words, truth, bank, [seed, 2 + which])
        (_write_parquet if form == "parquet" else _write_jsonl)(path, shape, talks, seed)
        written[shape.name] = {"path": str(path), "rows": count, "bytes": path.stat().st_size}
    planted = {name: len(value) for name, value in vars(truth).items()}
    record = {"seed": seed, "files": {name: Path(item["path"]).name for name, item in written.items()}, **vars(truth)}
    (folder / "truth.json").write_text(json.dumps(record), encoding="utf-8")
    return {"files": written, "planted": planted, "truth": str(folder / "truth.json")}


class _Bank:
    """Rows that were written and may be planted again, each once."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, Talk]] = []

    def take(self, rng: np.random.Generator) -> tuple[str, Talk]:
        at = int(rng.integers(len(self.rows)))
        self.rows[at], self.rows[-1] = self.rows[-1], self.rows[at]
        return self.rows.pop()

    def put(self, rows: list[tuple[str, Talk]]) -> None:
        self.rows = [*self.rows, *rows][-3_000:]


def _talks(
    shape: Shape, count: int, words: Vocabulary, truth: Truth, bank: _Bank, seed: list[int]
) -> Iterator[list[Talk | None]]:
    """The conversations of one set, CHUNK at a time; what is planted is entered into `truth`."""
    for start in range(0, count, CHUNK):
        rng = np.random.default_rng([*seed, start])
        size = min(CHUNK, count - start)
        order = rng.permutation(size)
        shares = np.array([COPIES, NEAR, SIBLINGS, shape.broken]) * size
        copies, near, siblings, broken = (int(share + rng.random()) for share in shares)
        planted = copies + near + siblings + broken
        fresh = _fresh(shape, size - planted, words, rng)
        found: list[Talk | None] = [None] * size
        keys = [f"{shape.name}#{start + int(at) + 1}" for at in order]
        for at, talk in zip(order[planted:].tolist(), fresh, strict=True):
            found[at] = talk
        lent = rng.permutation(len(fresh))[: max(400, planted)].tolist()
        bank.put([(keys[planted + i], fresh[i]) for i in lent if fresh[i][0][0] != "system"])
        made: list[Talk | None] = []
        for n in range(copies):
            how = plants.COPIES[n % len(plants.COPIES)]
            key, talk = bank.take(rng)
            made.append(plants.copied(talk, how))
            truth.exact.append([key, keys[len(made) - 1], how])
        for _ in range(near):
            key, talk = bank.take(rng)
            share = float(rng.uniform(0.02, 0.06))
            made.append(plants.edited(talk, share, words.words, rng))
            truth.near.append([key, keys[len(made) - 1], round(share, 4)])
        while len(made) < copies + near + siblings:
            key, talk = bank.take(rng)
            while plants.entities(talk) < 4:
                key, talk = bank.take(rng)
            family = min(int(rng.integers(1, 4)), copies + near + siblings - len(made))
            made += [plants.sibling(talk, rng) for _ in range(family)]
            truth.siblings.append([key, *keys[len(made) - family : len(made)]])
        for n in range(broken):
            how = plants.BROKEN[int(rng.integers(len(plants.BROKEN))) if n % 2 else 0]
            made.append(plants.broken(fresh[n], how))
            truth.broken.append([keys[len(made) - 1], how])
        for at, planted_talk in zip(order[:planted].tolist(), made, strict=True):
            found[at] = planted_talk
        yield found


def _fresh(shape: Shape, count: int, words: Vocabulary, rng: np.random.Generator) -> list[Talk]:
    """`count` conversations of the set's lengths: log-normal over rows, gamma over the turns of a row."""
    exchanges = rng.choice(len(shape.turns), count, p=np.array(shape.turns) / sum(shape.turns)) + 1
    mean = shape.bytes / words.bytes_per_word
    total = rng.lognormal(np.log(mean) - shape.sigma**2 / 2, shape.sigma, count).clip(6, 20_000)
    weight = rng.gamma(3.0, size=2 * int(exchanges.sum()))
    weight[::2] *= shape.asked
    ends = np.cumsum(2 * exchanges)
    sums = np.add.reduceat(weight, ends - 2 * exchanges)
    lengths = np.maximum(2, np.rint(weight * np.repeat(total / sums, 2 * exchanges))).astype(np.int64)
    foreign: NDArray[np.bool_] = np.repeat(rng.random(count) < NON_ASCII, 2 * exchanges)
    texts = words.texts(lengths, foreign, rng)
    coded, led = rng.random(count) < CODE, (rng.random(count) < 0.02) & (shape.name == "sharegpt")
    found: list[Talk] = []
    for row, (begin, end) in enumerate(zip((ends - 2 * exchanges).tolist(), ends.tolist(), strict=True)):
        talk: Talk = [("assistant" if i % 2 else "user", text) for i, text in enumerate(texts[begin:end])]
        if coded[row]:
            talk[-1] = ("assistant", f"{talk[-1][1]}\n\n{words.code(rng)}")
        found.append([("system", "You are a helpful assistant."), *talk] if led[row] else talk)
    return found


def _records(shape: Shape, talks: list[Talk | None], start: int, seed: int) -> list[dict[str, Any]]:
    """Conversations under the set's own names of columns and roles."""
    rng = np.random.default_rng([seed, 9, start])
    pick = rng.integers(0, 1 << 30, len(talks)).tolist()
    found: list[dict[str, Any]] = []
    for talk, chance in zip(talks, pick, strict=True):
        if shape.name == "ultrachat":
            prompt = (talk[0][1] if talk else None) or ""
            messages = None if talk is None else [{"content": text, "role": role} for role, text in talk]
            identity = hashlib.sha256(prompt.encode()).hexdigest()
            found.append({"prompt": prompt, "prompt_id": identity, "messages": messages})
            continue
        free = shape.name == "sharegpt"
        names = {
            "user": _HUMANS[chance % len(_HUMANS)] if free else "human",
            "assistant": _MACHINES[chance % len(_MACHINES)] if free else "gpt",
        }
        turns = None if talk is None else [{"from": names.get(role, role), "value": text} for role, text in talk]
        if free:
            found.append({"id": f"{chance:08x}_0", "conversations": turns})
        else:
            source = _SOURCES[chance % len(_SOURCES)]
            found.append({"conversations": turns, "source": source, "score": 4.1 + chance % 10_000 / 9_000})
    return found


def _write_parquet(path: Path, shape: Shape, talks: Iterator[list[Talk | None]], seed: int) -> None:
    with pq.ParquetWriter(path, shape.schema, compression="snappy") as writer:
        start = 0
        for chunk in talks:
            writer.write_table(pa.Table.from_pylist(_records(shape, chunk, start, seed), schema=shape.schema))
            start += len(chunk)


def _write_jsonl(path: Path, shape: Shape, talks: Iterator[list[Talk | None]], seed: int) -> None:
    with path.open("wb") as stream:
        start = 0
        for chunk in talks:
            stream.writelines(orjson.dumps(record) + b"\n" for record in _records(shape, chunk, start, seed))
            start += len(chunk)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the files go")
    parser.add_argument("--rows", type=int, default=ROWS, help="rows in all three files")
    parser.add_argument("--seed", type=int, default=17)
    for shape in SHAPES:
        parser.add_argument(f"--{shape.name}", choices=("parquet", "jsonl"), default=shape.format)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
