"""`mapolicy report`: the page's files, and what it refuses."""

from pathlib import Path

import pytest

from mapolicy import PolicyBundle, train_network
from tests.helpers.command_line import snapshot
from tests.helpers.make_bundles import DATA


def test_report_of_a_bundle_and_its_run(mapolicy, bundle_file: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text("epochs = 2\n")
    (tmp_path / "run" / "metrics.jsonl").write_text('{"epoch": 1, "loss": 2.0}\n')
    shown = mapolicy("report", bundle_file, "run", "--out", "r.html", "--samples", "28", "--json")
    assert shown.code == 0, shown.err
    document = shown.json
    page = (tmp_path / "r.html").read_bytes()
    assert document["digest"] == PolicyBundle.load(bundle_file).digest
    assert (document["bytes"], document["samples"]) == (len(page), 28)
    assert document["without_data"] is None, "the digits come with scikit-learn"
    assert b'id="learning"' in page
    mapolicy("report", bundle_file, "--out", "r.html").is_error(2, "r.html: exists", "--force")


def test_report_of_a_training_says_how_good_its_network_is(mapolicy, make_train_config, tmp_path: Path) -> None:
    result = train_network(make_train_config(policy="none", epochs=1), run_dir=tmp_path / "run")
    expected = f"{result.test_top1:.2f} % top-1, {result.test.balanced_accuracy:.2f} % balanced accuracy, "
    shown = mapolicy("report", "run")
    assert f"test images  {expected}" in shown.out
    assert f"On the test images its network has {expected}" in (tmp_path / "report.html").read_text()
    document = mapolicy("report", "run", "--out", "again.html", "--json").json
    assert document["on_test_images"].startswith(expected)


def test_report_of_a_dataset_level_policy_with_pictures(mapolicy, tmp_path: Path) -> None:
    mapolicy("import", "randaugment:1,5", "--out", "r.safetensors")
    shown = mapolicy("report", "r.safetensors", "--out", "r.html", "--figures", "pictures")
    assert shown.code == 0, shown.err
    assert snapshot(tmp_path / "pictures") == ["operations.png", "operations.svg"]
    mapolicy("report", "r.safetensors", "--out", "s.html", "--figures", "pictures").is_error(2, "no empty folder")
    assert not (tmp_path / "s.html").exists()


def test_report_refuses_what_it_cannot_show(mapolicy, bundle_file: Path, tmp_path: Path) -> None:
    mapolicy("report", "nowhere").is_error(3, "nowhere: No such file")
    mapolicy("report", bundle_file, bundle_file).is_error(2, "2 bundles and 0 run folders")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text("epochs = 2\n")
    mapolicy("report", "run").is_error(3, "metrics.jsonl: No such file")
    mapolicy("report", "run", "--against", bundle_file).is_error(2, "--against: there is no bundle")
    mapolicy("report", "run", "--data-dir", ".").is_error(2, "--data-dir: there is no bundle")
    mapolicy("import", "randaugment:1,5", "--out", "r.safetensors")
    mapolicy("report", "r.safetensors", "--against", bundle_file).is_error(3, "dataset-level")
    assert snapshot(tmp_path) == ["r.safetensors", "run", "run/config.toml"]


def test_a_report_does_without_a_data_set_that_was_not_asked_for(mapolicy, tmp_path: Path, tiny: Path) -> None:
    settings = ("--set", "image_size=16", "--set", "batch_size=4", "--set", "validation_per_class=2", "--epochs", "1")
    settings += ("--set", "test_per_class=1", "--set", "weighting=policy", "--no-verify")
    searched = mapolicy("search", f"folder:{tiny}/tiny", "--proxy", "wrn10_1", *settings)
    assert searched.code == 0, searched.err
    shown = mapolicy("report", "artifacts/tiny.safetensors", "--json")
    assert shown.code == 0, shown.err
    assert shown.json["samples"] == 0
    assert "--data-dir" in shown.json["without_data"]
    page = (tmp_path / "report.html").read_text()
    assert "Without the data set" in page
    assert str(tmp_path) not in page
    mapolicy("report", "artifacts/tiny.safetensors", "--data-dir", ".", "--force").is_error(
        3, "folder:tiny: there is no folder tiny here and none in ."
    )
    found = mapolicy("report", "artifacts/tiny.safetensors", "--data-dir", tiny, "--force", "--json")
    assert found.json["samples"] == 6


def test_report_of_equal_weights_reads_no_data_set(mapolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mapolicy.report.samples.open_splits", lambda *_: pytest.fail("no images are needed"))
    document = mapolicy("report", DATA / "format-2-levels.safetensors", "--out", "x.html", "--json")
    assert document.code == 0, document.err
    assert document.json["samples"] == 0
    assert "--data-dir" not in document.err
    named = mapolicy("report", DATA / "format-2-levels.safetensors", "--out", "y.html", "--data-dir", ".")
    assert "--data-dir is not used: this policy sees the transformation, not the image" in named.err
    assert "this policy sees the transformation" in (tmp_path / "x.html").read_text().lower()
