"""One export from beginning to end: what is refused, the folder, the receipt, the card. Every kind ends here.

Each folder is filled under a temporary name and sealed by a manifest of digests: it is whole, or it is not there.
"""

from __future__ import annotations

import gc
import shutil
import tempfile
from pathlib import Path
from typing import Any

from luthier.console import say
from luthier.exporting import receipt as receipts
from luthier.exporting import verdict_receipt as verdicts
from luthier.exporting.adapter import about, fill_adapter, tell, write_card
from luthier.exporting.gguf_file import import_gguf
from luthier.exporting.kinds import ExportRequest, Subject, open_subject
from luthier.exporting.merged import Merged, merge, merged_dtype, refuse_merge, scratch_beside
from luthier.exporting.receipt import Questions, Readings, compare, not_run
from luthier.files import atomic_folder, remove_leftovers
from luthier.models.chat import load_tokenizer
from luthier.models.text_base import tokenizer_digest
from luthier.runtime.devices import Devices

_SKIPPED = "left out: --no-receipt"
_ABANDONED = 24 * 3600.0
"""Seconds after which what a killed export left under a temporary name is removed by the next one to that place."""
Forms = dict[str, dict[str, Any]]


def export(request: ExportRequest) -> dict[str, Any]:
    """Make the folder that is asked for. Returns its path, its kind, and what the receipt found.

    Raises RequestError for what cannot be, before any weight is loaded; LuthierError where a merge fails its limit.
    """
    request.check()
    subject = open_subject(request.run, request.stage, request.checkpoint)
    out = request.place(subject)
    remove_leftovers(out.parent, f"{out.name}-", seconds=_ABANDONED)
    if request.to == "space":
        from luthier.exporting.space import export_space

        return export_space(request, subject, out)
    if request.to == "adapter":
        return _adapter(request, subject, out)
    return _whole(request, subject, out)


def _adapter(request: ExportRequest, subject: Subject, out: Path) -> dict[str, Any]:
    with atomic_folder(out, about(subject, "adapter")) as folder:
        notes = fill_adapter(subject, folder, request.base_name)
        found = adapter_receipt(subject, folder) if request.receipt else None
        write_card(subject, folder, "adapter", receipt=found)
    return _told(request, out, notes, found)


def adapter_receipt(subject: Subject, folder: Path) -> dict[str, Any]:
    """The trainer's model beside an exported adapter's folder, as the card shows it."""
    if not subject.of_text:
        asked = verdicts.Recordings.of(subject)
        trained = verdicts.trainer_verdicts(subject, asked)
        return verdicts.verdict_receipt(subject, asked, trained, _verdict_forms(subject, folder, asked, trained))
    prompts, ours = receipts.trainer_readings(subject)
    forms = {"trainer": compare(ours, ours), "adapter": _reloaded(subject, folder, prompts, ours)}
    return receipts.chat_receipt(subject, load_tokenizer(str(folder)), prompts, forms)


def _verdict_forms(subject: Subject, folder: Path, asked: verdicts.Recordings, trained: verdicts.Trained) -> Forms:
    again = verdicts.adapter_verdicts(subject, folder, asked)
    return {
        "trainer": verdicts.compare_verdicts(trained.p_pass, trained),
        "adapter": verdicts.compare_verdicts(again, trained),
    }


def _reloaded(subject: Subject, folder: Path, asked: Questions, ours: Readings) -> dict[str, Any]:
    devices = Devices(subject.recipe.model.dtype)
    model, tokenizer = receipts.reloaded(subject, folder, devices, subject.recipe.model)
    found = compare(receipts.read(model, tokenizer, asked, devices, ours), ours)
    del model
    gc.collect()
    return {**found, "tokenizer_sha256": tokenizer_digest(tokenizer)}


def _whole(request: ExportRequest, subject: Subject, out: Path) -> dict[str, Any]:
    """merged, gguf and ollama: all of them begin with the adapter and end with the receipt of all forms."""
    alone = request.what == "adapter"
    if alone:
        from luthier.exporting.gguf_export import refuse_adapter_gguf

        refuse_adapter_gguf(request, subject)
    else:
        refuse_merge(subject, request.to)
    if request.to != "merged":
        import_gguf()  # better missed now than after the merge
    notes: list[str] = []
    with tempfile.TemporaryDirectory(prefix="luthier-export-") as scratch:
        adapter = Path(scratch) / "adapter"
        adapter.mkdir()
        notes += fill_adapter(subject, adapter, request.base_name)
        with atomic_folder(out, about(subject, request.to)) as folder:
            fill = _fill_adapter_gguf if alone else _fill_whole if subject.of_text else _fill_verdict
            found = fill(request, subject, adapter, folder, notes)
            write_card(subject, folder, _relation(request), receipt=found)
    return _told(request, out, notes, found)


