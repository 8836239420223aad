"""The ledger: its sum closes, or it is not written."""

import json
from pathlib import Path

import pytest

from luthier.data.ledger import Ledger
from luthier.errors import LuthierError
from luthier.schema import Drop


def test_the_ledger_closes_and_is_written(tmp_path: Path) -> None:
    ledger = Ledger()
    for _ in range(4):
        ledger.saw("a")
    ledger.keep("a")
    ledger.merge("a")
    ledger.drop(Drop("a", "t#3", "silent_audio", "peak 0"))
    with pytest.raises(LuthierError, match="source a: 4 records came in, 3 came out"):
        ledger.write(tmp_path / "ledger.jsonl")
    assert not (tmp_path / "ledger.jsonl").exists()
    ledger.drop(Drop("a", "t#4", "silent_audio"))
    ledger.open("b")
    ledger.write(tmp_path / "ledger.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert lines[0] == {"source": "a", "in": 4, "kept": 1, "merged": 1, "dropped": {"silent_audio": 2}}
    assert lines[1] == {"source": "b", "in": 0, "kept": 0, "merged": 0, "dropped": {}}
    assert lines[2] == {"source": "a", "origin": "t#3", "reason": "silent_audio", "detail": "peak 0"}
    assert "2 silent_audio" in ledger.table()
