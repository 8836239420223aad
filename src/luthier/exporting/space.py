"""A Space: a folder that runs as it is, with `python app.py` and on the hub's hosts, without luthier.

Its code is the files in templates/, copied as they are; what differs from Space to Space is in space.json. Several
stages or runs of one base share one Space, and are compared in it side by side. This module starts nothing.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luthier.console import say
from luthier.errors import RequestError
from luthier.exporting.adapter import about, tell
from luthier.exporting.kinds import ExportRequest, Subject, base_name, is_place, named_subject
from luthier.exporting.sight import eyes_in_space, refuse_eyes
from luthier.exporting.spacefiles import front_matter, requirements
from luthier.exporting.spacemodels import chat_settings, ggufs, judges, name_of, sources
from luthier.files import atomic_folder, read_json, write_json, write_text
from luthier.models import adapters, package

TEMPLATES = Path(__file__).with_name("templates")
MOST_BASE_BYTES = 200 * 2**20
"""Of a base that is put into the Space, where no hub has it."""
_BASE_FILES = ("*.json", "*.safetensors", "*.jinja", "tokenizer.model")
_APPS = {
    "chat": {"app.py": "chat_app.py", "engine.py": "chat_torch.py", "picture.py": "picture.py"},
    "gguf": {"app.py": "chat_app.py", "engine.py": "chat_gguf.py", "picture.py": "picture.py"},
    "verdict": {"app.py": "verdict_app.py", "engine.py": "verdict_torch.py"},
}
_SHARED = {"files.py": "files.py", "sound.py": "sound.py"}
SECONDS = 60.0
_SAME = ("base", "revision", "builtin_adapter", "dtype", "added_tokens", "modules_to_save", "learned_tokens")
"""Keys of a recipe's model that must be equal for adapters to share a Space."""


def export_space(request: ExportRequest, subject: Subject, out: Path) -> dict[str, Any]:
    """Make the Space's folder. Raises RequestError for models that cannot share one, or whose base cannot be had."""
    subjects = [subject, *map(named_subject, request.beside)]
    _refuse_strangers(subjects)
    kind = "verdict" if not subject.of_text else "gguf" if request.type else "chat"
    if kind == "verdict" and request.type:
        raise RequestError("--type: llama.cpp has no read-out of verdicts", "leave --type out")
    if kind == "verdict":
        _refuse_what_is_seen(subjects)
    notes: list[str] = []
    if kind == "gguf":
        refuse_eyes(subject, "space --type")
    eyes = eyes_in_space(subject, notes) if kind == "chat" else ""
    with atomic_folder(out, about(subject, "space")) as folder:
        for name, template in {**_APPS[kind], **_SHARED}.items():
            shutil.copyfile(TEMPLATES / template, folder / name)
        base = _base(request, subject, folder, kind, notes)
        settings: dict[str, Any] = {
            "title": request.title or _title(subjects),
            "base": base,
            "revision": "" if base == "base" else subject.recipe.model.revision,
            "builtin_adapter": subject.recipe.model.builtin_adapter,
            "dtype": subject.recipe.model.dtype,
            "zero_gpu": request.zero_gpu,
            "seconds": SECONDS,
            "license": subject.recipe.publish.license,
        }
        if kind == "verdict":
            settings["models"] = judges(request, subjects, folder, notes)
        else:
            settings |= {**chat_settings(subject), "sees": bool(eyes), "question": _first_question(subject)}
            settings["models"] = [said for _, said in sources(request, subjects, folder, notes)]
        if kind == "gguf":
            settings |= ggufs(request, subjects, folder, settings["models"], notes)
        settings["heading"] = _heading(settings, kind)
        write_json(folder / "space.json", settings)
        write_text(folder / "requirements.txt", requirements(kind, request.zero_gpu, eyes))
        write_text(folder / "README.md", front_matter(settings, kind) + _readme(settings, notes))
    tell(out, notes)
    say(f"try it: cd {out}, pip install -r requirements.txt, python app.py; or upload it to a Space of the hub")
    return {"export": str(out), "to": "space", "kind": kind, "notes": notes, "models": settings["models"]}


def _first_question(subject: Subject) -> str:
    """What stands in the box when the page is opened: the question that a run was tuned on, where it was one."""
    task = subject.recipe.task
    return task.describe.prompt if task.kind == "describe" else ""


def _refuse_what_is_seen(subjects: Sequence[Subject]) -> None:
    """The Space's own read-out takes sound alone."""
    for subject in subjects:
        judged = str(read_json(subject.stage.adapter / package.NAME).get("judges", "audio"))
        if judged != "audio":
            raise RequestError(
                f"{subject.label} judges {judged}s, and a Space of verdicts records and judges sound",
                "judge them with luthier predict, or export --to adapter",
            )


