"""`mapolicy export-network`: a file for other programs, written once it is checked."""

import io
from pathlib import Path

import pytest
import torch

from mapolicy import load_network, train_network
from tests.helpers.command_line import snapshot


@pytest.fixture(scope="module")
def run(make_train_config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "run"
    train_network(make_train_config(policy="none", epochs=1), run_dir=folder)
    return folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("form", "ending"), [("torchscript", "pt"), ("exported", "pt2"), ("onnx", "onnx")])
def test_the_file_is_written_and_checked(mapolicy, run: Path, form: str, ending: str, tmp_path: Path) -> None:
    if form == "onnx":
        pytest.importorskip("onnx")
        pytest.importorskip("onnxscript")
    command = ("export-network", run, "--to", form, "--out", f"new/my.{ending}")
    document = mapolicy(*command, "--json").json
    assert document["input"] == ["batch", 1, 8, 8]
    assert document["difference"] < 1e-4
    assert (tmp_path / f"new/my.{ending}").stat().st_size > 1000
    mapolicy(*command).is_error(2, "exists", "--force")


@pytest.mark.filterwarnings("ignore")
def test_a_person_reads_what_the_file_takes_and_how_it_was_checked(mapolicy, run: Path, tmp_path: Path) -> None:
    shown = mapolicy("export-network", run, "--to", "torchscript", "--out", "new/my.pt")
    assert shown.code == 0, shown.err
    assert "images: uint8 [B, 1, 8, 8], not normalised" in shown.out
    assert "16 images by" in shown.out
    images = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    loaded = torch.jit.load(io.BytesIO((tmp_path / "new" / "my.pt").read_bytes()))
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), load_network(run)(images))
    replaced = mapolicy("export-network", run, "--to", "torchscript", "--out", "new/my.pt", "--force", "--json")
    assert replaced.code == 0, replaced.err


def test_nothing_is_written_where_it_fails(
    mapolicy, run: Path, bundle_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mapolicy("export-network", run, "--to", "tflite", "--out", "a/x").is_error(2, "onnx, torchscript, exported")
    mapolicy("export-network", bundle_file, "--to", "exported", "--out", "a/b/x").is_error(3, "expected a network file")
    monkeypatch.setattr("mapolicy.inference.export_network.find_spec", lambda name: None)
    mapolicy("export-network", run, "--to", "onnx", "--out", "x").is_error(5, "onnx is not installed")
    assert snapshot(tmp_path) == []
