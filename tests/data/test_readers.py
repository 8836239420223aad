"""Every shape of file yields the same records; what is broken is named with its place and its reason."""

import csv
import gzip
import json
import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.readers import REASONS, Broken, Reading, columns_seen, open_source, peek
from luthier.data.reading import jsonfiles, lines, tables
from luthier.errors import SourceError
from luthier.recipe_data import Source

ROWS: list[dict[str, Any]] = [
    {
        "utt_id": f"u{i}",
        "speaker": f"s{i % 3}",
        "prompt": f'say "{i}",\nplease café',
        "wav_path": f"wavs/{i}.wav",
        "grade": 1.0 + i / 2,
    }
    for i in range(8)
]
KINDS = ["parquet", "csv", "tsv", "json", "jsonl", "ndjson"]
GOOD = b'{"a": 1}\n'


def source(path: Path | str, **more: Any) -> Source:
    return Source(name="train", path=str(path), **more)


def read(path: Path | str, **more: Any) -> list[tuple[str, dict[str, Any] | Broken]]:
    return list(open_source(source(path, **more)))


def records(path: Path, **more: Any) -> list[dict[str, Any]]:
    return [record for _, record in read(path, **more) if not isinstance(record, Broken)]


def reasons(path: Path, **more: Any) -> list[str]:
    """The reason of each record, or "" for a good one."""
    return [record.reason if isinstance(record, Broken) else "" for _, record in read(path, **more)]


