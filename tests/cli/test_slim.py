"""`mapolicy slim`: a smaller bundle that still trains."""

from pathlib import Path

from mapolicy import PolicyBundle
from tests.helpers.command_line import TRAIN


def test_slim_and_go_on_learning(mapolicy, bundle_file: Path, bundle: PolicyBundle, tmp_path: Path) -> None:
    outcome = mapolicy("slim", bundle_file, "--json")
    assert outcome.code == 0, outcome.err
    document = outcome.json
    assert document["bundle"] == "artifacts/digits-slim.safetensors"
    assert document["made_of"] == bundle.digest != document["digest"]
    assert document["bytes"] < 0.8 * document["bytes_before"] == 0.8 * bundle_file.stat().st_size
    assert document["rank_correlation"] > 0.9
    assert document["largest_difference"] < 0.1
    command = ("train", "--bundle", document["bundle"], *TRAIN, "--json")
    assert mapolicy(*command, "--run-dir", "frozen").json["digest"] == document["digest"]
    refined = mapolicy(*command, "--run-dir", "finetuned", "--mode", "finetune", "--out", "refined.safetensors")
    assert refined.code == 0, refined.err
    shown = mapolicy("slim", "refined.safetensors", "--extractor-dtype", "bfloat16", "--out", "coarse.safetensors")
    assert "correlation" in shown.out
    assert PolicyBundle.load(tmp_path / "coarse.safetensors").manifest.extractor.dtype == "bfloat16"
    mapolicy("slim", bundle_file, "--extractor-dtype", "int8", "--out", "x").is_error(2, "float16")
