"""The language step: what is kept, what is dropped, and what is said where lingua is not installed."""

from __future__ import annotations

import sys

import pytest

from luthier.data.cleaning.language import language
from luthier.data.cleaning.stepkit import ParameterError, Step
from luthier.data.steps import make_steps
from luthier.schema import Drop, Message, Part, Provenance, Row, Target

TEXTS = {
    "en": "The old man walked slowly down to the river, because he wanted to see whether the boats had come back.",
    "de": "Der alte Mann ging langsam zum Fluss hinunter, weil er sehen wollte, ob die Boote zurückgekommen waren.",
    "fr": "Le vieil homme descendit lentement vers la rivière pour voir si les bateaux étaient enfin revenus.",
    "ru": "Старик медленно спустился к реке, потому что хотел посмотреть, вернулись ли лодки.",
    "zh": "老人慢慢地走到河边，因为他想看看船是否已经回来了。",
}


def row(user: str, assistant: str = "") -> Row:
    turns = [Message("user", (Part("text", user),))]
    turns += [Message("assistant", (Part("text", assistant),))] if assistant else []
    return Row("", tuple(turns), Target(), "", "", Provenance("chat", "f#1"))


def step(**parameters: object) -> Step:
    problems: list[str] = []
    found = make_steps([{"language": parameters}], problems)
    assert problems == []
    return found[0].apply


def verdict(apply: Step, item: Row) -> tuple[str, str]:
    found = apply(item)
    if isinstance(found, Drop):
        return found.reason, found.detail
    assert found is item
    return "", ""


def test_a_text_is_kept_in_its_own_language_and_dropped_by_its_name_in_others() -> None:
    steps = {code: step(languages=[code]) for code in ("en", "ru")}
    for code, text in TEXTS.items():
        for wanted, apply in steps.items():
            expected = ("", "") if code == wanted else ("other_language", code)
            assert verdict(apply, row(text)) == expected
    several = step(languages=["EN", "de"])
    assert [verdict(several, row(text))[0] for text in TEXTS.values()] == ["", "", *["other_language"] * 3]


def test_a_text_without_letters_has_no_language_and_is_kept() -> None:
    for text in ("12 + 30 = 42", "???", "😀 😀", " "):
        for confidence in (0.0, 0.9):
            assert verdict(step(languages=["en"], minimum_confidence=confidence), row(text)) == ("", "")


def test_a_mixed_text_counts_as_one_of_its_languages_and_only_the_beginning_counts() -> None:
    english, german = TEXTS["en"], TEXTS["de"]
    for text in (f"{english} {german}", f"{german} {english}"):
        found = [verdict(step(languages=[code]), row(text)) for code in ("en", "de")]
        assert sorted(reason for reason, _ in found) == ["", "other_language"]
        assert verdict(step(languages=["en", "de"]), row(text)) == ("", "")
        assert verdict(step(languages=["fr", "ru"]), row(text))[0] == "other_language"
    assert verdict(step(languages=["en"], characters=90), row(f"{english} {german * 9}")) == ("", "")
    assert verdict(step(languages=["de"], characters=90), row(f"{english} {german * 9}")) == ("other_language", "en")


def test_whose_words_are_looked_at_can_be_chosen() -> None:
    item = row(TEXTS["de"], TEXTS["en"])
    assert verdict(step(languages=["en"], turns="assistant"), item) == ("", "")
    assert verdict(step(languages=["en"], turns="user"), item) == ("other_language", "de")


def test_a_detector_that_is_not_sure_enough_drops_the_row_with_its_guess() -> None:
    sure = step(languages=["en"], minimum_confidence=0.5)
    assert verdict(sure, row(TEXTS["en"])) == ("", "")
    assert verdict(sure, row(TEXTS["ru"]))[0] == "other_language"
    reason, detail = verdict(step(languages=["en"], minimum_confidence=1.0), row("no radio"))
    assert reason == "unsure_language"
    assert float(detail.rpartition(" ")[2]) < 1.0


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"languages": ["english"]}, "data.steps[0].language.languages: 'english' is not the two-letter code"),
        ({"languages": []}, "data.steps[0].language.languages: name at least one"),
        ({"languages": ["en"], "minimum_confidence": 1.5}, "data.steps[0].language.minimum_confidence: is from 0 to 1"),
        ({"languages": ["en"], "characters": 0}, "data.steps[0].language.characters: is at least 1"),
    ],
)
def test_values_that_make_no_sense_are_named(parameters: dict[str, object], said: str) -> None:
    problems: list[str] = []
    assert make_steps([{"language": parameters}], problems) == []
    assert problems[0].startswith(said)


def test_without_the_extra_the_problem_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lingua", None)
    problems: list[str] = []
    assert make_steps([{"language": {"languages": ["en"]}}], problems) == []
    assert problems == ["data.steps[0].language: needs the package lingua: pip install 'luthier[language]'"]
    with pytest.raises(ParameterError):
        language(["en"])
