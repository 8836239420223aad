"""The job done with Hugging Face `datasets`: load, standardise, filter, drop exact copies, shuffle, write parquet.

    python benchmarks/data/peers_datasets.py FILES OUT [--manner best|batched|rows] [--processes 1]

Imports nothing of Luthier; runs in any environment that has `datasets` and `xxhash`. Three manners:

rows     what most scripts do: map and filter with a function of one row, a filter over a set of keys, shuffle,
         to_parquet;
batched  the same with functions of a batch of 1,000 rows, as the guide advises for speed;
best     the quickest that we found: one batched map gives the messages and the row's key, the rows that stay and
         their order are computed on the column of keys, and one select takes them before to_parquet.

All give the same rows. Prints the seconds of each part; the whole cost is counted from outside, start included.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import unicodedata
from pathlib import Path
from typing import Any

SEED = 17
ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
}
SOURCES = {
    "finetome": ("finetome", "conversations", "from", "value"),
    "sharegpt": ("sharegpt-english", "conversations", "from", "value"),
    "ultrachat": ("ultrachat", "messages", "role", "content"),
}

LOWER = bytes(range(256)).lower()
SPACES = b" \t\n\r\v\f\x1c\x1d\x1e\x1f"


def standard(turns: list[dict[str, Any]] | None, who: str, what: str) -> list[dict[str, str]]:
    """A conversation as role and content; [] where it lacks a user's or an assistant's text or has unknown parts."""
    if not turns:
        return []
    messages, heard = [], set()
    for turn in turns:
        role, text = ROLES.get(turn[who]), turn[what]
        if role is None or text is None:
            return []
        if text.strip():
            heard.add(role)
        messages.append({"role": role, "content": text})
    return messages if "user" in heard and "assistant" in heard else []


def key(messages: list[dict[str, str]]) -> bytes:
    """A hash of the conversation after Unicode, case and white space are folded."""
    import xxhash

    text = "\0".join([part for message in messages for part in (message["role"], message["content"])])
    if text.isascii():  # one pass over the bytes; the str methods cost three times as much
        folded = text.encode().translate(LOWER, SPACES)
    else:
        folded = "".join(unicodedata.normalize("NFKC", text).casefold().split()).encode()
    digest: bytes = xxhash.xxh3_128_digest(folded)
    return digest


def by_rows(parts: list[Any], processes: int | None) -> Any:
    from datasets import concatenate_datasets

    found = []
    for table, (column, who, what) in parts:
        names = {"column": column, "who": who, "what": what}
        mapped = table.map(_message, fn_kwargs=names, num_proc=processes, **_plain(table))
        found.append(mapped.filter(_is_filled, num_proc=processes))
    seen: set[bytes] = set()

    def first(row: dict[str, Any]) -> bool:
        mark = key(row["messages"])
        new = mark not in seen
        seen.add(mark)
        return new

    # One process, as the set of keys is shared by all rows.
    return concatenate_datasets(found).filter(first, load_from_cache_file=False).shuffle(seed=SEED)


def batched(parts: list[Any], processes: int | None) -> Any:
    from datasets import concatenate_datasets

    found = []
    for table, names in parts:
        mapped = table.map(_messages, batched=True, fn_kwargs={"names": names}, num_proc=processes, **_plain(table))
        found.append(mapped.filter(_filled, batched=True, num_proc=processes))
    seen: set[bytes] = set()

    def first(batch: dict[str, list[Any]]) -> list[bool]:
        answer = []
        for messages in batch["messages"]:
            mark = key(messages)
            answer.append(mark not in seen)
            seen.add(mark)
        return answer

    return concatenate_datasets(found).filter(first, batched=True, load_from_cache_file=False).shuffle(seed=SEED)


def best(parts: list[Any], processes: int | None) -> Any:
    import numpy as np
    from datasets import concatenate_datasets

    found = [
        table.map(_messages_and_key, batched=True, fn_kwargs={"names": names}, num_proc=processes, **_plain(table))
        for table, names in parts
    ]
    table = concatenate_datasets(found)
    keys = table.data.column("key").combine_chunks().to_numpy(zero_copy_only=False)
    seen: set[bytes] = {b""}
    stays = []
    for row, mark in enumerate(keys.tolist()):
        if mark not in seen:
            seen.add(mark)
            stays.append(row)
    order = np.random.default_rng(SEED).permutation(np.array(stays))
    return table.select_columns(["messages"]).select(order)


def _plain(table: Any) -> dict[str, Any]:
    return {"remove_columns": table.column_names, "load_from_cache_file": False}


def _message(row: dict[str, Any], column: str, who: str, what: str) -> dict[str, Any]:
    return {"messages": standard(row[column], who, what)}


def _is_filled(row: dict[str, Any]) -> bool:
    return bool(row["messages"])


def _messages(batch: dict[str, list[Any]], names: tuple[str, str, str]) -> dict[str, list[Any]]:
    column, who, what = names
    return {"messages": [standard(turns, who, what) for turns in batch[column]]}


def _messages_and_key(batch: dict[str, list[Any]], names: tuple[str, str, str]) -> dict[str, list[Any]]:
    found = _messages(batch, names)
    return {**found, "key": [key(messages) if messages else b"" for messages in found["messages"]]}


def _filled(batch: dict[str, list[Any]]) -> list[bool]:
    return [bool(messages) for messages in batch["messages"]]


def main() -> int:
    options = _options()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-datasets-") as cache:
        os.environ.update(HF_HOME=cache, HF_DATASETS_CACHE=cache, HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
        begun = time.process_time()
        import datasets

        datasets.disable_progress_bars()
        processes = options.processes if options.processes > 1 else None
        parts = []
        for stem, *names in SOURCES.values():
            path = next(path for path in sorted(options.files.glob(f"{stem}.*")) if path.suffix in KINDS)
            table = datasets.load_dataset(KINDS[path.suffix], data_files=str(path), split="train", cache_dir=cache)
            parts.append((table, tuple(names)))
        loaded = time.process_time()
        table = MANNERS[options.manner](parts, processes)
        chosen = time.process_time()
        table.to_parquet(str(options.out / "rows.parquet"))
        written = time.process_time()
    figures = {
        "rows": len(table),
        "load_cpu_s": round(loaded - begun, 2),
        "map_cpu_s": round(chosen - loaded, 2),
        "write_cpu_s": round(written - chosen, 2),
        "datasets": datasets.__version__,
    }
    print(json.dumps(figures))
    return 0


MANNERS = {"best": best, "batched": batched, "rows": by_rows}
KINDS = {".parquet": "parquet", ".jsonl": "json"}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", type=Path, help="the folder that generate.py wrote")
    parser.add_argument("out", type=Path, help="a folder for rows.parquet")
    parser.add_argument("--manner", choices=tuple(MANNERS), default="best")
    parser.add_argument("--processes", type=int, default=1, help="num_proc of map and filter")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
