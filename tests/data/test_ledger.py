"""The ledger: its sum closes, or it is not written."""

import json
from pathlib import Path

import pytest

from luthier.data.ledger import Ledger, drop_event, event, read_events
from luthier.errors import DataError, LuthierError
from luthier.schema import Drop


def test_the_ledger_closes_and_is_written(tmp_path: Path) -> None:
    ledger, path = Ledger(), tmp_path / "ledger.jsonl"
    counts = ledger.open("a")
    counts.seen, counts.kept, counts.merged = 4, 1, 1
    counts.dropped["silent_audio"] += 1
    with pytest.raises(LuthierError, match="source a: 4 records came in, 3 came out"):
        ledger.write(path)
    assert not path.exists()
    counts.dropped["silent_audio"] += 1
    ledger.open("b")
    ledger.write(path, [drop_event(Drop("a", "t#3", "silent_audio", "peak 0"))])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0] == {"source": "a", "in": 4, "kept": 1, "merged": 1, "dropped": {"silent_audio": 2}}
    assert lines[1] == {"source": "b", "in": 0, "kept": 0, "merged": 0, "dropped": {}}
    assert lines[2] == {"source": "a", "origin": "t#3", "reason": "silent_audio", "detail": "peak 0"}
    assert list(read_events(path)) == lines
    shown = ledger.table()
    assert "2 silent_audio" in shown
    assert shown.splitlines()[-1].split() == ["all", "4", "1", "1", "2"]


def test_half_a_surrogate_pair_does_not_stop_the_ledger() -> None:
    assert json.loads(event({"origin": "a\ud800b"}))["origin"] == "a?b"


def test_a_torn_ledger_is_named(tmp_path: Path) -> None:
    (tmp_path / "ledger.jsonl").write_bytes(b'{"source": "a"')
    with pytest.raises(DataError, match=r"ledger\.jsonl"):
        list(read_events(tmp_path / "ledger.jsonl"))
