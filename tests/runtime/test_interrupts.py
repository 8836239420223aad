"""A stop that is asked for is seen by whatever runs, and never tears it."""

from __future__ import annotations

import os
import signal

import pytest

from luthier.runtime.interrupts import stop_requested


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_a_flag_and_the_old_handlers_come_back(number):
    before = signal.getsignal(number)
    with stop_requested() as stopping:
        assert not stopping()
        os.kill(os.getpid(), number)
        assert stopping()
    assert signal.getsignal(number) is before
    with stop_requested() as stopping:
        assert not stopping()


def test_a_second_interrupt_stops_at_once_and_a_second_sigterm_does_not():
    with stop_requested() as stopping, pytest.raises(KeyboardInterrupt):  # noqa: PT012
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopping()
        os.kill(os.getpid(), signal.SIGINT)


def test_an_inner_block_sees_what_was_asked_of_the_outer_one_and_the_other_way_round():
    with stop_requested() as outer:
        with stop_requested() as inner:
            assert not inner()
            os.kill(os.getpid(), signal.SIGTERM)
            assert inner()
        assert outer()
        with stop_requested() as later:
            assert later()
