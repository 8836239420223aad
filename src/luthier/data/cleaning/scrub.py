"""Takes personal data and secrets out of text: addresses, numbers and keys become placeholders such as <EMAIL>.

Knows the shapes of such things; refuses to know whose they are. Names of people have no shape and stay. Where a shape
is shared with ordinary numbers (dates, versions, prices, order numbers), a second look decides: a card number must
have a card's prefix and check digit, an unmarked run of digits is a phone number only beside a word that says so.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from luthier.data.cleaning.stepkit import ParameterError, Step, Turns, rewrite
from luthier.schema import Drop, Message, Row, canonical

KINDS = ("email", "phone", "ip", "card", "key")
REASONS: tuple[str, ...] = ()
_NOT_DIGITS = bytes(code for code in range(256) if not 48 <= code <= 57)
_EMAIL = re.compile(
    r"(?<![\w.+%-])(?!git@)\w[\w.+%-]{0,63}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,62})\.){1,8}[A-Za-z]{2,24}(?![\w-])"
)
_KEY_MARKS = ("sk-", "sk_", "rk_", "hf_", "AKIA", "ASIA", "gh", "github_pat_", "glpat-", "xox", "AIza", "eyJ", "-----B")
_KEY = re.compile(
    r"(?<![A-Za-z0-9_-])(?:"
    r"sk-(?:[A-Za-z]{2,8}-)?(?:[A-Za-z0-9]{2,8}-)?(?=[A-Za-z_-]{0,80}[0-9])[A-Za-z0-9_-]{20,200}"
    r"|[sr]k_(?:live|test)_[A-Za-z0-9]{16,128}"
    r"|hf_[A-Za-z0-9]{30,64}"
    r"|(?:AKIA|ASIA)[A-Z0-9]{16}"
    r"|gh[pousr]_[A-Za-z0-9]{30,255}"
    r"|github_pat_[A-Za-z0-9_]{30,255}"
    r"|glpat-[A-Za-z0-9_-]{20,64}"
    r"|xox[abprs]-[A-Za-z0-9-]{10,200}"
    r"|AIza[A-Za-z0-9_-]{35}"
    r"|eyJ[A-Za-z0-9_-]{8,4096}\.eyJ[A-Za-z0-9_-]{8,8192}\.[A-Za-z0-9_-]{8,4096}"
    r")(?![A-Za-z0-9_-])"
    r"|-----BEGIN [A-Z ]{0,24}PRIVATE KEY-----[A-Za-z0-9+/=\s:,-]{1,16384}?-----END [A-Z ]{0,24}PRIVATE KEY-----"
)
_IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\w|\.\d)")
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])")
_VERSION_BEFORE = re.compile(r"(?:version|release|driver|build|firmware|\bv|section|chapter)\.?:?\s*$", re.IGNORECASE)
# Looked for first: a pattern that begins with a digit is scanned for many times faster than one that looks back.
_IPV4_LIKE = re.compile(r"\d\.\d{1,3}\.\d{1,3}\.\d")
_CARD_LIKE = re.compile(r"\d(?:[ -]?\d){12}")
_CARD = re.compile(r"(?<![\w.,+-])(?<!\d )\d(?:[ -]?\d){12,18}(?![\w-]|[.,]\d| \d)")
_INTERNATIONAL = re.compile(r"(?<![\w+.])\+[1-9]\d{0,2}(?:[ .-]?\(?\d{1,5}\)?){2,6}(?!\w)")
_AMERICAN = re.compile(
    r"(?<![\w.+/-])(?:1[ .-])?(?:\([2-9]\d\d\) ?|[2-9]\d\d([.-]))[2-9]\d\d(?(1)\1|[-. ])\d{4}(?![\w-]|\.\d)"
)
_AMERICAN_END = re.compile(r"\d[-. ]\d{4}(?!\d)")
_CUES = ("phone", "tel", "mobile", "cell", "fax", "whatsapp", "call", "text me", "hotline")
_SAID = re.compile(
    r"(?i:\b(?:phone|telephone|tel|mobile|cell|fax|whatsapp|call(?: me| us)?|text me|hotline))"
    r"(?: number| no)?(?: is| at| on|:|\.|=){0,2}[ \t]*(?P<number>[+(]?\d[\d ()./-]{5,20}\d)(?![\w-])"
)
_CARD_PREFIXES: tuple[tuple[range, tuple[int, ...]], ...] = (
    (range(4000, 5000), (13, 16, 19)),
    (range(5100, 5600), (16,)),
    (range(2221, 2721), (16,)),
    (range(3400, 3500), (15,)),
    (range(3700, 3800), (15,)),
    (range(6011, 6012), (16, 19)),
    (range(6440, 6600), (16, 19)),
    (range(3528, 3590), (16, 19)),
    (range(3000, 3060), (14,)),
    (range(3600, 3700), (14,)),
    (range(3800, 3900), (14,)),
)


def scrub_personal_data(turns: Turns = "all", kinds: list[str] = list(KINDS)) -> Step:  # noqa: B006 -- read only
    """Replaces e-mail addresses, phone numbers, public IP addresses, card numbers and keys by placeholders.

    They become <EMAIL>, <PHONE>, <IP>, <CARD> and <KEY>. What a turn carries beside its text (arguments of tool calls)
    and the source's other columns are scrubbed with it. Numbers written as numbers, names and street addresses stay.
    Drops nothing.

    turns: whose words are scrubbed; other columns are scrubbed for `all` alone.
    kinds: which of email, phone, ip, card and key are looked for.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise ParameterError("kinds", f"{kind!r} is not one of {', '.join(KINDS)}")
    chosen = tuple(kinds)

    def change(text: str) -> str:
        return scrub(text, chosen)

    def apply(row: Row) -> Row | Drop:
        row = rewrite(row, turns, change)
        if any(message.more for message in row.messages):
            messages = tuple(_beside(message, turns, change) for message in row.messages)
            if messages != row.messages:
                row = replace(row, messages=messages)
        if turns == "all" and row.more:
            more = _in_json(row.more, change)
            if more != row.more:
                row = replace(row, more=more)
        return row

    return apply