def write(folder: Path, kind: str) -> Path:
    path = folder / f"rows.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=3)
    elif kind in ("jsonl", "ndjson"):
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    elif kind == "json":
        path.write_text(json.dumps({"data": ROWS}, indent=1))
    else:
        with path.open("w", encoding="utf-8-sig", newline="") as stream:
            writer = csv.DictWriter(stream, list(ROWS[0]), delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            writer.writerows(ROWS)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_all_shapes_agree(tmp_path: Path, kind: str) -> None:
    found = read(write(tmp_path, kind))
    assert [origin for origin, _ in found] == [f"rows.{kind}#{i + 1} u{i}" for i in range(8)]
    for (_, record), row in zip(found, ROWS, strict=True):
        assert not isinstance(record, Broken)
        assert {**record, "grade": float(record["grade"])} == row


@pytest.mark.parametrize("packing", ["gz", "zst"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "parquet"])
def test_packed_files_read_as_plain_ones(tmp_path: Path, kind: str, packing: str) -> None:
    plain = write(tmp_path, kind)
    packed = tmp_path / f"rows.{kind}.{packing}"
    data = plain.read_bytes()
    packed.write_bytes(
        gzip.compress(data) if packing == "gz" else zstandard.compress(data[:99]) + zstandard.compress(data[99:])
    )
    assert records(packed) == records(plain)
    assert open_source(source(packed)).sniffed.startswith("1 file of ")
    assert open_source(source(packed)).sniffed.endswith({"gz": ", gzip", "zst": ", zstd"}[packing])


@pytest.mark.parametrize("packing", ["gz", "zst"])
def test_a_torn_packed_file_is_an_error_that_names_it(tmp_path: Path, packing: str) -> None:
    data = "".join(f'{{"a": {random.Random(i).random()}}}\n' for i in range(30_000)).encode()
    packed = gzip.compress(data) if packing == "gz" else zstandard.compress(data)
    path = tmp_path / f"t.jsonl.{packing}"
    path.write_bytes(packed[:-20_000])
    with pytest.raises(SourceError, match=rf"t\.jsonl\.{packing} is torn"):
        read(path)


@pytest.mark.parametrize("kind", ["parquet", "json", "jsonl"])
def test_content_decides_when_there_is_no_suffix(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path, kind).rename(tmp_path / "table")
    assert len(records(path)) == 8


@pytest.mark.parametrize(
    ("name", "data", "say"),
    [
        ("t.jsonl", GOOD * 2, "1 file of jsonl"),
        ("t.csv", GOOD * 2, "1 file of json, its name says .csv"),
        ("t.txt", GOOD * 2, "1 file of json, its name says .txt"),
        ("t.jsonl.gz", GOOD * 2, "1 file of jsonl, not packed although its name says so"),
        (
            "t.jsonl",
            gzip.compress(GOOD * 2, mtime=0),
            "1 file of jsonl, gzip, packed although its name does not say so",
        ),
        ("t.jsonl", b'[\n{"a": 1},\n{"a": 1}\n]', "1 file of json"),
    ],
)
def test_first_bytes_win_and_a_misleading_name_is_said(tmp_path: Path, name: str, data: bytes, say: str) -> None:
    (tmp_path / name).write_bytes(data)
    assert open_source(source(tmp_path / name)).sniffed == say
    assert records(tmp_path / name) == [{"a": 1}, {"a": 1}]


def test_json_that_holds_lines_even_when_its_first_is_broken(tmp_path: Path) -> None:
    assert len(records(write(tmp_path, "jsonl").rename(tmp_path / "rows.json"))) == 8
    (tmp_path / "t.json").write_bytes(b'{"a": \n' + GOOD * 3)
    assert reasons(tmp_path / "t.json") == ["broken_line", "", "", ""]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"a": ', "broken_line"),
        (b"{'a': 1}", "broken_line"),
        (b'{"a": 1} tail', "broken_line"),
        (b"[1]", "not_an_object"),
        (b"null", "not_an_object"),
        (b"7", "not_an_object"),
        (b'{"a": 1}{"b": 2}', "two_objects"),
        (b'{"a": 1}, {"b": 2}', "two_objects"),
        (b'{"a": 1, "a": 2}', "duplicate_key"),
        (b'{"a" : 1, "a" :2}', "duplicate_key"),
        (b'{"b": [{"a": "x", "c": [{"a": 1, "a": 1}]}]}', "duplicate_key"),
        (b'{"a": NaN}', "not_finite"),
        (b'{"a": [-Infinity]}', "not_finite"),
        (b'{"a": 1e999}', "not_finite"),
        (b'{"a": "\xff"}', "not_utf8"),
        (b'{"a": "\\ud800"}', "not_utf8"),
        (b'{"a": "\0"}', "nul_byte"),
        (b'{"a": ' + b"[" * 300 + b"]" * 300 + b"}", "too_deep"),
        (b'{"a": ' + b"[" * 900 + b"]" * 900 + b"}", "too_deep"),
        (b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}", "too_deep"),
        (b'{"a":' + b'{"a":' * 240 + b"1" + b"}" * 241, ""),
    ],
    ids=range(21),
)
def test_a_bad_line_carries_its_number_and_reason(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(GOOD + b"\n" + line + b"\n" + GOOD)
    assert reasons(path) == ["", reason, ""]
    assert [origin for origin, _ in read(path)] == ["t.jsonl#1", "t.jsonl#3", "t.jsonl#4"]
    detail = read(path)[1][1]
    assert not isinstance(detail, Broken) or detail.detail.startswith("line 3: ")


@pytest.mark.parametrize("end", [b'{"a": 1', b'{"a": "\xc3', b'{"a": "b'])
def test_a_torn_last_line_is_named_as_such(tmp_path: Path, end: bytes) -> None:
    (tmp_path / "t.jsonl").write_bytes(GOOD + end)
    assert reasons(tmp_path / "t.jsonl") == ["", "truncated_line"]


def test_a_last_line_without_its_newline_is_whole(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_bytes(GOOD + GOOD.strip())
    assert reasons(tmp_path / "t.jsonl") == ["", ""]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.dictionaries(st.text(max_size=3), JSON, max_size=4), max_size=30), st.booleans(), st.booleans())
