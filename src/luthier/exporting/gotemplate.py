"""A chat template of transformers (Jinja) as one of Ollama (Go), found by trying it and proved by rendering.

A template that writes each turn as something before it, its text and something after it can be said in Go; what is
before and after is read off from what the template writes for marked turns. The Go text is then rendered for other
chats by `render`, a small reading of the Go constructs that we use, and compared with the template's own text; one
that differs anywhere is not used. Ollama itself was not run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from luthier.errors import ChatError, RequestError

Chat = list[dict[str, str]]
_MEND = "write the template in Go and name its file: --template FILE"
_TAG = re.compile(r"\{\{(-?)\s*(.*?)\s*(-?)\}\}", re.S)
_CONDITION = re.compile(r'(?:(eq|ne) \.(Role|Content) ("(?:[^"\\]|\\.)*")|(not )?\.(System|Content|Role))')


@dataclass(frozen=True)
class GoTemplate:
    """A Go template and how far it goes: `system` messages may be left out; `proved` chats are written alike."""

    text: str
    system: bool
    proved: int


def go_template(template: Any) -> GoTemplate:
    """The Go template of a `models.chat.ChatTemplate`. Raises RequestError where its chats cannot be written so."""
    first = _pieces(template, [("user", "One9")])
    turns = _pieces(template, [("user", "One9"), ("assistant", "Two9"), ("user", "Six9")])
    if first is None or turns is None or turns[0] != first[0]:
        raise RequestError(f"{template.name}: the chat template is more than turns one after another", _MEND)
    opening, after_user, after_answer, asking = turns
    if not after_user.startswith(asking):
        raise RequestError(f"{template.name}: the chat template begins an answer otherwise in later turns", _MEND)
    roles = [("user", "", asking), ("assistant", after_user.removeprefix(asking), after_answer)]
    system = _pieces(template, [("system", "Sys9"), ("user", "One9")])
    if system is not None:
        text = f"{{{{ if not .System }}}}{opening}{{{{ end }}}}" + _loop([("system", system[0], system[1]), *roles])
        with suppress(RequestError):  # some put it beside the last question: then it has no place of its own
            return GoTemplate(text, True, prove(template, text, True))
    text = opening + _loop(roles)
    return GoTemplate(text, False, prove(template, text, False))


def prove(template: Any, text: str, system: bool = True) -> int:
    """Render some chats both ways; returns how many. Raises RequestError at the first that differs."""
    count = 0
    for chat in probes(system):
        wanted = _written(template, chat)
        if wanted is not None and render(text, chat) != wanted:
            raise RequestError(
                f"{template.name}: the Go template writes {render(text, chat)!r} where the model knows {wanted!r}",
                _MEND,
            )
        count += wanted is not None
    return count


def probes(system: bool) -> Iterator[Chat]:
    """Chats that end with a question: of one to five turns, with and without a system message, of several lines."""
    texts = ("What is it?", "A fork.", "Why?\nAnd how many: 3 or 33?", "Because {it} rings — ütf 🎵", "Thank you!")
    for size in (1, 3, 5):
        turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts[:size])]
        yield turns
        if system:
            yield [{"role": "system", "content": "Be brief.\nBe kind."}, *turns]


def render(text: str, messages: Chat) -> str:
    """What Ollama makes of a Go template and messages: range over .Messages, if, else, eq, ne, not, and the fields.

    Raises RequestError for any other construct.
    """
    system = "\n\n".join(one["content"] for one in messages if one["role"] == "system")
    tree, rest = _block(_words(text))
    if rest:
        raise RequestError("the template has an end too many", _MEND)
    return "".join(_render(tree, {"System": system, "Messages": messages}))


def _loop(roles: Sequence[tuple[str, str, str]]) -> str:
    """A loop over messages: what each role writes before and after a text."""
    branches = [f'if eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}' for role, before, after in roles]
    return "{{ range .Messages }}{{ " + "{{ else ".join(branches) + "{{ end }}{{ end }}"


def _written(template: Any, chat: Chat) -> str | None:
    """What the chat template writes, without the first token where the tokenizer adds it; None where it refuses."""
    from luthier.schema import Message, Part

    turns = [template.turn(Message(one["role"], (Part("text", one["content"]),))) for one in chat]  # type: ignore[arg-type]
    try:
        text: str = template.write(turns, prompt=True).text
    except ChatError:
        return None
    begins = template.tokenizer.bos_token
    # llama.cpp adds that token to every text where the tokenizer does, so the template must not.
    added = begins and template.tokenizer("a")["input_ids"][:1] == [template.tokenizer.bos_token_id]
    return text.removeprefix(begins) if added else text


def _pieces(template: Any, turns: Sequence[tuple[str, str]]) -> list[str] | None:
    """What the template writes around each text; None where it refuses, or does not write each once and in order."""
    found = _written(template, [{"role": role, "content": text} for role, text in turns])
    if found is None:
        return None
    if "{{" in found or '"""' in found:
        raise RequestError(f"{template.name}: the chat template writes braces that mean something in Go", _MEND)
    pieces = []
    for _, text in turns:
        if found.count(text) != 1:
            return None
        before, found = found.split(text)
        pieces.append(before)
    return [*pieces, found]


