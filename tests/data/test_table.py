"""A table built, sealed, read back and distrusted."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from luthier.data.building import shards
from luthier.data.building.request import TableRequest
from luthier.data.building.rows import SCHEMA
from luthier.data.table import Table, build_table, iter_rows, read_table
from luthier.errors import DataError, ExistsError, SourceError
from luthier.files import sha256_file, verify_folder
from luthier.recipe_data import Columns, Source
from luthier.schema import Target

SPEAKING = Path(__file__).parents[2].parent / "shared" / "data" / "speaking" / "form-1764-test.parquet"
COLUMNS = Columns(raters=["r1"], held_back=["r2"], keep=["p_panel"])


def recording(seed: int) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, np.random.default_rng(seed).normal(0, 0.1, 4000), 16000, format="FLAC")
    return stream.getvalue()


def records(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [
        {
            "id": f"u{i}",
            "speaker": f"s{i // 3}",
            "prompt": f"prompt {i}",
            "grade": 1 + i % 9 / 2,
            "r1": 3,
            "r2": 4,
            "p_panel": i / 100,
            "audio": {"bytes": recording(i), "path": None},
        }
        for i in range(start, start + count)
    ]


def write(path: Path, rows: list[dict[str, Any]], group: int = 100) -> Source:
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)
    return Source(name=path.stem, path=str(path))


def build(sources: Sequence[tuple[Source, str]], folder: Path) -> Table:
    return build_table(TableRequest(tuple(sources), columns=COLUMNS), folder)


def test_a_table_is_built_and_read_back_equal(tmp_path: Path) -> None:
    rows = records(12)
    bad = [{**rows[0], "grade": 9.0}, {**rows[1], "audio": {"bytes": b"torn", "path": None}}, rows[2], rows[2]]
    sources = [
        (write(tmp_path / "a.parquet", rows + bad), "train"),
        (write(tmp_path / "b.parquet", records(5, 50)), "test"),
    ]
    built = build(sources, tmp_path / "data")
    found = read_table(tmp_path / "data")
    assert found == built
    assert len(found.rows) == 17
    assert [item.row.provenance.origin for item in found.rows[:2]] == ["a.parquet#1 u0", "a.parquet#2 u1"]
    assert found.rows[3].aux == {"p_panel": 0.03}
    assert found.rows[3].seconds == pytest.approx(0.25)
    assert found.rows[3].row.target == Target(grade=2.5, raters=(3.0,), held_back=(4.0,))
    for item, row in zip(found.rows, rows + records(5, 50), strict=True):
        assert found.media_bytes(item.row.media[0]) == row["audio"]["bytes"]
    ledger = [json.loads(line) for line in (tmp_path / "data" / "ledger.jsonl").read_text().splitlines()]
    assert ledger[0] == {
        "source": "a",
        "in": 16,
        "kept": 12,
        "merged": 2,
        "dropped": {"grade_outside_scale": 1, "unreadable_audio": 1},
    }
    assert [line["origin"] for line in ledger[2:4]] == ["a.parquet#13 u0", "a.parquet#14 u1"]
    assert [(line["origin"], line["into"]) for line in ledger[4:]] == [
        (f"a.parquet#{number} u2", found.rows[2].row.id) for number in (15, 16)
    ]
    assert list(iter_rows(tmp_path / "data", {"split": "test"})) == found.rows[12:]
    assert len(found.select(["a"])) == 12
    assert len(found.select(split="test")) == 5
    assert found.select(["a"], "test") == []


def test_what_lies_on_disk(tmp_path: Path) -> None:
    built = build([(write(tmp_path / "a.parquet", records(4)), "train")], tmp_path / "data")
    folder = tmp_path / "data"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert verify_folder(folder, "manifest.json") is None
    assert {"rows-00000.parquet", "ledger.jsonl"} <= set(manifest["files"])
    assert (manifest["rows"], manifest["digest"], manifest["splits"]) == (4, built.digest, {"train": 4})
    assert manifest["files"]["rows-00000.parquet"]["sha256"] == sha256_file(folder / "rows-00000.parquet")
    source = manifest["sources"]["a"]
    assert (source["in"], source["kept"], source["merged"], source["dropped"]) == (4, 4, 0, {})
    assert source["files_read"] == {"a.parquet": sha256_file(tmp_path / "a.parquet")}
    assert (source["format"], source["sniffed"]) == ("graded", "1 file of parquet")
    names = pq.read_schema(folder / "rows-00000.parquet").names
    assert names == SCHEMA.names
    assert {"id", "messages", "target", "group", "split", "source", "origin", "license", "parents"} <= set(names)
    assert {item.name for item in (folder / "media").iterdir()} == {
        item.row.media[0].removeprefix("sha256:") for item in built.rows
    }
    assert all(sha256_file(item) == item.name for item in (folder / "media").iterdir())
    assert verify_folder(folder, "manifest.json") is None


def test_the_digest_follows_content_and_not_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, rows = tmp_path / "a.parquet", records(7)
    first = build([(write(source, rows), "train")], tmp_path / "one")
    monkeypatch.setattr(shards, "_MOST_ROWS", 3)
    monkeypatch.setattr(shards, "_LEAST_ROWS", 3)
    second = build([(write(source, rows, group=2), "train")], tmp_path / "two")
    assert len(list((tmp_path / "two").glob("rows-*.parquet"))) == 3
    assert second.digest == first.digest
    assert read_table(tmp_path / "two").rows == first.rows
    rows[3]["p_panel"] = 0.5
    assert build([(write(source, rows), "train")], tmp_path / "three").digest != first.digest


def test_nothing_is_left_behind_when_it_fails(tmp_path: Path) -> None:
    good = (write(tmp_path / "a.parquet", records(3)), "train")
    silent = (write(tmp_path / "quiet.parquet", [{**row, "grade": 9.0} for row in records(3)]), "test")
    with pytest.raises(DataError, match="source quiet: none of its 3 records can be used: 3 grade_outside_scale"):
        build([good, silent], tmp_path / "data")
    with pytest.raises(SourceError):
        build([good, (Source(name="gone", path=str(tmp_path / "gone.csv")), "test")], tmp_path / "data")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["a.parquet", "quiet.parquet"]
    before = build([good], tmp_path / "data")
    assert build([good], tmp_path / "data") == before
    write(tmp_path / "a.parquet", records(4))
    with pytest.raises(ExistsError, match="made from other sources"):
        build([good], tmp_path / "data")
    with pytest.raises(ExistsError, match="is no table"):
        build([good], tmp_path)


def test_a_changed_table_is_refused(tmp_path: Path) -> None:
    built = build([(write(tmp_path / "a.parquet", records(3)), "train")], tmp_path / "data")
    ref = built.rows[0].row.media[0]
    (tmp_path / "data" / "media" / ref.removeprefix("sha256:")).write_bytes(b"other")
    with pytest.raises(DataError, match="not what was written"):
        built.media_bytes(ref)
    with pytest.raises(DataError, match="not a media reference"):
        built.media_bytes("sha256:../manifest.json")
    with pytest.raises(DataError, match="is not there"):
        built.media_bytes("sha256:" + "0" * 64)
    shard = tmp_path / "data" / "rows-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"rows-00000\.parquet"):
        read_table(tmp_path / "data")
    with pytest.raises(DataError, match="not a table"):
        read_table(tmp_path)


@pytest.mark.skipif(not SPEAKING.is_file(), reason="the speaking test set is not beside this checkout")
def test_the_speaking_test_set(tmp_path: Path) -> None:
    columns = Columns(raters=["rater_1", "rater_2"], held_back=["rater_3", "rater_4", "rater_5"])
    source = Source(name="form-1764-test", path=str(SPEAKING))
    found = build_table(TableRequest(((source, "test"),), columns=columns), tmp_path / "data")
    assert len(found.rows) == 200
    assert sum(row.row.target.grade == 3.5 for row in found.rows) == 27
    assert len({row.row.group for row in found.rows}) == 10
    assert all(len(row.row.target.raters) == 2 and len(row.row.target.held_back) == 3 for row in found.rows)
    assert all(sum(row.row.target.raters) / 2 == row.row.target.grade for row in found.rows)
