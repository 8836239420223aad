"""Small sources for tests of tables: conversations as JSON lines, graded answers, requests over them."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import soundfile
from PIL import Image

from luthier.data.building.request import TableRequest
from luthier.data.building.rows import TableRow
from luthier.data.ledger import read_events
from luthier.data.steps import make_steps
from luthier.data.table import read_table
from luthier.recipe_data import Source

Record = dict[str, Any]


def word(number: int) -> str:
    """A word of letters alone that only this number has: groups are told apart without digits."""
    found = ""
    for _ in range(4):
        number, rest = divmod(number, 26)
        found += chr(97 + rest)
    return found


def chat(question: str, answer: str, **more: Any) -> Record:
    """A conversation of one question and one answer."""
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, **more}


def chats(count: int, start: int = 0) -> list[Record]:
    """Conversations that share no question and no answer."""
    return [chat(f"what is {word(i)}", f"{word(i)} is {word(i + 7000)}") for i in range(start, start + count)]


def jsonl(path: Path, records: Iterable[Record | str], **settings: Any) -> Source:
    """Write records, or lines as they are, and name them as a source."""
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return Source(name=path.stem, path=str(path), **settings)


def request(*train: Source, test: Sequence[Source] = (), steps: Sequence[Any] = (), **settings: Any) -> TableRequest:
    """A request for chat rows, with steps as a recipe writes them."""
    problems: list[str] = []
    bound = make_steps(list(steps), problems)
    assert not problems
    sources = (*((source, "train") for source in train), *((source, "test") for source in test))
    return TableRequest(tuple(sources), steps=tuple(bound), **{"graded": False, **settings})


def recording(seed: int, kind: str = "FLAC", seconds: float = 0.25) -> bytes:
    """Noise whose loudness comes and goes, the same for each seed."""
    rng = np.random.default_rng(seed)
    count = int(16000 * seconds)
    loud = np.repeat(rng.uniform(0.02, 0.4, count // 800 + 1), 800)[:count]
    stream = io.BytesIO()
    soundfile.write(stream, np.clip(rng.normal(0, 1, count) * loud, -1, 1), 16000, format=kind)
    return stream.getvalue()


def events(folder: Path) -> list[dict[str, Any]]:
    """The lines of a table's ledger that tell of single records."""
    return [line for line in read_events(folder / "ledger.jsonl") if "in" not in line]


def closes(folder: Path) -> dict[str, dict[str, Any]]:
    """The summaries of a ledger by source, after each is added up anew from the lines and from the manifest."""
    sums = {line["source"]: line for line in read_events(folder / "ledger.jsonl") if "in" in line}
    lines, manifest = events(folder), orjson.loads((folder / "manifest.json").read_bytes())
    for source, found in sums.items():
        own = [line for line in lines if line["source"] == source]
        merged = sum("into" in line and "reason" not in line for line in own)
        reasons: dict[str, int] = {}
        for line in own:
            if "reason" in line:
                reasons[line["reason"]] = reasons.get(line["reason"], 0) + 1
        assert (found["merged"], found["dropped"]) == (merged, reasons)
        assert found["in"] == found["kept"] + merged + sum(reasons.values())
        assert found["kept"] == manifest["sources"][source]["kept"]
    assert manifest["rows"] == sum(found["kept"] for found in sums.values())
    return sums


def rows_of(folder: Path) -> list[TableRow]:
    return read_table(folder).rows


def said(folder: Path) -> set[str]:
    """The first answer of every row."""
    return {row.row.messages[-1].text for row in rows_of(folder)}


def picture(colour: tuple[int, int, int], size: int = 48, kind: str = "PNG") -> bytes:
    rng = np.random.default_rng(sum(colour))
    coarse = Image.fromarray(rng.integers(0, 255, (6, 6, 3), dtype=np.uint8))
    stream = io.BytesIO()
    coarse.resize((size, size), Image.Resampling.BICUBIC).save(stream, kind)
    return stream.getvalue()


def album(folder: Path, pictures: dict[str, tuple[bytes, str]]) -> Source:
    folder.mkdir(exist_ok=True)
    for name, (data, _) in pictures.items():
        (folder / name).write_bytes(data)
    lines = [f"{name},{caption}\n" for name, (_, caption) in pictures.items()]
    (folder / "metadata.csv").write_text("file_name,text\n" + "".join(lines), encoding="utf-8")
    return Source(name="album", path=str(folder))
