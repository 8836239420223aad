"""Who sits an exam: a base alone, or with an adapter on it; where adapters are found, and which must be refused.

Everything that can be known of an adapter is checked before the first question is asked. This module knows nothing of
exams, and puts no adapter on.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from luthier.errors import CheckpointError, LuthierError, RequestError
from luthier.files import MANIFEST, sha256_file, verify_folder
from luthier.models import adapters
from luthier.models.chat import load_tokenizer
from luthier.models.text_base import TextBase, tokenizer_digest

BASE = "base"
"""The name of the base alone."""
_STEP = re.compile(r"step-(\d+)$")
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways of beginning LoRA that take a part out of the base's own weights."""
_OTHER_KINDS = {
    "alora_invocation_tokens": "works behind certain tokens alone",
    "arrow_config": "chooses among several adapters",
    "kasa_config": "truncates the base's own weights",
}
"""Kinds of LoRA that are no sum with the base's layers."""


@dataclass(frozen=True)
class Candidate:
    """`adapter` is its folder, None for the base alone or a model that is in memory already; `step` of its training."""

    name: str
    adapter: Path | None = None
    step: int | None = None


@dataclass(frozen=True)
class Admitted:
    """A candidate that was looked at, and what must be known to put it on its base."""

    candidate: Candidate
    tokens: dict[str, int] = field(default_factory=dict)
    """Ids of the tokens that it added to the base's tokenizer."""
    tokenizer: Any = None
    """One that it brought with it; None: it reads with that of the base."""
    notes: tuple[str, ...] = ()

    @property
    def reads(self) -> str:
        """Equal for candidates that read a text as the same ids."""
        return repr(sorted(self.tokens.items())) + (tokenizer_digest(self.tokenizer) if self.tokenizer else "")


def find_candidates(folders: Sequence[Path]) -> list[Candidate]:
    """The adapters in some folders, each an adapter's own or one of checkpoints (step-*), by step within a folder.

    Names are those of the folders, with what is above them where two would be called the same. Raises RequestError for
    a folder without an adapter, and for one that is given twice.
    """
    found: list[Path] = []
    for folder in folders:
        inner = [folder] if (folder / adapters.CONFIG).is_file() else _checkpoints(folder)
        if not inner:
            raise RequestError(
                f"--adapter {folder}: neither an adapter ({adapters.CONFIG}) nor checkpoints (step-*) are in it",
                "give the folder of an adapter, or the checkpoints folder of a stage",
            )
        found += inner
    whole = [path.resolve() for path in found]
    twice = [str(path) for path, count in Counter(whole).items() if count > 1]
    if twice:
        raise RequestError(f"--adapter {twice[0]}: is given twice", "give each adapter once")
    names = _names(whole)
    alike = [f"{path} ({name})" for path, name in zip(whole, names, strict=True) if names.count(name) > 1]
    if alike:
        raise RequestError(f"--adapter: {' and '.join(alike)} would be called the same", "rename one of the folders")
    return [Candidate(*one) for one in zip(names, found, (_step_of(path.name) for path in whole), strict=True)]


def _checkpoints(folder: Path) -> list[Path]:
    inner = [path.parent for path in folder.glob(f"step-*/{adapters.CONFIG}")]
    return sorted(inner, key=lambda path: (_step_of(path.name) or 0, path.name))


def _step_of(name: str) -> int | None:
    found = _STEP.match(name)
    return int(found[1]) if found else None


def _names(paths: Sequence[Path]) -> list[str]:
    """Names of folders, told apart by the parts of their paths that they do not share."""
    counts = Counter([BASE, *(path.name for path in paths)])
    if max(counts.values()) == 1:
        return [path.name for path in paths]
    above = Path(os.path.commonpath(path.parent for path in paths))
    return ["-".join(path.relative_to(above if path.parent != above else above.parent).parts) for path in paths]


