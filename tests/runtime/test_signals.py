"""Signals: the first one waits where it should, the second one does not."""

import os
import signal
import threading
import time

import pytest

from mapolicy.runtime.signals import ECHO, STOP_SIGNALS, StopRequest, signal_handlers

OTHERS = [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP]


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", OTHERS)
def test_a_signal_is_noted_and_obeyed_later(number: int) -> None:
    stop = StopRequest()
    with stop.listening():
        with stop.deferred():
            stop.raise_if_stopped()
            send(number)
            assert stop.number == number
        with pytest.raises(SystemExit) as caught:
            stop.raise_if_stopped()
    assert caught.value.code == stop.exit_code == 143


def test_ctrl_c_ends_as_python_has_it() -> None:
    stop = StopRequest()
    with stop.listening():
        with stop.deferred():
            send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            stop.raise_if_stopped()
    assert stop.exit_code == 130


def test_a_second_ctrl_c_does_not_wait() -> None:
    stop = StopRequest()
    with stop.listening(), stop.deferred():
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_a_second_one_of_the_others_does_not_wait_but_an_echo_is_none() -> None:
    stop = StopRequest()
    with stop.listening(), stop.deferred():
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        time.sleep(ECHO)
        with pytest.raises(SystemExit):
            send(signal.SIGTERM)


def test_outside_of_the_loop_none_waits() -> None:
    stop = StopRequest()
    with stop.listening(), pytest.raises(SystemExit):
        send(signal.SIGTERM)


def test_at_once_is_at_once() -> None:
    for early in (False, True):
        stop = StopRequest()
        with stop.listening(), stop.deferred():
            if early:
                send(signal.SIGUSR1)
            with pytest.raises(SystemExit), stop.immediate():
                send(signal.SIGUSR1)
            assert stop.number == signal.SIGUSR1


def test_handlers_come_back_and_what_was_ignored_stays_so() -> None:
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    try:
        stop = StopRequest()
        with stop.listening():
            send(signal.SIGHUP)
            assert stop.number is None
            assert signal.getsignal(signal.SIGTERM) != before[signal.SIGTERM]
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before[signal.SIGHUP])
    assert {number: signal.getsignal(number) for number in STOP_SIGNALS} == before


def test_other_threads_hear_nothing() -> None:
    entered = []

    def enter() -> None:
        with signal_handlers(lambda *_: None):
            entered.append(True)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert entered == [True]
