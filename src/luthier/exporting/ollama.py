"""An Ollama folder: a Modelfile beside a GGUF, and the same facts as the files that Ollama reads in a hub repository.

Ollama's templates are Go's: `gotemplate` finds one and proves it. Ollama was not run here. Writes no weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.errors import RequestError
from luthier.exporting.gotemplate import GoTemplate, go_template, prove
from luthier.files import write_json, write_text


@dataclass(frozen=True)
class OllamaSettings:
    """What the folder says besides the model. `parameters` are Ollama's, such as temperature and num_ctx."""

    system: str = ""
    license: str = ""
    template_file: Path | None = None
    """A Go template to be taken instead of the one that is found; proved all the same where it can be read."""
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class OllamaRecord:
    """What was written. `proved` chats are rendered alike by the Go template and by the model's own."""

    template: str
    stops: tuple[str, ...]
    proved: int
    notes: tuple[str, ...] = ()


def write_ollama(folder: Path, gguf: Path, model: Path, settings: OllamaSettings | None = None) -> OllamaRecord:
    """Write Modelfile, template, system and params into `folder`, which holds `gguf`; `model` is the merged folder.

    Raises RequestError for a template that cannot be said in Go, or texts that a Modelfile cannot hold; DiskError.
    """
    from luthier.models.chat import ChatTemplate, load_tokenizer

    settings = settings or OllamaSettings()
    tokenizer = load_tokenizer(str(model))
    template = ChatTemplate.of(tokenizer)
    template.require_chats()
    found, notes = _template(template, settings.template_file)
    if settings.system and not found.system:
        raise RequestError(f"{template.name}: the Go template has no place for a system message", "leave it out")
    ends = [token for token in (template.stop, tokenizer.eos_token_id) if token is not None]
    stops = tuple(dict.fromkeys(tokenizer.convert_ids_to_tokens(ends)))
    parameters = {**settings.parameters, "stop": list(stops)}
    lines = [f"FROM ./{gguf.relative_to(folder)}"]
    for name, value in parameters.items():
        values = value if isinstance(value, list) else [value]
        lines += [f"PARAMETER {name} {json.dumps(one, ensure_ascii=False)}" for one in values]
    for word, content in (("TEMPLATE", found.text), ("SYSTEM", settings.system), ("LICENSE", settings.license)):
        if '"""' in content:
            raise RequestError(f'{word.lower()}: has """ in it, which ends a text of a Modelfile', "leave it out")
        lines += [f'{word} """{content}"""'] if content else []
    write_text(folder / "Modelfile", "\n".join(lines) + "\n")
    write_text(folder / "template", found.text)
    write_json(folder / "params", parameters)
    if settings.system:
        write_text(folder / "system", settings.system)
    return OllamaRecord(found.text, stops, found.proved, notes)


def _template(template: Any, file: Path | None) -> tuple[GoTemplate, tuple[str, ...]]:
    """The Go template, found or given, and what is to be said of it."""
    if file is None:
        found = go_template(template)
        silent = "system messages are left out: the chat template has no turn of their own for them"
        return found, () if found.system else (silent,)
    if not file.is_file():
        raise RequestError(f"{file}: there is no such file", "name a Go template: --template FILE")
    text = file.read_text(encoding="utf-8")
    try:
        return GoTemplate(text, True, prove(template, text)), ()
    except RequestError as error:
        return GoTemplate(text, True, 0), (f"{file.name} was taken as it is, and not proved: {error.message}",)
