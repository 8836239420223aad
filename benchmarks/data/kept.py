"""Which conversations a built table holds, as one digest: equal digests mean equal multisets of (role, text) lists.

    python benchmarks/data/kept.py FOLDER

Reads every parquet file under FOLDER whose table has a column `messages`: lists of role and content, or the same as
JSON text; content a string or typed parts. Refuses to know who wrote them, and in which order.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq


def digest(folder: Path) -> dict[str, Any]:
    """`rows`, and `digest`: the sha256 of the sorted hashes of all conversations."""
    hashes: list[bytes] = []
    for path in sorted(folder.rglob("*.parquet")):
        with pq.ParquetFile(path) as file:
            if "messages" not in file.schema_arrow.names:
                continue
            for batch in file.iter_batches(batch_size=2_000, columns=["messages"]):
                hashes += [_hash(cell) for cell in batch.column(0).to_pylist()]
    return {"rows": len(hashes), "digest": hashlib.sha256(b"".join(sorted(hashes))).hexdigest()}


def _hash(cell: Any) -> bytes:
    messages = orjson.loads(cell) if isinstance(cell, str | bytes) else cell
    turns = [[message["role"], _text(message["content"])] for message in messages]
    return hashlib.blake2b(orjson.dumps(turns), digest_size=16).digest()


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content)


if __name__ == "__main__":
    print(json.dumps(digest(Path(sys.argv[1]))))
