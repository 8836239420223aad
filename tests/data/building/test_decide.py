"""Which rows stand for which, and where the others go: duplicates, splits, groups and classes in a built table."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from PIL import Image

from luthier.data.building import decide
from luthier.data.building.build import build
from luthier.data.building.layout import label_of
from luthier.data.building.request import TableRequest
from luthier.data.table import iter_rows
from luthier.errors import DataError
from luthier.recipe import Scale
from luthier.recipe_data import Balance, Duplicates, Source
from support.tables import album, chat, chats, closes, events, jsonl, picture, recording, request, rows_of, word


def test_added_rows_never_move_old_ones_between_splits(tmp_path: Path) -> None:
    settings = {"validation_fraction": 0.2, "test_fraction": 0.1}
    few = jsonl(tmp_path / "a.jsonl", chats(300))
    build(request(few, **settings), tmp_path / "one")
    before = {row.row.id: row.row.split for row in iter_rows(tmp_path / "one")}
    many = jsonl(tmp_path / "a.jsonl", [*chats(100, 5000), *chats(300), *chats(100, 6000)])
    build(request(many, jsonl(tmp_path / "b.jsonl", chats(50, 9000)), **settings), tmp_path / "two")
    after = {row.row.id: row.row.split for row in iter_rows(tmp_path / "two")}
    assert {key: after[key] for key in before} == before
    counts = {split: list(before.values()).count(split) for split in ("train", "validation", "test")}
    assert 180 < counts["train"] < 240
    assert 35 < counts["validation"] < 90
    assert 12 < counts["test"] < 55


def test_a_question_is_never_on_two_sides_whatever_its_numbers(tmp_path: Path) -> None:
    records = [chat(f"{word(i)} has {n} apples", f"{word(i)} {n}") for i in range(60) for n in (3, 17, 2900)]
    build(request(jsonl(tmp_path / "a.jsonl", records), validation_fraction=0.3, test_fraction=0.2), tmp_path / "table")
    sides: dict[str, set[str]] = {}
    for row in iter_rows(tmp_path / "table"):
        sides.setdefault(row.row.text[:4], set()).add(row.row.split)
    assert len(sides) == 60
    assert all(len(found) == 1 for found in sides.values())
    assert set().union(*sides.values()) == {"train", "validation", "test"}


def test_a_mapped_group_is_never_on_two_sides(tmp_path: Path) -> None:
    records = [chat(word(i), word(i + 999), page=i % 20) for i in range(200)]
    source = jsonl(tmp_path / "a.jsonl", records, columns={"group": "page"})
    build(request(source, validation_fraction=0.4), tmp_path / "table")
    sides: dict[str, set[str]] = {}
    for row in iter_rows(tmp_path / "table"):
        sides.setdefault(row.row.group, set()).add(row.row.split)
    assert len(sides) == 20
    assert all(len(found) == 1 for found in sides.values())


def test_training_rows_that_a_held_out_source_has_are_dropped_as_in_test(tmp_path: Path) -> None:
    train = jsonl(tmp_path / "train.jsonl", chats(10))
    held = jsonl(tmp_path / "held.jsonl", [*chats(3, 7), chat("WHAT is  aaaa", "aaaa IS " + word(7000)), *chats(2, 90)])
    build(request(train, test=[held]), tmp_path / "table")
    sums = closes(tmp_path / "table")
    assert sums["train"] == {"source": "train", "in": 10, "kept": 6, "merged": 0, "dropped": {"in_test": 4}}
    assert (sums["held"]["kept"], sums["held"]["merged"]) == (6, 0)
    gone = [line for line in events(tmp_path / "table") if line.get("reason") == "in_test"]
    assert {line["step"] for line in gone} == {"duplicates"}
    ids = {row.row.id for row in iter_rows(tmp_path / "table", {"split": "test"})}
    assert {line["into"] for line in gone} <= ids


def test_a_training_row_that_asks_a_held_out_question_is_left_out_and_counted(tmp_path: Path) -> None:
    train = jsonl(tmp_path / "train.jsonl", [*chats(5), chat("What is WORTH 12 coins?", "A new answer to it.")])
    held = jsonl(tmp_path / "held.jsonl", [chat("what is worth 7 coins?", "Something else is."), *chats(2, 50)])
    build(request(train, test=[held]), tmp_path / "table")
    sums = closes(tmp_path / "table")
    assert sums["train"]["dropped"] == {"group_in_test": 1}
    assert sums["held"]["kept"] == 3
    [gone] = [line for line in events(tmp_path / "table") if line.get("reason") == "group_in_test"]
    assert (gone["origin"], gone["step"]) == ("train.jsonl#6", "split")
    groups = {row.row.group for row in iter_rows(tmp_path / "table", {"split": "train"})}
    assert groups.isdisjoint(row.row.group for row in iter_rows(tmp_path / "table", {"split": "test"}))


def graded(path: Path, grades: list[float], **more: Any) -> Source:
    import pyarrow as pa
    import pyarrow.parquet as pq

    records = [
        {"id": f"u{i}", "speaker": f"s{i}", "prompt": "p", "grade": grade, "audio": {"bytes": recording(i + 1)}, **more}
        for i, grade in enumerate(grades)
    ]
    pq.write_table(pa.Table.from_pylist(records), path)
    return Source(name=path.stem, path=str(path))


@pytest.mark.parametrize("method", ["down", "up", "weights"])
def test_the_classes_of_training_rows_are_balanced(tmp_path: Path, method: str) -> None:
    grades = [5.0] * 9 + [2.0] * 3
    train, held = graded(tmp_path / "train.parquet", grades), graded(tmp_path / "held.parquet", [5.0] * 4 + [2.0])
    asked = TableRequest(((train, "train"), (held, "test")), balance=Balance(method), scale=Scale(), graded=True)
    built = build(asked, tmp_path / "table")
    rows = rows_of(tmp_path / "table")
    trained = [row for row in rows if row.row.split == "train"]
    force = {True: 0.0, False: 0.0}
    for row in trained:
        force[row.row.target.grade == 5.0] += row.weight * row.repeats
    assert force[True] == pytest.approx(force[False])
    sums = closes(tmp_path / "table")
    gone = {"balanced_away": 6} if method == "down" else {}
    assert sums["train"]["dropped"] == gone
    assert sums["held"]["kept"] == 5
    assert all((row.weight, row.repeats) == (1.0, 1) for row in rows if row.row.split == "test")
    assert built.manifest["classes"]["test"] == {"fail": 1, "pass": 4}
    if method == "up":
        assert sum(row.repeats for row in trained) == 18
    if method == "weights":
        assert sum(row.weight for row in trained) == pytest.approx(12)


@pytest.mark.parametrize(
    ("target", "by", "expected"),
    [
        ("{}", "verdict", ""),
        ('{"grade":4.0}', "verdict", "pass"),
        ('{"grade":3.99}', "verdict", "fail"),
        ('{"grade":3.5}', "grade", "3.5"),
        ('{"choice":"B"}', "choice", "B"),
        ('{"text":"B"}', "verdict", ""),
    ],
)
def test_the_class_of_a_row_follows_from_its_target(target: str, by: str, expected: str) -> None:
    assert label_of(target, by, Scale()) == expected


@pytest.mark.parametrize(("scope", "merged"), [("table", 5), ("source", 2)])
def test_duplicates_are_looked_for_in_the_table_or_in_each_source(tmp_path: Path, scope: str, merged: int) -> None:
    a = jsonl(tmp_path / "a.jsonl", [*chats(5), *chats(2)])
    b = jsonl(tmp_path / "b.jsonl", [*chats(3, 2), *chats(3, 40)])
    build(request(a, b, duplicates=Duplicates(scope=scope)), tmp_path / "table")
    assert sum(found["merged"] for found in closes(tmp_path / "table").values()) == merged


LONG = (
    "rivers carry sand and stone down from the hills and leave them where the water slows, "
    "so that over many years a plain is built which is flat, fertile and often flooded in spring"
)


def test_near_copies_are_merged_into_the_first_and_siblings_are_kept(tmp_path: Path) -> None:
    records = [
        chat("How are plains made?", LONG),
        chat("How are plains made?", LONG.replace("stone", "gravel")),
        chat("Who lives there?", f"{LONG.replace('hills', 'Alps')}. Anna has 12 sheep."),
        chat("Who lives there?", f"{LONG.replace('hills', 'Alps')}. Berta has 19 sheep."),
    ]
    asked = request(jsonl(tmp_path / "a.jsonl", records), duplicates=Duplicates(near=0.7))
    built = build(asked, tmp_path / "table")
    assert closes(tmp_path / "table")["a"]["merged"] == 1
    (line,) = events(tmp_path / "table")
    first = next(row for row in iter_rows(tmp_path / "table") if row.row.messages[-1].text == LONG)
    assert (line["origin"], line["into"], line["how"]) == ("a.jsonl#2", first.row.id, "near")

    def shingles(text: str) -> set[tuple[str, ...]]:
        words = text.lower().replace(",", "").replace("?", "").split()
        return {tuple(words[i : i + 3]) for i in range(len(words) - 2)}

    one, two = (shingles("How are plains made? " + record["messages"][1]["content"]) for record in records[:2])
    assert line["similarity"] == pytest.approx(len(one & two) / len(one | two), abs=0.01)
    assert built.manifest["duplicates"]["found"]["siblings"] >= 1


def test_what_was_merged_into_a_merged_row_goes_where_that_row_went(tmp_path: Path) -> None:
    near = LONG.replace("stone", "gravel")
    records = [chat("How?", LONG), chat("How?", near), chat("HOW?", near.upper())]
    asked = request(jsonl(tmp_path / "a.jsonl", records), duplicates=Duplicates(near=0.7))
    build(asked, tmp_path / "table")
    (row,) = rows_of(tmp_path / "table")
    assert [(line["how"], line["into"]) for line in events(tmp_path / "table")] == [
        ("near", row.row.id),
        ("exact", row.row.id),
    ]


def test_the_same_picture_in_another_size_is_merged_only_with_the_same_caption(tmp_path: Path) -> None:
    one = picture((1, 2, 3), 96)
    small = io.BytesIO()
    Image.open(io.BytesIO(one)).resize((48, 48), Image.Resampling.LANCZOS).save(small, "PNG")
    source = album(
        tmp_path / "album",
        {
            "a.png": (one, "a dune"),
            "b.png": (small.getvalue(), "a dune"),
            "c.png": (small.getvalue(), "a beach"),
            "d.png": (picture((90, 9, 1), 96), "a dune"),
        },
    )
    build(request(source, duplicates=Duplicates(images=4)), tmp_path / "table")
    lines = events(tmp_path / "table")
    assert [(line["origin"].split("#")[1].split()[0], line["how"]) for line in lines] == [("2", "image")]
    assert closes(tmp_path / "table")["album"]["kept"] == 3


def test_the_same_sound_as_wav_and_flac_is_merged(tmp_path: Path) -> None:
    folder = tmp_path / "sounds"
    folder.mkdir()
    for name, data in (
        ("a.wav", recording(1, "WAV", 3.0)),
        ("b.flac", recording(1, "FLAC", 3.0)),
        ("c.flac", recording(2, "FLAC", 3.0)),
        ("d.wav", recording(1, "WAV", 3.0)),
    ):
        (folder / name).write_bytes(data)
    (folder / "metadata.csv").write_text("file_name,text\na.wav,hi\nb.flac,hi\nc.flac,hi\nd.wav,other\n")
    asked = request(Source(name="sounds", path=str(folder)), duplicates=Duplicates(audio=0.2))
    build(asked, tmp_path / "table")
    (line,) = events(tmp_path / "table")
    assert (line["origin"].split()[0], line["how"]) == ("metadata.csv#2", "audio")
    assert closes(tmp_path / "table")["sounds"]["kept"] == 3


def test_texts_of_one_meaning_are_merged(tmp_path: Path) -> None:
    model2vec = pytest.importorskip("model2vec")
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["[UNK]", "big", "large", "car", "automobile", "tree", "slow", "river"]
    vectors = np.random.default_rng(0).normal(size=(len(words), 16)).astype(np.float32)
    vectors[0], vectors[2], vectors[4] = 0, vectors[1], vectors[3]
    tokenizer = Tokenizer(models.WordLevel({name: n for n, name in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    model2vec.StaticModel(vectors, tokenizer, config={}).save_pretrained(str(tmp_path / "model"))
    records = [chat("big car", "slow"), chat("large automobile", "slow"), chat("tree", "river")]
    asked = request(
        jsonl(tmp_path / "a.jsonl", records),
        duplicates=Duplicates(semantic=0.95, semantic_model=str(tmp_path / "model")),
    )
    build(asked, tmp_path / "table")
    assert [(line["origin"], line["how"]) for line in events(tmp_path / "table")] == [("a.jsonl#2", "semantic")]


def test_decisions_are_kept_and_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = request(jsonl(tmp_path / "a.jsonl", [*chats(5), *chats(3)]), duplicates=Duplicates(near=0.8))
    build(asked, tmp_path / "one", tmp_path / "cache")
    monkeypatch.setattr(decide, "_look", lambda *_: pytest.fail("looked again"))
    build(asked, tmp_path / "two", tmp_path / "cache")
    assert (tmp_path / "one" / "ledger.jsonl").read_bytes() == (tmp_path / "two" / "ledger.jsonl").read_bytes()
    manifests = [orjson.loads((tmp_path / name / "manifest.json").read_bytes()) for name in ("one", "two")]
    assert manifests[0] == manifests[1]


def test_a_source_of_which_nothing_is_left_is_named(tmp_path: Path) -> None:
    a, b = jsonl(tmp_path / "a.jsonl", chats(3)), jsonl(tmp_path / "b.jsonl", chats(3))
    with pytest.raises(DataError, match="source b: no row of it is left: 3 merged"):
        build(request(a, b), tmp_path / "table")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["a.jsonl", "b.jsonl"]


def test_rows_that_share_a_long_passage_and_ask_other_things_are_all_kept(tmp_path: Path) -> None:
    passage = " ".join(f"{word(i)} stands by the {word(i + 900)}" for i in range(60))
    asked = [
        chat(f"{passage} Is the keeper lonely?", "Yes, very much so."),
        chat(f"{passage} Is the keeper lonely?", "No, not at all."),
        chat(f"{passage} Where does the sister live?", "She lives in the harbour town."),
        chat(f"{passage} Where does the sister live?", "She lives in that harbour town."),
    ]
    built = build(request(jsonl(tmp_path / "a.jsonl", asked), duplicates=Duplicates(near=0.8)), tmp_path / "table")
    assert (built.ledger.counts["a"].kept, built.ledger.counts["a"].merged) == (3, 1)
    assert built.manifest["duplicates"]["found"]["conflicts"] >= 1
    assert any("differ in a turn" in note for note in built.manifest["duplicates"]["found"]["notes"])


def test_questions_about_one_picture_stay_on_one_side(tmp_path: Path) -> None:
    (tmp_path / "pic.png").write_bytes(picture((200, 30, 30)))
    asked = [
        {
            "messages": [
                {"role": "user", "content": [{"type": "image", "image": "pic.png"}, {"type": "text", "text": text}]},
                {"role": "assistant", "content": "An answer."},
            ]
        }
        for text in ("What is it?", "Which colour?", "How large?", "Who made it?")
    ]
    train, held = jsonl(tmp_path / "a.jsonl", asked[:3]), jsonl(tmp_path / "b.jsonl", asked[3:])
    build(request(train, validation_fraction=0.5), tmp_path / "one")
    assert len({row.row.split for row in rows_of(tmp_path / "one")}) == 1
    other = jsonl(tmp_path / "c.jsonl", chats(3))
    with pytest.raises(DataError, match="no row of it is left"):
        build(request(train, other, test=[held]), tmp_path / "two")


@pytest.mark.parametrize("duplicates", [Duplicates(scope="source"), Duplicates(exact=False)])
def test_a_held_out_row_never_stays_in_training_whatever_is_looked_for(tmp_path: Path, duplicates: Duplicates) -> None:
    records = [{**record, "page": str(i)} for i, record in enumerate(chats(4))]
    train = jsonl(tmp_path / "a.jsonl", records, columns={"group": "page"})
    held = jsonl(tmp_path / "b.jsonl", [{**records[0], "page": "77"}], columns={"group": "page"})
    build(request(train, test=[held], duplicates=duplicates), tmp_path / "table")
    assert closes(tmp_path / "table")["a"]["dropped"] == {"in_test": 1}


def test_no_row_is_merged_into_one_that_is_left_out(tmp_path: Path) -> None:
    answer = " ".join(word(i) for i in range(80))
    asked = [chat("what is the first of all", answer), chat("and what of the second then", answer + " indeed")]
    train = jsonl(tmp_path / "a.jsonl", asked)
    held = jsonl(tmp_path / "b.jsonl", [chat("what is the first of all", "Nobody knows it.")])
    build(request(train, test=[held], duplicates=Duplicates(near=0.8)), tmp_path / "table")
    sums = closes(tmp_path / "table")
    assert sums["a"] == {"source": "a", "in": 2, "kept": 1, "merged": 0, "dropped": {"group_in_test": 1}}


def test_one_question_in_any_case_and_spacing_is_one_group_in_any_script(tmp_path: Path) -> None:
    spelt = ["Où est l’École d'ÉTÉ?", "où est l’école d'été?", "OÙ  EST\u00a0L’ÉCOLE D'ÉTÉ?"]
    records = [chat(text, f"{word(i)} answers it") for i, text in enumerate(spelt)]
    build(request(jsonl(tmp_path / "a.jsonl", records)), tmp_path / "table")
    assert len({row.row.group for row in rows_of(tmp_path / "table")}) == 1
