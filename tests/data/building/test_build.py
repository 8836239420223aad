"""A table built from several sources: the ledger closes, what is unchanged is kept, and nothing stale is ever used."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from PIL import Image

from luthier.data.building import build as building
from luthier.data.building import decide, ingest
from luthier.data.building.build import Built, build
from luthier.data.building.layout import label_of
from luthier.data.building.request import TableRequest
from luthier.data.building.rows import TableRow
from luthier.data.table import iter_rows, read_table
from luthier.errors import DataError, DiskError, ExistsError, SourceError
from luthier.files import verify_folder
from luthier.recipe import Balance, Duplicates, Scale, Source
from support.children import environment
from support.tables import chat, chats, closes, events, jsonl, recording, request, word


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of sources whose records are really read, as they are."""
    names: list[str] = []
    before = ingest._read

    def counted(reading: Any, *more: Any) -> Any:
        names.append(reading.source.name)
        return before(reading, *more)

    monkeypatch.setattr(ingest, "_read", counted)
    return names


def rows_of(folder: Path) -> list[TableRow]:
    return read_table(folder).rows


def said(folder: Path) -> set[str]:
    """The first answer of every row."""
    return {row.row.messages[-1].text for row in rows_of(folder)}


def test_the_ledger_adds_up_for_three_sources_of_three_shapes(tmp_path: Path) -> None:
    sharegpt = [{"conversations": [{"from": "human", "value": "a b"}, {"from": "gpt", "value": "c d"}]}]
    sharegpt += [{"conversations": None}, *sharegpt, {"conversations": [{"from": "human", "value": "no answer"}]}]
    one = jsonl(tmp_path / "one.jsonl", sharegpt)
    two = jsonl(tmp_path / "two.jsonl", [*chats(5), "not json", chat("A  B", "C D"), chat("short", "x " * 400)])
    (tmp_path / "three.csv").write_text("ask,reply\nhow,so\nwhy,therefore\n", encoding="utf-8")
    columns = {"prompt": "ask", "completion": "reply"}
    three = Source(name="three", path=str(tmp_path / "three.csv"), format="prompt_completion", columns=columns)
    steps = ["require_messages", {"length": {"maximum_words": 30}}]
    built = build(request(one, two, three, steps=steps), tmp_path / "table")
    sums = closes(tmp_path / "table")
    assert (sums["one"]["in"], sums["one"]["kept"], sums["one"]["merged"]) == (4, 1, 1)
    assert sum(sums["one"]["dropped"].values()) == 2
    assert (sums["two"]["in"], sums["two"]["merged"]) == (8, 1)
    assert sums["two"]["dropped"]["broken_line"] == 1
    assert sum(sums["two"]["dropped"].values()) == 2
    assert (sums["three"]["in"], sums["three"]["kept"]) == (2, 2)
    assert built.ledger.counts["two"].to_json() == {k: v for k, v in sums["two"].items() if k != "source"}
    assert verify_folder(tmp_path / "table", "manifest.json") is None
    assert not list((tmp_path / "table").glob(".*"))


def test_the_same_request_again_reads_no_record(tmp_path: Path, read: list[str]) -> None:
    asked = request(jsonl(tmp_path / "a.jsonl", chats(5)), jsonl(tmp_path / "b.jsonl", chats(5, 50)))
    first = build(asked, tmp_path / "table", tmp_path / "cache")
    assert read == ["a", "b"]
    again = build(asked, tmp_path / "table", tmp_path / "cache")
    other = build(asked, tmp_path / "other", tmp_path / "cache")
    assert read == ["a", "b"]
    assert (first.reused, again.reused, other.reused) == (False, True, False)
    assert again.ledger.counts == first.ledger.counts == other.ledger.counts
    assert again.manifest["digest"] == first.manifest["digest"] == other.manifest["digest"]
    assert rows_of(tmp_path / "table") == rows_of(tmp_path / "other")


def test_a_table_that_is_up_to_date_is_checked_byte_by_byte(tmp_path: Path) -> None:
    asked = request(jsonl(tmp_path / "a.jsonl", chats(5)))
    build(asked, tmp_path / "table")
    shard = tmp_path / "table" / "rows-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\0")
    with pytest.raises(ExistsError, match=r"rows-00000\.parquet is not what was written"):
        build(asked, tmp_path / "table")


