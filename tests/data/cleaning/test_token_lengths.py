"""The tokens step beside a count by hand, with a tokenizer that is made here."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from luthier.data.cleaning.dialogue import tokens
from luthier.data.cleaning.stepkit import FilePath
from luthier.data.steps import make_steps
from luthier.schema import Drop, Message, Part, Provenance, Row, Target

WORDS = "[UNK] [BOS] [PAD] one two three four".split()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> FilePath:
    """A token per word; the file asks for a mark at the beginning, for padding and for truncation."""
    made = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(single="[BOS] $A", special_tokens=[("[BOS]", 1)])
    made.enable_padding(length=7, pad_id=2, pad_token="[PAD]")
    made.enable_truncation(5)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made.save(str(path))
    return FilePath(str(path))


def row(user: str, assistant: str = "") -> Row:
    turns = (Message("user", (Part("text", user),)), Message("assistant", (Part("text", assistant),)))
    return Row("", turns, Target(), "", "", Provenance("chat", "f#1"))


@settings(deadline=None, max_examples=100)
@given(st.lists(st.sampled_from(WORDS[3:]), max_size=12), st.lists(st.sampled_from(WORDS[3:]), max_size=12))
def test_every_token_is_counted_and_marks_padding_and_cuts_are_not(
    tokenizer: FilePath, user: list[str], assistant: list[str]
) -> None:
    item = row(" ".join(user), " ".join(assistant))
    for turns, count in (("all", len(user + assistant)), ("user", len(user)), ("assistant", len(assistant))):
        assert tokens(tokenizer, minimum=count, maximum=count, turns=turns)(item) is item  # type: ignore[arg-type]
        few = tokens(tokenizer, minimum=count + 1, turns=turns)(item)  # type: ignore[arg-type]
        assert isinstance(few, Drop)
        assert (few.reason, few.detail) == ("too_few_tokens", f"{count} tokens, at least {count + 1} are asked for")
        if count > 1:
            many = tokens(tokenizer, maximum=count - 1, turns=turns)(item)  # type: ignore[arg-type]
            assert isinstance(many, Drop)
            assert many.reason == "too_many_tokens"


def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path, tokenizer: FilePath) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text("{}")
    problems: list[str] = []
    steps = [
        {"tokens": {"tokenizer": str(broken)}},
        {"tokens": {"tokenizer": str(tmp_path / "gone.json")}},
        {"tokens": {"tokenizer": str(tokenizer), "minimum": 5, "maximum": 4}},
        {"tokens": {"maximum": 4}},
    ]
    assert make_steps(steps, problems) == []
    assert f"data.steps[0].tokens.tokenizer: {broken} is no tokenizer.json" in "\n".join(problems)
    assert f"data.steps[1].tokens.tokenizer: there is no file {tmp_path / 'gone.json'}" in problems
    assert "data.steps[2].tokens.maximum: the most (4) is below the fewest (5)" in problems
    assert "data.steps[3].tokens.tokenizer: must be given" in problems


def test_another_tokenizer_makes_another_key(tokenizer: FilePath, tmp_path: Path) -> None:
    other = tmp_path / "tokenizer.json"
    other.write_text(Path(tokenizer).read_text().replace("four", "five"))
    problems: list[str] = []
    first, second = make_steps([{"tokens": {"tokenizer": str(path)}} for path in (tokenizer, other)], problems)
    assert problems == []
    assert first.code != second.code
