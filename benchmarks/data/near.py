"""Near duplicates over the generated rows, with verification: ours beside datasketch, and an exact oracle.

    python benchmarks/data/near.py FOLDER [--rows 20000]

FOLDER is what generate.py wrote. Both sides get the same first rows of each file as texts; ours is also run over all
of them. The oracle finds every pair with a Jaccard index of 0.8 in Python sets, by the prefix filter (Bayardo 2007),
so that recall is counted and not estimated. The last line printed is `{"ours": {...}, "theirs": {...}}`.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from luthier.data.alike.shingles import fold

THRESHOLD, SIZE, PERMUTATIONS, BATCH = 0.8, 3, 128, 1000
_WORD = re.compile("[0-9A-Za-z\x80-\U0010ffff]+")


def main() -> int:
    options = _options()
    if options.side:
        print(json.dumps(_side(options.side, Path(options.folder))))
        return 0
    with tempfile.TemporaryDirectory() as place:
        few, every = Path(place) / "few", Path(place) / "all"
        share = _write(options.folder, few, options.rows)
        _write(options.folder, every, 0)
        ours, theirs = _run("ours", few), _run("datasketch", few)
        whole = _run("ours", every)
        truth = _oracle(few)
        siblings = _siblings(options.folder, few)
    found = {name: _judged(side, truth, siblings) for name, side in (("ours", ours), ("theirs", theirs))}
    found["ours"] |= {
        f"all_{key}": whole[key] for key in ("rows", "words", "cpu_s", "wall_s", "peak_mb", "bytes_per_row")
    }
    found["ours"] |= {"all_merged": len(whole["pairs"]), "all_siblings": whole["siblings"], "share": round(share, 3)}
    print(json.dumps(found))
    return 0


def _write(folder: Path, out: Path, rows: int) -> float:
    """Texts (user and assistant turns, joined) and keys of the first rows, in proportion to the files; their share."""
    out.mkdir()
    names = json.loads((folder / "truth.json").read_text())["files"]
    tables = {name: list(_texts(folder / path)) for name, path in names.items()}
    total = sum(map(len, tables.values()))
    share = min(1.0, rows / total) if rows else 1.0
    texts = [text for table in tables.values() for text in table[: math.ceil(len(table) * share)]]
    keys = [f"{name}#{n + 1}" for name, table in tables.items() for n in range(math.ceil(len(table) * share))]
    with pa.OSFile(str(out / "texts.arrow"), "wb") as sink:
        table = pa.table({"key": keys, "text": pa.array(texts, pa.large_string())})
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=BATCH)
    return share


def _texts(path: Path) -> Iterator[str]:
    if path.suffix == ".parquet":
        records = (row for batch in pq.ParquetFile(path).iter_batches(4096) for row in batch.to_pylist())
    else:
        records = map(orjson.loads, path.open("rb"))
    for record in records:
        turns = record.get("conversations") or record.get("messages") or []
        said = [(turn.get("from") or turn.get("role"), turn.get("value") or turn.get("content")) for turn in turns]
        yield "\n".join(text or "" for role, text in said if role != "system")


def _run(side: str, folder: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, str(folder), "--side", side]
    return dict(
        json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
    )


def _side(side: str, folder: Path) -> dict[str, Any]:
    table = pa.ipc.open_file(pa.memory_map(str(folder / "texts.arrow"))).read_all()
    work = _ours if side == "ours" else _datasketch
    before, begun = _cpu(), time.perf_counter()
    found = work(table.column("text"), folder)
    spent = {"cpu_s": round(_cpu() - before, 2), "wall_s": round(time.perf_counter() - begun, 2)}
    return {**spent, "peak_mb": round(_peak_kb() / 1024), "rows": table.num_rows, **found}


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _peak_kb() -> int:
    """Of this process alone: what `getrusage` says begins with the parent's peak."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])  # type: ignore[index]