def test_a_changed_line_makes_its_stage_anew_and_no_other(tmp_path: Path, read: list[str]) -> None:
    records = chats(5)
    a, b = jsonl(tmp_path / "a.jsonl", records), jsonl(tmp_path / "b.jsonl", chats(5, 50))
    build(request(a, b), tmp_path / "one", tmp_path / "cache")
    records[2]["messages"][1]["content"] = "edited"
    jsonl(tmp_path / "a.jsonl", records)
    with pytest.raises(ExistsError, match="made from other sources or settings"):
        build(request(a, b), tmp_path / "one", tmp_path / "cache")
    build(request(a, b), tmp_path / "two", tmp_path / "cache")
    assert read == ["a", "b", "a"]
    assert "edited" in said(tmp_path / "two")
    assert "edited" not in said(tmp_path / "one")


@pytest.mark.parametrize(
    "change",
    [
        lambda a: (replace(a, license="MIT"), []),
        lambda a: (replace(a, limit=2), []),
        lambda a: (replace(a, format="messages"), []),
        lambda a: (a, ["normalise_whitespace"]),
        lambda a: (a, [{"length": {"minimum_words": 1}}]),
    ],
)
def test_a_changed_setting_makes_the_stage_anew(tmp_path: Path, read: list[str], change: Any) -> None:
    a = jsonl(tmp_path / "a.jsonl", chats(5))
    build(request(a), tmp_path / "one", tmp_path / "cache")
    source, steps = change(a)
    build(request(source, steps=steps), tmp_path / "two", tmp_path / "cache")
    assert read == ["a", "a"]


def test_how_rows_are_mixed_and_split_reads_nothing_again(tmp_path: Path, read: list[str]) -> None:
    a = jsonl(tmp_path / "a.jsonl", chats(20))
    build(request(a), tmp_path / "one", tmp_path / "cache")
    build(request(replace(a, cap=3)), tmp_path / "two", tmp_path / "cache")
    build(request(a, seed=5, validation_fraction=0.3), tmp_path / "three", tmp_path / "cache")
    build(request(a, duplicates=Duplicates(near=0.8)), tmp_path / "four", tmp_path / "cache")
    assert read == ["a"]


@pytest.mark.parametrize("edited", ["mystep_one.py", "mystep_help.py"])
def test_an_edited_function_or_its_helper_makes_the_stage_anew(
    tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch, edited: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "mystep_one.py").write_text(
        "import mystep_help\nWORD = 'aaaa'\ndef check(row):\n"
        "    return WORD not in row.text and mystep_help.WORD not in row.text\n"
    )
    (tmp_path / "mystep_help.py").write_text("WORD = 'baaa'\n")
    a = jsonl(tmp_path / "a.jsonl", chats(6))

    def made(name: str) -> int:
        asked = request(a, steps=[{"custom": {"function": "mystep_one:check"}}])
        return int(build(asked, tmp_path / name, tmp_path / "cache").manifest["rows"])

    try:
        assert made("one") == 4
        made("again")
        assert read == ["a"]
        path = tmp_path / edited
        path.write_text(path.read_text().replace("aaaa", "what").replace("baaa", "what"))
        with pytest.raises(DataError, match="6 custom"):
            made("two")
        assert read == ["a", "a"]
    finally:
        for name in ("mystep_one", "mystep_help"):
            sys.modules.pop(name, None)


def picture(colour: tuple[int, int, int], size: int = 48, kind: str = "PNG") -> bytes:
    rng = np.random.default_rng(sum(colour))
    coarse = Image.fromarray(rng.integers(0, 255, (6, 6, 3), dtype=np.uint8))
    stream = io.BytesIO()
    coarse.resize((size, size), Image.Resampling.BICUBIC).save(stream, kind)
    return stream.getvalue()


def album(folder: Path, pictures: dict[str, tuple[bytes, str]]) -> Source:
    folder.mkdir(exist_ok=True)
    for name, (data, _) in pictures.items():
        (folder / name).write_bytes(data)
    lines = [f"{name},{caption}\n" for name, (_, caption) in pictures.items()]
    (folder / "metadata.csv").write_text("file_name,text\n" + "".join(lines), encoding="utf-8")
    return Source(name="album", path=str(folder))


