"""The command line as the user types it, through the installed entry point."""

import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from tests.helpers.command_line import Outcome

(ENTRY_POINT,) = entry_points(group="console_scripts", name="mapolicy")


@pytest.fixture
def mapolicy(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path):
    """Types a command in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def type_command(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["mapolicy", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            ENTRY_POINT.load()()
        out, err = capsys.readouterr()
        return Outcome(int(stop.value.code or 0), out, err)

    return type_command
