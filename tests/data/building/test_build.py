"""A table built from several sources: the ledger closes, what is unchanged is kept, and nothing stale is ever used."""

from __future__ import annotations

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

import pytest

from luthier.data.building import build as building
from luthier.data.building import ingest, stagewriter
from luthier.data.building.build import Built, build
from luthier.errors import DataError, DiskError, ExistsError, SourceError
from luthier.files import verify_folder
from luthier.recipe_data import Duplicates, Source
from support.children import environment
from support.tables import album, chat, chats, closes, jsonl, picture, request, rows_of, said, word


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
        monkeypatch.setattr(stagewriter.StageWriter, "_flush", full)
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
from luthier.recipe_data import Source
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
