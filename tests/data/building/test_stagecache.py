"""Stages that are kept: whole or not at all, never stale, and shared between builds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from luthier.data.building.stagecache import TOUCHED, StageCache, stage_key, touch, untouched
from luthier.errors import DiskError
from luthier.files import json_text


def fill(cache: StageCache, key: str, text: str = "rows") -> None:
    with cache.make(key, {"n": 1}) as place:
        (place / "rows").write_text(text)


def test_a_stage_is_found_when_it_is_whole_and_removed_when_it_is_torn(tmp_path: Path) -> None:
    cache = StageCache(tmp_path / "cache", tmp_path)
    assert cache.find("k") is None
    fill(cache, "k")
    found = cache.find("k")
    assert found == tmp_path / "cache" / "k"
    (found / "rows").write_text("row5")
    assert cache.find("k") is None
    assert not found.exists()


@pytest.mark.parametrize("change", ["edited", "later", "gone", "came"])
def test_a_stage_whose_media_changed_is_not_found(tmp_path: Path, change: str) -> None:
    here, missing = tmp_path / "a.png", tmp_path / "b.png"
    here.write_bytes(b"one")
    cache = StageCache(tmp_path / "cache", tmp_path)
    with cache.make("k", {}) as place:
        (place / TOUCHED).write_text(json_text(touch([here, missing])))
    assert cache.find("k") is not None
    if change == "edited":
        here.write_bytes(b"other")
    elif change == "later":
        os.utime(here, ns=(0, here.stat().st_mtime_ns + 10**9))
    elif change == "gone":
        here.unlink()
    else:
        missing.write_bytes(b"new")
    assert not untouched(tmp_path / "cache" / "k")
    assert cache.find("k") is None


def test_a_stage_that_another_build_made_meanwhile_is_used(tmp_path: Path) -> None:
    cache = StageCache(tmp_path / "cache", tmp_path)
    with cache.make("k", {}) as place:
        (place / "rows").write_text("late")
        fill(cache, "k", "first")
    fill(cache, "k", "after")
    assert (tmp_path / "cache" / "k" / "rows").read_text() == "first"
    assert [item.name for item in (tmp_path / "cache").iterdir()] == ["k"]


def test_a_stage_that_fails_leaves_nothing(tmp_path: Path) -> None:
    cache = StageCache(tmp_path / "cache", tmp_path)
    with pytest.raises(DiskError), cache.make("k", {}):
        raise OSError(28, "No space left on device")
    with pytest.raises(KeyError), cache.make("k", {}):
        raise KeyError("k")
    assert not list((tmp_path / "cache").iterdir())


def test_a_cache_that_nobody_asked_for_is_removed(tmp_path: Path) -> None:
    cache = StageCache(None, tmp_path / "beside")
    fill(cache, "k")
    assert cache.root.parent == tmp_path / "beside"
    cache.close()
    assert not list((tmp_path / "beside").iterdir())
    kept = StageCache(tmp_path / "cache", tmp_path)
    fill(kept, "k")
    kept.close()
    assert kept.find("k") is not None


def test_a_key_follows_every_value_and_no_order() -> None:
    assert stage_key({"a": 1, "b": [1, 2]}) == stage_key({"b": [1, 2], "a": 1})
    assert len({stage_key(value) for value in ({"a": 1}, {"a": 2}, {"a": "1"}, {"b": 1}, {"a": [1]})}) == 5


def test_work_that_a_killed_process_left_a_day_ago_is_removed_and_newer_work_is_not(tmp_path: Path) -> None:
    import os
    import time

    for name, age in (("old", 2 * 86_400), ("new", 60)):
        (tmp_path / f".tmp-{name}").mkdir()
        os.utime(tmp_path / f".tmp-{name}", (time.time() - age,) * 2)
    StageCache(tmp_path, beside=tmp_path)
    assert [item.name for item in tmp_path.iterdir()] == [".tmp-new"]
