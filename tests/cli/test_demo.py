"""The demo: the README's first command, with shorter recipes."""

import json
import sys
from importlib.metadata import entry_points

import pytest
from mapolicy.cli.demo import SETTINGS

from mapolicy import PolicyBundle


def test_demo_searches_trains_and_prints_one_table(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("mapolicy.cli.demo.SETTINGS", SETTINGS | {"epochs": 2, "test_per_class": 20.0})
    monkeypatch.setattr("mapolicy.cli.demo.JOBS", 1)
    monkeypatch.setattr("mapolicy.cli.demo.SPLITS", 2)
    monkeypatch.chdir(tmp_path)
    (entry,) = entry_points(group="console_scripts", name="mapolicy")

    def demo(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["mapolicy", "demo", *arguments])
        with pytest.raises(SystemExit) as stop:
            entry.load()()
        assert not stop.value.code
        return capsys.readouterr().out

    table = demo()
    bundle = PolicyBundle.load(tmp_path / "artifacts" / "digits.safetensors")
    assert bundle.manifest.levels is not None
    for part in ("learned", "none", "trivialaugment", "uniform", "wrn16_1", "test top-1", "What was learned"):
        assert part in table, part
    assert "mapolicy search folder:PHOTOS" in table.splitlines()[-1]

    found = json.loads(demo("--json", "--quiet"))
    assert {row["policy"] for row in found["rows"]} == {"learned", "none", "trivialaugment", "uniform"}
    assert len(found["rows"]) == 2 * 4
    assert found["learned"]
