"""Shards: the same rows in the same order however many there are, and memory that does not grow with the rows."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from luthier.data.building import shards, stagewriter
from luthier.data.building.build import build
from luthier.data.table import read_table
from support.children import environment
from support.tables import chats, jsonl, request


def test_many_small_shards_hold_the_rows_of_one_in_the_same_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = request(
        jsonl(tmp_path / "a.jsonl", chats(150)), jsonl(tmp_path / "b.jsonl", chats(60, 400)), validation_fraction=0.2
    )
    one = build(asked, tmp_path / "one")
    monkeypatch.setattr(stagewriter, "_BATCH_ROWS", 7)
    monkeypatch.setattr(shards, "_LEAST_ROWS", 13)
    monkeypatch.setattr(shards, "_MOST_ROWS", 13)
    many = build(asked, tmp_path / "many")
    assert len(list((tmp_path / "one").glob("rows-*.parquet"))) == 1
    names = sorted(path.name for path in (tmp_path / "many").glob("rows-*.parquet"))
    assert names == [f"rows-{number:05d}.parquet" for number in range(-(-210 // 13))]
    assert read_table(tmp_path / "many").rows == read_table(tmp_path / "one").rows
    assert many.manifest["digest"] == one.manifest["digest"]
    assert not list((tmp_path / "many").glob(".spill*"))
    for epoch in range(2):
        assert one.mixture is not None
        assert many.mixture is not None
        np.testing.assert_array_equal(one.mixture.order(epoch), many.mixture.order(epoch))


def test_the_digest_is_that_of_the_shards_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_LEAST_ROWS", 5)
    monkeypatch.setattr(shards, "_MOST_ROWS", 5)
    built = build(request(jsonl(tmp_path / "a.jsonl", chats(12))), tmp_path / "table")
    tables = [pq.read_table(path) for path in sorted((tmp_path / "table").glob("rows-*.parquet"))]
    assert shards.digest_of(tables) == built.manifest["digest"]
    assert shards.digest_of(tables[::-1]) != built.manifest["digest"]


def test_the_order_mixes_the_sources_and_follows_the_seed(tmp_path: Path) -> None:
    a, b = jsonl(tmp_path / "a.jsonl", chats(100)), jsonl(tmp_path / "b.jsonl", chats(100, 400))
    orders = []
    for number, seed in enumerate((17, 17, 18)):
        build(request(a, b, seed=seed), tmp_path / str(number))
        orders.append([row.row.id for row in read_table(tmp_path / str(number)).rows])
        sources = [row.row.provenance.source for row in read_table(tmp_path / str(number)).rows]
        assert 25 < sources[:100].count("a") < 75
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2])


def test_rows_keep_their_relative_order_when_others_are_added(tmp_path: Path) -> None:
    build(request(jsonl(tmp_path / "a.jsonl", chats(50))), tmp_path / "one")
    build(request(jsonl(tmp_path / "a.jsonl", chats(90))), tmp_path / "two")
    before = [row.row.id for row in read_table(tmp_path / "one").rows]
    after = [row.row.id for row in read_table(tmp_path / "two").rows]
    assert [row for row in after if row in set(before)] == before


CHILD = """
import sys
from pathlib import Path
from luthier.data.building import shards
from luthier.data.building.build import build
from luthier.data.building.request import TableRequest
from luthier.recipe_data import Source
here = Path(sys.argv[1])
shards.SHARD_BYTES = 8 * 2**20
build(TableRequest(((Source(name="a", path=sys.argv[2]), "train"),), graded=False), here)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="peak memory is read from /proc")
def test_memory_grows_by_little_for_each_row(tmp_path: Path) -> None:
    from support.tables import chat, word

    peaks, sizes = [], (30_000, 120_000)
    for count in sizes:
        path = tmp_path / f"{count}.jsonl"
        jsonl(path, (chat(f"what is {word(i)}", f"{word(i)} " * 400) for i in range(count)))
        command = [sys.executable, "-c", textwrap.dedent(CHILD), str(tmp_path / f"table-{count}"), str(path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment(), check=True)
        peaks.append(int(done.stdout.split()[-1]) * 1024)
    per_row = (peaks[1] - peaks[0]) / (sizes[1] - sizes[0])
    print(f"peaks {peaks[0] / 2**20:.0f} and {peaks[1] / 2**20:.0f} MiB: {per_row:.0f} bytes a row")
    assert per_row < 300  # a row itself has 2,000: what grows is its id, key, place and decision
