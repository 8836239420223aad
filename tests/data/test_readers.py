"""Every table shape yields the same records; what is broken is named, and no name leaves its folder."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.readers import ERROR, read_source
from luthier.errors import SourceError
from luthier.recipe import Columns, Source

ROWS: list[dict[str, Any]] = [
    {
        "utt_id": f"u{i}",
        "speaker": f"s{i % 3}",
        "prompt": f'say "{i}", please',
        "wav_path": f"wavs/{i}.wav",
        "grade": 1.0 + i / 2,
        "other": "x",
    }
    for i in range(8)
]
KEPT = ("prompt", "grade", "speaker", "wav_path")


def read(path: Path, columns: Columns | None = None, **more: str) -> list[tuple[str, dict[str, Any]]]:
    return list(read_source(Source(name="train", path=str(path), **more), columns or Columns()))


def write(folder: Path, kind: str) -> Path:
    path = folder / f"rows.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=3)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    elif kind == "json":
        path.write_text(json.dumps({"data": ROWS}))
    else:
        import csv

        with path.open("w", encoding="utf-8-sig", newline="") as stream:
            writer = csv.DictWriter(stream, list(ROWS[0]), delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            writer.writerows(ROWS)
    return path


@pytest.mark.parametrize("kind", ["parquet", "csv", "tsv", "json", "jsonl"])
def test_all_shapes_agree(tmp_path: Path, kind: str) -> None:
    found = read(write(tmp_path, kind))
    assert [origin for origin, _ in found] == [f"rows.{kind}#{i + 1} u{i}" for i in range(8)]
    for (_, record), row in zip(found, ROWS, strict=True):
        assert set(record) == set(KEPT)
        assert record["wav_path"] == tmp_path / row["wav_path"]
        assert (record["prompt"], record["speaker"]) == (row["prompt"], row["speaker"])
        assert float(record["grade"]) == row["grade"]


@pytest.mark.parametrize("kind", ["parquet", "json", "jsonl"])
def test_content_decides_when_there_is_no_suffix(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path, kind).rename(tmp_path / "table")
    if kind == "json":
        path.write_text(json.dumps(ROWS))
    assert len(read(path)) == 8


def test_json_that_holds_lines(tmp_path: Path) -> None:
    assert len(read(write(tmp_path, "jsonl").rename(tmp_path / "rows.json"))) == 8


@pytest.mark.parametrize("value", [{"bytes": b"abc", "path": "a.wav"}, b"abc"])
def test_audio_inside_parquet(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist([{"audio": value, "prompt": "p", "grade": 3.0}]), path)
    assert read(path)[0][1]["audio"] == b"abc"


def test_an_audio_struct_with_a_path_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.Table.from_pylist(
            [
                {"audio": {"bytes": None, "path": "a.wav"}, "prompt": "p", "grade": 3.0},
                {"audio": None, "prompt": "p", "grade": 3.0},
            ]
        ),
        path,
    )
    assert [record["audio"] for _, record in read(path)] == [tmp_path / "a.wav", None]


@pytest.mark.parametrize("table", ["metadata.csv", "metadata.jsonl", "only.csv"])
def test_a_folder_with_recordings(tmp_path: Path, table: str) -> None:
    text = (
        "file_name,prompt,grade\na.wav,hello,3\n"
        if table.endswith("csv")
        else '{"file_name": "a.wav", "prompt": "hello", "grade": 3}\n'
    )
    (tmp_path / table).write_text(text)
    [(origin, record)] = read(tmp_path)
    assert origin == f"{table}#1"
    assert record["audio"] == tmp_path / "a.wav"
    assert record["prompt"] == "hello"


def test_a_folder_with_the_split_in_shards(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for number, name in enumerate(["train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"]):
        pq.write_table(pa.Table.from_pylist(ROWS[number : number + 1]), tmp_path / "data" / f"{name}.parquet")
    assert [record["prompt"] for _, record in read(tmp_path)] == [ROWS[0]["prompt"], ROWS[1]["prompt"]]
    assert len(read(tmp_path, split="test")) == 1


def test_a_folder_with_two_tables_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x\n")
    (tmp_path / "b.csv").write_text("x\n")
    with pytest.raises(SourceError, match=r"a\.csv, b\.csv"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret.wav", "a/../../secret.wav", "a/../b.wav"])
def test_a_path_that_leaves_its_folder(tmp_path: Path, name: str) -> None:
    path = tmp_path / "in" / "t.jsonl"
    path.parent.mkdir()
    path.write_text(json.dumps({"audio": name, "prompt": "p", "grade": 3}) + "\n")
    [(_, record)] = read(path)
    assert record["audio"] is None
    assert record[ERROR][0] == "path_outside_folder"


def test_an_audio_folder_allows_absolute_paths_inside_it_alone(tmp_path: Path) -> None:
    sounds, path = tmp_path / "sounds", tmp_path / "t.jsonl"
    sounds.mkdir()
    names = ["a.wav", str(sounds / "b.wav"), "/etc/passwd", "../t.jsonl"]
    path.write_text("".join(json.dumps({"audio": n, "prompt": "p", "grade": 3}) + "\n" for n in names))
    records = [record for _, record in read(path, audio_folder=str(sounds))]
    assert [record["audio"] for record in records] == [sounds / "a.wav", sounds / "b.wav", None, None]
    assert [ERROR in record for record in records] == [False, False, True, True]


def test_broken_lines_carry_their_number(tmp_path: Path) -> None:
    good = json.dumps({"audio": "a.wav", "prompt": "p", "grade": 3}).encode()
    path = tmp_path / "t.jsonl"
    path.write_bytes(b"\n".join([good, b'{"audio": ', good, b"[1]", b'{"prompt": "\xff"}', good]) + b"\n")
    errors = [record.get(ERROR) for _, record in read(path)]
    assert [error and error[0] for error in errors] == [None, "broken_line", None, "broken_line", "broken_line", None]
    assert [error[1].split(":")[0] for error in errors if error] == ["line 2", "line 4", "line 5"]


def test_csv_lines_of_the_wrong_width(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("audio,prompt,grade\na.wav,p,3\nb.wav,p\nc.wav,p,3,4\n")
    errors = [record.get(ERROR) for _, record in read(path)]
    assert errors[0] is None
    assert [error[0] for error in errors[1:]] == ["broken_line", "broken_line"]
    assert "line 3: 2 fields" in errors[1][1]
    assert "line 4: 4 fields" in errors[2][1]


def test_one_column_for_a_role_in_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"audio": "a", "prompt": "p", "grade": 3}\n{"audio": "b", "text": "other", "grade": 3}\n')
    assert "text" not in read(path)[1][1]


def test_a_missing_column_names_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("audio,prompt,grades\na.wav,p,3\n")
    with pytest.raises(SourceError) as caught:
        read(path)
    text = str(caught.value)
    assert "source train" in text
    assert "audio, prompt, grades" in text
    assert "did you mean 'grades'" in text
    assert "data.columns.grade" in text


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_a_torn_parquet(tmp_path: Path, share: float) -> None:
    path = write(tmp_path, "parquet")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(SourceError, match="torn"):
        read(path)


def test_a_parquet_torn_in_its_middle(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(
        pa.Table.from_pylist([{"audio": bytes(range(256)) * 40, "prompt": f"{i}", "grade": 3.0} for i in range(200)]),
        path,
        row_group_size=50,
        write_page_checksum=True,
    )
    data = bytearray(path.read_bytes())
    data[len(data) // 3 : 2 * len(data) // 3] = b"\xff" * (2 * len(data) // 3 - len(data) // 3)
    path.write_bytes(bytes(data))
    with pytest.raises(SourceError, match=r"torn|cannot be read"):
        read(path)


@pytest.mark.parametrize(
    ("name", "data", "say"),
    [
        ("t.json", b"{", "not what its name says"),
        ("t.json", b'{"a": 1}', "neither a list"),
        ("t.csv", b"audio,prompt,grade\n\xff\xfe,p,3\n", "UTF-8"),
        ("t.csv", b"audio,audio,grade\n1,2,3\n", "share a name"),
        ("t.csv", b'audio,prompt,grade\n"a,b,3\n', "cannot be read"),
        ("t.bin", b"\x00\x01", "is not parquet"),
    ],
)
def test_files_that_are_not_tables(tmp_path: Path, name: str, data: bytes, say: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(SourceError, match=say):
        read(tmp_path / name)


def test_a_source_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"--set data\.sources\.train\.path=FILE"):
        read(tmp_path / "none.csv")
    with pytest.raises(SourceError, match="neither a path nor a hub id"):
        list(read_source(Source(name="train"), Columns()))


@settings(max_examples=80, deadline=None)
@given(data=st.binary(max_size=300), kind=st.sampled_from(["csv", "tsv", "json", "jsonl", "parquet", "x"]))
def test_random_bytes_end_in_records_or_a_source_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, kind: str
) -> None:
    path = tmp_path_factory.mktemp("wild") / f"t.{kind}"
    path.write_bytes(data)
    trouble = None
    try:
        for _, record in read(path):
            assert isinstance(record, dict)
    except SourceError as error:
        trouble = error
    if trouble is not None:
        assert "source train" in trouble.message
        assert trouble.mend
