"""`mapolicy import`: published policies."""

import json
from pathlib import Path

import pytest

from tests.helpers.command_line import TRAIN
from tests.helpers.hub_server import HubServer


def test_a_published_policy_is_a_bundle_like_any_other(mapolicy, hub_server: HubServer, tmp_path: Path) -> None:
    imported = mapolicy("import", "autoaugment-cifar10", "--json")
    assert imported.code == 0, imported.err
    document = imported.json
    assert document["bundle"] == "artifacts/autoaugment-cifar10.safetensors"
    assert (document["sub_policies"], document["lost"]) == (25, [])
    shown = mapolicy("inspect", document["bundle"])
    assert document["digest"] in shown.out
    assert "Rotate (0.7, +-6.66667) then TranslateX" in shown.out
    assert mapolicy("inspect", document["bundle"], "--json").json["digest"] == document["digest"]

    pushed = mapolicy("push", document["bundle"], "birds/aa", "--json")
    assert pushed.code == 0, pushed.err
    command = ("train", "--bundle", "hf://birds/aa", *TRAIN, "--json", "--run-dir", "run")
    trained = mapolicy(*command, "digits", "--expect-digest", document["digest"])
    assert trained.code == 0, trained.err
    assert trained.json["digest"] == document["digest"]
    assert trained.json["weight_spread"] == pytest.approx(0, abs=1e-6)
    assert mapolicy("pull", pushed.json["bundle"], "--json").json["digest"] == document["digest"]

    mapolicy(*command).is_error(2, "DATASET")
    mapolicy(*command, "digits", "--mode", "finetune", "--force").is_error(2, "finetune")
    mapolicy(*command, "digits", "--expect-digest", "0" * 64).is_error(3, "digest")
    mapolicy("slim", document["bundle"], "--out", "x").is_error(3, "dataset-level")
    mapolicy("export", document["bundle"], "--out", "x").is_error(3, "has no p_jk", "inspect FILE --json")
    mapolicy("import", "randaugment:9,9").is_error(2, "1 to 3")
    mapolicy("import", "none.py").is_error(3, "No such file")
    assert not (tmp_path / "x").exists()


def test_a_schedule_is_imported_shown_pushed_and_trained_with(mapolicy, hub_server: HubServer, tmp_path: Path) -> None:
    parts = [[5, []], [15, [["Rotate", 0.5, 9], ["Cutout", 1, 5]]]]
    (tmp_path / "own.json").write_text(json.dumps(parts))
    imported = mapolicy("import", "own.json", "--json").json
    assert imported["stages"] == 2
    shown = mapolicy("inspect", imported["bundle"])
    assert "2 stages of a run" in shown.out
    assert "to 25.0% of the run, 0 (0.2), 1 (0.3), 2 (0.5) of: nothing" in shown.out
    assert "to 100.0% of the run, 0 (0.2), 1 (0.3), 2 (0.5) of: Rotate (0.5, +-27), Identity (1)" in shown.out
    assert len(mapolicy("inspect", imported["bundle"], "--json").json["stages"]) == 2
    pushed = mapolicy("push", imported["bundle"], "birds/pba", "--json")
    assert pushed.code == 0, pushed.err
    trained = mapolicy("train", "--bundle", "hf://birds/pba", *TRAIN, "--json", "--run-dir", "run", "digits")
    assert trained.code == 0, trained.err
    report = mapolicy("report", imported["bundle"], "--out", "page")
    assert report.code == 0, report.err
    mapolicy("import", "own.json", "--epochs", "0", "--force").is_error(2, "--epochs")
