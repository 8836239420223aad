"""Threads follow what the process may use, not what the machine has."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from luthier.engines.threads import answering_threads, usable_processors


def test_a_containers_share_and_the_affinity_bound_the_processors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    quota = tmp_path / "cpu.max"
    assert usable_processors(quota) == 8
    for text, expected in (("max 100000", 8), ("200000 100000", 2), ("150000 100000", 1), ("50000 100000", 1)):
        quota.write_text(f"{text}\n")
        assert usable_processors(quota) == expected
    quota.write_text("6400000 100000\n")
    assert usable_processors(quota) == 8


def test_threads_are_those_asked_for_else_one_for_a_small_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luthier.engines.threads.usable_processors", lambda: 4)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [answering_threads(small=True), answering_threads(small=False)] == [1, 4]
    assert [answering_threads(small=True, asked=3), answering_threads(small=False, asked=9)] == [3, 9]
    monkeypatch.setenv("OMP_NUM_THREADS", "2,1")
    assert answering_threads(small=False) == 2
