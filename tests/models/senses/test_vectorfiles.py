"""What was appended is read back bit for bit; what a kill tore is as if it had never been."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.errors import DiskError
from luthier.models.senses import vectorfiles
from luthier.models.senses.vectorfiles import VectorFiles


def vectors(number: int, slots: int = 3, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(number)
    return torch.randn(2, slots, 5, generator=generator).to(dtype)


def named(numbers: range, dtype: torch.dtype = torch.float32) -> list[tuple[str, torch.Tensor]]:
    return [(f"sha256:{number}", vectors(number, 1 + number % 4, dtype)) for number in numbers]


def holds(files: VectorFiles, expected: list[tuple[str, torch.Tensor]]) -> None:
    assert len(files) == len(expected)
    assert files.nbytes == sum(one.nbytes for _, one in expected)
    for name, one in expected:
        found = files.load(name)
        assert (found.dtype, found.shape) == (one.dtype, one.shape)
        assert torch.equal(found, one)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_appended_in_parts_is_read_back_by_this_and_by_later_readers(tmp_path, dtype):
    files, expected = VectorFiles(tmp_path / "v", dtype), named(range(9), dtype)
    for begin in (0, 1, 5):
        files.append(expected[begin : {0: 1, 1: 5, 5: 9}[begin]])
    holds(files, expected)
    holds(VectorFiles(tmp_path / "v", dtype), expected)
    assert "sha256:9" not in files
    with pytest.raises(KeyError):
        files.load("sha256:9")


def test_what_is_here_already_stays_as_it_is(tmp_path):
    files = VectorFiles(tmp_path, torch.float32)
    files.append(named(range(4)))
    files.append([("sha256:2", vectors(99)), ("sha256:4", vectors(4, 1))])
    holds(VectorFiles(tmp_path, torch.float32), [*named(range(4)), ("sha256:4", vectors(4, 1))])


def test_a_full_file_is_followed_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(vectorfiles, "_FULL", 200)
    files = VectorFiles(tmp_path, torch.float32)
    for one in named(range(12)):
        files.append([one])
    assert len(list(tmp_path.glob("*.raw"))) > 3
    holds(files, named(range(12)))
    holds(VectorFiles(tmp_path, torch.float32), named(range(12)))


def test_a_reader_sees_what_another_writes_once_it_looks_again(tmp_path):
    writer, reader = VectorFiles(tmp_path, torch.float32), VectorFiles(tmp_path, torch.float32)
    writer.append(named(range(3)))
    assert len(reader) == 0
    reader.refresh()
    holds(reader, named(range(3)))
    held = reader.load("sha256:0")
    writer.append(named(range(3, 8)))
    reader.refresh()
    holds(reader, named(range(8)))
    assert torch.equal(held, vectors(0, 1))


def test_two_writers_take_turns_and_write_nothing_twice(tmp_path):
    one, two = VectorFiles(tmp_path, torch.float32), VectorFiles(tmp_path, torch.float32)
    one.append(named(range(4)))
    two.append(named(range(2, 6)))
    one.append(named(range(5, 9)))
    holds(VectorFiles(tmp_path, torch.float32), named(range(9)))
    assert sum(path.stat().st_size for path in tmp_path.glob("*.raw")) == one.nbytes


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_a_kill_left_of_the_tail_is_made_again(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("torn")
    files = VectorFiles(folder, torch.float32)
    files.append(named(range(3)))
    sizes = {name: (folder / name).stat().st_size for name in ("00000.raw", "index.jsonl")}
    files.append(named(range(3, 6)))
    # The numbers were written first: the index is whole only where they are.
    torn = data.draw(st.sampled_from(["00000.raw", "index.jsonl"]))
    path = folder / torn
    keep = data.draw(st.integers(sizes[torn], path.stat().st_size))
    os.truncate(path, keep)
    if torn == "00000.raw" and data.draw(st.booleans()):
        os.truncate(folder / "index.jsonl", sizes["index.jsonl"])
    after = VectorFiles(folder, torch.float32)
    assert 3 <= len(after) <= 6
    holds(after, named(range(len(after))))
    after.append(named(range(8)))
    holds(after, named(range(8)))
    holds(VectorFiles(folder, torch.float32), named(range(8)))


@pytest.mark.parametrize("rest", [b"\n", b"{}\n", b"\x00\x00\x00", b"\x00\n{}\n", b'{"name": "x"}\n', b"[1]\n"])
def test_an_index_is_believed_up_to_its_first_broken_line(tmp_path, rest):
    VectorFiles(tmp_path, torch.float32).append(named(range(3)))
    with (tmp_path / "index.jsonl").open("ab") as stream:
        stream.write(rest)
    after = VectorFiles(tmp_path, torch.float32)
    holds(after, named(range(3)))
    after.append(named(range(3, 5)))
    holds(VectorFiles(tmp_path, torch.float32), named(range(5)))


def test_a_file_that_was_thrown_away_is_made_again(tmp_path):
    files = VectorFiles(tmp_path, torch.float32)
    files.append(named(range(3)))
    (tmp_path / "00000.raw").unlink()
    after = VectorFiles(tmp_path, torch.float32)
    assert len(after) == 0
    after.append(named(range(4)))
    holds(VectorFiles(tmp_path, torch.float32), named(range(4)))


def test_a_write_that_fails_leaves_what_there_was(tmp_path, monkeypatch):
    files = VectorFiles(tmp_path, torch.float32)
    files.append(named(range(3)))

    def full(path, data, keep=None):
        raise DiskError(f"{path}: no space left", "")

    with monkeypatch.context() as patch:
        patch.setattr(vectorfiles, "append_bytes", full)
        with pytest.raises(DiskError):
            files.append(named(range(3, 5)))
    holds(files, named(range(3)))
    files.append(named(range(3, 5)))
    holds(VectorFiles(tmp_path, torch.float32), named(range(5)))


def test_a_folder_that_cannot_be_written_is_an_error_of_the_disk(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DiskError):
        VectorFiles(tmp_path / "file" / "v", torch.float32).append(named(range(1)))


def _write_for_ever(folder: Path) -> None:
    files = VectorFiles(folder, torch.float32)
    for number in range(10**6):
        files.append(named(range(number, number + 1)))


def test_kills_at_any_moment_and_a_second_writer_lose_nothing_that_was_told(tmp_path):
    context = multiprocessing.get_context("fork")
    before = 0
    for seconds in (0.05, 0.11, 0.16):
        writers = [context.Process(target=_write_for_ever, args=(tmp_path,)) for _ in range(2)]
        for writer in writers:
            writer.start()
        writers[0].join(seconds)
        for writer in writers:
            os.kill(writer.pid, signal.SIGKILL)
            writer.join()
        after = VectorFiles(tmp_path, torch.float32)
        assert len(after) >= before
        holds(after, named(range(len(after))))
        before = len(after)
    assert before > 3
