"""`mapolicy settings`: every setting with where its value comes from, and the page that is made of them."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
from mapolicy.cli.options import OPTION_OF
from mapolicy.cli.settings import SECTIONS

from mapolicy import recipes
from mapolicy.config import SearchConfig, TrainConfig

PAGE = Path(__file__).resolve().parents[2] / "docs" / "settings.md"
NAMES = {spec.name for kind in (SearchConfig, TrainConfig) for spec in fields(kind)}


def test_the_page_is_up_to_date(mapolicy) -> None:
    text = mapolicy("settings", "--markdown").out
    assert text == PAGE.read_text(encoding="utf-8"), "mapolicy settings --markdown > docs/settings.md"
    assert set(re.findall("^### (.+)$", text, re.MULTILINE)) == NAMES
    assert re.findall("^## (.+)$", text, re.MULTILINE) == list(SECTIONS.values())


def test_every_setting_is_listed(mapolicy) -> None:
    rows = mapolicy("settings", "--json").json["rows"]
    assert {row["name"] for row in rows} == NAMES
    assert len(rows) == len(NAMES)
    text = mapolicy("settings").out
    for row in rows:
        assert row["description"]
        assert row["values"]
        assert f"\n{row['name']}\n" in f"\n{text}"


def test_what_is_said_of_one(mapolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert mapolicy("settings", "meta_every").out == (
        "meta_every\n"
        "  iterations from one hypergradient to the next; 1 is the paper's\n"
        "  whole number from 1 to 100; default 1\n"
        "  --set meta_every= of search, train, compare\n"
        "  6 with --fast\n"
    )
    (rate,) = mapolicy("settings", "LEARNING_RATE=", "--json").json["rows"][:1]
    assert (rate["option"], rate["required"], rate["default"]) == ("--lr", True, None)
    for typed, name in (("lr", "learning_rate"), ("--lr", "learning_rate"), ("batch-size", "batch_size")):
        assert name in [row["name"] for row in mapolicy("settings", "--json", "--", typed).json["rows"]]
    assert "search-digits" in rate["recipes"][f"{recipes.load('search-digits')[1]['learning_rate']:g}"]
    for line in mapolicy("settings").out.splitlines():
        assert len(line) <= 80


def test_recipes_are_named_where_they_change_a_default(mapolicy) -> None:
    for row in mapolicy("settings", "--json").json["rows"]:
        for value, names in row["recipes"].items():
            for name in names:
                given = recipes.load(name)[1][row["name"]]
                assert row["required"] or given != row["default"] or "as-searched" in str(value), row["name"]
    (sampler,) = [row for row in mapolicy("settings", "sampler", "--json").json["rows"] if row["name"] == "sampler"]
    assert "search-any" in sampler["recipes"]["alignment"]


@pytest.mark.parametrize("command", ["search", "train", "compare"])
def test_a_settings_own_option_is_the_commands(mapolicy, command: str) -> None:
    rows = mapolicy("settings", "--json").json["rows"]
    options = set(re.findall(r"(?<![\w-])(--[a-z-]+)", mapolicy(command, "--help").out)) | {"DATASET"}
    assert {row["name"]: row["option"] for row in rows if row["option"]} == dict(OPTION_OF)
    for row in rows:
        if command in row["commands"] and row["option"] and row["name"] not in ("policy", "on_divergence"):
            assert row["option"] in options, row["name"]
        usual = f"--{row['name'].replace('_', '-')}"
        assert usual not in options or row["option"] == usual, row["name"]


def test_a_word_that_no_setting_has(mapolicy) -> None:
    outcome = mapolicy("settings", "lerning_rat")
    assert (outcome.code, outcome.out) == (0, "")
    assert outcome.err.startswith("mapolicy: no setting has 'lerning_rat' in it; the closest are learning_rate")


def test_an_option_that_is_no_setting(mapolicy) -> None:
    outcome = mapolicy("settings", "budget")
    assert (outcome.code, outcome.out) == (0, "")
    told = "--budget is no setting but an option of search, compare; `mapolicy search --help` explains it"
    assert outcome.err.strip() == f"mapolicy: {told}"


def test_the_common_options_are_their_settings(mapolicy, tmp_path: Path) -> None:
    import tomllib

    outcome = mapolicy(
        "train", "digits", "--policy", "none", "--arch", "test_resnet", "--epochs", "1", "--lr", "0.03",
        "--batch-size", "256", "--image-size", "10", "--workers", "1", "--set", "threads=1", "--run-dir", "run",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    saved = tomllib.loads((tmp_path / "run" / "config.toml").read_text())
    expected = {"learning_rate": 0.03, "batch_size": 256, "image_size": 10, "workers": 1, "epochs": 1}
    assert {name: saved[name] for name in expected} == expected
    for option in ("--lr", "--batch-size", "--image-size", "--workers"):
        mapolicy("search", "digits", "--proxy", "wrn10_1", option, "-1").is_error(2, "is not a finite number")
