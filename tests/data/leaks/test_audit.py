"""Planted leaks are found with their kind, template siblings are not leaks, and nothing is lost on the way."""

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.data.building.rows import SCHEMA
from luthier.data.exams import read_exam, touched_items
from luthier.data.leaks.audit import AuditResult, AuditSettings, audit
from luthier.data.leaks.examtexts import exam_items
from luthier.data.leaks.overlaps import Likes, Wholes, grams, runs_index, shared_runs, words_of
from luthier.data.leaks.stretches import Text
from luthier.errors import DataError, SourceError
from luthier.files import sha256_file, write_json
from luthier.recipe_data import Source

WORDS = (
    "river copper window gentle orbit market lantern signal forest pepper candle harbor velvet engine meadow cotton "
    "silver planet garden thunder bridge kettle saddle marble ribbon island feather mirror basket hammer wagon tunnel"
).split()
TEMPLATES = (
    "At the school fair {name} sells {a} paper lanterns in the morning and {b} more in the afternoon, and each lantern "
    "costs the same small price. How many lanterns does {name} sell on that day of the fair?",
    "A train leaves the station at a speed of {a} kilometres an hour while a second train leaves the same station "
    "{b} minutes later on the parallel track. After what time does the second train catch up with the first one?",
    "In the village library {name} has put {a} books on the upper shelf and {b} books on the lower shelf. If the "
    "librarian then takes away half of the books from both shelves together, how many books are left for {name}?",
    "When the old lighthouse keeper asked {name} to count the ships that had passed since the storm, it was {a} "
    "ships from the north and {b} ships from the south, so what is the difference between the two numbers?",
)


def prose(seed: int, count: int) -> str:
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS) + rng.choice(["", "s", "ed", "ly"]) for _ in range(count))


def chat(question: str, answer: str = "I see.", **more: str) -> dict[str, Any]:
    turns = [("user", question), ("assistant", answer)]
    messages = [{"content": [{"text": text, "type": "text"}], "role": role} for role, text in turns]
    return {"messages": messages, **more}


