"""Signals before the command line is there."""

import os
import signal
import sys
from types import ModuleType

import pytest
from mapolicy.cli import entry


def begun(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> int:
    monkeypatch.setitem(sys.modules, "mapolicy.cli.main", module)
    with pytest.raises(SystemExit) as stop:
        entry.main()
    assert isinstance(stop.value.code, int)
    return stop.value.code


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 143)])
def test_a_signal_while_modules_are_loaded_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, number: int, code: int
) -> None:
    class Loading(ModuleType):
        def __getattr__(self, name: str):
            os.kill(os.getpid(), number)
            raise AttributeError(name)

    assert begun(monkeypatch, Loading("mapolicy.cli.main")) == code
    assert capsys.readouterr() == ("", "mapolicy: error: interrupted: nothing had begun; give the command again\n")


def test_signals_are_heard_before_a_run_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("mapolicy.cli.main")
    module.main = lambda: os.kill(os.getpid(), signal.SIGHUP)  # type: ignore[attr-defined]
    assert begun(monkeypatch, module) == 143
