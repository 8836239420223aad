"""Broken sources for every reader, made by hypothesis, and one way through the build that counts their fate."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import signal
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
import zstandard
from hypothesis import strategies as st
from PIL import Image

from luthier.data import formats, media, readers
from luthier.data import pictures as images
from luthier.data.building.build import build
from luthier.data.building.request import TableRequest
from luthier.data.readers import Broken, open_source
from luthier.data.reading import places
from luthier.data.shapes import graded as grading
from luthier.errors import LuthierError
from luthier.recipe_data import Limits, Source

SECONDS = 10
MODULES = (readers, formats, grading, media, images, places)
REASONS = {"bad_unicode", *(reason for module in MODULES for reason in module.REASONS)}


@dataclass(frozen=True)
class Case:
    """Files by name and the settings of a source; `main` is its path, "" for the folder."""

    files: dict[str, bytes]
    main: str = ""
    graded: bool = False
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Walked:
    """What became of a source: its sums, or the refusal in words; and what was read of it a second time, plainly."""

    refused: str = ""
    seen: int = 0
    kept: int = 0
    merged: int = 0
    dropped: int = 0
    again: int = 0


def walk(case: Case, folder: Path) -> Walked:
    """Lay a case out in an empty folder and build a table of it. Lets out whatever is no LuthierError."""
    place = folder / "source"
    place.mkdir()
    (folder / "secret.wav").write_bytes(sound(16_000))  # what names that leave their folder reach for
    for name, data in case.files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)
    source = Source(name="hostile", path=str(place / case.main), **case.settings)
    request = TableRequest(((source, "train"),), limits=Limits(maximum_pixels=10**6), graded=case.graded)
    with at_most(SECONDS):
        try:
            built = build(request, folder / "table")
        except LuthierError as error:
            return Walked(refused=str(error))
        counts = built.ledger.counts["hostile"]
        lines = [json.loads(line) for line in (folder / "table" / "ledger.jsonl").read_text().splitlines()]
        drops = [line for line in lines if "reason" in line]
        assert Counter(line["reason"] for line in drops) == counts.dropped, "each drop has its own line"
        names = {"source", *(Path(name).name for name in case.files)}
        for drop in drops:
            said_in_full(drop, names)
        again = sum(1 for _ in open_source(source))
        return Walked("", counts.seen, counts.kept, counts.merged, counts.dropped.total(), again)


def said_in_full(drop: dict[str, Any], names: set[str]) -> None:
    """Fail for a dropped record whose line in the ledger does not say file, number, reason and detail."""
    origin = re.fullmatch(r"(.+?)#([1-9]\d*)( .*)?", drop["origin"])
    assert origin is not None, drop
    assert origin[1] in names, drop
    assert drop["reason"] in REASONS, drop
    assert drop["detail"].strip(), drop


def reasons(case: Case, folder: Path) -> list[str]:
    """The reader's reasons for a case's broken records, in their order."""
    for name, data in case.files.items():
        (folder / name).write_bytes(data)
    source = Source(name="hostile", path=str(folder / case.main), **case.settings)
    return [record.reason for _, record in open_source(source) if isinstance(record, Broken)]


class _TooLong(BaseException):
    """No OSError, as TimeoutError is: the readers would take it for a torn file."""


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Fail where the block takes longer."""

    def ring(number: int, frame: object) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    except _TooLong:
        raise AssertionError(f"it took more than {seconds} s") from None
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# Records and what may be wrong with them

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
odd = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**20), 10**20), st.floats(), words, st.just([]), st.just({}),
    st.just([None]), st.just([[1], "a", {"b": 2}]), st.just({"type": "image"}), st.lists(words, max_size=3),
)  # fmt: skip


@st.composite
def chats(draw) -> dict[str, Any]:
    """A record of one of the text formats, whole more often than not."""
    ask, say = draw(words), draw(words)
    record: dict[str, Any] = draw(
        st.sampled_from(
            [
                {"conversations": [{"from": "human", "value": ask}, {"from": "gpt", "value": say}]},
                {"messages": [{"role": "user", "content": ask}, {"role": "assistant", "content": say}]},
                {"messages": [{"role": "user", "content": [{"type": "text", "text": ask}]}, {"role": "assistant"}]},
                {"id": 1, "data": [ask, say]},
                {"instruction": ask, "input": "", "output": say},
                {"prompt": ask, "completion": say},
                {"text": ask},
            ]
        )
    )
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        record = _spoil(draw, record)
    return record