def test_json_lines_agree_with_the_standard_library(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], ascii_only: bool, compact: bool
) -> None:
    path = tmp_path_factory.mktemp("json") / "t.jsonl"
    separators = (",", ":") if compact else None
    try:
        text = [json.dumps(row, ensure_ascii=ascii_only, separators=separators).encode() for row in rows]
    except UnicodeEncodeError:
        return
    path.write_bytes(b"".join(line + b"\n" for line in text))
    surrogates = [b"\\ud" in line.lower() for line in text]
    for (_, found), row, half in zip(read(path), rows, surrogates, strict=True):
        assert found == row or (half and isinstance(found, Broken) and found.reason == "not_utf8")


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.text('":{} ,\\', max_size=4)), max_size=4),
    st.sampled_from(["", " ", "  "]),
)
def test_a_doubled_key_is_never_missed_and_never_invented(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]], space: str
) -> None:
    path = tmp_path_factory.mktemp("keys") / "t.jsonl"
    path.write_text("{" + ",".join(f'"{key}"{space}:{space}{json.dumps(value)}' for key, value in pairs) + "}\n")
    doubled = len(dict(pairs)) < len(pairs)
    assert reasons(path) == (["duplicate_key"] if doubled else [""])


def test_json_elements_that_are_broken_leave_the_others(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text('[{"a": 1}, 5, {"a": NaN}, {"b": {"a": 1, "a": 2}}, {"a": "x"}]')
    assert reasons(path) == ["", "not_an_object", "not_finite", "duplicate_key", ""]
    assert [type(record) for record in records(path)] == [dict, dict]


def test_a_line_that_is_too_long_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_LINE", 1000)
    monkeypatch.setattr(lines, "_BLOCK", 64)
    body = GOOD + b'{"a": "' + b"x" * 5000 + b'"}\n' + GOOD
    (tmp_path / "t.jsonl").write_bytes(body)
    assert reasons(tmp_path / "t.jsonl") == ["", "line_too_long", ""]
    (tmp_path / "wide.jsonl").write_bytes(body.decode().encode("utf-16"))
    assert reasons(tmp_path / "wide.jsonl") == ["", "line_too_long", ""]
    (tmp_path / "t.txt").write_bytes(b"a\n" + b"x" * 5000 + b"\nb")
    assert reasons(tmp_path / "t.txt") == ["", "line_too_long", ""]


def test_a_json_list_that_is_too_large_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonfiles, "MAX_JSON", 50)
    monkeypatch.setattr(jsonfiles, "MAX_PACKED", 50)
    (tmp_path / "t.json").write_text(json.dumps(ROWS))
    (tmp_path / "t.json.gz").write_bytes(gzip.compress(json.dumps(ROWS).encode()))
    for name in ("t.json", "t.json.gz"):
        with pytest.raises(SourceError, match="JSON lines"):
            read(tmp_path / name)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
@pytest.mark.parametrize("kind", ["csv", "jsonl", "json", "txt"])
def test_encodings_with_a_mark_are_read_right(tmp_path: Path, kind: str, encoding: str) -> None:
    text = {"csv": "text\ncafé\n", "jsonl": '{"text": "café"}\n', "json": '[{"text": "café"}]', "txt": "café\n"}[kind]
    (tmp_path / f"t.{kind}").write_bytes(text.encode(encoding))
    assert records(tmp_path / f"t.{kind}") == [{"text": "café"}]


@pytest.mark.parametrize("tail", [b"x", b"\x00\xd8x\x00"])
def test_broken_utf16_breaks_its_line(tmp_path: Path, tail: bytes) -> None:
    (tmp_path / "t.txt").write_bytes("one\ntwo".encode("utf-16") + tail)
    assert reasons(tmp_path / "t.txt") == ["", "not_utf8"]


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_an_alarm_from_outside_is_not_taken_for_a_torn_file(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = open_source(source(write(tmp_path, kind)))

    def ring(*_: Any, **__: Any) -> Any:
        raise TimeoutError("time is up")

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", ring)
    monkeypatch.setattr(jsonfiles, "numbered_lines", ring)
    with pytest.raises(TimeoutError, match="time is up"):
        list(found)


def test_a_disk_that_fails_is_not_called_a_torn_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise OSError(5, "Input/output error")

    found = open_source(source(write(tmp_path, "jsonl")))
    monkeypatch.setattr(jsonfiles, "numbered_lines", fail)
    with pytest.raises(SourceError, match=r"cannot be read.*Input/output error"):
        list(found)


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("line", [("t.txt#1", "one"), ("t.txt#2", "two"), ("t.txt#5", "three")]),
        ("paragraph", [("t.txt#1", "one\ntwo"), ("t.txt#2", "three")]),
        ("document", [("t.txt#1", "one\ntwo\n\n \nthree")]),
    ],
)
def test_texts_by_line_paragraph_and_document(tmp_path: Path, by: str, expected: list[tuple[str, str]]) -> None:
    (tmp_path / "t.txt").write_text("one\ntwo\n\n \nthree\n" if by != "line" else "one\ntwo\n\n\nthree\n")
    assert [(origin, record["text"]) for origin, record in read(tmp_path / "t.txt", sample_by=by)] == expected  # type: ignore[index]