def shift(path: Path) -> None:
    """A later time than any that the file had: clocks of file systems are coarse."""
    about = path.stat()
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns + 10**9))


def media_of(folder: Path) -> set[str]:
    return {item.name for item in (folder / "media").iterdir()}


def test_an_edited_picture_beside_a_table_is_read_again(tmp_path: Path, read: list[str]) -> None:
    asked = request(album(tmp_path / "album", {"a.png": (picture((1, 2, 3)), "a"), "b.png": (picture((9, 9, 9)), "b")}))
    build(asked, tmp_path / "one", tmp_path / "cache")
    build(asked, tmp_path / "same", tmp_path / "cache")
    assert read == ["album"]
    (tmp_path / "album" / "b.png").write_bytes(picture((50, 60, 70)))
    shift(tmp_path / "album" / "b.png")
    with pytest.raises(ExistsError, match="made from other sources"):
        build(asked, tmp_path / "one", tmp_path / "cache")
    build(asked, tmp_path / "two", tmp_path / "cache")
    assert len(media_of(tmp_path / "two") - media_of(tmp_path / "one")) == 1
    assert media_of(tmp_path / "same") == media_of(tmp_path / "one")


def test_a_picture_that_was_missing_and_came_is_read(tmp_path: Path) -> None:
    asked = request(album(tmp_path / "album", {"a.png": (picture((1, 2, 3)), "a"), "b.png": (picture((9, 9, 9)), "b")}))
    (tmp_path / "album" / "b.png").unlink()
    assert build(asked, tmp_path / "one", tmp_path / "cache").manifest["rows"] == 1
    (tmp_path / "album" / "b.png").write_bytes(picture((9, 9, 9)))
    assert build(asked, tmp_path / "two", tmp_path / "cache").manifest["rows"] == 2


def test_a_table_of_equal_text_in_another_folder_has_its_own_pictures(tmp_path: Path) -> None:
    here = request(album(tmp_path / "here", {"a.png": (picture((1, 2, 3)), "a")}))
    there = request(album(tmp_path / "there", {"a.png": (picture((9, 9, 9)), "a")}))
    build(here, tmp_path / "one", tmp_path / "cache")
    build(there, tmp_path / "two", tmp_path / "cache")
    assert not media_of(tmp_path / "one") & media_of(tmp_path / "two")
    with pytest.raises(ExistsError, match="made from other sources"):
        build(there, tmp_path / "one", tmp_path / "cache")


def test_a_new_file_in_a_folder_of_media_is_read(tmp_path: Path) -> None:
    for number, name in enumerate(("cat", "dog")):
        (tmp_path / "pets" / name).mkdir(parents=True)
        (tmp_path / "pets" / name / "1.png").write_bytes(picture((number, 1, 9 + number)))
    asked = request(Source(name="pets", path=str(tmp_path / "pets")))
    assert build(asked, tmp_path / "one", tmp_path / "cache").manifest["rows"] == 2
    (tmp_path / "pets" / "dog" / "2.png").write_bytes(picture((70, 1, 20)))
    assert build(asked, tmp_path / "two", tmp_path / "cache").manifest["rows"] == 3
    (tmp_path / "pets" / "cat" / "1.png").write_bytes(picture((7, 7, 7)))
    shift(tmp_path / "pets" / "cat" / "1.png")
    build(asked, tmp_path / "three", tmp_path / "cache")
    assert media_of(tmp_path / "three") != media_of(tmp_path / "two")


def test_a_torn_stage_is_thrown_away(tmp_path: Path, read: list[str]) -> None:
    asked = request(jsonl(tmp_path / "a.jsonl", chats(5)))
    build(asked, tmp_path / "one", tmp_path / "cache")
    for stage in (tmp_path / "cache").iterdir():
        for item in stage.glob("*.arrow"):
            item.write_bytes(item.read_bytes()[:-9])
    build(asked, tmp_path / "two", tmp_path / "cache")
    assert read == ["a", "a"]
    assert rows_of(tmp_path / "one") == rows_of(tmp_path / "two")


