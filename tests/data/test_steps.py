"""Steps as a recipe names them: problems at once, rows untouched or dropped with a listed reason, code never stale."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from luthier import stepdocs
from luthier.data.steps import STEPS, BoundStep, describe, make_steps
from luthier.schema import Drop, Message, Part, Provenance, Row, Target

ROOT = Path(__file__).parents[2]


def row(*turns: str, more: str = "") -> Row:
    """`user: hello`, `assistant: hi`, ... as a row."""
    pairs = (turn.partition(": ") for turn in turns)
    messages = tuple(Message(role, (Part("text", text),)) for role, _, text in pairs)  # type: ignore[arg-type]
    return Row("", messages, Target(), "", "", Provenance("chat", "f#1"), more)


def bound(name: str, **parameters: Any) -> BoundStep:
    problems: list[str] = []
    found = make_steps([{name: parameters}], problems)
    assert problems == []
    return found[0]


def reason(name: str, item: Row, **parameters: Any) -> str:
    """The reason of the drop, "" where the very same row came back, "changed" for another."""
    found = bound(name, **parameters).apply(item)
    return found.reason if isinstance(found, Drop) else "" if found is item else "changed"


def text_of(name: str, text: str, **parameters: Any) -> str:
    found = bound(name, **parameters).apply(row(f"user: {text}"))
    assert isinstance(found, Row)
    return found.messages[0].text


GOOD = row("user: What is it?", "assistant: A book.", "user: Whose?", "assistant: Mine.")


def test_all_problems_are_reported_at_once_by_their_keys() -> None:
    problems: list[str] = []
    steps = [
        "lenght", {"length": {"minimum_word": 3, "per": "page"}}, {"regex": {"pattern": "("}}, 7,
        {"words_list": {"file": "/not/there"}}, "language", {"length": {"maximum_words": True}}, "require_messages",
    ]  # fmt: skip
    assert [step.name for step in make_steps(steps, problems)] == ["require_messages"]
    assert problems[0] == "data.steps[0]: there is no step 'lenght' (did you mean length?)"
    assert "data.steps[1].length.minimum_word: unknown parameter (did you mean minimum_words?)" in problems
    assert "data.steps[1].length.per: 'page' is not row or answer" in problems
    assert any(line.startswith("data.steps[2].regex.pattern: '(' is no regular") for line in problems)
    assert "data.steps[4].words_list.file: there is no file /not/there" in problems
    assert "data.steps[5].language.languages: must be given" in problems
    assert "data.steps[6].length.maximum_words: True is not a whole number" in problems


def test_turns_that_alternate_come_back_as_the_same_object() -> None:
    assert reason("require_messages", GOOD) == reason("roles_alternate", GOOD) == ""
    assert reason("require_messages", row("user: hi", "assistant:  ")) == "no_answer"
    assert reason("require_messages", row("assistant: hi")) == "no_user_turn"
    assert reason("roles_alternate", row("user: a", "user: b", "assistant: c")) == "bad_role_order"
    assert reason("roles_alternate", row("user: a", "assistant: b", "user: c")) == "no_last_answer"
    assert reason("roles_alternate", row("system: s", "user: a", "assistant: b", "tool: 3", "assistant: c")) == ""
    merged = bound("roles_alternate", merge=True).apply(row("user: a", "user: b", "assistant: c"))
    assert isinstance(merged, Row)
    assert [message.text for message in merged.messages] == ["a\n\nb", "c"]


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"minimum_words": 7}, ""), ({"minimum_words": 8}, "too_few_words"), ({"maximum_words": 7}, ""),
        ({"maximum_words": 6}, "too_many_words"), ({"maximum_characters": 28}, "too_many_characters"),
        ({"minimum_turns": 5}, "too_few_turns"), ({"maximum_turns": 3}, "too_many_turns"),
        ({"minimum_words": 2, "per": "answer"}, "too_few_words"), ({"minimum_words": 1, "per": "answer"}, ""),
    ],
)  # fmt: skip
def test_length_counts_words_characters_and_turns(parameters: dict[str, Any], expected: str) -> None:
    assert reason("length", GOOD, **parameters) == expected


def test_unicode_is_repaired_and_good_text_is_left_alone() -> None:
    assert text_of("repair_unicode", "cafÃ© \x07and cafe\u0301") == "café and café"
    for text in ("a < b && c &amp; d", "“curly” – naïve – 中文", "plain\n\ttext"):
        assert reason("repair_unicode", row(f"user: {text}")) == ""
    assert text_of("normalise_whitespace", " a \r\n\n\n\n  b\u00a0c ") == "a\n\n  b c"


def test_repetition_and_word_shapes() -> None:
    prose = "The river of that town runs with care to the sea, and many have walked there in May. "
    varied = " ".join(f"{prose}Item {i} was {i * i} long and about {chr(97 + i) * 5}." for i in range(2))
    assert reason("gopher", row(f"assistant: {varied}"), minimum_words=20) == ""
    assert reason("repetition", row("assistant: " + "the same again and again. " * 20)) == "repeated_ngrams"
    assert reason("repetition", row("assistant: " + "one two three four\n" * 20)) == "repeated_lines"
    assert reason("gopher", row("assistant: " + "#a b " * 40)) == "odd_word_length"
    assert reason("gopher", row("assistant: " + "12345 " * 60)) == "too_few_alphabetic_words"
    assert reason("c4", row("assistant: One. Two. Three.")) == ""
    assert reason("c4", row("assistant: One. { Two. Three.")) == "curly_bracket"
    assert reason("c4", row("assistant: One.")) == "too_few_sentences"
    assert reason("symbol_ratio", row("assistant: $$$ %%% ok")) == "too_many_symbols"


def test_words_and_patterns(tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("# a comment\nDarn\nson of a gun\n", encoding="utf-8")
    assert reason("words_list", row("user: oh, DARN!"), file=str(words)) == "listed_word"
    assert reason("words_list", row("user: darned socks"), file=str(words)) == ""
    assert text_of("words_list", "a son-of a gun", file=str(words), action="mask") == "a ***"
    assert reason("regex", GOOD, pattern="book") == "pattern_found"
    assert reason("regex", GOOD, pattern="zebra", action="keep") == "pattern_missing"
    assert text_of("regex", "a1b", pattern=r"(\d)", action="replace", replacement=r"<\1>") == "a<1>b"
    exploding = row("user: " + "a" * 40 + "!")
    assert reason("regex", exploding, pattern=r"^(a|a?)+$", timeout=0.05) in ("pattern_timeout", "")


def test_the_scrub_reaches_other_columns_and_leaves_their_numbers() -> None:
    found = bound("scrub_personal_data").apply(row("user: x", more='{"by":"a@b.org","n":4155552671}'))
    assert isinstance(found, Row)
    assert json.loads(found.more) == {"by": "<EMAIL>", "n": 4155552671}


def test_a_custom_function_is_called_and_its_errors_cost_one_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    helper = tmp_path / "my_helper_one.py"
    helper.write_text("def limit(): return 1\n")
    (tmp_path / "my_step_one.py").write_text(
        "from my_helper_one import limit\ndef check(row, turns=0): return 1/turns and len(row.messages) > limit()\n"
    )
    first = bound("custom", function="my_step_one:check", turns=2)
    assert first.apply(GOOD) is GOOD
    assert reason("custom", GOOD, function="my_step_one:check") == "step_failed"
    helper.write_text("def limit(): return 9\n")
    second = bound("custom", function="my_step_one:check", turns=2)
    assert second.code != first.code
    found = second.apply(GOOD)
    assert isinstance(found, Drop)
    assert found.reason == "custom"
    problems: list[str] = []
    make_steps(
        [{"custom": {"function": "my_step_one:check", "turn": 1}}, {"custom": {"function": "nowhere:f"}}], problems
    )
    assert len(problems) == 2


def test_every_reason_is_documented_and_listed() -> None:
    for step in describe():
        module = importlib.import_module(STEPS[step.name][0].partition(":")[0])
        assert set(step.reasons) <= set(module.REASONS)
        assert all(parameter.text for parameter in step.parameters), step.name


def test_the_page_of_steps_is_up_to_date() -> None:
    assert (ROOT / "docs" / "steps.md").read_text(encoding="utf-8") == stepdocs.reference()
