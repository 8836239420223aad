"""A row as its model's chat template writes it: what the template is given, and the text that it makes.

How a template wants its turns (a string, or a list of typed parts), which token ends an answer and what stands for
a picture are found by trying the template, never from its name. Templates are other people's code: they run in
the sandbox of transformers and nowhere else. This module knows nothing of loss masks and loads no weights.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from luthier.errors import ChatError, RequestError, SourceError
from luthier.schema import Message, Row

MEDIA = ("image", "audio", "video")
_PROBE, _ANSWER = "Question9", "Answer9"
_BROKEN = (TemplateError, TypeError, ValueError, KeyError, IndexError, AttributeError)
"""What a template raises on a chat that it was not written for."""


@dataclass(frozen=True, slots=True)
class Written:
    """A rendered chat, and the places (start, end in characters) of what the template marks as generated."""

    text: str
    generated: tuple[tuple[int, int], ...] = ()
    marked: bool = False
    """Whether the template marks what is generated. A tokenizer's template for tools may differ in that."""


@dataclass(frozen=True)
class ChatTemplate:
    """A tokenizer's chat template, with the facts found by trying it. Made by `ChatTemplate.of`."""

    tokenizer: Any
    name: str
    takes_strings: bool
    takes_parts: bool
    stop: int | None
    """The token that ends an assistant's turn; None where the template writes none."""
    begins: int | None
    """The token that every text begins with (BOS), as the tokenizer adds it or the template writes it."""
    ends: int | None
    """The token that ends a text (EOS), or the one that ends a turn where the tokenizer has none."""
    placeholders: dict[str, str] = field(default_factory=dict)
    """What the template writes for one image, audio or video; no key where it writes nothing."""

    @classmethod
    def of(cls, tokenizer: Any) -> ChatTemplate:
        """Try the template of a tokenizer. Raises RequestError where it cannot be used.

        Where there is none, texts can be read and written but no chats: see `chats`.
        """
        name = str(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)
        if not tokenizer.is_fast:
            raise RequestError(
                f"{name}: a slow tokenizer does not say which characters a token stands for",
                "save the fast one (tokenizer.json) beside it",
            )
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        added = bos is not None and tokenizer("a")["input_ids"][:1] == [bos]
        if not getattr(tokenizer, "chat_template", None):
            return cls(tokenizer, name, False, False, stop=None, begins=bos if added else None, ends=eos)
        spelled = _try(tokenizer, [{"role": "user", "content": _PROBE}])
        listed = _try(tokenizer, [{"role": "user", "content": [{"type": "text", "text": _PROBE}]}])
        strings = isinstance(spelled, str) and _PROBE in spelled
        # A template that prints a list as Python would has the text in it too, beside the word `type`.
        parts = isinstance(listed, str) and _PROBE in listed and f"'{_PROBE}'" not in listed
        if not strings and not parts:
            reason = spelled if isinstance(spelled, Exception) else "the question is not in what it writes"
            raise RequestError(
                f"{name}: the chat template cannot write one question: {first_line(reason)}",
                "set tokenizer.chat_template to one that fits the base",
            )
        written = str(spelled if strings else listed).startswith(tokenizer.bos_token or _PROBE)
        stop = _find_stop(tokenizer, strings)
        return cls(
            tokenizer,
            name,
            takes_strings=strings,
            takes_parts=parts,
            stop=stop,
            begins=bos if added or written else None,
            ends=stop if eos is None else eos,
            placeholders=_find_placeholders(tokenizer) if parts else {},
        )

    @property
    def chats(self) -> bool:
        """Whether there is a template at all."""
        return self.takes_strings or self.takes_parts

    def require_chats(self) -> None:
        """Raise RequestError where there is no template."""
        if not self.chats:
            raise RequestError(
                f"{self.name}: the tokenizer has no chat template",
                "take the base's -instruct or -chat version; without one only texts (format: text) can be trained on",
            )

    def turn(self, message: Message) -> dict[str, Any]:
        """One message as the template wants it. No key is ever null: some templates test only that a key is there.

        Media become `{"type": "image"}` and so on; tool calls, names and the like pass through, with the
        arguments of calls as objects, for templates write them as JSON themselves.
        """
        self.require_chats()
        found = _more_of(message.more)
        for call in found.get("tool_calls") or ():
            _open_arguments(call)
        media = any(part.type != "text" for part in message.content)
        several = len(message.content) > 1 and self.takes_parts
        if self.takes_strings and not media and not several:
            content: Any = "\n".join(part.text or "" for part in message.content)
        elif self.takes_parts:
            content = [
                {"type": "text", "text": part.text or ""} if part.type == "text" else {"type": part.type}
                for part in message.content
            ]
        else:
            raise ChatError(
                "media_placeholders",
                f"the template of {self.name} takes text alone",
                "choose a base that sees and hears, or leave the rows with media out",
            )
        return {**found, "role": message.role, "content": content}

    def write(self, turns: Sequence[dict[str, Any]], tools: Any = None, prompt: bool = False) -> Written:
        """Render turns made by `turn`. `prompt` adds the beginning of an assistant's turn, as a question has it.

        Raises ChatError("template_refuses") with the template's own words, RequestError where there is no template.
        """
        self.require_chats()
        try:
            marks = not prompt and "endgeneration" in self.tokenizer.get_chat_template(None, tools)
            texts, places = _render(self.tokenizer, turns, tools, marks, prompt)
        except _BROKEN as error:
            raise ChatError(
                "template_refuses",
                f"the template of {self.name}: {first_line(error)}",
                "drop or mend such rows in data.steps, or choose another base",
            ) from error
        return Written(texts[0], tuple(places[0]) if marks else (), marks)


