"""A step that keeps rows in the languages that are asked for.

Knows lingua, which is an extra and holds its models itself; refuses to know scripts and translations.
"""

from __future__ import annotations

from luthier.data.cleaning.stepkit import ParameterError, Step, Turns, drop, texts
from luthier.schema import Drop, Row

REASONS = ("other_language", "unsure_language")


def language(
    languages: list[str],
    minimum_confidence: float = 0.0,
    low_accuracy: bool = True,
    characters: int = 1000,
    turns: Turns = "all",
) -> Step:
    """Keeps rows in the languages asked for, told by their n-grams (lingua; the extra `language`).

    Text without a letter has no language and is kept. Few words are told badly: put `length` first. A text in several
    languages counts as one of them, and a letter that few languages have may decide, whatever the rest is.

    languages: two-letter codes (ISO 639-1), such as `[en, de]`.
    minimum_confidence: how sure the detector must be, from 0 to 1; above 0 this costs several times as much.
    low_accuracy: the quicker models, good for texts of 120 characters and more.
    characters: how much of the beginning is looked at.
    turns: whose words are looked at, all of them together.

    Drops: other_language, unsure_language.
    """
    try:
        from lingua import IsoCode639_1, LanguageDetectorBuilder
    except ImportError as error:
        raise ParameterError("", "needs the package lingua: pip install 'luthier[language]'") from error

    wanted = {code.upper() for code in languages}
    for code in languages:
        if not hasattr(IsoCode639_1, code.upper()):
            raise ParameterError("languages", f"{code!r} is not the two-letter code of a language that can be told")
    if not wanted:
        raise ParameterError("languages", "name at least one, such as [en]")
    if not 0.0 <= minimum_confidence <= 1.0:
        raise ParameterError("minimum_confidence", "is from 0 to 1")
    if characters < 1:
        raise ParameterError("characters", "is at least 1")
    builder = LanguageDetectorBuilder.from_all_languages()
    detector = (builder.with_low_accuracy_mode() if low_accuracy else builder).build()

    def apply(row: Row) -> Row | Drop:
        text = "\n".join(texts(row, turns))[:characters]
        if not any(map(str.isalpha, text)):
            return row
        sure = 1.0
        found = None if minimum_confidence else detector.detect_language_of(text)
        if minimum_confidence:
            best = detector.compute_language_confidence_values(text)[0]
            found, sure = best.language, best.value
        if found is None or sure < minimum_confidence:
            return drop(row, "unsure_language", f"{found.name.lower() if found else 'none'} at {sure:.2f}")
        code = found.iso_code_639_1.name
        return row if code in wanted else drop(row, "other_language", code.lower())

    return apply