def _spoil(draw, record: dict[str, Any]) -> dict[str, Any]:
    """A missing key, or a value of another kind, at the top or inside a turn."""
    key = draw(st.sampled_from(list(record) or ["text"]))
    value = record.get(key)
    if isinstance(value, list) and value and isinstance(value[0], dict) and draw(st.booleans()):
        return {**record, key: [_spoil(draw, value[0]) if value[0] else value[0], *value[1:]]}
    if draw(st.booleans()):
        return {name: item for name, item in record.items() if name != key}
    return {**record, key: draw(odd)}


@st.composite
def json_lines(draw) -> bytes:
    """One line, good or with one of the faults that files of lines have."""
    line = json.dumps(draw(chats()), ensure_ascii=draw(st.booleans()))
    fault = draw(st.sampled_from(FAULTS))
    return fault(line).encode("utf-8", "surrogatepass")


FAULTS: tuple[Callable[[str], str], ...] = (
    *[lambda line: line] * 8,
    lambda line: line[: len(line) // 2],
    lambda line: line + line,
    lambda line: line + ", " + line,
    lambda line: line[:-1] + ', "text": 1, "text": 2}',
    lambda line: f"[{line}]",
    lambda line: "\0" + line,
    lambda line: line[:5] + "\0" + line[5:],
    lambda line: "﻿" + line,
    lambda line: line.replace('"', "'"),
    lambda line: '{"text": NaN}',
    lambda line: '{"text": ' + "9" * 5000 + "}",
    lambda line: '{"text": "\\ud800"}',
    lambda line: '{"messages": ' + "[" * 5000 + "]" * 5000 + "}",
    lambda line: '{"a":' * 3000 + "1" + "}" * 3000,
    lambda line: "null",
    lambda line: "",
    lambda line: "  ",
    lambda line: line.replace("{", '{"\\u0000": 1, ', 1),
)
ENCODINGS = (*["utf-8"] * 12, "utf-8-sig", "latin-1", "cp1252", "utf-16", "utf-16-le", "utf-16-be", "utf-32")


encodings = st.sampled_from(ENCODINGS)
some = st.sampled_from([2, 1, 3, 0])
seldom = st.sampled_from([False, False, False, True])
sound_rows = some.map(
    lambda count: [
        {"messages": [{"role": "user", "content": f"question {i}"}, {"role": "assistant", "content": f"answer {i}"}]}
        for i in range(count)
    ]
)


@st.composite
def damage(draw, data: bytes) -> bytes:
    """The same bytes, or some flipped, cut off, repeated or put in."""
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 1, 3]))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.sampled_from(["cut", "flip", "flip", "insert", "repeat", "zero"]))
        if kind == "cut":
            data = data[:at]
        elif kind == "insert":
            data = data[:at] + draw(st.binary(min_size=1, max_size=8)) + data[at:]
        elif kind == "repeat":
            data = data[:at] + data[at : at + 50] + data[at:]
        else:
            new = bytes(4) if kind == "zero" else draw(st.binary(min_size=1, max_size=1))
            data = data[:at] + new + data[at + len(new) :]
    return data


@st.composite
def packed(draw, name: str, data: bytes) -> Case:
    """A file, packed or not, torn or not, under a name that may lie about it."""
    packing = draw(st.sampled_from(["", "", "", ".gz", ".zst"]))
    if packing == ".gz":
        data = gzip.compress(data, mtime=0)
    elif packing == ".zst":
        data = zstandard.ZstdCompressor().compress(data)
    if draw(seldom):
        data = draw(damage(data))
    if draw(seldom) and draw(seldom):
        packing = draw(st.sampled_from(["", ".gz", ".zst"]))
    return Case({name + packing: data}, name + packing)


