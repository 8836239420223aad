"""How fast rows become token ids: rendering through a chat template and tokenising, by ours or by transformers.

    python benchmarks/data/rates.py ours|theirs FOLDER [--rows 2000] [--base toy:llama]

FOLDER holds parquet with a column `messages`. Both sides get the same conversations and the same tokenizer and work in
one thread; loading is not counted. Ours also proves that every text survives and finds the loss mask; theirs is
`apply_chat_template` over all conversations, then the tokenizer over all texts in one call.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq


def conversations(folder: Path, rows: int) -> list[list[dict[str, str]]]:
    """The first `rows` conversations, each turn's content one text."""
    found: list[list[dict[str, str]]] = []
    for path in sorted(folder.rglob("*.parquet")):
        with pq.ParquetFile(path) as file:
            if "messages" not in file.schema_arrow.names:
                continue
            for batch in file.iter_batches(batch_size=500, columns=["messages"]):
                for cell in batch.column(0).to_pylist():
                    messages = orjson.loads(cell) if isinstance(cell, str) else cell
                    found.append([{"role": m["role"], "content": _text(m["content"])} for m in messages])
                    if len(found) == rows:
                        return found
    return found


def ours(talks: list[list[dict[str, str]]], tokenizer: Any) -> dict[str, float]:
    from luthier.models.template_doctor import examine
    from luthier.schema import Message, Part, Provenance, Row, Target

    made = [
        Row(
            str(number),
            tuple(Message(turn["role"], (Part("text", turn["content"]),)) for turn in talk),  # type: ignore[arg-type]
            Target(),
            "",
            "train",
            Provenance("bench", str(number)),
        )
        for number, talk in enumerate(talks)
    ]
    begun = time.process_time()
    diagnosis = examine(made, tokenizer, maximum_tokens=1 << 30)
    return {"cpu_s": time.process_time() - begun, "tokens": float(diagnosis.figures["tokens_total"])}


def theirs(talks: list[list[dict[str, str]]], tokenizer: Any) -> dict[str, float]:
    begun = time.process_time()
    texts = tokenizer.apply_chat_template(talks, tokenize=False)
    rendered = time.process_time()
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    done = time.process_time()
    tokens = float(sum(map(len, ids)))
    return {
        "cpu_s": done - begun,
        "tokens": tokens,
        "render_cpu_s": rendered - begun,
        "tokenise_cpu_s": done - rendered,
    }


def main() -> int:
    options = _options()
    talks = conversations(options.folder, options.rows)
    tokenizer = _tokenizer(options.base)
    found = (ours if options.side == "ours" else theirs)(talks, tokenizer)
    text = sum(len(turn["content"].encode()) for talk in talks for turn in talk)
    amounts = {"rows": len(talks), "tokens": found["tokens"], "mb": text / 1e6}
    rates = {f"{name}_per_s": amount / found["cpu_s"] for name, amount in amounts.items()}
    print(json.dumps({"rows": len(talks), **found, **rates}))
    return 0


def _tokenizer(base: str) -> Any:
    """The toy tokenizer of this project, or that of a local folder."""
    if not base.startswith("toy:"):
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(base, local_files_only=True)
    from luthier.models.toy_tokenizer import load_tokenizer

    return load_tokenizer()


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("side", choices=("ours", "theirs"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=2_000)
    parser.add_argument(
        "--base", default="toy:llama", help="toy:NAME, or a folder with a tokenizer that has a template"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
