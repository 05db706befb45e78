"""`mapolicy import`: published policies."""

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
