"""The page of `luthier exam`: one HTML file that opens offline, with the table of all who sat each exam.

Read from the folder that the examination left; nothing is computed here beyond what a chart counts, and no model is
known.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from luthier import files
from luthier.errors import SourceError
from luthier.outcome import pages, pngs
from luthier.outcome.exams import part as exampart
from luthier.outcome.pagerecords import Records


def write_exam_page(folder: Path) -> Path:
    """Write `folder/report.html` and its charts as PNGs beside it, durably, and return its path.

    Raises SourceError when `folder` holds no examination and DiskError when a file cannot be written.
    """
    if not (folder / "exams").is_dir():
        raise SourceError(f"{folder} holds no examination", "name the folder that `luthier exam` printed")
    records = Records(folder)
    about = records.document("exam-run.json")
    exams = exampart.parts(records, "")
    context = {
        "folder": folder.resolve().name,
        "run": about,
        "models": _models(about.get("models")),
        "exams": exams,
        "headline": " ".join(f"Exam {exam['name']}: {exam['sentences'][0]}" for exam in exams) or "No exam was sat.",
        "notes": records.notes,
    }
    page = folder / "report.html"
    files.write_text(page, pages.render("exampage.html.j2", context))
    pngs.write_pngs(page, exampart.named_charts(exams))
    return page


def _models(models: Any) -> dict[str, str]:
    """Base -> how it was loaded and who sat on it, of the list in exam-run.json."""
    found = {}
    for model in [one for one in models or [] if isinstance(one, dict)]:
        how = [str(model[key]) for key in ("revision", "dtype", "quantization") if model.get(key)]
        found[str(model.get("name"))] = ", ".join([*how, *map(str, model.get("candidates") or [])])
    return found