def admit(candidates: Sequence[Candidate], base: TextBase) -> list[Admitted]:
    """Look at every candidate's folder beside its base. Raises RequestError with all problems, one line each."""
    found: list[Admitted] = []
    problems: list[str] = []
    tokenizers: dict[str, Any] = {}
    for candidate in candidates:
        try:
            found.append(look_at(candidate, base, tokenizers))
        except LuthierError as error:
            problems.append(f"{candidate.name}: {error.message} ({error.mend})")
    if problems:
        count = "1 adapter" if len(problems) == 1 else f"{len(problems)} adapters"
        raise RequestError(
            "\n".join([f"{base.name}: {count} cannot be examined on it", *(f"  - {p}" for p in problems)])
        )
    return found


def look_at(candidate: Candidate, base: TextBase, tokenizers: dict[str, Any]) -> Admitted:
    """One candidate's folder beside its base; `tokenizers` keeps those that were read. Raises CheckpointError for a
    broken folder, one of another base, or a kind of adapter that cannot take turns."""
    folder = candidate.adapter
    if folder is None:
        return Admitted(candidate)
    wrong = verify_folder(folder) if (folder / MANIFEST).is_file() else None
    if wrong is not None:
        raise CheckpointError(f"{folder}: {wrong}", "take the folder from its origin again")
    settings = adapters.read(folder / adapters.CONFIG)
    if not (folder / adapters.WEIGHTS).is_file():
        raise CheckpointError(f"{folder}: {adapters.WEIGHTS} is missing", "save it as safetensors, not as a pickle")
    _refuse_other_kinds(settings, folder)
    if not (folder / adapters.FACTS).is_file():
        tokenizer = _own_tokenizer(folder, base, tokenizers)
        return Admitted(candidate, tokenizer=tokenizer, notes=tuple(_notes(settings, folder, base)))
    facts = adapters.read(folder / adapters.FACTS)
    tokens = {str(name): int(index) for name, index in facts.get("added_tokens", {}).items()}
    adapters.check_base(facts, replace(base.facts(), added_tokens=tokens), folder)
    return Admitted(candidate, tokens)


def _own_tokenizer(folder: Path, base: TextBase, known: dict[str, Any]) -> Any:
    """The tokenizer in an adapter's folder where it differs from the base's. `known`: those that were read, by file."""
    if not (folder / "tokenizer.json").is_file():
        return None
    digest = "".join(sha256_file(folder / name) for name in _TOKENIZER if (folder / name).is_file())
    if digest not in known:
        tokenizer = load_tokenizer(str(folder))
        tokenizer.chat_template = tokenizer.chat_template or base.tokenizer.chat_template
        known[digest] = None if tokenizer_digest(tokenizer) == base.tokenizer_digest else tokenizer
    rows = base.model.get_input_embeddings().weight.shape[0]
    if known[digest] is not None and max(known[digest].get_vocab().values()) >= rows:
        raise RequestError(
            f"{folder}: its tokenizer has ids that the {rows:,} rows of {base.name} have no place for",
            "merge it into its base, and give that as --model",
        )
    return known[digest]


def _refuse_other_kinds(settings: dict[str, Any], folder: Path) -> None:
    """Only what can be taken off again without a trace, and is in the way of every token."""
    began = str(settings.get("init_lora_weights")).lower()
    for wrong, what in (
        (settings.get("peft_type") != "LORA", f"peft_type is {settings.get('peft_type')}, not LORA"),
        (settings.get("bias", "none") != "none", "bias: biases of the base itself were trained"),
        (bool(settings.get("layer_replication")), "layer_replication: the base's layers are used several times"),
        (began.startswith(_CHANGES_BASE), f"init_lora_weights: {began} takes a part out of the base's weights"),
        *((bool(settings.get(key)), f"{key}: {what}") for key, what in _OTHER_KINDS.items()),
    ):
        if wrong:
            raise CheckpointError(
                f"{folder / adapters.CONFIG}: {what}", "merge it into its base, and give that as --model"
            )


def _notes(settings: dict[str, Any], folder: Path, base: TextBase) -> list[str]:
    """What is to be said of an adapter that does not say which weights it was trained on."""
    notes = [f"{folder}: has no {adapters.FACTS}, so nothing proves that it was trained on {base.name}"]
    named = settings.get("base_model_name_or_path")
    if named and named != base.name:
        notes.append(f"{folder}: names {named} as its base, and is examined on {base.name}")
    return notes
