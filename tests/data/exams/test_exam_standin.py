"""Made-up exams are read back in their shape, are the same for one seed, and favour no place."""

from pathlib import Path

import pytest

from luthier.data.exams import read_exam, write_standin_exam
from luthier.errors import RequestError


@pytest.mark.parametrize(
    ("shape", "base"), [("piqa", "0"), ("winogrande", "1"), ("options", "letter"), ("letters", "letter")]
)
def test_a_stand_in_has_its_shape_and_favours_no_place(tmp_path: Path, shape: str, base: str) -> None:
    write_standin_exam(tmp_path / "a.jsonl", shape, 64, 3)
    write_standin_exam(tmp_path / "b.jsonl", shape, 64, 3)
    write_standin_exam(tmp_path / "c.jsonl", shape, 64, 4)
    exam = read_exam(tmp_path / "a.jsonl", "a")
    assert (exam.shape, exam.answers, len(exam.items), exam.unreadable) == (shape, base, 64, [])
    assert exam.majority == exam.chance == 0.5
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    assert (tmp_path / "a.jsonl").read_bytes() != (tmp_path / "c.jsonl").read_bytes()


def test_a_stand_in_of_two_items_can_be_read_and_other_shapes_are_refused(tmp_path: Path) -> None:
    write_standin_exam(tmp_path / "a.jsonl", "options", 2, 0)
    assert len(read_exam(tmp_path / "a.jsonl", "a").items) == 2
    with pytest.raises(RequestError, match="one of piqa, winogrande, options, letters"):
        write_standin_exam(tmp_path / "b.jsonl", "trivia", 2, 0)
