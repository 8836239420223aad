"""Writes that fail, folders that are tampered with, lines that are torn."""

import errno
import io
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier import files
from luthier.errors import DiskError, ExistsError
from luthier.files import (
    MANIFEST,
    append_bytes,
    append_jsonl,
    atomic_folder,
    read_jsonl,
    verify_folder,
    write_bytes,
    write_json,
    write_jsonl,
)
from support.faults import Disk
from support.powercut import after_power_cut, snapshot

Damage = Callable[[Path], None]


def everything(folder: Path) -> dict[str, bytes]:
    return {str(item.relative_to(folder)): item.read_bytes() for item in folder.rglob("*") if item.is_file()}


@pytest.fixture(params=["write", "fsync", "replace"])
def full_disk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A disk that fills at one of the three moments of a write."""

    def fail(*_args: Any, **_kwargs: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if request.param == "fsync":
        monkeypatch.setattr(files.os, "fsync", fail)
    elif request.param == "replace":
        monkeypatch.setattr(Path, "replace", fail)
    else:

        class HalfWritten(io.FileIO):
            def write(self, data: Any) -> int:
                super().write(bytes(data)[: len(data) // 2])
                return int(fail())

        before = Path.open
        monkeypatch.setattr(
            Path,
            "open",
            lambda self, mode="r", *args, **kwargs: (
                HalfWritten(self, "w")
                if mode == "wb" and self.name.startswith(".tmp-")
                else before(self, mode, *args, **kwargs)
            ),
        )
    yield
    monkeypatch.undo()


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_leaves_the_old_file_whole_and_nothing_half_written(tmp_path: Path) -> None:
    (tmp_path / "scores.json").write_bytes(b"old")
    for name in ("scores.json", "new.json"):
        with pytest.raises(DiskError, match="No space left") as caught:
            write_bytes(tmp_path / name, b"x" * 1000)
        assert caught.value.exit_code == 1
        assert name in caught.value.message
        assert caught.value.mend
    assert everything(tmp_path) == {"scores.json": b"old"}


def test_a_folder_that_cannot_be_made_is_a_disk_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for attempt in (
        lambda: write_json(tmp_path / "file" / "a.json", {}),
        lambda: append_jsonl(tmp_path / "file" / "a.jsonl", {}),
    ):
        with pytest.raises(DiskError):
            attempt()
    with pytest.raises(DiskError), atomic_folder(tmp_path / "file" / "folder", {}):
        pass
    assert everything(tmp_path) == {"file": b"in the way"}


@pytest.mark.parametrize("error", [ValueError("bad row"), KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left")])
def test_an_atomic_folder_that_fails_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    expected = DiskError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected), atomic_folder(tmp_path / "out", {}) as folder:  # noqa: PT012
        (folder / "deep").mkdir()
        (folder / "deep" / "a.bin").write_bytes(b"1234")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_an_error_that_a_library_made_of_a_full_disk_is_a_disk_error(tmp_path: Path) -> None:
    class ForeignError(Exception):
        """Stands for the errors of libraries that write by themselves, such as safetensors."""

    with pytest.raises(DiskError), atomic_folder(tmp_path / "out", {}):
        raise ForeignError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(ForeignError), atomic_folder(tmp_path / "out", {}):
        raise ForeignError("shape mismatch")
    assert list(tmp_path.iterdir()) == []


def test_an_atomic_folder_never_replaces_one(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "out", {"step": 3}) as folder:
        (folder / "a").write_text("first")
    with pytest.raises(ExistsError, match="exists already") as caught, atomic_folder(tmp_path / "out", {}):
        raise AssertionError("the body must not run")
    assert caught.value.exit_code == 2
    assert (tmp_path / "out" / "a").read_text() == "first"
    assert files.read_json(tmp_path / "out" / MANIFEST)["step"] == 3


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(b""), "not what was written"),
        (lambda path: path.write_bytes(b"\0" * path.stat().st_size), "not what was written"),
        (_flip, "not what was written"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "not what was written"),
    ],
    ids=["missing", "empty", "zeros", "one bit", "one byte short"],
)
@pytest.mark.parametrize("name", ["weights.bin", "deep/state.json"])
def test_any_damage_to_a_sealed_folder_is_found(tmp_path: Path, name: str, damage: Damage, words: str) -> None:
    with atomic_folder(tmp_path / "step", {}) as folder:
        (folder / "weights.bin").write_bytes(bytes(range(256)) * 16)
        (folder / "deep").mkdir()
        write_json(folder / "deep" / "state.json", {"step": 7})
    assert verify_folder(tmp_path / "step") is None
    damage(tmp_path / "step" / name)
    assert verify_folder(tmp_path / "step") == f"{name} {'is ' if 'missing' not in words else ''}{words}"


@pytest.mark.parametrize("text", [None, "", "{", "[]", "{}", '{"files": 3}', "\0\0\0\0"])
def test_a_folder_without_a_manifest_that_can_be_read_is_not_trusted(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / MANIFEST).write_text(text)
    assert MANIFEST in (verify_folder(tmp_path) or "")


def test_a_torn_last_line_is_forgiven_and_a_broken_middle_line_is_not(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_jsonl(path, {"step": 1})
    append_jsonl(path, {"step": 2, "wort": "größer"})
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"step": 3, "lo')
    assert read_jsonl(path) == [{"step": 1}, {"step": 2, "wort": "größer"}]
    path.write_bytes(whole + '{"wort": "größer"}'.encode()[:12])  # within a character
    assert read_jsonl(path) == [{"step": 1}, {"step": 2, "wort": "größer"}]
    path.write_bytes(b'{"step": \n' + whole)
    with pytest.raises(json.JSONDecodeError):
        read_jsonl(path)


VALUES = st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(st.dictionaries(st.text(), VALUES)))
def test_json_lines_come_back_equal_whatever_the_text(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
) -> None:
    path = tmp_path_factory.mktemp("lines") / "rows.jsonl"
    write_jsonl(path, rows)
    assert read_jsonl(path) == rows


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_json_has_no_word_for_are_refused_before_anything_is_written(tmp_path: Path, value: float) -> None:
    for attempt in (
        lambda: write_json(tmp_path / "a", {"x": value}),
        lambda: write_jsonl(tmp_path / "b", [{"x": value}]),
    ):
        with pytest.raises(ValueError, match="not JSON compliant"):
            attempt()
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_a_killed_process_are_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / ".tmp-step-000002-abc").mkdir()
    (tmp_path / ".tmp-step-000002-abc" / "half").write_text("x")
    (tmp_path / ".tmp-run.json-abc").write_text("x")
    (tmp_path / "kept").write_text("x")
    files.remove_leftovers(tmp_path)
    assert [item.name for item in tmp_path.iterdir()] == ["kept"]


def test_whatever_a_rename_makes_visible_was_pushed_to_the_disk_before_it(tmp_path: Path) -> None:
    with Disk(tmp_path).watched() as disk, atomic_folder(tmp_path / "new" / "out", {}) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "a.bin").write_bytes(b"1234")
        write_json(folder / "b.json", {})
    steps = [f"{step.kind} {step.path.relative_to(tmp_path)}" for step in disk.log]
    seal = [
        "fsync new/TMP/b.json",
        "fsync new/TMP/deep/a.bin",
        "fsync new/TMP/deep",
        f"open new/TMP/{MANIFEST}",
        f"write new/TMP/{MANIFEST}",
        f"fsync new/TMP/{MANIFEST}",
        "fsync new/TMP",
        "rename new/TMP",
        "fsync new",
    ]
    assert steps[:2] == ["mkdir new", "fsync ."]
    assert [re.sub(r"\.tmp-out-[0-9a-f]{8}", "TMP", step) for step in steps[-len(seal) :]] == seal


@pytest.mark.parametrize("name", ["old.json", "deep/new.json"])
def test_after_a_power_cut_a_file_is_the_old_one_or_the_new_one(tmp_path: Path, name: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "old.json").write_bytes(b"old")
    before = snapshot(root)
    with Disk(root).watched() as disk:
        write_bytes(root / name, b"the new one")
    trees = list(after_power_cut(before, root, disk.log, tries=20))
    assert {tree.get(name) for tree in trees} == {before.get(name), b"the new one"}
    assert trees[-1][name] == b"the new one"
    assert all(tree["old.json"] for tree in trees)


def test_a_folder_loses_its_name_before_its_files(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "root" / "step", {}) as folder:
        (folder / "a").write_text("x")
    before = snapshot(tmp_path / "root")
    with Disk(tmp_path / "root").watched() as disk:
        files.remove_folder(tmp_path / "root" / "step")
    for tree in after_power_cut(before, tmp_path / "root", disk.log, tries=20):
        assert "step" not in tree or {"step/a", f"step/{MANIFEST}"} < set(tree)
    assert snapshot(tmp_path / "root") == {}


def test_a_moved_folder_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    for text in ("first", "second"):
        (tmp_path / "step").mkdir()
        (tmp_path / "step" / "a").write_text(text)
        files.move_folder(tmp_path / "step", tmp_path / "aside" / "step")
    assert everything(tmp_path) == {"aside/step/a": b"second"}
    with pytest.raises(DiskError, match="could not be moved"):
        files.move_folder(tmp_path / "gone", tmp_path / "aside" / "gone")
    with pytest.raises(DiskError, match="could not be removed"):
        files.remove_folder(tmp_path / "gone")


def test_a_line_that_could_not_be_pushed_to_the_disk_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append_jsonl(tmp_path / "a.jsonl", {"step": 1})
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
        with pytest.raises(DiskError):
            append_jsonl(tmp_path / "a.jsonl", {"step": 2})
    append_jsonl(tmp_path / "a.jsonl", {"step": 3})
    assert read_jsonl(tmp_path / "a.jsonl") == [{"step": 1}, {"step": 3}]


def test_bytes_are_appended_after_those_that_are_to_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "a.raw"
    append_bytes(path, b"abc")
    append_bytes(path, b"")
    append_bytes(path, b"def")
    assert path.read_bytes() == b"abcdef"
    append_bytes(path, b"xy", keep=4)
    assert path.read_bytes() == b"abcdxy"
    append_bytes(path, b"z", keep=0)
    assert path.read_bytes() == b"z"
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
        with pytest.raises(DiskError, match="No space left"):
            append_bytes(path, b"more")
    assert path.read_bytes() == b"z"


def test_a_file_that_the_disk_cannot_read_is_broken_and_one_that_we_may_not_read_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with atomic_folder(tmp_path / "step", {}) as folder:
        (folder / "a").write_text("x")
    assert verify_folder(tmp_path / "step", from_disk=True) is None
    for code in (errno.EIO, errno.EACCES):

        def fail(_: Path, code: int = code) -> str:
            raise OSError(code, os.strerror(code))

        monkeypatch.setitem(files._DIGESTS, "sha256", fail)
        if code == errno.EIO:
            assert verify_folder(tmp_path / "step") == "a cannot be read back: Input/output error"
        else:
            with pytest.raises(DiskError, match="a: could not be read: Permission denied"):
                verify_folder(tmp_path / "step")


def test_free_bytes_are_those_of_the_disk_that_a_folder_will_be_made_on(tmp_path: Path) -> None:
    assert 0 < files.free_bytes(tmp_path / "not" / "yet") <= os.statvfs(tmp_path).f_blocks * 2**20