@st.composite
def jsonl(draw) -> Case:
    good = [json.dumps(row).encode() for row in draw(sound_rows)]
    lines = draw(st.permutations([*draw(st.lists(json_lines(), min_size=1, max_size=6)), *good]))
    end = draw(st.sampled_from([b"\n", b"\r\n", b"\n\n"]))
    data = end.join(lines) + draw(st.sampled_from([b"\n", b"", b'{"text": "torn'.ljust(20)]))
    coding = draw(encodings)
    if not coding.startswith("utf-8"):
        data = data.decode("utf-8", "replace").encode(coding, "replace")
    return draw(packed(draw(st.sampled_from(["rows.jsonl", "rows.ndjson", "rows.json"])), data))


@st.composite
def json_list(draw) -> Case:
    rows: Any = draw(st.permutations([*draw(st.lists(st.one_of(chats(), odd), max_size=6)), *draw(sound_rows)]))
    shape = draw(st.sampled_from(["list", "list", "list", "held", "two", "one"]))
    rows = {"list": rows, "held": {"data": rows}, "two": {"a": rows, "b": rows}, "one": {"text": "x"}}[shape]
    data = json.dumps(rows, indent=draw(st.sampled_from([None, 1]))).encode()
    broken = [
        data[:-1],
        data + b"]",
        b"[" * 9000,
        data.replace(b": ", b":\0", 1),
        data.replace(b"{", b'{"a":1,"a":2,', 1),
    ]
    data = draw(st.sampled_from([data] * 6 + broken))
    return draw(packed("rows.json", data))


@st.composite
def delimited(draw) -> Case:
    fields = st.one_of(words, st.sampled_from(['"', '""', '"open', 'a"b', "a,b", '"two\nlines"', "\0", "\r", "=1+1"]))
    odd_heads = ["prompt,prompt", "text", "", "prompt;completion", "a,b,c", '"x', "\0"]
    head = draw(st.sampled_from(["prompt,completion"] * 14 + odd_heads))
    rows = draw(st.lists(st.lists(fields, min_size=1, max_size=4).map(",".join), max_size=6))
    rows = draw(st.permutations([*rows, *(f"question {i},answer {i}" for i in range(draw(some)))]))
    text = "\n".join([head, *rows])
    coding = draw(encodings)
    return draw(packed(draw(st.sampled_from(["rows.csv"] * 4 + ["rows.tsv"])), text.encode(coding, "replace")))


@st.composite
def plain(draw) -> Case:
    lines = draw(st.lists(st.one_of(words.map(str.encode), st.binary(max_size=20)), max_size=10))
    lines += [b"", b"a sound line", b""][: draw(st.sampled_from([3, 3, 0]))]
    case = draw(packed("rows.txt", b"\n".join(lines)))
    return Case(case.files, case.main, settings={"sample_by": draw(st.sampled_from(["line", "paragraph", "document"]))})


def not_utf8(count: int) -> pa.Array:
    """Texts of which every third is text."""
    values = pa.array([b"\xff\xfe" if i % 3 else b"good %d" % i for i in range(count)], pa.binary())
    return pa.Array.from_buffers(pa.string(), count, values.buffers())


def turns(count: int) -> pa.Array:
    """Conversations; every fifth is null."""
    one = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    return pa.array([None if i % 5 == 4 else [{**turn, "content": f"{i}"} for turn in one] for i in range(count)])


@st.composite
def parquet(draw) -> Case:
    count = draw(st.sampled_from([40, 25, 12, 1, 0]))
    texts = pa.array([f"row {i} of some words" for i in range(count)])
    odd_columns = [not_utf8(count), pa.array([None] * count, pa.string()), pa.array([float("nan")] * count)]
    column = draw(st.sampled_from([texts, texts, texts, turns(count), turns(count), *odd_columns]))
    name = "messages" if pa.types.is_list(column.type) else draw(st.sampled_from(["text", "text", "messages"]))
    stream = io.BytesIO()
    how = {"row_group_size": 10, "compression": draw(st.sampled_from(["none", "snappy", "zstd"]))}
    pq.write_table(pa.table({name: column}), stream, write_page_checksum=draw(st.booleans()), **how)
    data = stream.getvalue()
    if draw(seldom):  # the footer may be hit, and then the file is refused
        return Case({"rows.parquet": draw(damage(data))}, "rows.parquet")
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    for _ in range(draw(some) if footer > 4 else 0):
        at = draw(st.integers(4, footer - 1))
        data = data[:at] + draw(st.binary(min_size=1, max_size=1)) + data[at + 1 :]
    return Case({"rows.parquet": data}, "rows.parquet")


