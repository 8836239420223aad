"""Long texts become passages: nothing is lost, nothing is too long, and a document stays on one side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.data.building.build import build
from luthier.data.building.lookup import why
from luthier.data.shapes.passages import CHARACTERS, cut, passages
from luthier.recipe_data import Source
from luthier.schema import NO_TARGET, Draft, Message, Part, Provenance, Row
from support.tables import closes, request, rows_of

PIECES = st.sampled_from(
    ["word ", "a", ". ", "? Then", "\n", "\n\n", " \n \n", "。", "「河」", "  ", "é", "longword" * 9]
)
TEXTS = st.lists(PIECES, max_size=60).map("".join) | st.text(max_size=120)


def draft_of(text: str, group: str = "") -> Draft:
    message = Message("assistant", (Part("text", text),))
    return Draft(Row("", (message,), NO_TARGET, group, "train", Provenance("lore", "a.txt#3", "CC-BY-SA"), '{"n":1}'))


@given(TEXTS, st.integers(1, 12))
def test_nothing_is_lost_and_nothing_is_too_long(text, most):
    pieces = cut(text, most)
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert all(piece and piece == piece.strip() for piece in pieces)
    assert all(len(piece.split()) <= most and len(piece) <= most * CHARACTERS for piece in pieces)


@given(TEXTS, st.integers(1, 12))
def test_pieces_are_stretches_of_the_text_in_their_order(text, most):
    at = 0
    for piece in cut(text, most):
        at = text.index(piece, at) + len(piece)


def test_paragraphs_are_kept_together_then_sentences_then_words():
    text = "One two.\n\nThree four. Five six.\n\nSeven."
    assert cut(text, 6) == ["One two.\n\nThree four. Five six.", "Seven."]
    assert cut(text, 4) == ["One two.", "Three four. Five six.", "Seven."]
    assert cut(text, 2) == ["One two.", "Three four.", "Five six.", "Seven."]
    assert cut("one two three four five", 2) == ["one two", "three four", "five"]
    assert cut("He met approx. two men. He left.", 5) == ["He met approx. two men.", "He left."]


def test_a_script_without_spaces_is_cut_at_its_own_full_stops():
    assert cut("川は北に発する。河口は広い。", 1) == ["川は北に発する。", "河口は広い。"]


def test_passages_carry_what_the_record_carried():
    first, second = passages(draft_of("One two. Three four."), 2)
    assert [one.row.messages[0].text for one in (first, second)] == ["One two.", "Three four."]
    assert first.row.group == second.row.group != ""
    assert [one.row.provenance.origin for one in (first, second)] == ["a.txt#3 passage 1", "a.txt#3 passage 2"]
    assert (first.row.more, first.row.provenance.license) == ('{"n":1}', "CC-BY-SA")
    assert {one.row.group for one in passages(draft_of("One two. Three four.", "page 7"), 2)} == {"page 7"}


def test_what_is_short_or_no_text_stays_as_it_is():
    for draft, most in ((draft_of("One two."), 2), (draft_of("One two. Three."), 0)):
        assert passages(draft, most) == [draft]
    asked = Message("user", (Part("text", "Who? " * 9),))
    chat = Draft(Row("", (asked, *draft_of("x " * 9).row.messages), NO_TARGET, "", "train", Provenance("a", "b")))
    assert passages(chat, 2) == [chat]


@pytest.mark.parametrize("kind", ["text", "auto"])
def test_the_ledger_of_a_cut_source_closes_and_documents_stay_on_one_side(tmp_path: Path, kind: str) -> None:
    pages = [{"text": " ".join(f"Page {n} says {m}." for m in range(30)), "page": n} for n in range(40)]
    (tmp_path / "lore.jsonl").write_text("\n".join(map(json.dumps, pages)) + "\nnot json\n", encoding="utf-8")
    lore = Source(name="lore", path=str(tmp_path / "lore.jsonl"), format=kind, passage_words=40)
    asked = request(lore, steps=[{"length": {"minimum_words": 3}}], validation_fraction=0.3)
    built = build(asked, tmp_path / "table")
    sums = closes(tmp_path / "table")["lore"]
    assert built.manifest["sources"]["lore"]["records"] == 41
    assert (sums["in"], sums["kept"], sums["dropped"]) == (121, 120, {"broken_line": 1})
    rows = [item.row for item in rows_of(tmp_path / "table")]
    sides: dict[str, set[str]] = {}
    for row in rows:
        sides.setdefault(json.loads(row.more)["page"], set()).add(row.split)
    assert len(sides) == 40
    assert all(len(side) == 1 for side in sides.values())
    assert {split for side in sides.values() for split in side} == {"train", "validation"}
    assert [way.outcome for way in why(tmp_path / "table", "lore.jsonl#2")] == ["kept"] * 3
