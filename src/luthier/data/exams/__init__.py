"""Exam files: the shapes they come in, how they count their answers, and what is wrong with them."""

from luthier.data.exams.exam import Exam, ExamItem, exam_digest, exam_record, write_items
from luthier.data.exams.reader import read_exam
from luthier.data.exams.standin import write_standin_exam
from luthier.data.exams.touched import touched_items

__all__ = [
    "Exam",
    "ExamItem",
    "exam_digest",
    "exam_record",
    "read_exam",
    "touched_items",
    "write_items",
    "write_standin_exam",
]
