"""Keys that equal content shares: case, Unicode variants and white space are folded, the rest is hashed.

Knows messages; refuses to know rows and files. `normal_key` folds white space to one space and drops it at the ends of
a text, never between words: `1 2` and `12` stay apart. `quick_key` looks at how each text begins, and costs a tenth;
content with equal normal keys has equal quick keys, so only rows that share a quick key need the other one.
"""

from __future__ import annotations

import unicodedata

import xxhash

from luthier.schema import Message

_BREAKS = b"\t\n\r\x0b\x0c\x1c\x1d\x1e\x1f"
_LOWER = bytes(range(256)).lower()
_TURNS, _HEAD, _READ = 3, 384, 640
_FOLD = _LOWER.translate(bytes.maketrans(_BREAKS, b" " * len(_BREAKS)))


def normal_key(messages: tuple[Message, ...], target: bytes = b"") -> bytes:
    """16 bytes (XXH3-128) of what is said, by whom, with which media, tool calls and target.

    Equal for contents that differ in case (Unicode case folding), in NFKC variants and in white space alone.
    """
    text = _said(messages)
    if text.isascii():
        data = text.encode().translate(_FOLD)
    else:
        plain = folded(text).replace("\0", " \0 ")
        data = " ".join(plain.split()).replace(" \0 ", "\0").encode("utf-8", "surrogatepass").translate(_FOLD)
    while b"  " in data:
        data = data.replace(b"  ", b" ")
    return xxhash.xxh3_128_digest(data + b"\0" + target)


def quick_key(messages: tuple[Message, ...], target: bytes = b"") -> bytes:
    """16 bytes that are equal wherever those of `normal_key` are; contents whose texts begin alike share them too."""
    said = [str(len(messages)).encode()]
    for message in messages[:_TURNS]:
        said.append(message.role.encode())
        said += [_head(part.text) if part.text is not None else str(part.media).encode() for part in message.content]
        if message.more:
            said.append(message.more.encode("utf-8", "surrogatepass"))
    return xxhash.xxh3_128_digest(b"\0".join(said) + b"\0" + target)


def _head(text: str) -> bytes:
    """The first _HEAD bytes of a text without white space, in lower case."""
    if not text.isascii():
        plain = "".join(folded(text).split()).encode("utf-8", "surrogatepass")
        return plain.translate(_LOWER, _BREAKS + b" ")[:_HEAD]
    found = text[:_READ].encode().translate(_LOWER, _BREAKS + b" ")[:_HEAD]
    if len(found) < _HEAD and len(text) > _READ:
        return text.encode().translate(_LOWER, _BREAKS + b" ")[:_HEAD]
    return found


def _said(messages: tuple[Message, ...]) -> str:
    """Roles, texts, media and the rest in one text. A tag before each: a text that looks like a reference is none."""
    said: list[str] = []
    for message in messages:
        said.append(message.role)
        for part in message.content:
            said.append("\x01" + part.text.strip() if part.text is not None else f"\x02{part.type} {part.media}")
        if message.more:
            said.append("\x03" + message.more)
    return "\0".join(said)


def folded(text: str) -> str:
    """NFKC, case folded, and NFKC once more: a folded character can be one that it composes."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
