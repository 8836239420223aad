"""A child process that hangs, dies, lies or says too much costs its asker one question, and nothing else."""

from __future__ import annotations

import os
import signal
import struct
import time
from collections.abc import Iterator
from threading import Timer

import pytest

from luthier.serve.child import Child, ChildFailed
from support.children import ROOT


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))


@pytest.fixture
def child() -> Iterator[Child]:
    made = Child("support.badchild")
    yield made
    made.close()


def test_questions_are_answered_one_after_another(child: Child) -> None:
    for size in (0, 1, 3_000_000):
        head, body = child.ask({"do": "echo", "said": "é"}, b"x" * size, 10, 2**24)
        assert (head["said"], body) == ("é", b"x" * size)
    assert child.uses == 3


def test_what_a_library_prints_is_not_an_answer(child: Child, capfd: pytest.CaptureFixture[str]) -> None:
    assert child.ask({"do": "print"}, b"", 10, 0) == ({}, b"")
    assert child.ask({"do": "echo", "said": 1}, b"", 10, 0)[0]["said"] == 1
    assert capfd.readouterr() == ("", "")


def test_tokens_and_keys_do_not_go_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "a secret")
    monkeypatch.setenv("LUTHIER_API_KEY", "a secret")
    child = Child("support.badchild")
    names = child.ask({"do": "echo"}, b"", 10, 0)[0]["environment"]
    child.close()
    assert "PYTHONPATH" in names
    assert not [name for name in names if "TOKEN" in name or "KEY" in name]


def test_a_child_that_hangs_is_ended_in_time(child: Child) -> None:
    began = time.monotonic()
    with pytest.raises(ChildFailed, match=r"longer than 0\.5 s") as caught:
        child.ask({"do": "hang"}, b"", 0.5, 0)
    assert caught.value.late
    assert time.monotonic() - began < 5
    assert not child.alive


def test_a_child_that_never_reads_is_ended_in_time(child: Child) -> None:
    os.kill(child.pid, signal.SIGSTOP)
    with pytest.raises(ChildFailed) as caught:
        child.ask({"do": "echo"}, bytes(2**24), 0.5, 2**24)
    assert caught.value.late
    assert not child.alive


@pytest.mark.parametrize("told", [{"do": "die"}, {"do": "much", "size": 1001}, {}])
def test_a_child_that_breaks_down_or_says_too_much_is_ended(child: Child, told: dict[str, object]) -> None:
    with pytest.raises(ChildFailed) as caught:
        child.ask(told, b"", 10, 1000)
    assert not caught.value.late
    assert not child.alive


JUNK = {
    "torn": b"\0\0",
    "no json": struct.pack(">II", 4, 0) + b"{no}",
    "no text": struct.pack(">II", 4, 0) + b"\xff\xfe\xfd\xfc",
    "a list": struct.pack(">II", 2, 0) + b"[]",
    "deep": struct.pack(">II", 60_000, 0) + b"[" * 60_000,
    "endless header": struct.pack(">II", 2**31, 0),
    "endless body": struct.pack(">II", 2, 2**31) + b"{}",
    "short body": struct.pack(">II", 2, 10) + b"{}" + b"123",
}


@pytest.mark.parametrize("name", JUNK)
def test_an_answer_that_is_none_is_a_failure_and_no_traceback(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANG", "JUNK" + JUNK[name].hex())
    child = Child("support.badchild")
    with pytest.raises(ChildFailed):
        child.ask({}, b"", 10, 1000)
    assert not child.alive
    child.close()


def test_a_last_answer_is_given_before_the_child_is_gone(child: Child) -> None:
    assert child.ask({"do": "last"}, b"", 10, 0) == ({"last": True}, b"")
    assert not child.alive


def test_a_child_that_cannot_start_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANG", "NEVER")
    with pytest.raises(ChildFailed, match="ended without an answer"):
        Child("support.badchild")


def test_a_kill_from_another_thread_ends_the_question(child: Child) -> None:
    timer = Timer(0.3, child.kill)
    timer.start()
    with pytest.raises(ChildFailed) as caught:
        child.ask({"do": "hang"}, b"", 30, 0)
    assert not caught.value.late
    timer.join()


def test_the_decoders_can_open_no_file_and_no_connection_and_take_bounded_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LANG", "CLOSED")
    child = Child("support.badchild")
    found, _ = child.ask({}, b"", 10, 0)
    child.close()
    assert found == {
        "read": "OSError",
        "write": "OSError",
        "socket": "OSError",
        "pipe": "OSError",
        "memory": "MemoryError",
    }