def sound(rate: int, channels: int = 1, kind: str = "WAV", seconds: float = 0.2) -> bytes:
    time = np.arange(int(rate * seconds)) / rate
    stream = io.BytesIO()
    soundfile.write(stream, np.repeat(0.3 * np.sin(2764 * time)[:, None], channels, axis=1), rate, format=kind)
    return stream.getvalue()


def lying(data: bytes, at: int, form: str, value: int) -> bytes:
    """A WAV whose header says something else: rate, channels, sizes."""
    changed = bytearray(data)
    struct.pack_into(form, changed, at, value)
    return bytes(changed)


@st.composite
def recordings(draw) -> bytes:
    rate, channels = draw(st.sampled_from([8000, 22050, 44100, 48000])), draw(st.sampled_from([1, 2]))
    data = sound(rate, channels, draw(st.sampled_from(["WAV", "WAV", "FLAC", "OGG"])))
    if data[:4] == b"RIFF" and draw(seldom):
        at, form = draw(st.sampled_from([(4, "<I"), (22, "<H"), (24, "<I"), (34, "<H"), (40, "<I")]))
        data = lying(data, at, form, draw(st.sampled_from([0, 1, 9, 65535])))
    return draw(damage(data))


NAMES = (
    "../secret.wav",
    "/etc/hostname",
    "..\\secret.wav",
    "a/../../secret.wav",
    "",
    "none.wav",
    "a\0b.wav",
    ".",
    "x" * 300,
)
NAMES += ("http://127.0.0.1:9/a.wav", "file:///etc/hostname", "data:audio/wav;base64,AAAA", "data:", "\ud800.wav")


@st.composite
def graded(draw) -> Case:
    files, rows = {}, []
    for number in range(draw(st.integers(1, 4))):
        name = f"clip{number}.wav"
        files[name] = draw(recordings())
        name = draw(st.sampled_from([name] * 14 + list(NAMES)))
        grade = draw(st.sampled_from([3.5, 4, 1, "4"] * 4 + ["x", None, -1, 99, True, [4]]))
        prompt = draw(odd) if draw(seldom) else f"Question {number}?"
        row = {"audio": name, "prompt": prompt, "grade": grade, "speaker": draw(odd)}
        rows.append({key: value for key, value in row.items() if not (draw(seldom) and draw(seldom))})
    files["good.wav"] = sound(16_000)
    rows += [{"audio": "good.wav", "prompt": "Q?", "grade": 4}] * draw(st.sampled_from([1, 1, 0]))
    text = "\n".join(json.dumps(row) for row in rows)
    files["metadata.jsonl"] = draw(damage(text.encode())) if draw(seldom) else text.encode()
    return Case(files, graded=True)


