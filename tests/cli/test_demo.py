"""The demo: the README's first command, with shorter recipes."""

import json
import sys
from importlib.metadata import entry_points

import pytest

from mapolicy import PolicyBundle, recipes


def test_demo_searches_trains_and_prints_one_table(tmp_path, monkeypatch, capsys) -> None:
    load = recipes.load
    monkeypatch.setattr(recipes, "load", lambda name: (name, load(name)[1] | {"epochs": 1, "train_per_class": 30.0}))
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
    names = bundle.manifest.operations.names
    best = int(bundle.probabilities.argmax())
    for part in ("learned", "none", "trivialaugment", "resnet10t", "wrn10_1", "test top-1", names[best // 14]):
        assert part in table, part

    sentence = table.splitlines()[0]
    assert sentence.startswith("resnet10t is right about ")
    for policy in ("learned", "none", "trivialaugment"):
        assert f" % with policy {policy}" in sentence
    assert "mapolicy search folder:PHOTOS" in table.splitlines()[-1]

    rows = {row["policy"]: row for row in json.loads(demo("--json", "--quiet"))["rows"]}
    assert set(rows) == {"learned", "none", "trivialaugment"}
    assert len(rows["learned"]["likeliest"]) == 5
    assert rows["learned"]["weight_spread"] > 0
    assert rows["none"]["weight_spread"] == pytest.approx(0, abs=1e-6)
