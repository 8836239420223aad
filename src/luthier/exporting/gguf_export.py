"""From a stage to GGUF and Ollama: the merged model or the adapter alone as files of llama.cpp, and what they answer.

What a file looks like is known below (`gguf_file`, `adapter_gguf`, `ollama`); here they are called, and the receipt's
prompts are put to what they wrote.
"""

from __future__ import annotations

import gc
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from luthier.engines.llamacpp import gguf_answers
from luthier.engines.llamaserver import INSTALL, has_llamacpp
from luthier.errors import RequestError
from luthier.exporting.adapter import TOKENIZER, fill_adapter
from luthier.exporting.adapter_gguf import KINDS as ADAPTER_TYPES
from luthier.exporting.adapter_gguf import adapter_gguf_problem, write_adapter_gguf
from luthier.exporting.gguf_file import write_gguf
from luthier.exporting.kinds import ExportRequest, Subject
from luthier.exporting.merged import merge, merged_dtype
from luthier.exporting.receipt import ANSWER_TOKENS, Questions, Readings, compare, not_run, trainer_readings
from luthier.exporting.sight import refuse_eyes
from luthier.files import read_json
from luthier.models import adapters
from luthier.models.text_base import load_text_base

DEFAULT = "q8_0"


def gguf_name(subject: Subject, kind: str) -> str:
    """Of the file: RUN-STAGE-KIND.gguf."""
    return f"{subject.label}-{kind}.gguf"


def fill_gguf(
    request: ExportRequest, subject: Subject, merged: Path, folder: Path, asked: Questions, ours: Readings
) -> tuple[list[str], dict[str, Any]]:
    """Write the GGUF of a merged folder (and, for ollama, its Modelfile) with the tokenizer beside it.

    Returns what is to be said of it, and its part of the receipt.
    """
    kind = request.type or DEFAULT
    file = folder / gguf_name(subject, kind)
    made = write_gguf(merged, file, kind, request.llama_cpp)
    for name in TOKENIZER:
        if (merged / name).is_file():
            shutil.copyfile(merged / name, folder / name)
    notes = list(made.notes)
    if request.to == "ollama":
        from luthier.exporting.ollama import OllamaSettings, write_ollama

        settings = OllamaSettings(license=subject.recipe.publish.license, template_file=request.template)
        notes += write_ollama(folder, file, merged, settings).notes
    about = {"type": kind, "written_by": made.written_by, "texts_read_otherwise": made.tokens.differ}
    return notes, {**_answers(file, asked, ours, stop_ids(merged)), **about}


def stop_ids(merged: Path) -> set[int]:
    """Ids that end an answer, as the merge wrote them."""
    found = read_json(merged / "generation_config.json").get("eos_token_id") or []
    return {int(token) for token in (found if isinstance(found, list) else [found])}


def _answers(
    file: Path, asked: Questions, ours: Readings, stops: set[int], adapter: Path | None = None
) -> dict[str, Any]:
    if not has_llamacpp():
        return not_run(f"no llama.cpp is installed here ({INSTALL})")
    try:
        said = gguf_answers(file, asked.prompts, ANSWER_TOKENS, adapter=adapter)
    except RequestError as error:
        return not_run(error.message)
    return compare([ids[:-1] if ids and ids[-1] in stops else ids for ids in said], ours)


def refuse_adapter_gguf(request: ExportRequest, subject: Subject) -> None:
    """Raise RequestError for an adapter that no GGUF can say, from its settings alone."""
    if not subject.of_text:
        raise RequestError("--to gguf: llama.cpp has no read-out of verdicts", "export --to adapter or --to space")
    refuse_eyes(subject, request.to)
    problem = adapter_gguf_problem(adapters.read(subject.folder / adapters.CONFIG))
    if problem:
        raise RequestError(f"--what adapter: {problem}", "ship it merged: leave out --what adapter")
    if request.type not in ("", *ADAPTER_TYPES):
        raise RequestError(
            f"--type {request.type}: an adapter GGUF holds {' or '.join(ADAPTER_TYPES)}", "choose one of them"
        )


def fill_adapter_gguf(
    request: ExportRequest,
    subject: Subject,
    adapter: Path,
    folder: Path,
    asked: Questions | None,
    ours: Readings | None,
) -> tuple[list[str], dict[str, Any]]:
    """Write the adapter's own GGUF. For the receipt its base is written as a GGUF too, and not kept."""
    kind = request.type or "f16"
    settings = replace(subject.recipe.model, quantization="")
    with tempfile.TemporaryDirectory(prefix=f"{folder.name}-base-", dir=folder.parent) as scratch:
        base = load_text_base(settings)
        file = folder / gguf_name(subject, f"lora-{kind}")
        write_adapter_gguf(adapter, base.model.config, file, kind)
        notes = [f"beside a GGUF of {settings.base}: llama-server -m BASE.gguf --lora {file.name}"]
        if asked is None or ours is None:
            return notes, {}
        if not has_llamacpp():
            return notes, not_run(f"no llama.cpp is installed here ({INSTALL})")
        whole = Path(scratch) / "base"
        base.model.save_pretrained(str(whole))
        base.tokenizer.save_pretrained(str(whole))
        stops = stop_ids(whole) | {base.tokenizer.eos_token_id}
        del base
        gc.collect()
        write_gguf(whole, Path(scratch) / "base.gguf", "f16", request.llama_cpp)
        return notes, _answers(Path(scratch) / "base.gguf", asked, ours, stops, file)


def space_gguf(request: ExportRequest, subject: Subject, place: Path, notes: list[str]) -> tuple[str, set[int]]:
    """Write the GGUF of a stage into a Space, beside its tokenizer. Returns the file's name and the stop ids."""
    asked, ours = trainer_readings(subject)
    with tempfile.TemporaryDirectory(prefix=".tmp-merged-", dir=place.parent) as scratch:
        adapter, merged = Path(scratch) / "adapter", Path(scratch) / "merged"
        adapter.mkdir()
        fill_adapter(subject, adapter, request.base_name)
        merge(subject, adapter, merged, asked, ours, merged_dtype(subject, ""), request.allow_gap)
        name = gguf_name(subject, request.type)
        notes += write_gguf(merged, place / name, request.type, request.llama_cpp).notes
        return name, stop_ids(merged)