def table(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """A table of such rows, as `luthier data build` lays it down."""
    records = []
    for number, row in enumerate(rows):
        filled = {
            "id": f"row{number}",
            "target": "{}",
            "group": f"row{number}",
            "split": "train",
            "source": "chats",
            "origin": f"chats.jsonl#{number + 1}",
            "parents": [],
            "seconds": 0.0,
            "aux": "{}",
            "more": "",
            "weight": 1.0,
            "repeats": 1,
            **row,
        }
        records.append({**filled, "messages": json.dumps(row["messages"])})
    folder.mkdir(parents=True, exist_ok=True)
    shard = folder / "rows-00000.parquet"
    pq.write_table(pa.Table.from_pylist(records, schema=SCHEMA), shard)
    sealed = {shard.name: {"sha256": sha256_file(shard), "size": shard.stat().st_size}}
    write_json(folder / "manifest.json", {"files": sealed, "rows": len(records)})
    return folder


def exam(path: Path, items: list[Any]) -> Path:
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    return path


def kinds(result: AuditResult) -> dict[str, dict[str, int]]:
    return result.touched


def test_planted_leaks_are_found_with_their_kind(tmp_path: Path) -> None:
    items = [
        {"id": f"q{n}", "question": prose(n, 40), "options": [prose(100 + n, 4), prose(200 + n, 4)], "answer": 0}
        for n in range(6)
    ]
    items[5]["speaker"] = "Anna"
    copied = prose(1, 40).split()
    copied[20] = "changed"
    run = " ".join(prose(2, 40).split()[10:26])
    rows = [
        chat(prose(50, 60)),
        chat(f"Please answer. {prose(0, 40).upper()}!"),
        chat(" ".join(copied)),
        chat(f"{prose(60, 30)} {run} {prose(61, 30)}"),
        chat(f"{prose(62, 30)} {' '.join(prose(3, 40).split()[:12])} {prose(63, 30)}"),
        chat(prose(64, 30), group="Anna"),
    ]
    result = audit(table(tmp_path / "t", rows), exam(tmp_path / "exam.jsonl", items))
    assert kinds(result) == {"q0": {"exact": 1}, "q1": {"near": 1}, "q2": {"ngram": 1}, "q5": {"group": 1}}
    assert [(hit.kind, hit.row) for hit in result.hits] == [
        ("exact", "row1"),
        ("near", "row2"),
        ("ngram", "row3"),
        ("group", "row5"),
    ]
    assert result.hits[2].score == 16
    assert (result.rows, result.items, result.share) == (6, 6, pytest.approx(4 / 6))
    assert result.pairs == {"group": 1, "exact": 1, "near": 1, "ngram": 1, "media": 0}


def test_the_shared_words_of_both_texts_are_marked(tmp_path: Path) -> None:
    run = " ".join(prose(2, 40).split()[10:26])
    row = chat(f"{prose(60, 30)} {run.title()}. {prose(61, 30)}")
    found = audit(table(tmp_path / "t", [row]), exam(tmp_path / "e.jsonl", [{"id": 1, "question": prose(2, 40)}]))
    (hit,) = found.hits
    assert "".join(text for text, shared in hit.item_text if shared) == run
    assert "".join(text for text, shared in hit.row_text if shared) == run.title()
    assert "".join(text for text, _ in hit.item_text) == prose(2, 40)
    assert any(not shared and text.startswith("… ") for text, shared in hit.row_text)
    assert hit.source == "chats"
    assert hit.row_origin == "chats.jsonl#1"
    assert hit.item_origin == "e.jsonl#1 1"


NAMES = st.text("abcdefghijklmnopqrstuvwxyz", min_size=3, max_size=9).map(str.title)
SLOTS = st.fixed_dictionaries({"name": NAMES, "a": st.integers(2, 9999), "b": st.integers(2, 9999)})


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(SLOTS, SLOTS), min_size=len(TEMPLATES), max_size=len(TEMPLATES)))
def test_fillings_of_a_template_are_siblings_and_no_leaks(tmp_path: Path, fillings: list[Any]) -> None:
    pairs = [
        (template.format(**ours), template.format(**theirs))
        for template, (ours, theirs) in zip(TEMPLATES, fillings, strict=True)
        if ours["a"] != theirs["a"] and ours["b"] != theirs["b"]
    ]
    rows = [chat(theirs, "It is easy to see.") for _, theirs in pairs] or [chat("nothing at all")]
    asked = [{"question": ours, "options": ["yes", "no"]} for ours, _ in pairs] or [{"question": prose(1, 20)}]
    result = audit(table(tmp_path / "t", rows), exam(tmp_path / "e.jsonl", asked))
    assert result.hits == []
    assert result.sibling_pairs == len(pairs)
    # The same questions with their own names and numbers are leaks.
    copied = audit(table(tmp_path / "t", [chat(ours) for ours, _ in pairs] or rows), tmp_path / "e.jsonl")
    assert copied.pairs["exact"] == len(pairs)


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_is_known_by_its_spelled_numbers_weekdays_and_recurring_words(tmp_path: Path, template: str) -> None:
    ours = template.format(name="Tom", a="three", b="fifteen").replace("lanterns", "apples").replace("day", "Monday")
    theirs = template.format(name="Ann", a="seven", b="ninety").replace("lanterns", "pears").replace("day", "Friday")
    result = audit(table(tmp_path / "t", [chat(theirs)]), exam(tmp_path / "e.jsonl", [{"question": ours}]))
    assert (result.hits, result.sibling_pairs) == ([], 1)
    assert result.siblings[0].kind == "sibling"


def test_a_sentence_quoted_with_its_own_numbers_is_a_leak_though_the_rest_is_missing(tmp_path: Path) -> None:
    item = TEMPLATES[0].format(name="Tom", a=17, b=25)
    quoted = item.split(". ")[0]
    row = chat(f"Yesterday I read this somewhere: {quoted}, and then I went on to Paris with 3 friends.")
    result = audit(table(tmp_path / "t", [row]), exam(tmp_path / "e.jsonl", [{"id": "x", "question": item}]))
    assert kinds(result) == {"x": {"ngram": 1}}
    assert result.sibling_pairs == 0


def test_a_long_copy_stays_a_leak_when_one_of_its_numbers_is_written_otherwise(tmp_path: Path) -> None:
    passage = (
        "The Battle of Hastings was fought in 1066 between the Norman army of William and an English army under King "
        "Harold near the town of Battle in East Sussex, and it began the Norman conquest of England after Edward had "
        "died childless in January of that year, which had set off a struggle over the throne. About 7,000 men fought "
        "on the side of Harold while William had perhaps a few thousand more of them with horses and archers."
    )
    row = chat("Tell me about it.", passage.replace("7,000", "7000"))
    asked = [{"id": "b", "question": "did the normans win the battle of hastings", "passage": passage}]
    assert kinds(audit(table(tmp_path / "t", [row]), exam(tmp_path / "e.jsonl", asked))) == {"b": {"near": 1}}