def test_another_sample_by_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="line, paragraph, document"):
        read(tmp_path, sample_by="word")


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.json", "t.txt", "t", "t.jsonl.gz"])
def test_an_empty_file_yields_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(gzip.compress(b"") if name.endswith("gz") else b"")
    assert read(tmp_path / name) == []


def test_parquet_of_no_rows_yields_nothing(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": pa.array([], pa.string())}), tmp_path / "t.parquet")
    assert read(tmp_path / "t.parquet") == []


def test_parquet_values_stay_as_they_are(tmp_path: Path) -> None:
    rows = [
        {"audio": {"bytes": b"abc", "path": None}, "turns": [{"from": "human", "value": "hi"}], "n": None, "tags": []},
        {"audio": None, "turns": None, "n": 7, "tags": ["x", None]},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    assert records(tmp_path / "t.parquet") == rows


def corrupt(path: Path, group: int) -> None:
    """Overwrite the data of one row group."""
    column = pq.ParquetFile(path).metadata.row_group(group).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(bytes(data))


def test_a_corrupt_row_group_costs_its_own_rows_alone(tmp_path: Path) -> None:
    path = write(tmp_path, "parquet")
    corrupt(path, 1)
    assert reasons(path) == ["", "", "", *["corrupt_row_group"] * 3, "", ""]
    found = read(path)
    assert [record["utt_id"] for _, record in found if not isinstance(record, Broken)] == ["u0", "u1", "u2", "u6", "u7"]
    assert found[3][0] == "rows.parquet#4"
    assert "row group 2" in found[3][1].detail  # type: ignore[union-attr]


def test_a_corrupt_group_of_absurd_size_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "parquet")
    corrupt(path, 1)
    monkeypatch.setattr(tables, "MAX_LOST", 2)
    with pytest.raises(SourceError, match="row group 2 is corrupt"):
        read(path)


def test_parquet_text_that_is_not_utf8_costs_its_row(tmp_path: Path) -> None:
    column = pa.Array.from_buffers(
        pa.string(), 3, [*pa.array(["aa", "bb", "cc"]).buffers()[:2], pa.py_buffer(b"aa\xff\xfecc")]
    )
    pq.write_table(pa.table({"t": column}), tmp_path / "t.parquet")
    assert reasons(tmp_path / "t.parquet") == ["", "not_utf8", ""]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.95])
def test_a_torn_parquet_is_refused_when_it_is_opened(tmp_path: Path, share: float) -> None:
    path = write(tmp_path, "parquet")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(SourceError, match="torn"):
        open_source(source(path))


