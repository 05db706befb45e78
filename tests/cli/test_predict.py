"""`mapolicy predict`: classes of image files, and what is said of those that are none."""

import csv
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mapolicy import load_network, train_network
from tests.helpers.command_line import save_greys


@pytest.fixture(scope="module")
def run(make_train_config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose network tells dark from light."""
    folder = tmp_path_factory.mktemp("greys")
    save_greys(folder / "greys")
    config = make_train_config(
        policy="none", dataset=f"folder:{folder / 'greys'}", epochs=4, batch_size=8, train_per_class=0,
        validation_per_class=4, test_per_class=4,
    )  # fmt: skip
    train_network(config, run_dir=folder / "run")
    return folder / "run"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two images, of which one lies deeper, and files that are none."""
    folder = tmp_path / "photos"
    (folder / "more" / ".hidden").mkdir(parents=True)
    Image.new("RGB", (50, 30), (40, 40, 40)).save(folder / "a.png")
    Image.new("L", (20, 70), 210).save(folder / "more" / "b.JPG")
    Image.new("L", (20, 70), 210).save(folder / "more" / ".hidden" / "c.png")
    (folder / "notes.txt").write_text("no image by its ending")
    return folder


def test_files_and_folders_are_answered(mapolicy, run: Path, photos: Path) -> None:
    shown = mapolicy("predict", run, photos, photos / "a.png", "--top", "1")
    assert shown.code == 0, shown.err
    assert shown.err == ""
    lines = [re.fullmatch(r"(.*)  (dark|light) \d+\.\d %", line) for line in shown.out.splitlines()]
    assert [Path(line[1]).name for line in lines if line] == ["a.png", "b.JPG", "a.png"]


def test_images_of_more_bits_than_the_network_knows_are_said(mapolicy, run: Path, tmp_path: Path) -> None:
    values = np.full((20, 20), 4000, dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "twelve.png")
    Image.fromarray(values * 16).save(tmp_path / "sixteen.png")
    shown = mapolicy("predict", run, tmp_path / "twelve.png", tmp_path / "sixteen.png")
    assert shown.code == 0, shown.err
    assert shown.err.startswith("mapolicy: warning: 1 image with more than 8 bits a pixel and small values")


def test_json_has_probabilities(mapolicy, run: Path, photos: Path) -> None:
    document = mapolicy("predict", run / "network.safetensors", photos, "--json").json
    network = load_network(run)
    assert document["architecture"] == "test_resnet"
    assert document["failed"] == []
    for entry in document["images"]:
        (expected,) = network.predict(entry["image"]).tolist()
        found = {row["class"]: row["probability"] for row in entry["classes"]}
        assert found == pytest.approx(dict(zip(("dark", "light"), expected, strict=True)), abs=1e-5)
        assert [row["probability"] for row in entry["classes"]] == sorted(found.values(), reverse=True)


def test_csv_has_a_line_for_each_image(mapolicy, run: Path, photos: Path) -> None:
    (photos / "broken.png").write_bytes(b"\x89PNG")
    shown = mapolicy("predict", run, photos, "--csv", "--top", "9", "--batch-size", "1")
    rows = list(csv.DictReader(io.StringIO(shown.out)))
    assert list(rows[0]) == ["image", "class_1", "probability_1", "class_2", "probability_2", "error"]
    assert [Path(row["image"]).name for row in rows] == ["a.png", "broken.png", "b.JPG"]
    assert float(rows[0]["probability_1"]) + float(rows[0]["probability_2"]) == pytest.approx(1, abs=1e-5)
    assert rows[1]["class_1"] == ""
    assert rows[1]["error"]


def test_bad_images_are_named_and_the_rest_answered(mapolicy, run: Path, photos: Path) -> None:
    (photos / "empty.png").touch()
    os.mkfifo(photos / "pipe.png")
    shown = mapolicy("predict", run, photos, "missing\x1b[2J.png")
    assert shown.code == 3
    assert len(shown.out.splitlines()) == 2
    *named, error = shown.err.splitlines()
    assert [line.split(": ")[1].rpartition("/")[2] for line in named] == ["empty.png", "pipe.png", "missing?[2J.png"]
    assert error.startswith("mapolicy: error: 3 of 5 images: ")
    assert error.endswith("empty.png is empty; the others are answered")
    document = mapolicy("predict", run, photos, "--json")
    assert document.code == 3
    assert len(document.json["images"]) == 2
    assert document.json["failed"][0]["error"] == "is empty"


def test_no_image_at_all(mapolicy, run: Path, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    mapolicy("predict", run, "nothing").is_error(3, "nothing: holds no images")
    mapolicy("predict", run, "missing.png", "--csv", "--json").is_error(2, "--csv")
    shown = mapolicy("predict", run, "missing.png")
    assert (shown.code, shown.out) == (3, "")
    assert "1 of 1 images: missing.png No such file" in shown.err


def test_what_is_no_network_is_named(mapolicy, run: Path, photos: Path, bundle_file: Path, tmp_path: Path) -> None:
    mapolicy("predict", bundle_file, photos).is_error(3, "is a policy bundle, expected a network file")
    mapolicy("predict", tmp_path, photos).is_error(3, "holds no network.safetensors")
    mapolicy("predict", "missing", photos).is_error(3, "missing: No such file")
    mapolicy("predict", run, photos, "--limit", "parameters=10").is_error(3, "--limit parameters=")


def test_a_file_is_checked_before_torch_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "network.safetensors").write_bytes(b"PK")
    script = f"""
import sys
from mapolicy.cli.entry import main
sys.argv = ["mapolicy", "predict", {str(tmp_path)!r}, "x.png"]
try:
    main()
except SystemExit as end:
    print(end.code, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["3", "False"], done.stderr