def test_boilerplate_is_said_and_not_counted(tmp_path: Path) -> None:
    opening = "Read the following passage with care and then choose the one best answer to the question below."
    asked = [{"id": n, "question": f"{opening} {prose(n, 30)}"} for n in range(5)]
    rows = [chat(f"{opening} {prose(70, 50)}"), chat(f"{prose(71, 9)} {' '.join(prose(3, 30).split()[:14])} so")]
    result = audit(table(tmp_path / "t", rows), exam(tmp_path / "e.jsonl", asked))
    assert kinds(result) == {"3": {"ngram": 1}}
    assert result.boilerplate == 5
    assert result.boilerplate_samples[0].split()[0] in opening
    assert "5 13-grams are in too many items" in "\n".join(result.lines())
    # In three items and no more it counts.
    fewer = audit(tmp_path / "t", exam(tmp_path / "f.jsonl", asked[:3]))
    assert fewer.pairs["ngram"] == 3


def test_short_items_must_stand_whole_and_very_short_ones_be_a_turn(tmp_path: Path) -> None:
    asked = [
        {"id": "six", "question": "Why does copper turn green outside?"},
        {"id": "four", "question": "Who invented the kettle?"},
        {"id": "two", "question": "Why not?"},
    ]
    rows = [
        chat("My teacher asked: why does copper turn green outside? I did not know."),
        chat("She said who invented the kettle, and why not?"),
        chat("who invented the kettle"),
        chat("Why not?"),
        chat("Why does copper turn green in here?"),
    ]
    result = audit(table(tmp_path / "t", rows), exam(tmp_path / "e.jsonl", asked))
    assert {hit.item: hit.row for hit in result.hits} == {"six": "row0", "four": "row2"}
    assert kinds(result) == {"six": {"exact": 1}, "four": {"exact": 1}}
    assert result.too_short == 2


def test_hits_are_capped_and_counts_are_not(tmp_path: Path) -> None:
    rows = [chat(f"{n} times: {prose(1, 30)}", group="same") for n in range(9)]
    asked = [{"id": "a", "question": prose(1, 30), "group": "same"}]
    result = audit(table(tmp_path / "t", rows), exam(tmp_path / "e.jsonl", asked), AuditSettings(shown=2))
    assert kinds(result) == {"a": {"group": 9, "exact": 9}}
    assert [hit.kind for hit in result.hits] == ["group", "group", "exact", "exact"]


def test_a_run_that_many_rows_hold_is_counted_in_each(tmp_path: Path) -> None:
    run = " ".join(prose(1, 40).split()[:20])
    rows = [chat(f"{prose(100 + n, 5)} {run} {prose(200 + n, 5)}") for n in range(50)]
    result = audit(table(tmp_path / "t", rows), exam(tmp_path / "e.jsonl", [{"id": "a", "question": prose(1, 40)}]))
    assert kinds(result) == {"a": {"ngram": 50}}
    assert len(result.hits) == AuditSettings().shown


def test_a_table_is_held_against_a_table_and_a_split_against_a_split(tmp_path: Path) -> None:
    sound = f"sha256:{'ab' * 32}"
    heard = {"content": [{"text": "Grade this.", "type": "text"}, {"media": sound, "type": "audio"}], "role": "user"}
    rows = [
        chat(prose(1, 30)),
        {"messages": [heard], "group": "s1"},
        chat(prose(2, 30), group="q-0123456789abcdef"),
        chat(prose(3, 30), split="test"),
        chat(f"Once more: {prose(1, 30)}", split="test"),
        {"messages": [heard], "split": "test", "group": "s1"},
        chat(prose(4, 30), split="test", group="q-0123456789abcdef"),
    ]
    one = table(tmp_path / "t", rows)
    result = audit(one, one, AuditSettings(against_split="test"))
    assert kinds(result) == {"row4": {"near": 1}, "row5": {"group": 1, "media": 1}}
    assert (result.rows, result.items) == (3, 4)
    with pytest.raises(DataError, match="compared with itself"):
        audit(one, one)


