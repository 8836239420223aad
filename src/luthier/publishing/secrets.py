"""Looks for what must not leave the machine in the texts of a folder: keys, tokens, passwords, paths of the home.

Patterns of the services that people here use, and words near "token", "secret" or "key" that look drawn by lot. It
knows nothing of where the folder goes. What it shows of a find is masked.
"""

from __future__ import annotations

import html
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from luthier.errors import RequestError

WEIGHTS = ".safetensors"
_START = r"(?<![A-Za-z0-9])"
"""Where a token may begin: also after an underscore, as in token_hf_..."""
_KNOWN = {
    "a Hugging Face token": _START + r"(?:hf|api_org)_[A-Za-z0-9]{30,}",
    "an OpenAI or Anthropic key": _START + r"sk-(?=[\w-]{0,60}\d)[A-Za-z0-9_-]{20,}",
    "a Stripe key": _START + r"[rs]k_(?:live|test)_[A-Za-z0-9]{16,}",
    "a package index's token": _START + r"(?:npm_[A-Za-z0-9]{36}|pypi-AgE[A-Za-z0-9_-]{50,})",
    "a bearer's token": r"(?i:\bBearer) {1,3}(?=[\w.-]{0,60}\d)[A-Za-z0-9._~+/-]{20,}",
    "an AWS access key": _START + r"(?:AKIA|ASIA|ABIA|ACCA)[0-9A-Z]{16}\b",
    "a GitHub token": _START + r"(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{40,})",
    "a GitLab token": _START + r"glpat-[A-Za-z0-9_-]{20,}",
    "a Slack token": r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}|hooks\.slack\.com/services/T\w+/B\w+/\w+",
    "a Google key": _START + r"AIza[0-9A-Za-z_-]{35}|\bya29\.[0-9A-Za-z_-]{20,}",
    "a signed web token (JWT)": r"\beyJ[A-Za-z0-9_-]{8,2000}\.eyJ[A-Za-z0-9_-]{8,4000}\.[A-Za-z0-9_-]{8,}",
    "a private key": r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----",
    "a password in an address": r"\b[a-z][a-z0-9+.-]{1,20}://[^\s/:@\"'<>]{1,99}:[^\s/@\"'<>]{3,199}@",
}
_PATTERNS = {kind: re.compile(pattern) for kind, pattern in _KNOWN.items()}
_WORD = re.compile(
    r"token|secret|passwd|password|passphrase|credential|api_?-?key|(?:access|account)_?-?key|[_-]key", re.IGNORECASE
)
_BEFORE = re.compile(r"[\w.-]*\Z")
_GIVEN = re.compile(
    r"(?P<rest>[\w.-]{0,40})[\"']?\s{0,9}(?:[:=]|=>)\s{0,9}[\"']?(?P<value>[A-Za-z0-9+/_=.~-]{16,4096})"
)
_ESCAPE = re.compile(r"\\(?=[^A-Za-z0-9\s])")
_UNICODE = re.compile(r"\\u00([2-7][0-9a-fA-F])")
"""A letter of ASCII as JSON may spell it."""
_HARMLESS = re.compile(r"(sha\d*|digest|hash|commit|revision|oid|etag|md5)$", re.IGNORECASE)
_SECRET_VARIABLE = re.compile(
    r"(^|_)(TOKEN|PAT|SECRET|PASS|PASSWORD|PASSWD|PASSPHRASE|(API|ACCESS|SECRET|PRIVATE)_?KEY)(_?\d+)?$", re.IGNORECASE
)


@dataclass(frozen=True)
class Find:
    """Something that must not leave: where (file and line, from 1), what it seems to be, and its masked text."""

    file: str
    line: int
    kind: str
    shown: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.kind}: {self.shown}"


def refuse_secrets(folder: Path, environment: Mapping[str, str] = os.environ) -> None:
    """Raise RequestError with every find in the folder."""
    finds = list(find_in_folder(folder, environment))
    if finds:
        more = [f"... and {len(finds) - 8} more"] if len(finds) > 8 else []
        raise RequestError(
            "nothing was sent, as something that should not leave this machine is among the files:\n"
            + "\n".join([*(f"  - {find}" for find in finds[:8]), *more]),
            "take it out of the recipe, rows or template that it comes from; have a key that was written down changed",
        )


