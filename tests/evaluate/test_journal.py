"""A journal of answers, cut anywhere: what was whole is kept, the rest is asked again, and nothing is made up."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.errors import DiskError
from luthier.evaluate.journal import AnswerCache, Journal
from luthier.exam_records import ExamAsked, ExamPrediction, SatRecord
from luthier.rundir import SatDir

ANSWERS = [
    ExamPrediction(
        f"é{n}", 0, n % 2, [-1.5 - n, -2.0], n % 2 == 0, "g", more=[ExamAsked("exam", True, [-1.0, -0.1], 1)]
    )
    for n in range(6)
]


def written(folder: Path, key: str = "a key") -> Path:
    journal = Journal(SatDir(folder), key)
    for answer in ANSWERS:
        journal.keep(answer)
    journal.close()
    return journal.path


def reopened(folder: Path, key: str = "a key") -> dict[str, ExamPrediction]:
    journal = Journal(SatDir(folder), key)
    journal.close()
    return journal.done


def test_what_was_kept_is_read_back_whole(tmp_path):
    written(tmp_path)
    assert list(reopened(tmp_path).values()) == ANSWERS


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 1), st.sampled_from([b"", b"\xc3", b"1\n", b"{}\n", b'{"key": 1}\n', b"\0\0\n{"]))
def test_a_journal_cut_anywhere_keeps_a_beginning_and_goes_on(share, rubbish):
    with tempfile.TemporaryDirectory() as name:
        path = written(Path(name))
        whole = path.read_bytes()
        cut = whole[: round(share * len(whole))]
        path.write_bytes(cut + rubbish)
        journal = Journal(SatDir(Path(name)), "a key")
        found = list(journal.done.values())
        assert found == ANSWERS[: len(found)]
        assert len(found) == max(0, cut.count(b"\n") - 1)
        for answer in ANSWERS:
            journal.keep(answer)
        journal.close()
        assert list(reopened(Path(name)).values()) == ANSWERS


def test_what_stands_behind_a_broken_line_is_asked_again(tmp_path):
    path = written(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], b"\0\0\0\n", *lines[4:]]))
    assert list(reopened(tmp_path).values()) == ANSWERS[:2]


def test_answers_under_another_key_are_not_taken(tmp_path, capsys):
    written(tmp_path)
    assert reopened(tmp_path, "other") == {}
    assert "begun with other weights" in capsys.readouterr().err


def test_seconds_add_up_over_processes(tmp_path):
    journal = Journal(SatDir(tmp_path), "a key")
    journal._begin -= 7.0
    journal.keep(ANSWERS[0])
    journal.close()
    again = Journal(SatDir(tmp_path), "a key")
    again.keep(ANSWERS[1])
    again.close()
    assert 7.0 <= again.seconds < 8.0


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="could not be written"):
        Journal(SatDir(tmp_path / "file" / "base"), "a key")


def test_a_cache_finds_what_was_kept_and_nothing_else(tmp_path):
    cache = AnswerCache(tmp_path / "cache")
    record = SatRecord("one", "toy", "b", "a", "c", None, 1.0, 6.0, 100, "key")
    assert cache.find("key") is None
    cache.keep("key", ANSWERS, record)
    cache.keep("key", ANSWERS, record)  # as another process may
    assert cache.find("key") == (ANSWERS, record)
    assert cache.find("other") is None