def _ours(texts: pa.ChunkedArray, folder: Path) -> dict[str, Any]:
    from luthier.data.dedupe import near

    found = near(texts.chunks, THRESHOLD, SIZE, lambda rows: [texts[int(row)].as_py() for row in rows], folder)
    words = sum(int(pc.sum(pc.count_substring(chunk, " ")).as_py()) for chunk in texts.chunks)
    return {
        "pairs": [(m.into, m.index) for m in found.merges],
        "siblings": found.sibling_count,
        "bytes_per_row": found.bytes_per_row,
        "words": words,
        "compared": found.compared,
        "notes": found.notes,
    }


def _datasketch(texts: pa.ChunkedArray, folder: Path) -> dict[str, Any]:
    """As its documentation does it: sketch, index, query; the estimated Jaccard index is what verifies a pair."""
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=THRESHOLD, num_perm=PERMUTATIONS)
    kept, pairs = {}, []
    for row, text in enumerate(text for chunk in texts.chunks for text in chunk.to_pylist()):
        sketch = MinHash(num_perm=PERMUTATIONS)
        sketch.update_batch([shingle.encode() for shingle in _shingles(text)])
        for other in sorted(index.query(sketch)):
            if sketch.jaccard(kept[other]) >= THRESHOLD:
                pairs.append((other, row))
                break
        else:
            index.insert(row, sketch)
            kept[row] = sketch
    return {"pairs": pairs}


def _shingles(text: str) -> set[str]:
    words = _WORD.findall(fold(text).lower())
    return {" ".join(words[i : i + SIZE]) for i in range(max(1, len(words) - SIZE + 1))} if words else set()


def _oracle(folder: Path) -> dict[tuple[int, int], float]:
    """Every pair of rows with a Jaccard index of at least THRESHOLD, and that index."""
    table = pa.ipc.open_file(pa.memory_map(str(folder / "texts.arrow"))).read_all()
    sets = [
        {hash(item) for item in _shingles(text)} for chunk in table.column("text").chunks for text in chunk.to_pylist()
    ]
    common = {item for item, count in Counter(item for found in sets for item in found).items() if count > 30}
    index: dict[int, list[int]] = defaultdict(list)
    pairs: dict[tuple[int, int], float] = {}
    for row, found in enumerate(sets):
        ranked = sorted(found, key=lambda item: (item in common, item))
        prefix = ranked[: len(ranked) - math.ceil(THRESHOLD * len(ranked) - 1e-9) + 1]
        for other in {other for item in prefix for other in index[item]}:
            if min(len(found), len(sets[other])) >= THRESHOLD * max(len(found), len(sets[other])) - 1e-9:
                shared = len(found & sets[other])
                similarity = shared / (len(found) + len(sets[other]) - shared)
                if similarity >= THRESHOLD:
                    pairs[other, row] = similarity
        for item in prefix:
            index[item].append(row)
    return pairs


def _siblings(folder: Path, few: Path) -> set[tuple[int, int]]:
    """Pairs of rows planted as fillings of one template."""
    table = pa.ipc.open_file(pa.memory_map(str(few / "texts.arrow"))).read_all()
    place = {key: row for row, key in enumerate(table.column("key").to_pylist())}
    families = json.loads((folder / "truth.json").read_text())["siblings"]
    found = [sorted(place[key] for key in family if key in place) for family in families]
    return {(a, b) for family in found for i, a in enumerate(family) for b in family[i + 1 :]}


def _judged(
    side: dict[str, Any], truth: dict[tuple[int, int], float], siblings: set[tuple[int, int]]
) -> dict[str, Any]:
    """Recall over the pairs that are alike and no siblings, and siblings that were merged."""
    stands = {row: into for into, row in side.pop("pairs")}
    wanted = [pair for pair in truth if pair not in siblings]

    def root(row: int) -> int:
        while row in stands:
            row = stands[row]
        return row

    met = sum(root(a) == root(b) for a, b in wanted)
    wrong = sum(root(a) == root(b) for a, b in siblings)
    below = sum((min(pair), max(pair)) not in truth for pair in stands.items())
    return {
        **side,
        "merged": len(stands),
        "alike_pairs": len(wanted),
        "recall": round(met / max(1, len(wanted)), 4),
        "sibling_pairs": len(siblings),
        "siblings_merged": wrong,
        "merged_below_threshold": below,
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--side", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