def scrub(text: str, kinds: Sequence[str] = KINDS, counts: Counter[str] | None = None) -> str:
    """The text with placeholders; `counts`, where given, counts what was replaced by kind."""
    tally: Counter[str] = Counter() if counts is None else counts
    if "key" in kinds and any(mark in text for mark in _KEY_MARKS):
        text = _replace(_KEY, text, "key", tally)
    if "email" in kinds and "@" in text:
        text = _replace(_EMAIL, text, "email", tally)
    digits = len(text.encode("utf-8", "surrogatepass").translate(None, _NOT_DIGITS))
    if "ip" in kinds and digits >= 4 and text.count(".") > 2 and _IPV4_LIKE.search(text):
        text = _replace(_IPV4, text, "ip", tally, _is_address)
    if "ip" in kinds and digits and text.count(":") > 1:
        text = _replace(_IPV6, text, "ip", tally, _is_address)
    if "card" in kinds and digits >= 13 and _CARD_LIKE.search(text):
        text = _replace(_CARD, text, "card", tally, _is_card)
    if "phone" in kinds and digits >= 7:
        if "+" in text:
            text = _replace(_INTERNATIONAL, text, "phone", tally, _is_phone)
        if digits >= 10 and _AMERICAN_END.search(text):
            text = _replace(_AMERICAN, text, "phone", tally)
        lower = text.lower()
        if any(cue in lower for cue in _CUES):
            text = _replace(_SAID, text, "phone", tally, _is_phone)
    return text


def _replace(
    pattern: re.Pattern[str],
    text: str,
    kind: str,
    tally: Counter[str],
    real: Callable[[re.Match[str]], bool] = lambda match: True,
) -> str:
    def put(match: re.Match[str]) -> str:
        if not real(match):
            return match.group()
        tally[kind] += 1
        start = match.start("number") - match.start() if "number" in pattern.groupindex else 0
        return f"{match.group()[:start]}<{kind.upper()}>"

    return pattern.sub(put, text)


def _is_address(match: re.Match[str]) -> bool:
    """A public address; private and reserved ones point at nobody, and four numbers after "version" are none."""
    text = match.group()
    if ":" in text and len([piece for piece in text.split(":") if piece]) < 3:
        return False  # C++ scopes and times of day
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if not bool(address.is_global) or (address.version == 6 and int(address) >> 125 != 1):
        return False
    before = match.string[max(0, match.start() - 16) : match.start()]
    return _VERSION_BEFORE.search(before) is None


def _is_card(match: re.Match[str]) -> bool:
    """A card's prefix and length, and the check digit of ISO/IEC 7812 (Luhn)."""
    number = re.sub(r"\D", "", match.group())
    if not any(int(number[:4]) in prefix and len(number) in sizes for prefix, sizes in _CARD_PREFIXES):
        return False
    return len(set(number)) > 1 and bool(luhn(number))


def luhn(number: str) -> bool:
    """Whether the last digit is the check digit of the others."""
    total: int = 0
    for place, digit in enumerate(reversed(number)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def _is_phone(match: re.Match[str]) -> bool:
    text: str = match.group("number") if "number" in match.re.groupindex else match.group()
    return 7 <= sum(character.isdigit() for character in text) <= 15


def _beside(message: Message, turns: Turns, change: Callable[[str], str]) -> Message:
    if not message.more or (turns != "all" and message.role != turns):
        return message
    more = _in_json(message.more, change)
    return message if more == message.more else Message(message.role, message.content, more)


def _in_json(text: str, change: Callable[[str], str]) -> str:
    """Change the strings inside JSON; its keys and its numbers stay."""

    def walk(value: Any) -> Any:
        if isinstance(value, str):
            return change(value)
        if isinstance(value, list):
            return [walk(item) for item in value]
        if isinstance(value, dict):
            return {key: walk(item) for key, item in value.items()}
        return value

    before = json.loads(text)
    after = walk(before)
    return text if after == before else canonical(after)
