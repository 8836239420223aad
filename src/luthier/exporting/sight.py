"""What an export must know of a base that sees or hears: its architecture, and the settings of its processors.

A merged model is a base again only with the processors that its pictures went through. Knows no weights.
"""

from __future__ import annotations

from pathlib import Path

from luthier.errors import RequestError
from luthier.exporting.kinds import Subject
from luthier.files import read_json, write_json
from luthier.models.load import read_config
from luthier.models.senses.base import has_senses
from luthier.models.toys import build_toy, toy_processors
from luthier.outcome.cardseen import OURS, SEEING
from luthier.recipe_model import ModelConfig

PROCESSORS = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")


def architecture(subject: Subject) -> str:
    """The model_type of the base. Raises SourceError where it cannot be reached."""
    base = subject.recipe.model
    if base.base.startswith("toy:"):
        return str(build_toy(base.base)[0].config.model_type)
    return str(read_config(base.base, _revision(base)).model_type)


def refuse_eyes(subject: Subject, to: str) -> None:
    """Raise RequestError where a base that sees would be written for llama.cpp."""
    if subject.of_text and has_senses(architecture(subject)):
        raise RequestError(
            f"--to {to}: {subject.recipe.model.base} sees, and llama.cpp keeps the eyes in a file of their own, which "
            "is not written here: what came out would be blind",
            "export --to merged, which has its eyes, or tune a base that reads text alone",
        )


def eyes_in_space(subject: Subject, notes: list[str]) -> str:
    """The architecture of a base that sees in a Space as it saw in training; "" for one that reads text there.

    Raises RequestError where only luthier's own code would see the same, which a Space is without.
    """
    found = architecture(subject)
    if found in SEEING and found != OURS:
        return found
    if not has_senses(found):
        return ""
    if found == OURS or subject.recipe.task.kind == "describe":
        raise RequestError(
            f"--to space: transformers alone does not see as {subject.recipe.model.base} was tuned here, and a Space "
            "is without luthier",
            "luthier serve RUN shows it on a machine of your own, or tune a base such as Qwen/Qwen3-VL-4B-Instruct",
        )
    notes.append("its base sees and hears, and this Space asks it in words alone")
    return ""


def fill_processors(base: ModelConfig, out: Path) -> None:
    """Put the settings of a base's processors of media beside its merged weights, as they are published.

    Code that they name (`auto_map`) does not go along, so neither does its name.
    """
    from transformers.utils import cached_file

    if base.base.startswith("toy:"):
        for part in toy_processors(base.base):
            part.save_pretrained(str(out))
        return
    for name in PROCESSORS:
        found = cached_file(base.base, name, revision=_revision(base), _raise_exceptions_for_missing_entries=False)
        if found:
            settings = read_json(Path(found))
            settings.pop("auto_map", None)
            write_json(out / name, settings)


def _revision(base: ModelConfig) -> str | None:
    return None if Path(base.base).is_dir() else base.revision or None
