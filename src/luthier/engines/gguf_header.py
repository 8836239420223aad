"""What a GGUF file says of itself, read with bounds: every size in it is doubted until the file is long enough for it.

Reads the head of the file alone, no weights. Format: GGUF version 3, docs/gguf.md of ggml.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from luthier.errors import DataError

_SIZES = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_MOST_KEYS, _MOST_ITEMS, _MOST_BYTES = 4096, 2**22, 2**28
"""Far above any vocabulary: four million tokens, 256 MB of head."""


@dataclass(frozen=True)
class GgufHeader:
    """The metadata by key, as Python values."""

    values: dict[str, Any]

    @property
    def architecture(self) -> str:
        return str(self.values.get("general.architecture", ""))

    @property
    def context_length(self) -> int:
        """Tokens that the model was made to read; 0 where the file does not say."""
        return int(self.values.get(f"{self.architecture}.context_length", 0))

    @property
    def even_length(self) -> int:
        """Up to which context one set of rope factors serves all texts: llama.cpp takes the long ones by the size of
        its context, and transformers by the length of a text."""
        scaling = f"{self.architecture}.rope.scaling"
        original = int(self.values.get(f"{scaling}.original_context_length", 0))
        return original if original and f"{scaling}.type" not in self.values else self.context_length

    @property
    def template(self) -> str:
        return str(self.values.get("tokenizer.chat_template", ""))

    @property
    def tokens(self) -> list[str]:
        return list(self.values.get("tokenizer.ggml.tokens", ()))

    def special(self, name: str) -> int | None:
        """The id of bos, eos, eot and so on."""
        found = self.values.get(f"tokenizer.ggml.{name}_token_id")
        return int(found) if found is not None and 0 <= int(found) < len(self.tokens) else None


def read_header(path: Path) -> GgufHeader:
    """The head of a GGUF file. Raises DataError for a file that is none, or that lies about a size."""
    try:
        with path.open("rb") as stream:
            reader = _Reader(path, stream)
            if stream.read(4) != b"GGUF" or reader.number("<I") not in (2, 3):
                raise DataError(f"{path}: is no GGUF of version 2 or 3", "give a .gguf file")
            reader.number("<Q")
            count = reader.number("<Q")
            if count > _MOST_KEYS:
                raise reader.broken(f"{count:,} keys")
            return GgufHeader({reader.text(): reader.value(reader.number("<I")) for _ in range(count)})
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}", "give a .gguf file") from error


class _Reader:
    """Little-endian values, each checked against what is left of the file."""

    def __init__(self, path: Path, stream: IO[bytes]) -> None:
        self.path, self.stream = path, stream
        self.left = min(path.stat().st_size, _MOST_BYTES)

    def bytes(self, size: int) -> bytes:
        self.left -= size
        data = self.stream.read(size) if self.left >= 0 else b""
        if len(data) < size:
            raise self.broken(f"a value of {size:,} bytes")
        return data

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.bytes(struct.calcsize(form)))[0]

    def text(self) -> str:
        return self.bytes(self.number("<Q")).decode(errors="replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind in _SIZES:
            return self.number(_SIZES[kind])
        if kind != _ARRAY:
            raise self.broken(f"a value of kind {kind}")
        inner, count = self.number("<I"), self.number("<Q")
        if count > _MOST_ITEMS or inner == _ARRAY:
            raise self.broken(f"a list of {count:,} values")
        if inner in _SIZES:
            form = f"<{count}{_SIZES[inner][1]}"
            return list(struct.unpack(form, self.bytes(struct.calcsize(form))))
        return [self.value(inner) for _ in range(count)]

    def broken(self, what: str) -> DataError:
        return DataError(f"{self.path}: its head speaks of {what}: it is cut short or broken", "fetch the file again")