def tools_of(row: Row) -> list[Any] | None:
    """The tools that a row offers its model (`row.more`), as a list of JSON schemas; None for none."""
    found = json.loads(row.more).get("tools") if '"tools"' in row.more else None
    if isinstance(found, str) and found.strip():
        try:
            found = json.loads(found)
        except ValueError as error:
            raise ChatError("tools_lost", f"tools is not JSON: {error}", "mend the column tools") from error
    return list(found) if isinstance(found, list) and found else None


def load_tokenizer(base: str, revision: str = "") -> Any:
    """The tokenizer of `toy:NAME`, a local folder or a hub model, without its weights and without remote code.

    Raises RequestError for an unknown toy, SourceError for a base that cannot be reached or read.
    """
    if base.startswith("toy:"):
        from luthier.models.toys import toy_tokenizer

        tokenizer = toy_tokenizer(base)
        tokenizer.name_or_path = base
        return tokenizer
    from transformers import AutoTokenizer

    local = Path(base).is_dir()
    trouble = "" if local else _unreachable(base, revision)
    where = {"revision": None if local else revision or None, "local_files_only": bool(trouble)}
    try:
        tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False, **where)
        if not getattr(tokenizer, "chat_template", None):
            tokenizer.chat_template = _processor_template(base, where)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise SourceError(
            f"model.base: the tokenizer of {base} cannot be loaded: {trouble or first_line(error)}",
            "check the name, model.revision and the network, or give a local folder: --set model.base=FOLDER",
        ) from error
    return tokenizer


def _unreachable(base: str, revision: str) -> str:
    """Why the hub does not give this model, or ""; asked once, where loading would try for half a minute."""
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(base, revision=revision or None, timeout=8)
    except Exception as error:  # the client raises a dozen kinds; with any of them only a cached copy can be read
        return first_line(error)
    return ""


def first_line(error: object) -> str:
    """What an error says, on one line of at most 200 characters."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]


def _processor_template(base: str, where: dict[str, Any]) -> str | None:
    """Bases that see and hear may keep their template with the processor, which needs more than a tokenizer."""
    from transformers.utils import cached_file

    file = cached_file(base, "chat_template.json", _raise_exceptions_for_missing_entries=False, **where)
    return str(json.loads(Path(file).read_text(encoding="utf-8"))["chat_template"]) if file else None


def _more_of(more: str) -> dict[str, Any]:
    return {key: value for key, value in json.loads(more).items() if value is not None} if more else {}


def _open_arguments(call: Any) -> None:
    """Arguments arrive as JSON inside a string; a template would quote them a second time."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if isinstance(function, dict) and isinstance(function.get("arguments"), str):
        try:
            found = json.loads(function["arguments"])
        except ValueError:
            return  # free text, as some models are taught: it stays as it is
        if isinstance(found, dict):
            function["arguments"] = found


def _render(
    tokenizer: Any, turns: Sequence[dict[str, Any]], tools: Any, marks: bool, prompt: bool
) -> tuple[list[str], list[Any]]:
    found: tuple[list[str], list[Any]] = render_jinja_template(
        conversations=[list(turns)],
        tools=tools,
        chat_template=tokenizer.get_chat_template(None, tools),
        return_assistant_tokens_mask=marks,
        add_generation_prompt=prompt,
        **tokenizer.special_tokens_map,
    )
    return found


def _try(tokenizer: Any, turns: list[dict[str, Any]]) -> str | Exception:
    try:
        return _render(tokenizer, turns, None, False, False)[0][0]
    except _BROKEN as error:
        return error


def _find_stop(tokenizer: Any, strings: bool) -> int | None:
    """The first added token after an answer."""

    def content(text: str) -> Any:
        return text if strings else [{"type": "text", "text": text}]

    text = _try(
        tokenizer, [{"role": "user", "content": content(_PROBE)}, {"role": "assistant", "content": content(_ANSWER)}]
    )
    if isinstance(text, Exception) or _ANSWER not in text:
        return None
    known = {*tokenizer.added_tokens_decoder, tokenizer.eos_token_id}
    tail = tokenizer(text[text.rindex(_ANSWER) + len(_ANSWER) :], add_special_tokens=False)["input_ids"]
    return next((token for token in tail if token in known), None)


def _find_placeholders(tokenizer: Any) -> dict[str, str]:
    """What a second part of each media type adds; the first one may change the blanks around it too."""
    words = {"type": "text", "text": _PROBE}
    found: dict[str, str] = {}
    for kind in MEDIA:
        none, one, two = (
            _try(tokenizer, [{"role": "user", "content": [*[{"type": kind}] * count, words]}]) for count in range(3)
        )
        mark = _inserted(one, two) or _inserted(none, one)
        if mark:
            found[kind] = mark
    return found


def _inserted(short: str | Exception, long: str | Exception) -> str:
    """The one piece that `long` has and `short` has not; "" where they differ otherwise."""
    if isinstance(short, Exception) or isinstance(long, Exception) or len(long) <= len(short):
        return ""
    at = next((i for i, (one, other) in enumerate(zip(short, long, strict=False)) if one != other), len(short))
    piece = long[at : at + len(long) - len(short)]
    return piece.strip() if long == short[:at] + piece + short[at:] else ""
