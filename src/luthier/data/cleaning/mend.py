"""Steps that mend text: broken Unicode and stray white space.

Knows characters; refuses to know words. Cheap tests come first, since most texts have nothing to mend.
"""

from __future__ import annotations

import re
import unicodedata

from luthier.data.cleaning.stepkit import Step, Turns, rewrite
from luthier.schema import Drop, Row

REASONS: tuple[str, ...] = ()
# Controls other than tab and newline, and carriage returns, which are mended to newlines.
_CONTROLS = bytes(code for code in range(128) if (code < 32 or code == 127) and code not in (9, 10))
_ODD = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ufeff\ufffc\ufffd\ud800-\udfff\ufff9-\ufffb]")
_SPACES = re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")
_UNSEEN = re.compile("[\u200b\u2060\ufeff]")
_BEFORE_NEWLINE = re.compile(r"[ \t]+\n")
_NEWLINES = re.compile(r"\n{3,}")
_RUN = re.compile(r"(?<=\S)[ \t]{2,}(?=\S)")


def repair_unicode(turns: Turns = "all", html: bool = False, quotes: bool = False) -> Step:
    """Repairs text that was decoded wrongly (`cafÃ©`), takes out control characters, and writes Unicode as NFC.

    The repair is that of ftfy (Speer 2019). Changes nothing where there is nothing to mend, and drops nothing.

    turns: whose words are mended.
    html: turns entities such as `&amp;` into characters, in texts without `<`; off, since answers may show code.
    quotes: makes curly quotation marks straight.
    """
    from ftfy import TextFixerConfig, fix_text
    from ftfy.badness import is_bad

    config = TextFixerConfig(
        unescape_html="auto" if html else False,
        uncurl_quotes=quotes,
        fix_latin_ligatures=False,
        fix_character_width=False,
        normalization="NFC",
        explain=False,
    )

    def clean(text: str) -> bool:
        if html and "&" in text:
            return False
        if text.isascii():
            data = text.encode()
            return len(data.translate(None, _CONTROLS)) == len(data)
        if _ODD.search(text) or not unicodedata.is_normalized("NFC", text):
            return False
        if quotes:
            return False
        return not is_bad(text)

    def mend(text: str) -> str:
        return text if clean(text) else fix_text(text, config)

    def apply(row: Row) -> Row | Drop:
        return rewrite(row, turns, mend)

    return apply


def normalise_whitespace(turns: Turns = "all", collapse: bool = False) -> Step:
    """Tidies white space: line ends become newlines, rare spaces plain ones, unseen characters go.

    Spaces at line ends and around the text go, and more than one blank line becomes one. Indentation stays. Drops
    nothing.

    turns: whose words are tidied.
    collapse: makes runs of spaces and tabs inside a line one space; off, since tables and code use them.
    """

    def tidy(text: str) -> str:
        if not text.isascii():
            text = _UNSEEN.sub("", _SPACES.sub(" ", text))
        if "\r" in text:
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        if " \n" in text or "\t\n" in text:
            text = _BEFORE_NEWLINE.sub("\n", text)
        if "\n\n\n" in text:
            text = _NEWLINES.sub("\n\n", text)
        if collapse and ("  " in text or "\t" in text):
            text = _RUN.sub(" ", text).replace("\t", " ")
        return text.strip()

    def apply(row: Row) -> Row | Drop:
        return rewrite(row, turns, tidy)

    return apply