def find_in_folder(folder: Path, environment: Mapping[str, str] = os.environ) -> Iterator[Find]:
    """Finds in every text of the folder, in names of files, and in what weights say of themselves."""
    secret = _values(environment)
    for path in sorted(item for item in folder.rglob("*") if item.is_file()):
        name = path.relative_to(folder).as_posix()
        text = _header(path) if path.suffix == WEIGHTS else path.read_bytes().decode(errors="replace")
        if path.suffix == ".md":
            text = html.unescape(_ESCAPE.sub("", text))
        else:
            text = _UNICODE.sub(lambda code: chr(int(code[1], 16)), text)
        yield from find_in_text(f"{text}\n{name}", name, secret)


def find_in_text(text: str, file: str, secret: Mapping[str, str] | None = None) -> Iterator[Find]:
    """Finds in one text. `secret`: values that are known to be secret -> what they are."""
    home = _home()
    for number, line in enumerate(text.splitlines(), 1):
        for value, kind in (secret or {}).items():
            if value in line:
                yield Find(file, number, kind, mask(value))
        for kind, pattern in _PATTERNS.items():
            for match in pattern.finditer(line):
                yield Find(file, number, kind, mask(match[0]))
        for name, value in _named(line):
            if not _HARMLESS.search(name) and looks_drawn(value):
                yield Find(file, number, f"what looks like a secret ({name[:40]})", mask(value))
        if home and home.search(line):
            yield Find(file, number, "a path of your home folder", "~/…")


def _named(line: str) -> Iterator[tuple[str, str]]:
    """(name, value) where a word such as token is given one. In one pass: a tokenizer may be a line of megabytes."""
    done = 0
    for word in _WORD.finditer(line):
        given = _GIVEN.match(line, word.end()) if word.start() >= done else None
        if given:
            before = _BEFORE.search(line[max(0, word.start() - 40) : word.start()])
            done = given.end()
            yield (before[0] if before else "") + word[0] + given["rest"], given["value"]


def looks_drawn(value: str) -> bool:
    """Whether a word seems drawn by lot: a run of 16 or more letters and digits with the entropy of one.

    Names made of words ("reserved_special_token_250") fall into short runs; the threshold is 3.2 bits a character,
    which hexadecimal keys of 32 characters pass and repeated ones do not.
    """
    for run in re.split(r"[^A-Za-z0-9+/]", value):
        digits = sum(letter.isdigit() for letter in run)
        if len(run) >= 16 and 2 <= digits < len(run) and _entropy(run) >= 3.2:
            return True
    return False


def mask(value: str) -> str:
    """The first four characters and the length: enough to find it, too little to use it."""
    return f"{value[:4]}… ({len(value)} characters)"


def _values(environment: Mapping[str, str]) -> dict[str, str]:
    """Values of variables that are secret by their names; short ones would be found in any text."""
    return {
        value: f"the value of ${name}"
        for name, value in environment.items()
        if _SECRET_VARIABLE.search(name) and len(value) >= 12
    }


def _entropy(text: str) -> float:
    return -sum(n / len(text) * math.log2(n / len(text)) for n in Counter(text).values())


def _home() -> re.Pattern[str] | None:
    home = str(Path.home())
    return re.compile(re.escape(home) + r"(?![\w.-])") if len(home) > 1 else None


def _header(path: Path) -> str:
    """What a safetensors file says of itself: its metadata, not its names of tensors nor their bytes."""
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > 100_000_000:
            raise RequestError(f"{path.name}: is no safetensors file", "take the adapter from its run again")
        try:
            header = json.loads(stream.read(length))
        except ValueError as error:
            raise RequestError(f"{path.name}: is no safetensors file", "take the adapter from its run again") from error
    return json.dumps(header.get("__metadata__", {}), ensure_ascii=False, indent=1)