def _words(text: str) -> list[str | tuple[str, str]]:
    """Literals, and (word, rest) of each tag; a dash eats the blanks on its side."""
    found: list[str | tuple[str, str]] = []
    end, eat = 0, ""
    for tag in _TAG.finditer(text):
        literal = text[end : tag.start()]
        literal = literal.lstrip() if eat else literal
        found.append(literal.rstrip() if tag[1] else literal)
        word, _, rest = tag[2].partition(" ")
        found.append((word, rest.strip()))
        end, eat = tag.end(), tag[3]
    found.append(text[end:].lstrip() if eat else text[end:])
    return found


Node = Any
"""A literal, a field, or (word, condition, body, otherwise)."""


def _block(words: list[str | tuple[str, str]]) -> tuple[list[Node], list[str | tuple[str, str]]]:
    """Nodes up to the tag that ends this block, and what follows from that tag on."""
    nodes: list[Node] = []
    while words:
        word, words = words[0], words[1:]
        if isinstance(word, str):
            nodes.append(word)
        elif word[0] in ("end", "else"):
            return nodes, [word, *words]
        elif word[0] in ("if", "range"):
            node, words = _branching(word, words)
            nodes.append(node)
        elif word[0] in (".Role", ".Content", ".System") and not word[1]:
            nodes.append((word[0][1:],))
        else:
            raise RequestError(f"the template has {{{{ {' '.join(word)} }}}}, which is not read here", _MEND)
    return nodes, []


def _branching(word: tuple[str, str], words: list[str | tuple[str, str]]) -> tuple[Node, Any]:
    if (word[0] == "range") != (word[1] == ".Messages") or (word[0] == "if" and not _CONDITION.fullmatch(word[1])):
        raise RequestError(f"the template has {{{{ {' '.join(word)} }}}}, which is not read here", _MEND)
    body, words = _block(words)
    otherwise: list[Node] = []
    if words and words[0] == ("else", ""):
        otherwise, words = _block(words[1:])
    elif words and words[0][0] == "else":
        kind, _, condition = words[0][1].partition(" ")
        node, words = _branching((kind, condition.strip()), words[1:])
        return (*word, body, [node]), words
    if not words or words[0][0] != "end":
        raise RequestError("the template lacks an end", _MEND)
    return (*word, body, otherwise), words[1:]


def _render(nodes: list[Node], scope: dict[str, Any]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, str):
            yield node
        elif len(node) == 1:
            yield scope[node[0]]
        elif node[0] == "range":
            for message in scope["Messages"]:
                yield from _render(node[2], {"Role": message["role"], "Content": message["content"]})
        else:
            yield from _render(node[2] if _holds(node[1], scope) else node[3], scope)


def _holds(condition: str, scope: dict[str, Any]) -> bool:
    compare, field, value, negated, name = _CONDITION.fullmatch(condition).groups()  # type: ignore[union-attr]
    if compare:
        return bool((scope[field] == json.loads(value)) == (compare == "eq"))
    return bool(scope[name]) != bool(negated)
