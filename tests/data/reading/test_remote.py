"""A remote file is fetched once and read as a local one; web addresses and secrets stay out."""

from pathlib import Path

import fsspec
import pytest

from luthier.data.readers import open_source
from luthier.errors import SourceError
from luthier.recipe_data import Source


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def put(name: str, data: bytes) -> str:
    fsspec.filesystem("memory").pipe_file(name, data)
    return f"memory:/{name}"


def test_an_address_is_read_as_a_file(cache: Path) -> None:
    reading = open_source(Source(name="s", path=put("/box/t.jsonl", b'{"a": 1}\n')))
    assert list(reading) == [("t.jsonl#1", {"a": 1})]
    assert reading.files[0].is_relative_to(cache)
    assert (reading.sniffed, reading.revision) == ("1 file of jsonl", "")


def test_it_is_fetched_once_and_again_when_it_changes() -> None:
    address = put("/box/u.jsonl", b'{"a": 1}\n')
    first = open_source(Source(name="s", path=address)).files[0]
    stamp = first.stat().st_mtime_ns
    assert open_source(Source(name="s", path=address)).files[0] == first
    assert first.stat().st_mtime_ns == stamp
    put("/box/u.jsonl", b'{"a": 2, "b": 3}\n')
    assert list(open_source(Source(name="s", path=address))) == [("u.jsonl#1", {"a": 2, "b": 3})]


def test_a_file_address_is_local(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"a": 1}\n')
    assert open_source(Source(name="s", path=f"file://{tmp_path}/t.jsonl")).files == (tmp_path / "t.jsonl",)


@pytest.mark.parametrize(
    "address",
    [
        "http://localhost/t.csv",
        "https://example.org/t.csv",
        "HTTP://x/t.csv",
        "simplecache::http://x/t",
        "ftp://x/t.csv",
    ],
)
def test_web_addresses_are_refused_with_a_mend(address: str) -> None:
    with pytest.raises(SourceError, match="not fetched") as caught:
        open_source(Source(name="s", path=address))
    assert "--set data.sources.s.path=FILE" in caught.value.mend


def test_what_is_not_there_is_named_without_its_secret() -> None:
    with pytest.raises(SourceError, match="source s: memory://box/none"):
        open_source(Source(name="s", path="memory://box/none.csv"))
    with pytest.raises(SourceError) as caught:
        open_source(Source(name="s", path="nosuch://user:secret@host/t.csv"))
    assert "secret" not in str(caught.value)
    with pytest.raises(SourceError, match="names no file"):
        open_source(Source(name="s", path="hf://datasets/o/x"))