def test_two_builds_at_once_share_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = request(jsonl(tmp_path / "a.jsonl", chats(30)))
    barrier = threading.Barrier(2, timeout=20)
    before = ingest._read

    def both_at_once(*given: Any) -> Any:
        barrier.wait()
        found = before(*given)
        barrier.wait()
        return found

    monkeypatch.setattr(ingest, "_read", both_at_once)
    monkeypatch.setattr(ingest, "progress", lambda items, _: items)
    found: list[Built | Exception] = []

    def run(name: str) -> None:
        try:
            found.append(build(asked, tmp_path / name, tmp_path / "cache"))
        except Exception as error:
            found.append(error)

    threads = [threading.Thread(target=run, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [type(item) for item in found] == [Built, Built], found
    assert rows_of(tmp_path / "one") == rows_of(tmp_path / "two")
    assert not list((tmp_path / "cache").glob(".tmp-*"))


@pytest.mark.parametrize("place", ["stage", "events", "shards"])
def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    asked = request(jsonl(tmp_path / "a.jsonl", chats(5)))

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    if place == "stage":
        monkeypatch.setattr(ingest._Writer, "_flush", full)
    elif place == "events":
        monkeypatch.setattr(building, "_all_events", full)
    else:
        monkeypatch.setattr("luthier.data.building.shards.pq.write_table", full)
    with pytest.raises(DiskError, match="No space left on device"):
        build(asked, tmp_path / "table")
    assert [item.name for item in tmp_path.iterdir()] == ["a.jsonl"]


CHILD = """
import signal, sys, resource
from pathlib import Path
from luthier.data.building.build import build
from luthier.data.building.request import TableRequest
from luthier.recipe import Source
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
if len(sys.argv) > 2:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
here = Path(sys.argv[1])
sources = tuple((Source(name=n, path=str(here / f"{n}.jsonl")), "train") for n in ("a", "b"))
try:
    build(TableRequest(sources, graded=False), here / "table", here / "cache")
except Exception as error:
    print(f"{type(error).__name__}: {error}")
    sys.exit(3)
"""


def child(folder: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(CHILD), str(folder), *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())


def test_files_that_may_not_grow_leave_nothing_behind(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", [chat(word(i), f"{word(i)} " * 40) for i in range(3000)])
    jsonl(tmp_path / "b.jsonl", chats(5))
    process = child(tmp_path, "200000")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 3
    assert out.startswith("DiskError"), out
    assert not (tmp_path / "table").exists()
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("wait", [0.0, 0.15, 0.3, 0.6, 0.9])
def test_a_killed_build_leaves_no_table_and_the_next_one_succeeds(tmp_path: Path, wait: float) -> None:
    jsonl(tmp_path / "a.jsonl", [chat(word(i), f"{word(i)} " * 40) for i in range(60000)])
    jsonl(tmp_path / "b.jsonl", chats(5000, 70000))
    process = child(tmp_path)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("cache/.tmp-*/rows.arrow")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(wait)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "table").exists() or verify_folder(tmp_path / "table", "manifest.json") is None
    process = child(tmp_path)
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, out + error
    assert closes(tmp_path / "table")["a"]["kept"] == 60000
    assert verify_folder(tmp_path / "table", "manifest.json") is None


def test_a_file_that_changes_while_it_is_read_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = request(jsonl(tmp_path / "a.jsonl", chats(5)))
    before = ingest._read

    def edited(*given: Any) -> Any:
        jsonl(tmp_path / "a.jsonl", chats(9, 400))
        return before(*given)

    monkeypatch.setattr(ingest, "_read", edited)
    with pytest.raises(SourceError, match="changed while it was read"):
        build(asked, tmp_path / "one", tmp_path / "cache")
    monkeypatch.undo()
    jsonl(tmp_path / "a.jsonl", chats(5))
    assert build(asked, tmp_path / "two", tmp_path / "cache").manifest["rows"] == 5


def test_added_rows_never_move_old_ones_between_splits(tmp_path: Path) -> None:
    settings = {"validation_fraction": 0.2, "test_fraction": 0.1}
    few = jsonl(tmp_path / "a.jsonl", chats(300))
    build(request(few, **settings), tmp_path / "one")
    before = {row.row.id: row.row.split for row in iter_rows(tmp_path / "one")}
    many = jsonl(tmp_path / "a.jsonl", [*chats(100, 5000), *chats(300), *chats(100, 6000)])
    build(request(many, jsonl(tmp_path / "b.jsonl", chats(50, 9000)), **settings), tmp_path / "two")
    after = {row.row.id: row.row.split for row in iter_rows(tmp_path / "two")}
    assert {key: after[key] for key in before} == before
    counts = {split: list(before.values()).count(split) for split in ("train", "validation", "test")}
    assert 180 < counts["train"] < 240
    assert 35 < counts["validation"] < 90
    assert 12 < counts["test"] < 55


def test_a_question_is_never_on_two_sides_whatever_its_numbers(tmp_path: Path) -> None:
    records = [chat(f"{word(i)} has {n} apples", f"{word(i)} {n}") for i in range(60) for n in (3, 17, 2900)]
    build(request(jsonl(tmp_path / "a.jsonl", records), validation_fraction=0.3, test_fraction=0.2), tmp_path / "table")
    sides: dict[str, set[str]] = {}
    for row in iter_rows(tmp_path / "table"):
        sides.setdefault(row.row.text[:4], set()).add(row.row.split)
    assert len(sides) == 60
    assert all(len(found) == 1 for found in sides.values())
    assert set().union(*sides.values()) == {"train", "validation", "test"}


def test_a_mapped_group_is_never_on_two_sides(tmp_path: Path) -> None:
    records = [chat(word(i), word(i + 999), page=i % 20) for i in range(200)]
    source = jsonl(tmp_path / "a.jsonl", records, columns={"group": "page"})
    build(request(source, validation_fraction=0.4), tmp_path / "table")
    sides: dict[str, set[str]] = {}
    for row in iter_rows(tmp_path / "table"):
        sides.setdefault(row.row.group, set()).add(row.row.split)
    assert len(sides) == 20
    assert all(len(found) == 1 for found in sides.values())


def test_training_rows_that_a_held_out_source_has_are_dropped_as_in_test(tmp_path: Path) -> None:
    train = jsonl(tmp_path / "train.jsonl", chats(10))
    held = jsonl(tmp_path / "held.jsonl", [*chats(3, 7), chat("WHAT is  aaaa", "aaaa IS " + word(7000)), *chats(2, 90)])
    build(request(train, test=[held]), tmp_path / "table")
    sums = closes(tmp_path / "table")
    assert sums["train"] == {"source": "train", "in": 10, "kept": 6, "merged": 0, "dropped": {"in_test": 4}}
    assert (sums["held"]["kept"], sums["held"]["merged"]) == (6, 0)
    gone = [line for line in events(tmp_path / "table") if line.get("reason") == "in_test"]
    assert {line["step"] for line in gone} == {"duplicates"}
    ids = {row.row.id for row in iter_rows(tmp_path / "table", {"split": "test"})}
    assert {line["into"] for line in gone} <= ids


def test_a_training_row_that_asks_a_held_out_question_is_left_out_and_counted(tmp_path: Path) -> None:
    train = jsonl(tmp_path / "train.jsonl", [*chats(5), chat("What is WORTH 12 coins?", "A new answer to it.")])
    held = jsonl(tmp_path / "held.jsonl", [chat("what is worth 7 coins?", "Something else is."), *chats(2, 50)])
    build(request(train, test=[held]), tmp_path / "table")
    sums = closes(tmp_path / "table")
    assert sums["train"]["dropped"] == {"group_in_test": 1}
    assert sums["held"]["kept"] == 3
    [gone] = [line for line in events(tmp_path / "table") if line.get("reason") == "group_in_test"]
    assert (gone["origin"], gone["step"]) == ("train.jsonl#6", "split")
    groups = {row.row.group for row in iter_rows(tmp_path / "table", {"split": "train"})}
    assert groups.isdisjoint(row.row.group for row in iter_rows(tmp_path / "table", {"split": "test"}))


def graded(path: Path, grades: list[float], **more: Any) -> Source:
    import pyarrow as pa
    import pyarrow.parquet as pq

    records = [
        {"id": f"u{i}", "speaker": f"s{i}", "prompt": "p", "grade": grade, "audio": {"bytes": recording(i + 1)}, **more}
        for i, grade in enumerate(grades)
    ]
    pq.write_table(pa.Table.from_pylist(records), path)
    return Source(name=path.stem, path=str(path))


@pytest.mark.parametrize("method", ["down", "up", "weights"])
def test_the_classes_of_training_rows_are_balanced(tmp_path: Path, method: str) -> None:
    grades = [5.0] * 9 + [2.0] * 3
    train, held = graded(tmp_path / "train.parquet", grades), graded(tmp_path / "held.parquet", [5.0] * 4 + [2.0])
    asked = TableRequest(((train, "train"), (held, "test")), balance=Balance(method), scale=Scale(), graded=True)
    built = build(asked, tmp_path / "table")
    rows = rows_of(tmp_path / "table")
    trained = [row for row in rows if row.row.split == "train"]
    force = {True: 0.0, False: 0.0}
    for row in trained:
        force[row.row.target.grade == 5.0] += row.weight * row.repeats
    assert force[True] == pytest.approx(force[False])
    sums = closes(tmp_path / "table")
    gone = {"balanced_away": 6} if method == "down" else {}
    assert sums["train"]["dropped"] == gone
    assert sums["held"]["kept"] == 5
    assert all((row.weight, row.repeats) == (1.0, 1) for row in rows if row.row.split == "test")
    assert built.manifest["classes"]["test"] == {"fail": 1, "pass": 4}
    if method == "up":
        assert sum(row.repeats for row in trained) == 18
    if method == "weights":
        assert sum(row.weight for row in trained) == pytest.approx(12)


@pytest.mark.parametrize(
    ("target", "by", "expected"),
    [
        ("{}", "verdict", ""),
        ('{"grade":4.0}', "verdict", "pass"),
        ('{"grade":3.99}', "verdict", "fail"),
        ('{"grade":3.5}', "grade", "3.5"),
        ('{"choice":"B"}', "choice", "B"),
        ('{"text":"B"}', "verdict", ""),
    ],
)
def test_the_class_of_a_row_follows_from_its_target(target: str, by: str, expected: str) -> None:
    assert label_of(target, by, Scale()) == expected


@pytest.mark.parametrize(("scope", "merged"), [("table", 5), ("source", 2)])
def test_duplicates_are_looked_for_in_the_table_or_in_each_source(tmp_path: Path, scope: str, merged: int) -> None:
    a = jsonl(tmp_path / "a.jsonl", [*chats(5), *chats(2)])
    b = jsonl(tmp_path / "b.jsonl", [*chats(3, 2), *chats(3, 40)])
    build(request(a, b, duplicates=Duplicates(scope=scope)), tmp_path / "table")
    assert sum(found["merged"] for found in closes(tmp_path / "table").values()) == merged


LONG = (
    "rivers carry sand and stone down from the hills and leave them where the water slows, "
    "so that over many years a plain is built which is flat, fertile and often flooded in spring"
)


def test_near_copies_are_merged_into_the_first_and_siblings_are_kept(tmp_path: Path) -> None:
    records = [
        chat("How are plains made?", LONG),
        chat("How are plains made?", LONG.replace("stone", "gravel")),
        chat("Who lives there?", f"{LONG.replace('hills', 'Alps')}. Anna has 12 sheep."),
        chat("Who lives there?", f"{LONG.replace('hills', 'Alps')}. Berta has 19 sheep."),
    ]
    asked = request(jsonl(tmp_path / "a.jsonl", records), duplicates=Duplicates(near=0.7))
    built = build(asked, tmp_path / "table")
    assert closes(tmp_path / "table")["a"]["merged"] == 1
    (line,) = events(tmp_path / "table")
    first = next(row for row in iter_rows(tmp_path / "table") if row.row.messages[-1].text == LONG)
    assert (line["origin"], line["into"], line["how"]) == ("a.jsonl#2", first.row.id, "near")

    def shingles(text: str) -> set[tuple[str, ...]]:
        words = text.lower().replace(",", "").replace("?", "").split()
        return {tuple(words[i : i + 3]) for i in range(len(words) - 2)}

    one, two = (shingles("How are plains made? " + record["messages"][1]["content"]) for record in records[:2])
    assert line["similarity"] == pytest.approx(len(one & two) / len(one | two), abs=0.01)
    assert built.manifest["duplicates"]["found"]["siblings"] >= 1


def test_what_was_merged_into_a_merged_row_goes_where_that_row_went(tmp_path: Path) -> None:
    near = LONG.replace("stone", "gravel")
    records = [chat("How?", LONG), chat("How?", near), chat("HOW?", near.upper())]
    asked = request(jsonl(tmp_path / "a.jsonl", records), duplicates=Duplicates(near=0.7))
    build(asked, tmp_path / "table")
    (row,) = rows_of(tmp_path / "table")
    assert [(line["how"], line["into"]) for line in events(tmp_path / "table")] == [
        ("near", row.row.id),
        ("exact", row.row.id),
    ]


def test_the_same_picture_in_another_size_is_merged_only_with_the_same_caption(tmp_path: Path) -> None:
    one = picture((1, 2, 3), 96)
    small = io.BytesIO()
    Image.open(io.BytesIO(one)).resize((48, 48), Image.Resampling.LANCZOS).save(small, "PNG")
    source = album(
        tmp_path / "album",
        {
            "a.png": (one, "a dune"),
            "b.png": (small.getvalue(), "a dune"),
            "c.png": (small.getvalue(), "a beach"),
            "d.png": (picture((90, 9, 1), 96), "a dune"),
        },
    )
    build(request(source, duplicates=Duplicates(images=4)), tmp_path / "table")
    lines = events(tmp_path / "table")
    assert [(line["origin"].split("#")[1].split()[0], line["how"]) for line in lines] == [("2", "image")]
    assert closes(tmp_path / "table")["album"]["kept"] == 3


def test_the_same_sound_as_wav_and_flac_is_merged(tmp_path: Path) -> None:
    folder = tmp_path / "sounds"
    folder.mkdir()
    for name, data in (
        ("a.wav", recording(1, "WAV", 3.0)),
        ("b.flac", recording(1, "FLAC", 3.0)),
        ("c.flac", recording(2, "FLAC", 3.0)),
        ("d.wav", recording(1, "WAV", 3.0)),
    ):
        (folder / name).write_bytes(data)
    (folder / "metadata.csv").write_text("file_name,text\na.wav,hi\nb.flac,hi\nc.flac,hi\nd.wav,other\n")
    asked = request(Source(name="sounds", path=str(folder)), duplicates=Duplicates(audio=0.2))
    build(asked, tmp_path / "table")
    (line,) = events(tmp_path / "table")
    assert (line["origin"].split()[0], line["how"]) == ("metadata.csv#2", "audio")
    assert closes(tmp_path / "table")["sounds"]["kept"] == 3


def test_texts_of_one_meaning_are_merged(tmp_path: Path) -> None:
    model2vec = pytest.importorskip("model2vec")
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["[UNK]", "big", "large", "car", "automobile", "tree", "slow", "river"]
    vectors = np.random.default_rng(0).normal(size=(len(words), 16)).astype(np.float32)
    vectors[0], vectors[2], vectors[4] = 0, vectors[1], vectors[3]
    tokenizer = Tokenizer(models.WordLevel({name: n for n, name in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    model2vec.StaticModel(vectors, tokenizer, config={}).save_pretrained(str(tmp_path / "model"))
    records = [chat("big car", "slow"), chat("large automobile", "slow"), chat("tree", "river")]
    asked = request(
        jsonl(tmp_path / "a.jsonl", records),
        duplicates=Duplicates(semantic=0.95, semantic_model=str(tmp_path / "model")),
    )
    build(asked, tmp_path / "table")
    assert [(line["origin"], line["how"]) for line in events(tmp_path / "table")] == [("a.jsonl#2", "semantic")]


def test_decisions_are_kept_and_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = request(jsonl(tmp_path / "a.jsonl", [*chats(5), *chats(3)]), duplicates=Duplicates(near=0.8))
    build(asked, tmp_path / "one", tmp_path / "cache")
    monkeypatch.setattr(decide, "_look", lambda *_: pytest.fail("looked again"))
    build(asked, tmp_path / "two", tmp_path / "cache")
    assert (tmp_path / "one" / "ledger.jsonl").read_bytes() == (tmp_path / "two" / "ledger.jsonl").read_bytes()
    manifests = [orjson.loads((tmp_path / name / "manifest.json").read_bytes()) for name in ("one", "two")]
    assert manifests[0] == manifests[1]


def test_a_source_of_which_nothing_is_left_is_named(tmp_path: Path) -> None:
    a, b = jsonl(tmp_path / "a.jsonl", chats(3)), jsonl(tmp_path / "b.jsonl", chats(3))
    with pytest.raises(DataError, match="source b: no row of it is left: 3 merged"):
        build(request(a, b), tmp_path / "table")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["a.jsonl", "b.jsonl"]