def _refuse_strangers(subjects: Sequence[Subject]) -> None:
    first, names = subjects[0], [name_of(one) for one in subjects]
    for name in names:
        if names.count(name) > 1:
            raise RequestError(
                f"--with: {name} is given twice", "give each model once, and keep runs in folders of different names"
            )
    if len(subjects) > 1 and first.recipe.model.modules_to_save:
        raise RequestError(
            "--with: model.modules_to_save is set, and PEFT ties a whole head to the embedding for one adapter alone",
            "make two Spaces",
        )
    for other in subjects[1:]:
        if other.of_text != first.of_text:
            raise RequestError("--with: one model writes and the other judges", "make two Spaces")
        for key in _SAME:
            here, there = getattr(first.recipe.model, key), getattr(other.recipe.model, key)
            if here != there:
                raise RequestError(
                    f"--with {name_of(other)}: model.{key} is {there!r}, and {here!r} in {name_of(first)}; one "
                    "Space has one base",
                    "make two Spaces",
                )


def _title(subjects: Sequence[Subject]) -> str:
    names = dict.fromkeys(one.recipe.name or one.run.path.resolve().name for one in subjects)
    return " and ".join(names)[:60]


def _base(request: ExportRequest, subject: Subject, folder: Path, kind: str, notes: list[str]) -> str:
    """The hub id of the base, or "base", where its weights are put into the Space."""
    name, local = subject.recipe.model.base, Path(subject.recipe.model.base)
    packed = subject.of_text and adapters.read(subject.folder / adapters.FACTS).get("quantization")
    if packed and not subject.recipe.model.quantization and not request.base_name:
        raise RequestError(
            f"{name} is published quantised, and a Space loads a base whole",
            "give --base-name ID, the version that is not quantised",
        )
    if packed:
        notes.append(
            f"it was trained on {name} held in {packed}; the Space loads the base whole, so answers may differ a little"
        )
    if kind == "gguf":
        return base_name(subject, request.base_name)[0]
    if request.base_name or not (name.startswith("toy:") or is_place(name)):
        return request.base_name or name
    if is_place(name) and not local.is_dir():
        raise RequestError(f"model.base: {local} is no longer there", "give --base-name ID, the base's name on the hub")
    place = folder / "base"
    if name.startswith("toy:"):
        from luthier.models.toys import write_toy

        write_toy(name, place)
    else:
        files = [item for pattern in _BASE_FILES for item in sorted(local.glob(pattern))]
        size = sum(item.stat().st_size for item in files)
        if size > MOST_BASE_BYTES:
            raise RequestError(
                f"model.base: {local} has {size / 2**20:,.0f} MiB, and a Space that brings its base may have "
                f"{MOST_BASE_BYTES // 2**20} MiB",
                "give --base-name ID, the base's name on the hub, or --type q4_k_m",
            )
        place.mkdir()
        for item in files:
            shutil.copyfile(item, place / item.name)
        builtin = subject.recipe.model.builtin_adapter
        if builtin:
            shutil.copytree(local / builtin, place / builtin)
    notes.append(f"no hub has {name if name.startswith('toy:') else 'this base'}: its weights lie in the Space, base/")
    return "base"


def _heading(settings: dict[str, Any], kind: str) -> str:
    title = _plain(settings["title"])
    if kind == "verdict":
        return f"# {title}\n\nA model's opinion of a spoken answer, with its probability. It can be wrong."
    return f"# {title}\n\nAnswers are written by a model. They can be wrong."


def _plain(words: str) -> str:
    """Words of others as one line of Markdown that makes no tag, link or table."""
    return re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", " ".join(words.split()))


def _readme(settings: dict[str, Any], notes: Sequence[str]) -> str:
    names = [f"- {_plain(model['name'])} ({_plain(model['source'])})" for model in settings["models"]]
    said = [f"- {_plain(note)}" for note in notes]
    parts = [
        settings["heading"],
        "## Models\n\n" + "\n".join(names),
        *(["## To know\n\n" + "\n".join(said)] if said else []),
        "## On a machine of your own\n\n```\npip install -r requirements.txt\npython app.py\n```",
        "Limits: recordings of at most 10 MB and 60 seconds, one request at a time, 16 waiting. What visitors upload "
        "is deleted after an hour. Nothing else is kept.",
    ]
    return "\n\n".join(parts) + "\n"
