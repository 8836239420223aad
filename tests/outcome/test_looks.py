"""The ledger of looks: what counts as one, where it lies, and what happens where it cannot be written."""

from pathlib import Path

import pytest

from luthier.errors import DataError
from luthier.outcome.looks import count_looks, default_ledger, record_look


def test_each_candidate_is_one_look_however_often_it_is_scored(tmp_path: Path) -> None:
    assert [record_look("ab", who, "choose", tmp_path) for who in ("x", "y", "x", "z")] == [1, 2, 2, 3]
    assert count_looks("ab", tmp_path) == 3
    assert len((tmp_path / "ab.jsonl").read_text().splitlines()) == 3


def test_exams_are_counted_apart_and_an_unseen_one_has_no_looks(tmp_path: Path) -> None:
    record_look("sha256:ab", "x", "report", tmp_path)
    assert count_looks("cd", tmp_path) == 0
    assert count_looks("sha256:ab", tmp_path) == 1


@pytest.mark.parametrize(
    ("named", "place"),
    [
        ({"LUTHIER_HOME": "/a"}, "/a/looks"),
        ({"XDG_DATA_HOME": "/b"}, "/b/luthier/looks"),
        ({"HOME": "/c"}, "/c/.local/share/luthier/looks"),
    ],
)
def test_the_ledger_lies_with_the_users_data(
    named: dict[str, str], place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LUTHIER_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in named.items():
        monkeypatch.setenv(name, value)
    assert default_ledger() == Path(place)


def test_tests_have_a_home_of_their_own(home_of_its_own: Path) -> None:
    assert default_ledger() == home_of_its_own / "looks"


def test_a_ledger_that_cannot_be_written_is_said_once_and_stops_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    assert [record_look("ab", who, "report", blocked) for who in ("x", "y")] == [1, 1]
    assert capsys.readouterr().err.count("LUTHIER_HOME") == 1


def test_a_broken_ledger_is_named(tmp_path: Path) -> None:
    (tmp_path / "ab.jsonl").write_text('not json\n{"who": "x"}\n')
    with pytest.raises(DataError, match=r"ab\.jsonl"):
        record_look("ab", "y", "report", tmp_path)
