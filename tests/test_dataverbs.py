"""`luthier data` from the command line: figures as JSON, exit codes, refusals, and a help that loads nothing heavy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from luthier.cli import main
from support.children import environment
from support.tables import chat, chats, jsonl

Caught = pytest.CaptureFixture[str]


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    jsonl(
        tmp_path / "a.jsonl", [*chats(6), chat("what is AAAA", "aaaa IS " + chats(1)[0]["messages"][1]["content"][8:])]
    )
    path = tmp_path / "mine.yaml"
    path.write_text(
        'name: mine\nmodel: {base: "toy:llama"}\ntask: {kind: chat}\n'
        "data: {sources: {a: {path: a.jsonl}}, train: [a], validation_fraction: 0}\n"
    )
    return path


def figures(caught: Caught, *words: Any) -> dict[str, Any]:
    """The verb's figures: the last line of standard output is one JSON object."""
    assert main([*map(str, words), "--json"]) == 0
    found = json.loads(caught.readouterr().out.splitlines()[-1])
    assert isinstance(found, dict)
    return found


def test_a_table_is_built_shown_explained_and_exported(recipe: Path, tmp_path: Path, capsys: Caught) -> None:
    built = figures(capsys, "data", "build", recipe, "--out", "table")
    assert (built["rows"], built["reused"], built["splits"]) == (6, False, {"train": 6})
    assert built["sources"] == {"a": {"in": 7, "kept": 6, "merged": 1, "dropped": {}}}
    again = figures(capsys, "data", "build", recipe, "--out", "table")
    assert (again["reused"], again["digest"]) == (True, built["digest"])
    shown = figures(capsys, "data", "show", "table", "--rows", 2)
    assert (shown["rows"], len(shown["shown"])) == (6, 2)
    (way,) = figures(capsys, "data", "why", "table", "a.jsonl#7")["ways"]
    assert way["outcome"] == "merged"
    out = figures(capsys, "data", "export", "table", "--to", "sharegpt", "--out", "out/mine.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "out" / "mine.jsonl").read_text().splitlines()]
    assert (out["rows"], len(lines)) == (6, 6)
    assert all([turn["from"] for turn in line["conversations"]] == ["human", "gpt"] for line in lines)


def test_wrong_requests_end_with_two_and_existing_outputs_stay(recipe: Path, tmp_path: Path, capsys: Caught) -> None:
    assert main(["data", "build", str(recipe), "--out", "table"]) == 0
    (tmp_path / "there.jsonl").write_text("mine")
    (tmp_path / "full").mkdir()
    for words, said in (
        (["export", "table", "--to", "sharegpt", "--out", "there.jsonl"], "exists already"),
        (["export", "table", "--to", "sharegtp", "--out", "new.jsonl"], "did you mean sharegpt"),
        (["build", str(recipe), "--out", "full"], "is no table"),
        (["build", str(recipe), "--out", "table", "--set", "seed=3"], "made from other sources or settings"),
        (["show", "nowhere"], "is not a table"),
        (
            ["export", "table", "--to", "sharegpt", "--out", "new/x.jsonl", "--split", "trian"],
            "did you mean train? there",
        ),
        (["export", "table", "--to", "text", "--out", "new/x.jsonl"], "no row can be written as text"),
        (["show", "table", "--split", "test"], "has no split 'test'"),
        (["show", "table", "--source", "b"], "there are a\n"),
        (["show", "table", "--rows", "0"], "at least 1"),
        (["show", "table", "a.jsonl#77"], "no row"),
        (["why", "table", "a.jsonl#77"], "neither the rows nor the ledger"),
    ):
        capsys.readouterr()
        assert main(["data", *words]) == 2, words
        assert said in capsys.readouterr().err
    assert (tmp_path / "there.jsonl").read_text() == "mine"
    assert not (tmp_path / "new.jsonl").exists()
    assert not (tmp_path / "new").exists()
    assert not list((tmp_path / "full").iterdir())


def test_an_export_keeps_integers_beyond_64_bits(recipe: Path, tmp_path: Path, capsys: Caught) -> None:
    serial = 12345678901234567890121
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({**line, "serial": serial}) + "\n" for line in chats(3)))
    figures(capsys, "data", "build", recipe, "--out", "table")
    figures(capsys, "data", "export", "table", "--to", "messages", "--out", "b.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "b.jsonl").read_text().splitlines()]
    assert [line["serial"] for line in lines] == [serial] * 3


def test_help_loads_no_heavy_library() -> None:
    for words in (["data", "--help"], ["data", "build", "--help"]):
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "luthier.cli", *words],
            capture_output=True,
            text=True,
            timeout=60,
            env=environment(),
            check=True,
        )
        loaded = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
        assert "argparse" in loaded
        assert not loaded & {"pyarrow", "torch", "datasets", "numpy", "transformers", "pandas"}