@pytest.mark.parametrize(
    ("name", "data", "say"),
    [
        ("t.json", b"{", "not what its name says"),
        ("t.json", b'{"a": 1}', "neither a list"),
        ("t.json", b'[{"a": 1}, ', "not what its name says"),
        ("t.json", b'[{"a": "\xff"}]', "not UTF-8"),
        ("t.csv", b"audio,audio,grade\n1,2,3\n", "share a name"),
        ("t.csv", b'audio,"prompt,grade\n', "the header"),
        ("t.csv", b"\xffaudio,prompt\n1,2\n", "the header"),
        ("t.bin", b"\x00\x01", "is not parquet"),
        ("t.csv", b"PK\x03\x04 and more", "a zip archive"),
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
        open_source(Source(name="train"))
    with pytest.raises(SourceError, match="neither a file nor a folder"):
        open_source(source("/dev/null"))
    write(tmp_path, "csv")
    with pytest.raises(SourceError, match="audio folder"):
        open_source(source(tmp_path / "rows.csv", audio_folder=str(tmp_path / "none")))


def test_a_limit_counts_records_broken_ones_included(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_bytes(GOOD + b"x\n" + GOOD * 5)
    assert reasons(tmp_path / "t.jsonl", limit=3) == ["", "broken_line", ""]


def test_a_reading_can_be_read_twice_and_peeked_at(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_bytes(b"x\n" + GOOD + b'{"b": 2}\n' * 3)
    reading = open_source(source(tmp_path / "t.jsonl"))
    assert peek(reading, 2) == [{"a": 1}, {"b": 2}]
    assert columns_seen(peek(reading)) == ("a", "b")
    assert len(list(reading)) == len(list(reading)) == 5


def test_a_peek_at_large_media_stays_small(tmp_path: Path) -> None:
    rows = iter((f"f#{i}", {"audio": {"bytes": bytes(10 * 2**20)}}) for i in range(10**6))
    taken: list[str] = []

    def items() -> Iterator[tuple[str, Any]]:
        for origin, record in rows:
            taken.append(origin)
            yield origin, record

    assert len(peek(Reading(source("x"), (), tmp_path, False, "", "", items))) == len(taken) == 7


def test_origins_carry_the_id_column_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"id": 7}\n{"id": "x\\ny"}\n{"id": null}\n{"id": [1]}\n{"other": 1}\n')
    assert [origin for origin, _ in read(tmp_path / "t.jsonl")] == [f"t.jsonl#{n}" for n in ("1 7", "2 x?y", 3, 4, 5)]
    (tmp_path / "u.jsonl").write_text('{"page": "P", "id": 3}\n')
    [(origin, _)] = read(tmp_path / "u.jsonl", columns={"id": "page"})
    assert origin == "u.jsonl#1 P"


def test_a_file_that_grows_without_end_is_read_as_a_stream(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl.gz"
    path.write_bytes(gzip.compress(GOOD * 2_000_000))
    assert len(list(islice(iter(open_source(source(path))), 10))) == 10


@settings(max_examples=150, deadline=None)
@given(
    data=st.binary(max_size=300) | st.text('{}[]",:\n\\ab1', max_size=200).map(str.encode),
    kind=st.sampled_from(["csv", "tsv", "json", "jsonl", "parquet", "x", "txt", "jsonl.gz", "csv.zst"]),
    sample_by=st.sampled_from(["line", "paragraph", "document"]),
    packed=st.booleans(),
)
def test_wild_bytes_end_in_records_or_a_source_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, kind: str, sample_by: str, packed: bool
) -> None:
    path = tmp_path_factory.mktemp("wild") / f"t.{kind}"
    path.write_bytes(gzip.compress(data) if packed else data)
    trouble = None
    try:
        for _, record in read(path, sample_by=sample_by):
            assert isinstance(record, dict) or record.reason in REASONS
    except SourceError as error:
        trouble = error
    if trouble is not None:
        assert "source train" in trouble.message
        assert trouble.mend


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(seed=st.integers(0, 2**32), kind=st.sampled_from(KINDS))
def test_damaged_files_end_in_records_or_a_source_error(
    tmp_path_factory: pytest.TempPathFactory, seed: int, kind: str
) -> None:
    path = write(tmp_path_factory.mktemp("damaged"), kind)
    data, chance = bytearray(path.read_bytes()), random.Random(seed)
    for _ in range(chance.randint(1, 6)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    path.write_bytes(bytes(data))
    try:
        found = read(path)
    except SourceError:
        return
    assert all(isinstance(record, dict) or record.reason in REASONS for _, record in found)