def _fill_adapter_gguf(
    request: ExportRequest, subject: Subject, adapter: Path, folder: Path, notes: list[str]
) -> dict[str, Any] | None:
    """Write the adapter alone as a GGUF. Returns the receipt, where one is wanted."""
    from luthier.exporting.gguf_export import fill_adapter_gguf

    if not request.receipt:
        notes += fill_adapter_gguf(request, subject, adapter, folder, None, None)[0]
        return None
    asked, ours = receipts.trainer_readings(subject)
    more, form = fill_adapter_gguf(request, subject, adapter, folder, asked, ours)
    notes += more
    forms = {"trainer": compare(ours, ours), "adapter": _reloaded(subject, adapter, asked, ours), "gguf": form}
    return receipts.chat_receipt(subject, load_tokenizer(str(adapter)), asked, forms)


def _fill_verdict(
    request: ExportRequest, subject: Subject, adapter: Path, folder: Path, notes: list[str]
) -> dict[str, Any] | None:
    """Write a merged model that judges. Returns the receipt, where one is wanted."""
    from luthier.exporting.verdict_merged import merge_verdict

    asked = verdicts.Recordings.of(subject)
    after, merged = merge_verdict(request, subject, adapter, folder, asked)
    notes.append("its verdict is read at one token's position: reading.json and verdict.json say how")
    if not request.receipt:
        return None
    trained = verdicts.trainer_verdicts(subject, asked)
    forms = _verdict_forms(subject, adapter, asked, trained)
    forms["merged"] = {**verdicts.compare_verdicts(after, trained), "merge": merged}
    return verdicts.verdict_receipt(subject, asked, trained, forms)


def _fill_whole(
    request: ExportRequest, subject: Subject, adapter: Path, folder: Path, notes: list[str]
) -> dict[str, Any] | None:
    """Write a merged model, or what is made of one, into `folder`. Returns the receipt, where one is wanted."""
    asked, ours = receipts.trainer_readings(subject)
    forms: Forms = {"trainer": compare(ours, ours)}
    forms["adapter"] = _reloaded(subject, adapter, asked, ours) if request.receipt else not_run(_SKIPPED)
    dtype = merged_dtype(subject, request.dtype)
    kept = request.to == "merged"
    place = folder if kept else scratch_beside(folder)
    try:
        made = merge(subject, adapter, place, asked, ours, dtype, request.allow_gap)
        forms["merged"] = _merged_form(made, ours)
        notes += made.words.notes() if kept else []  # of a GGUF its own check tells
        tokenizer = load_tokenizer(str(place))
        if not kept:
            from luthier.exporting.gguf_export import fill_gguf

            more, forms["gguf"] = fill_gguf(request, subject, place, folder, asked, ours)
            notes += more
    finally:
        if not kept:
            shutil.rmtree(place, ignore_errors=True)
    return receipts.chat_receipt(subject, tokenizer, asked, forms) if request.receipt else None


def _merged_form(made: Merged, ours: Readings) -> dict[str, Any]:
    return {**compare(made.said, ours), "merge": made.as_json(), "tokenizer": made.words.as_json()}


def _relation(request: ExportRequest) -> str:
    """How the model card says that this model relates to its base."""
    if request.to == "merged":
        return "finetune"
    return "adapter" if request.what == "adapter" else "quantized"


def _told(request: ExportRequest, out: Path, notes: list[str], found: dict[str, Any] | None) -> dict[str, Any]:
    tell(out, notes)
    for name, form in (found or {}).get("forms", {}).items():
        say(f"receipt: {name:8} {_line(form)}")
    return {"export": str(out), "to": request.to, "notes": notes, "receipt": found}


def _line(form: dict[str, Any]) -> str:
    if not form["ran"]:
        return f"not run: {form['reason']}"
    if "max_p_gap" in form:
        return f"{form['recordings']} recordings, largest difference of p_pass {form['max_p_gap']:.3g}"
    gap = f", largest logit gap {form['max_logit_gap']:.3g}" if "max_logit_gap" in form else ""
    return f"{form['prompts_that_differ']} of {form['prompts']} prompts differ, agreement {form['agreement']:.2%}{gap}"