@st.composite
def pictures(draw) -> bytes:
    size = draw(st.sampled_from([(1, 1), (9, 7), (64, 48)]))
    mode = draw(st.sampled_from(["RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "I;16", "F"]))
    kinds = {"CMYK": ["JPEG", "TIFF"], "F": ["TIFF"], "I;16": ["PNG", "TIFF"], "LA": ["PNG"], "RGBA": ["PNG", "WEBP"]}
    kind = draw(st.sampled_from(kinds.get(mode, ["PNG", "GIF", "TIFF"] + (["JPEG"] if mode in ("RGB", "L") else []))))
    exif = Image.Exif()
    exif[0x0112] = draw(st.integers(0, 9))
    stream = io.BytesIO()
    Image.new(mode, size, 1 if mode in ("1", "P", "I;16", "F") else None or 0).save(
        stream, kind, **({} if kind == "GIF" else {"exif": exif})
    )
    return draw(damage(stream.getvalue()))


@st.composite
def captioned(draw) -> Case:
    files, rows = {}, []
    for number in range(draw(st.integers(1, 4))):
        name = f"{number}.{draw(st.sampled_from(['png', 'jpg', 'tiff']))}"
        files[name] = draw(pictures())
        name = draw(st.sampled_from([name] * 14 + list(NAMES)))
        rows.append({"image": name, "text": draw(st.one_of(words, odd))})
    if draw(st.booleans()):
        return Case({f"class{number % 2}/{name}": data for number, (name, data) in enumerate(files.items())})
    text = "\n".join(json.dumps(row) for row in rows)
    return Case({**files, "metadata.jsonl": text.encode()}, settings={"format": "image_caption"})


@st.composite
def medium(draw) -> tuple[str, bytes]:
    """A suffix and the bytes of a recording or picture, which may be the other's."""
    data, others = draw(recordings()), draw(pictures())
    heard = draw(st.booleans())
    if draw(seldom):
        data, others = others, data
    return (draw(st.sampled_from(["wav", "flac", "mp3"])), data) if heard else ("png", others)


GOOD = {"good.wav": sound(16_000)}


@st.composite
def media_folder(draw) -> Case:
    """Recordings and pictures without a table: in class folders, or flat (and then there is nothing to learn)."""
    found = draw(st.lists(medium(), min_size=1, max_size=5))
    flat = draw(seldom) and draw(seldom)
    files = {f"{'' if flat else f'class {i % 2}/'}{i}.{end}": data for i, (end, data) in enumerate(found)}
    if draw(some):
        files |= {f"{'' if flat else 'class 1/'}{name}": data for name, data in GOOD.items()}
    if draw(seldom):
        files |= {draw(st.sampled_from(["class 0/x.png", "a/b/c/d.wav", "\u202e.png", "class 1/empty.wav"])): b""}
    return Case(files)


@st.composite
def metadata(draw) -> Case:
    """Media with a table of any shape beside them, or in it."""
    found = draw(st.lists(medium(), min_size=1, max_size=4))
    files = {f"{i}.{end}": data for i, (end, data) in enumerate(found)} | GOOD
    rows = [
        {"file_name": name if draw(some) else draw(st.sampled_from(NAMES)), "text": draw(words) or "a"}
        for name in files
    ]
    shape = draw(st.sampled_from(["csv", "jsonl", "parquet", "held"]))
    if shape in ("csv", "jsonl"):
        stream = io.StringIO()
        if shape == "csv":
            writer = csv.writer(stream, lineterminator=draw(st.sampled_from(["\n", "\r\n", "\r"])))
            writer.writerows([["file_name", "text"], *(row.values() for row in rows)])
        else:
            stream.writelines(json.dumps(row) + "\n" for row in rows)
        table = draw(packed(f"metadata.{shape}", stream.getvalue().encode("utf-8", "replace")))
        return Case({**files, **table.files}, settings={"format": "image_caption"})
    clean = [{key: value.encode("utf-8", "replace").decode() for key, value in row.items()} for row in rows]
    if shape == "held":
        clean = [{"audio": {"bytes": data, "path": name}, "text": "a"} for name, data in files.items()]
    binary = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(clean), binary, row_group_size=2)
    data = draw(damage(binary.getvalue())) if draw(seldom) else binary.getvalue()
    files = {} if shape == "held" else files
    return Case({**files, "metadata.parquet": data}, settings={"format": "image_caption"})


@st.composite
def rubbish(draw) -> Case:
    heads = [
        b"",
        b"PAR1",
        b"\x1f\x8b",
        b"\x28\xb5\x2f\xfd",
        b"{",
        b"[",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"PK\3\4",
        b"\x89PNG",
    ]
    ends = ["parquet", "jsonl", "json", "csv", "tsv", "txt", "jsonl.gz", "csv.zst", "wav", "png", "xyz", "md"]
    name = f"rows.{draw(st.sampled_from(ends))}"
    data = draw(st.sampled_from(heads)) + draw(st.binary(max_size=200)) * draw(st.sampled_from([1, 1, 50]))
    return Case({name: data}, draw(st.sampled_from([name, name, ""])), graded=draw(st.booleans()))


CASES: dict[str, st.SearchStrategy[Case]] = {
    "jsonl": jsonl(),
    "json_list": json_list(),
    "delimited": delimited(),
    "plain": plain(),
    "parquet": parquet(),
    "graded": graded(),
    "captioned": captioned(),
    "media_folder": media_folder(),
    "metadata": metadata(),
    "rubbish": rubbish(),
}
