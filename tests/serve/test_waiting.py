"""The queue in front of the models: order, bounds, clients that go away, and many threads at once."""

import gc
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest

from luthier.serve.waiting import Busy, Counts, Held, Waiting
from support.fakeserve import fake_services


@pytest.fixture
def waiting() -> Iterator[Waiting]:
    made = Waiting(size=4, per_session=2)
    yield made
    made.close()


def occupy(waiting: Waiting, session: str = "") -> tuple[Held[str], Event]:
    """A piece of work that goes on until the event is set."""
    begun, go = Event(), Event()

    def work() -> Iterator[str]:
        begun.set()
        assert go.wait(10)
        yield "done"

    held = waiting.stream(session, work)
    assert begun.wait(10)
    return held, go


def eventually(condition: object, seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.005)
    return False


def test_call_returns_what_the_function_returns_and_raises_what_it_raises(waiting: Waiting) -> None:
    assert waiting.call("a", lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        waiting.call("a", lambda: 1 // 0)
    assert waiting.call("a", lambda: None) is None
    assert waiting.counts() == Counts(done=3)


def test_work_that_ends_its_thread_is_told_and_the_queue_lives_on(waiting: Waiting) -> None:
    def leave() -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        waiting.call("a", leave)
    assert waiting.call("a", lambda: 1) == 1


def test_requests_are_worked_on_in_the_order_in_which_they_came(waiting: Waiting) -> None:
    first, go = occupy(waiting)
    order: list[int] = []
    places = [waiting.stream("", lambda number=number: [order.append(number)]) for number in range(4)]
    go.set()
    for place in reversed(places):  # whoever reads first does not come first
        assert list(place) == [None]
    assert order == [0, 1, 2, 3]
    assert list(first) == ["done"]


def test_one_more_than_the_queue_holds_is_refused_with_the_seconds_to_wait(waiting: Waiting) -> None:
    _, go = occupy(waiting)
    places = [waiting.stream("", lambda: [1]) for _ in range(4)]
    with pytest.raises(Busy, match="4 requests are waiting already") as refused:
        waiting.stream("", lambda: [1])
    assert refused.value.reason == "full"
    assert refused.value.retry_after >= 1
    assert waiting.counts() == Counts(waiting=4, working=1, refused_full=1)
    go.set()
    assert [list(place) for place in places] == [[1]] * 4
    assert waiting.call("", lambda: "again") == "again"


def test_a_session_has_its_own_bound_and_gets_its_place_back(waiting: Waiting) -> None:
    held, go = occupy(waiting, "mine")
    waiting_one = waiting.stream("mine", lambda: [1])
    with pytest.raises(Busy, match="this session") as refused:
        waiting.call("mine", lambda: 1)
    assert refused.value.reason == "session"
    other = waiting.stream("yours", lambda: [2])
    go.set()
    assert list(held) == ["done"]
    assert list(waiting_one) == [1]
    assert list(other) == [2]
    assert waiting.call("mine", lambda: 3) == 3


def test_the_seconds_to_wait_grow_with_the_time_that_work_takes_and_with_the_queue() -> None:
    waiting = Waiting(size=2, per_session=9)
    for _ in range(40):
        waiting.call("", lambda: None)
    held, go = occupy(waiting)
    places = [waiting.stream("", lambda: [1]) for _ in range(2)]
    with pytest.raises(Busy) as refused:
        waiting.stream("", lambda: [1])
    assert refused.value.retry_after == 1  # forty that took no time
    waiting._average_seconds = 7.5
    with pytest.raises(Busy) as refused:
        waiting.stream("", lambda: [1])
    assert refused.value.retry_after == 23  # three times 7.5
    go.set()
    list(held)
    del places
    waiting.close()


def test_a_client_that_leaves_while_it_waits_is_never_worked_on(waiting: Waiting) -> None:
    _, go = occupy(waiting)
    worked: list[int] = []
    place = waiting.stream("", lambda: [worked.append(1)])
    place.close()
    assert waiting.counts() == Counts(waiting=0, working=1, left=1)
    go.set()
    assert waiting.call("", lambda: 5) == 5
    assert worked == []
    assert list(place) == []


@pytest.mark.parametrize("way", ["close", "drop"])
def test_a_client_that_leaves_ends_its_answer_at_the_next_piece_and_its_iterator_is_closed(
    waiting: Waiting, way: str
) -> None:
    closed, gone = Event(), Event()

    def answer() -> Iterator[int]:
        try:
            for number in range(10_000):
                gone.wait(0.002)
                yield number
        finally:
            closed.set()

    place = waiting.stream("", answer, gone)
    assert next(place) == 0
    if way == "close":
        place.close()
    else:
        del place
        gc.collect()
    assert gone.is_set()
    assert closed.wait(5)
    assert waiting.call("", lambda: 1) == 1
    assert waiting.counts().left == 1


def test_close_wakes_a_reader_in_another_thread(waiting: Waiting) -> None:
    place, go = occupy(waiting)
    read: list[list[str]] = []
    reader = threading.Thread(target=lambda: read.append(list(place)))
    reader.start()
    time.sleep(0.05)
    place.close()
    reader.join(5)
    go.set()
    assert read == [[]]


def test_a_slow_reader_holds_nobody_up(waiting: Waiting) -> None:
    place = waiting.stream("slow", lambda: iter(range(100)))
    assert waiting.call("next", lambda: "mine") == "mine"
    assert list(place) == list(range(100))


def test_everything_runs_in_one_thread(waiting: Waiting) -> None:
    seen = {waiting.call("", threading.get_ident) for _ in range(5)}
    assert len(seen) == 1
    assert threading.get_ident() not in seen
    with pytest.raises(RuntimeError, match="wait for itself"):
        waiting.call("", lambda: waiting.call("", lambda: 1))


def test_a_queue_that_is_closed_ends_what_it_holds_and_lets_nobody_in() -> None:
    waiting = Waiting(size=4, per_session=2)

    def endless() -> Iterator[int]:
        while True:
            time.sleep(0.002)
            yield 1

    working, queued = waiting.stream("", endless), waiting.stream("", endless)
    assert next(working) == 1
    waiting.close()
    assert list(queued) == []
    assert set(working) <= {1}
    with pytest.raises(Busy, match="stopping") as refused:
        waiting.call("", lambda: 1)
    assert refused.value.reason == "stopping"


def test_a_call_that_waits_while_the_queue_is_closed_is_told_so() -> None:
    waiting = Waiting(size=4, per_session=2)
    _, go = occupy(waiting)
    with ThreadPoolExecutor() as pool:
        called = pool.submit(waiting.call, "mine", lambda: 1)
        assert eventually(lambda: waiting.counts().waiting == 1)
        threading.Timer(0.05, go.set).start()
        waiting.close()
        with pytest.raises(Busy, match="stopping"):
            called.result(10)


def test_many_threads_lose_nothing_and_get_nothing_twice() -> None:
    waiting = Waiting(size=64, per_session=64)
    at_once: list[int] = []
    working = 0

    def work(number: int) -> Iterator[int]:
        nonlocal working
        working += 1
        at_once.append(working)
        try:
            yield number
            yield -number
        finally:
            working -= 1

    def ask(number: int) -> list[int]:
        while True:
            try:
                place = waiting.stream(str(number % 7), lambda: work(number))
            except Busy:
                time.sleep(0.001)
                continue
            if number % 5 == 0:
                return [next(place)]  # and drop it
            return list(place)

    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(ask, range(1, 601)))
    assert [answer[0] for answer in answers] == list(range(1, 601))
    assert all(answer == [number, -number] for number, answer in enumerate(answers, 1) if number % 5)
    assert eventually(lambda: waiting.counts().working == 0)
    counts = waiting.counts()
    assert counts.done + counts.left == 600
    assert counts.left <= 120
    assert counts.waiting == 0
    assert set(at_once) == {1}
    assert not waiting._of_session
    waiting.close()


def test_a_part_that_fails_to_close_keeps_no_other_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    services = fake_services(tmp_path)
    closed: list[str] = []
    monkeypatch.setattr(services.speech, "close", lambda: 1 // 0)
    monkeypatch.setattr(services.store, "close", lambda: closed.append("store"))
    with pytest.raises(ZeroDivisionError):
        services.close()
    assert closed == ["store"]
