"""`mapolicy bench`: its tables and its wrong options."""

import json
from pathlib import Path

import pytest

from tests.helpers.command_line import snapshot

TINY = ("--image-size", "8", "--batch-size", "4", "--rounds", "2")
ROW = {"what", "median_ms", "low_ms", "high_ms", "ratio", "against", "n"}


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (("operations",), ["mapolicy", "pillow", "torchvision-tensor", "torchvision-pil", "timm"]),
        (("data",), ["torchvision", "first-epoch", "later-epochs", "later-epochs-small", "torchvision+randaugment"]),
        (
            ("step", "--arch", "wrn10_1", "--validation-batch-size", "4", "--no-memory"),
            ["plain", "exact", "double_backward"],
        ),
        (
            (
                "transfer",
                "--proxy",
                "wrn10_1",
                "--arch",
                "wrn10_1",
                "--set",
                "cutout=4",
                "--set",
                "extractor_dtype=float16",
            ),
            ["plain", "frozen", "uniform", "outside_networks"],
        ),
    ],
    ids=lambda value: value[0],
)
def test_bench_json_and_table(
    mapolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple, names: list[str]
) -> None:
    measured = mapolicy("bench", *arguments, *TINY, "--json")
    assert measured.code == 0, measured.err
    assert {"rows", "hardware", "versions", "time", "settings"} <= set(measured.json)
    rows = measured.json["rows"]
    assert set(names) <= {row["what"] for row in rows}
    for row in rows:
        assert set(row) >= ROW
        assert row["n"] == 2
    assert measured.json["hardware"]["threads"] == 1
    if arguments[0] not in ("operations", "data"):
        assert "precision" in json.dumps(measured.json["settings"]["configuration"]), "what a row depends on"
    assert "round 2 of 2" in measured.err

    monkeypatch.setenv("COLUMNS", "60")
    shown = mapolicy("bench", *arguments, *TINY, "--quiet")
    assert shown.code == 0, shown.err
    assert shown.err == ""
    assert "…" not in shown.out, "nothing is cut"
    assert all(name in shown.out for name in (*names, "medians of 2 interleaved rounds", "torch"))
    assert snapshot(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("bench",), ("command line", "--help")),
        (("bench", "step", "--rounds", "0"), ("--rounds",)),
        (("bench", "step", "--arch", "wrn99_9"), ("wrn99_9", "wrn")),
        (("bench", "transfer", "--arch", "wrn99_9"), ("wrn99_9", "wrn")),
        (("bench", "operations", "--device", "tpu"), ("--device", "tpu")),
        (("bench", "data", "--device", "cuda"), ("--device", "CPU")),
        (("bench", "step", "--set", "no_such=1"), ("no_such",)),
        (("bench", "transfer", "--set", "no_such=1"), ("no_such",)),
        (("bench", "transfer", "--set", "copies=2"), ("copies=2", "--batch-size")),
    ],
)
def test_bench_usage_errors_exit_2(mapolicy, arguments: tuple, parts: tuple) -> None:
    mapolicy(*arguments).is_error(2, *parts)
