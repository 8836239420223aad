"""A media cell gives its bytes or a reason; no name leaves its folder, and nothing is fetched."""

import base64
import os
from pathlib import Path
from typing import Any

import pytest

from luthier.data.building.context import Context
from luthier.data.reading import places
from luthier.data.reading.places import REASONS, media_bytes
from luthier.errors import MediaError
from luthier.recipe_data import Source


def context(folder: Path, trusted: bool = False) -> Context:
    return Context(Source(name="s"), folder=folder, trusted=trusted)


def reason(value: Any, folder: Path, trusted: bool = False) -> str:
    with pytest.raises(MediaError) as caught:
        media_bytes(value, context(folder, trusted))
    assert caught.value.reason in REASONS
    assert caught.value.detail
    return caught.value.reason


@pytest.mark.parametrize(
    "value",
    [
        b"abc",
        bytearray(b"abc"),
        {"bytes": b"abc", "path": "none.wav"},
        {"bytes": None, "path": "a.wav"},
        {"path": "in/../a.wav"} | {"path": "a.wav"},
        {"url": "a.wav"},
        "a.wav",
        "./a.wav",
        "data:audio/wav;base64," + base64.b64encode(b"abc").decode(),
        "data:audio/wav;base64,YW\nJj",
        "data:,abc",
    ],
    ids=range(11),
)
def test_every_way_to_hold_a_medium(tmp_path: Path, value: Any) -> None:
    (tmp_path / "a.wav").write_bytes(b"abc")
    assert media_bytes(value, context(tmp_path)) == b"abc"


@pytest.mark.parametrize(
    "value", [None, "", " ", 7, [], {}, {"bytes": None, "path": None}, "none.wav", "a\0b", "\ud800"]
)
def test_what_is_not_there_is_missing(tmp_path: Path, value: Any) -> None:
    assert reason(value, tmp_path) == "missing_media"


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret.wav", "a/../../secret.wav", "a/../b.wav", "a\\..\\b.wav"])
def test_a_name_that_leaves_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    assert reason(name, tmp_path) == "path_outside_folder"


def test_a_trusted_folder_allows_absolute_names_inside_it_alone(tmp_path: Path) -> None:
    (tmp_path / "b.wav").write_bytes(b"b")
    inside = str(tmp_path / "b.wav")
    assert media_bytes(inside, context(tmp_path, trusted=True)) == b"b"
    assert reason(inside, tmp_path) == "path_outside_folder"
    assert reason("/etc/passwd", tmp_path, trusted=True) == "path_outside_folder"
    assert reason("../t.jsonl", tmp_path, trusted=True) == "path_outside_folder"


@pytest.mark.parametrize("address", ["http://localhost/a.wav", "https://example.org/a.wav", "s3://bucket/a.wav"])
def test_addresses_are_not_fetched(tmp_path: Path, address: str) -> None:
    assert reason(address, tmp_path) == "remote_media"
    assert reason({"url": address}, tmp_path) == "remote_media"


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    assert reason("pipe.wav", tmp_path) == "missing_media"
    assert reason(".", tmp_path) == "missing_media"


def test_a_link_is_followed_as_a_hub_cache_keeps_links(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"abc")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.wav").symlink_to("../blob")
    assert media_bytes("a.wav", context(tmp_path / "in")) == b"abc"


def test_a_medium_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "MAX_BYTES", 10)
    (tmp_path / "a.wav").write_bytes(bytes(11))
    for value in (bytes(11), "a.wav", "data:;base64," + base64.b64encode(bytes(20)).decode()):
        assert reason(value, tmp_path) == "too_large"


@pytest.mark.parametrize("value", ["data:audio/wav;base64", "data:;base64,@@@", "data:;base64,YWJ"])
def test_a_broken_data_address(tmp_path: Path, value: str) -> None:
    assert reason(value, tmp_path) == "missing_media"