def test_bytes_and_files_of_an_exam_are_its_media(tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(b"a picture")
    (tmp_path.parent / "secret.png").write_bytes(b"not yours")
    shown = {"content": [{"media": f"sha256:{hashlib.sha256(b'a picture').hexdigest()}", "type": "image"}]}
    one = table(tmp_path / "t", [{"messages": [{**shown, "role": "user"}]}])
    asked = [
        {"id": "a", "question": "", "image": "cat.png"},
        {"id": "b", "question": "What?", "image": "../secret.png"},
    ]
    result = audit(one, exam(tmp_path / "e.jsonl", asked))
    assert kinds(result) == {"a": {"media": 1}}
    assert exam_items(tmp_path / "e.jsonl").items[1].media == ()


SHAPES: list[tuple[dict[str, Any], str, tuple[str, ...]]] = [
    ({"question": "Q here", "options": ["x", "y"], "answer": 1}, "Q here", ("x", "y")),
    ({"question": "Q here", "options": {"A": "x", "B": "y"}, "answer": "A"}, "Q here", ("x", "y")),
    ({"question": "Q here", "A": "x", "B": "y", "answer": "B"}, "Q here", ("x", "y")),
    ({"goal": "G here", "sol1": "x", "sol2": "y", "label": 0}, "G here", ("x", "y")),
    ({"sentence": "S _ here", "option1": "x", "option2": "y", "answer": "1"}, "S _ here", ("x", "y")),
    ({"premise": "P", "choice1": "x", "choice2": "y", "question": "cause", "label": 0}, "P", ("x", "y")),
    ({"question": "is it", "passage": "It is.", "answer": True}, "is it", ()),
    ({"question": "Q", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "A"}, "Q", ("x", "y")),
    ({"question": {"stem": "Q", "choices": [{"text": "x", "label": "A"}]}, "answerKey": "A"}, "Q", ("x",)),
    ({"question": "Q", "choices": ["x", "y", "z", 4], "answer": 3, "subject": "s"}, "Q", ("x", "y", "z", "4")),
    ({"question": "Q", "choices": '["x", "y"]', "answer": 3}, "Q", ("x", "y")),
    ({"ctx": "C", "endings": ["x", "y"], "label": "0"}, "C", ("x", "y")),
]


@pytest.mark.parametrize(("record", "question", "options"), SHAPES)
def test_every_shape_of_an_exam_is_read(
    tmp_path: Path, record: dict[str, Any], question: str, options: tuple[str, ...]
) -> None:
    (item,) = exam_items(exam(tmp_path / "e.jsonl", [record])).items
    assert (item.question, item.options) == (question, options)
    assert item.text.endswith("\n".join((question, *options)))
    (tmp_path / "e.json").write_text(json.dumps([record]))
    assert exam_items(tmp_path / "e.json").items[0].text == item.text


def test_unreadable_items_are_counted_with_their_reasons(tmp_path: Path) -> None:
    path = exam(tmp_path / "e.jsonl", [{"question": prose(1, 20)}, {"questoin": "typo"}, {"question": "?!"}])
    path.write_bytes(path.read_bytes() + b'{"question": \n{"question": "cut')
    found = exam_items(path)
    assert len(found.items) + len(found.unreadable) == 5
    result = audit(table(tmp_path / "t", [chat("hello")]), path)
    assert result.unreadable["no_question"] == 1
    assert result.unreadable["no_text"] == 1
    assert sum(result.unreadable.values()) == 4
    assert result.to_json()["unreadable"] == result.unreadable
    with pytest.raises(DataError, match="none of its items can be read"):
        audit(tmp_path / "t", exam(tmp_path / "none.jsonl", [{"question": "?!"}]))
    with pytest.raises(DataError, match="no format fits the columns a"):
        audit(tmp_path / "t", exam(tmp_path / "none.jsonl", [{"a": 1}]))
    with pytest.raises(SourceError, match="is not there"):
        audit(tmp_path / "t", tmp_path / "nowhere.json")


def test_chat_rows_can_stand_for_an_exam(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": prose(1, 30)}, {"from": "gpt", "value": prose(2, 30)}]
    path = exam(tmp_path / "e.jsonl", [{"id": "c", "conversations": turns}])
    result = audit(table(tmp_path / "t", [chat("Hi.", f"Well: {prose(2, 30)} is that.")]), path)
    assert result.read_as == "sharegpt"
    assert kinds(result) == {"c": {"ngram": 1}}


def test_items_of_one_id_are_told_apart(tmp_path: Path) -> None:
    path = exam(tmp_path / "e.jsonl", [{"id": 7, "question": "a b c"}, {"id": 7, "question": "d e f"}])
    assert [item.id for item in exam_items(path).items] == ["7 (e.jsonl#1 7)", "7 (e.jsonl#2 7)"]


def test_touched_items_have_the_ids_of_the_exam_that_is_sat(tmp_path: Path) -> None:
    asked = [{"question": prose(n, 40), "options": ["A: x", "B: y"], "answer": "AB"[n % 2]} for n in range(6)]
    path = exam(tmp_path / "e.jsonl", asked)
    one = table(tmp_path / "t", [chat(prose(50, 60)), chat(f"Well: {prose(3, 40)}")])
    sat = read_exam(path, "e")
    third = sat.items[3]
    assert third.options == ("x", "y")
    assert touched_items(one, path, sat) == touched_items(one, Source(name="e", path=str(path)), sat) == [third.id]


def test_an_item_is_touched_though_the_audit_left_out_the_other_of_its_id(tmp_path: Path) -> None:
    asked = [{"id": n, "question": prose(n, 40), "options": ["x", "y"], "answer": "AB"[n % 2]} for n in range(40)]
    path = exam(tmp_path / "e.jsonl", [*asked, {**asked[3], "question": "", "options": ["!", "?"]}])
    one = table(tmp_path / "t", [chat(f"Well: {prose(3, 40)}")])
    sat = read_exam(path, "e")
    assert [item.id for item in sat.items if item.question == prose(3, 40)] == touched_items(one, path, sat)


def test_a_sentence_with_a_gap_is_found_as_it_reads_filled(tmp_path: Path) -> None:
    asked = [
        {"id": "w", "sentence": "The trophy does not fit because the _ is big.", "option1": "case", "option2": "cup"}
    ]
    row = chat("He said the trophy does not fit because the cup is big. Right?")
    assert kinds(audit(table(tmp_path / "t", [row]), exam(tmp_path / "e.jsonl", asked))) == {"w": {"exact": 1}}


VOCABULARY = st.sampled_from("a b c d e f".split())
TEXTS = st.lists(st.lists(VOCABULARY, max_size=24).map(" ".join), min_size=1, max_size=4)


@settings(max_examples=150, deadline=None)
@given(TEXTS, TEXTS, st.integers(5, 8))
def test_runs_and_wholes_are_those_of_a_search_by_hand(ours: list[str], theirs: list[str], size: int) -> None:
    def best(row: list[str], text: list[str]) -> int:
        return max(
            (n for i in range(len(row)) for j in range(len(text)) for n in range(1, 25)
             if row[i : i + n] == text[j : j + n] and i + n <= len(row) and j + n <= len(text)),
            default=0,
        )  # fmt: skip

    items, rows = words_of(ours), words_of(theirs)
    found = {
        (run.row, run.text): run.words for run in shared_runs(runs_index(items, size, 99), rows.hashes, rows.bounds)
    }
    expected = {
        (r, t): length
        for r, row in enumerate(theirs)
        for t, text in enumerate(ours)
        if (length := best(row.split(), text.split())) >= size
    }
    assert found == expected
    wholes = {(run.row, run.text) for run in Wholes(items).find(rows.hashes, rows.bounds, rows.bounds)}
    assert {(r, t) for r, t in wholes if len(ours[t].split()) >= 5} == {
        (r, t)
        for r, row in enumerate(theirs)
        for t, text in enumerate(ours)
        if len(text.split()) >= 5 and f" {text} " in f" {row} "
    }


@settings(max_examples=150, deadline=None)
@given(TEXTS, TEXTS, st.sampled_from([0.3, 0.5, 0.8, 1.0]))
def test_near_copies_are_those_of_exact_sets(ours: list[str], theirs: list[str], threshold: float) -> None:
    def shingles(text: str) -> set[tuple[str, ...]]:
        words = text.split()
        return {tuple(words[i : i + 3]) for i in range(len(words) - 2)}

    items, rows = words_of(ours), words_of(theirs)
    found = {
        (near.row, near.text): near.jaccard
        for near in Likes(items, threshold).find(rows.hashes, rows.bounds, rows.bounds)
    }
    expected = {}
    for r, row in enumerate(theirs):
        for t, text in enumerate(ours):
            a, b = shingles(row), shingles(text)
            likeness = len(a & b) / len(a | b) if a | b else 0.0
            bounded = (len(row.split()) - 2) * threshold <= Likes.REPEATED * len(b)
            if len(b) >= Likes.LEAST and likeness >= threshold and bounded:
                expected[r, t] = pytest.approx(likeness)
    assert found == expected


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40))
def test_the_words_that_are_marked_are_the_words_that_are_hashed(text: str) -> None:
    one = Text(text)
    assert len(one.spans) == len(one.lower) == len(words_of([text]).hashes)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 13, 16])
def test_equal_runs_have_equal_hashes_and_others_have_not(size: int) -> None:
    words = words_of([prose(5, 200) + " " + prose(6, 50) + " " + prose(5, 200)])
    listed = words.hashes.tolist()
    made = grams(words.hashes, size).tolist()
    assert len(made) == len(listed) - size + 1
    seen: dict[int, tuple[int, ...]] = {}
    for at, one in enumerate(made):
        assert seen.setdefault(one, tuple(listed[at : at + size])) == tuple(listed[at : at + size])
    assert len(seen) == len({tuple(listed[at : at + size]) for at in range(len(made))})
