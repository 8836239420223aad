"""The mixture of a table on disk: that of its rows, the same in every process, and an error where a source is empty."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from luthier.data.building.build import build
from luthier.data.building.mixture import read_mixture
from luthier.data.building.request import TableRequest
from luthier.data.mix import MixSource, plan_mix
from luthier.data.table import read_table
from luthier.errors import DataError
from luthier.recipe_data import Mix
from support.children import environment
from support.tables import chats, jsonl, request


def test_the_order_is_that_of_the_plan_over_the_rows_of_the_table(tmp_path: Path) -> None:
    a = jsonl(tmp_path / "a.jsonl", chats(60), weight=2.0)
    b = jsonl(tmp_path / "b.jsonl", chats(80, 300), weight=1.0, epochs=2.0)
    asked = request(b, a, validation_fraction=0.2, mix=Mix(total=45), test=[jsonl(tmp_path / "c.jsonl", chats(9, 900))])
    built = build(asked, tmp_path / "table")
    rows = read_table(tmp_path / "table").rows
    own = {
        name: [n for n, row in enumerate(rows) if row.row.provenance.source == name and row.row.split == "train"]
        for name in ("b", "a")
    }
    plan = plan_mix(
        [MixSource("b", len(own["b"]), 1.0, 0, 2.0), MixSource("a", len(own["a"]), 2.0, 0, 1.0)], Mix(total=45), 17
    )
    places = np.array([*own["b"], *own["a"]])
    mixture = read_mixture(tmp_path / "table")
    assert mixture is not None
    assert built.mixture is not None
    for epoch in range(3):
        np.testing.assert_array_equal(built.mixture.order(epoch), mixture.order(epoch))
        np.testing.assert_array_equal(mixture.order(epoch), places[plan.order(epoch)])
        sources = [rows[n].row.provenance.source for n in mixture.order(epoch)]
        assert (sources.count("a"), sources.count("b")) == (30, 15)
        assert {rows[n].row.split for n in mixture.order(epoch)} == {"train"}
    assert built.manifest["mix"]["total"] == 45


def test_every_training_row_comes_once_where_nothing_is_asked(tmp_path: Path) -> None:
    asked = request(jsonl(tmp_path / "a.jsonl", chats(30)), jsonl(tmp_path / "b.jsonl", chats(20, 200)))
    build(asked, tmp_path / "table")
    mixture = read_mixture(tmp_path / "table")
    assert mixture is not None
    assert sorted(mixture.order(0).tolist()) == list(range(50))
    assert mixture.order(0).tolist() != mixture.order(1).tolist()


def test_the_order_is_the_same_in_a_fresh_process(tmp_path: Path) -> None:
    asked = request(jsonl(tmp_path / "a.jsonl", chats(40)), jsonl(tmp_path / "b.jsonl", chats(20, 200)))
    build(asked, tmp_path / "table")
    code = (
        "import sys; from pathlib import Path; from luthier.data.building.mixture import read_mixture;"
        "print(read_mixture(Path(sys.argv[1])).order(3).tolist())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "table")]
    found = [
        subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=60, env=environment(PYTHONHASHSEED=seed)
        ).stdout
        for seed in ("1", "2")
    ]
    mixture = read_mixture(tmp_path / "table")
    assert mixture is not None
    assert found == [f"{mixture.order(3).tolist()}\n"] * 2


def test_a_source_whose_rows_are_all_held_out_is_named(tmp_path: Path) -> None:
    many, few = jsonl(tmp_path / "many.jsonl", chats(40)), jsonl(tmp_path / "few.jsonl", chats(1, 500))
    for seed in range(40):
        asked = request(many, few, validation_fraction=0.5, seed=seed)
        try:
            build(asked, tmp_path / f"table{seed}")
        except DataError as error:
            assert "source few: is empty" in error.message  # noqa: PT017
            assert not (tmp_path / f"table{seed}").exists()
            return
    pytest.fail("no seed of forty holds the only row out")


def test_a_source_that_is_asked_for_more_than_it_has_is_named(tmp_path: Path) -> None:
    a = jsonl(tmp_path / "a.jsonl", chats(10), weight=1.0)
    b = jsonl(tmp_path / "b.jsonl", chats(100, 300), weight=1.0)
    with pytest.raises(DataError, match="source a: the mixture asks for 50 of its rows an epoch and it gives at most"):
        build(request(a, b, mix=Mix(total=100)), tmp_path / "table")
    assert not (tmp_path / "table").exists()
    build(request(replace(a, epochs=5.0), b, mix=Mix(total=100)), tmp_path / "table")


def test_a_table_of_graded_rows_has_no_mixture(tmp_path: Path) -> None:
    from test_decide import graded

    source = graded(tmp_path / "a.parquet", [2.0, 5.0])
    assert build(TableRequest(((source, "train"),)), tmp_path / "table").mixture is None
    assert read_mixture(tmp_path / "table") is None
