"""Delimited tables: a broken line costs itself alone, and time grows with the size whatever the quotes do."""

import csv
import gzip
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.readers import Broken, open_source
from luthier.data.reading import lines, tables
from luthier.recipe_data import Source


def read(path: Path) -> list[tuple[str, dict[str, Any] | Broken]]:
    return list(open_source(Source(name="train", path=str(path))))


def records(path: Path) -> list[dict[str, Any]]:
    return [record for _, record in read(path) if not isinstance(record, Broken)]


def reasons(path: Path) -> list[str]:
    """The reason of each record, or "" for a good one."""
    return [record.reason if isinstance(record, Broken) else "" for _, record in read(path)]


def test_csv_lines_that_are_broken_leave_the_others(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b'a,b\n1,"x\ny"\n2\n3,4,5\n6,\xe9\n7,\0\n\n8,"open\n9,z\n10,"q"r\n11,z\n')
    assert reasons(path) == ["", *["broken_line"] * 2, "not_utf8", "nul_byte", "broken_line", "", "broken_line", ""]
    assert records(path) == [{"a": "1", "b": "x\ny"}, {"a": "9", "b": "z"}, {"a": "11", "b": "z"}]
    details = [record.detail for _, record in read(path) if isinstance(record, Broken)]
    assert [detail.split(":")[0] for detail in details] == [f"line {n}" for n in (4, 5, 6, 7, 9, 11)]
    assert "1 fields in place of 2" in details[0]


def test_csv_in_cp1252_loses_only_the_lines_that_need_it(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes("a;b\n1;x\n2;é\n".encode("cp1252"))
    assert reasons(tmp_path / "t.csv") == ["", "not_utf8"]
    assert records(tmp_path / "t.csv") == [{"a": "1", "b": "x"}]


def slow_csv(lines: list[str]) -> list[dict[str, str] | int]:
    """Records of a table whose header is `a,b`, and the number of each line that begins a broken one.

    The rule, with no thought of time: a record that fails costs its first line, and reading starts again at the next.
    """
    found: list[dict[str, str] | int] = []
    at = 1
    while at < len(lines):
        reader = csv.reader((line + "\n" for line in lines[at:]), strict=True)
        try:
            fields = next(reader)
        except csv.Error:
            found.append(at + 1)
            at += 1
            continue
        if fields:
            found.append(dict(zip("ab", fields, strict=True)) if len(fields) == 2 else at + 1)
        at += reader.line_num
    return found


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text('a",;', max_size=6), max_size=12))
def test_csv_with_stray_quotes_agrees_with_reading_again_from_each_line(
    tmp_path_factory: pytest.TempPathFactory, rows: list[str]
) -> None:
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    path.write_text("\n".join(["a,b", *rows, ""]))
    found = [
        int(row.detail.removeprefix("line ").partition(":")[0]) if isinstance(row, Broken) else row
        for _, row in read(path)
    ]
    assert found == slow_csv(["a,b", *rows])


def test_csv_of_open_quotes_is_read_in_time_that_grows_with_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_out = 0

    def counted(line: bytes) -> str | Broken:
        nonlocal given_out
        given_out += 1
        return lines.text_of(line)

    monkeypatch.setattr(tables, "text_of", counted)
    (tmp_path / "t.csv").write_bytes(b"a,b\n" + b'a","\n' * 3000)
    found = read(tmp_path / "t.csv")
    assert {row.detail.partition(": ")[2] for _, row in found} == {"a quote is opened and never closed"}  # type: ignore[union-attr]
    assert len(found) == 3000
    assert given_out < 3 * 3000


def test_csv_with_an_open_quote_holds_no_more_than_a_bounded_number_of_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "MAX_LINE", 5000)
    (tmp_path / "t.csv").write_bytes(b'a,b\n"' + b"x\n" * 100 + b"1,2\n")
    [first, *others] = read(tmp_path / "t.csv")
    assert "a quote is open for more than" in first[1].detail  # type: ignore[union-attr]
    assert [record for _, record in others if not isinstance(record, Broken)] == [{"a": "1", "b": "2"}]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("packed", [False, True])
def test_csv_whose_lines_end_in_carriage_returns(tmp_path: Path, encoding: str, packed: bool) -> None:
    data = '"a\r",b\r1,2\r\r"two\rlines",é\rx\r5,6'.encode(encoding)
    path = tmp_path / ("t.csv.gz" if packed else "t.csv")
    path.write_bytes(gzip.compress(data) if packed else data)
    assert reasons(path) == ["", "", "broken_line", ""]
    assert [list(record.values()) for record in records(path)] == [["1", "2"], ["two\nlines", "é"], ["5", "6"]]


def test_csv_with_other_carriage_returns_keeps_them_or_says_so(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b'a,b\r\r\n1,"x\ry"\r\n2,x\ry\n3,4\r\n')
    assert records(path) == [{"a": "1", "b": "x\ry"}, {"a": "3", "b": "4"}]
    [detail] = [record.detail for _, record in read(path) if isinstance(record, Broken)]
    assert detail == "line 3: a carriage return outside quotes"


CELLS = st.text(st.sampled_from('a",;\n\té'), max_size=6)


@settings(max_examples=120, deadline=None)
@given(st.lists(st.tuples(CELLS, CELLS), max_size=8))
def test_csv_agrees_with_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    with path.open("w", newline="") as stream:
        csv.writer(stream, quoting=csv.QUOTE_ALL).writerows([("p", "q"), *rows])
    assert records(path) == [{"p": p, "q": q} for p, q in rows]


def test_a_large_csv_field_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('a,b\n1,"' + "word \n" * 100_000 + '"\n2,x\n')
    assert [len(record["b"]) for record in records(tmp_path / "t.csv")] == [600_000, 1]
