"""Stand-in chats: the same at every call, in their source's own columns, few of them alike, and learnable."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from luthier.data import formats
from luthier.data.building.build import build
from luthier.data.building.request import TableRequest
from luthier.data.standins import WORDS, shape_of, write_standin
from luthier.data.table import read_table
from luthier.errors import RequestError
from luthier.recipe_data import FORMATS, Duplicates, Source

FINETOME = Source("finetome", hub="mlabonne/FineTome-100k")
SHAREGPT = Source("sharegpt-english", hub="theblackcat102/sharegpt-english")
ULTRACHAT = Source("ultrachat", hub="HuggingFaceH4/ultrachat_200k", split="train_sft")


def records(source: Source, folder: Path, rows: int = 64, seed: int = 1) -> list[dict[str, Any]]:
    path = folder / "rows.jsonl"
    write_standin(source, path, rows, seed)
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_same_arguments_give_the_same_bytes_and_another_seed_gives_others(tmp_path: Path) -> None:
    assert records(FINETOME, tmp_path) == records(FINETOME, tmp_path)
    assert records(FINETOME, tmp_path) != records(FINETOME, tmp_path, seed=2)


def test_finetome_has_its_columns_and_names_its_speakers_as_sharegpt_does(tmp_path: Path) -> None:
    found = records(FINETOME, tmp_path)
    assert {tuple(record) for record in found} == {("conversations", "source", "score")}
    speakers = Counter(turn["from"] for record in found for turn in record["conversations"])
    assert set(speakers) == {"system", "human", "gpt"}
    assert 0 < speakers["system"] < len(found) / 2
    assert {len(record["conversations"]) // 2 for record in found} == {1, 2, 3}
    assert all(set(turn) == {"from", "value"} for record in found for turn in record["conversations"])


def test_ultrachat_repeats_its_first_question(tmp_path: Path) -> None:
    for record in records(ULTRACHAT, tmp_path):
        assert set(record) == {"messages", "prompt", "prompt_id"}
        asked = next(turn for turn in record["messages"] if turn["role"] == "user")
        assert record["prompt"] == asked["content"]


PICTURED = ["graded", "image_caption", "described"]
"""Formats whose rows hold media."""


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in ("auto", *PICTURED)])
def test_a_named_format_is_what_comes_out(name: str, tmp_path: Path) -> None:
    found = records(Source("chats", path="gone.jsonl", format=name), tmp_path)
    assert len(found) == 64
    assert formats.detect(found) == name if name != "ultrachat" else "messages" in found[0]


@pytest.mark.parametrize("name", PICTURED)
def test_what_cannot_be_made_up_is_refused_by_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=f"source pictures: no rows of the format {name}"):
        write_standin(Source("pictures", hub="a/b", format=name), tmp_path / "rows.jsonl", 4, 1)


def test_columns_have_the_names_that_the_recipe_gives_them(tmp_path: Path) -> None:
    source = Source(
        "faq", hub="a/b", columns={"prompt": "question", "completion": "reply", "group": "page", "id": "nr"}
    )
    assert shape_of(source) == "prompt_completion"
    found = records(source, tmp_path)
    assert set(found[0]) == {"question", "reply", "page", "nr"}
    assert len({record["nr"] for record in found}) == 64
    assert len({record["page"] for record in found}) == 32
    turns = records(Source("talks", hub="a/b", columns={"messages": "talk"}), tmp_path)
    assert set(turns[0]) == {"talk"}


def test_a_table_of_all_three_keeps_every_row_though_near_duplicates_are_sought(tmp_path: Path) -> None:
    sources = []
    for number, source in enumerate((FINETOME, SHAREGPT, ULTRACHAT)):
        path = tmp_path / f"{source.name}.jsonl"
        write_standin(source, path, 64, number)
        sources.append((Source(source.name, path=str(path)), "train"))
    request = TableRequest(tuple(sources), duplicates=Duplicates(near=0.8), graded=False)
    built = build(request, tmp_path / "table")
    counts = built.ledger.counts
    assert {name: (count.seen, count.kept) for name, count in counts.items()} == dict.fromkeys(counts, (64, 64))
    rows = [item.row for item in read_table(tmp_path / "table").rows]
    words = sorted(sum(len(part.text.split()) for turn in row.messages for part in turn.content) for row in rows)
    assert words[0] * 4 < words[-1], "lengths differ, so that batches do"


def test_an_answer_follows_from_its_question(tmp_path: Path) -> None:
    for record in records(ULTRACHAT, tmp_path):
        turns = [turn for turn in record["messages"] if turn["role"] != "system"]
        for asked, answer in zip(turns[::2], turns[1::2], strict=True):
            said, given = (turn["content"].partition(": ")[2].rstrip(".").split() for turn in (asked, answer))
            assert given == (said[::-1] if "last to the first" in asked["content"] else said)
            assert set(given) <= set(WORDS)
