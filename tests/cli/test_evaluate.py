"""`mapolicy evaluate`: figures on the screen, as JSON, as tables and as pictures."""

import csv
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from mapolicy import train_network
from tests.helpers.command_line import save_greys


@pytest.fixture(scope="module")
def run(make_train_config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated") / "run"
    train_network(make_train_config(policy="none", epochs=1), run_dir=folder)
    return folder


def test_it_repeats_what_training_found(mapolicy, run: Path) -> None:
    trained = json.loads((run / "result.json").read_text())
    found = mapolicy("evaluate", run, "digits", "--json").json
    assert found["which"] == "the test images that training held out"
    assert found["images"] == trained["test_images"]
    for name in ("top1", "top5", "balanced_accuracy"):
        assert found[name] == pytest.approx(trained[f"test_{name}"])
    assert found["classes"] == trained["test_classes"]
    assert sum(each["images"] for each in found["reliability"]) == found["images"]

    shown = mapolicy("evaluate", run / "network.safetensors", "digits")
    assert shown.code == 0, shown.err
    assert f"top-1              {found['top1']:.2f} %" in shown.out
    assert "balanced accuracy" in shown.out
    assert "(ECE)" in shown.out
    rows = shown.out.partition("the weakest first")[2].splitlines()
    assert sum(" %" in row for row in rows) == 10


def test_it_writes_tables_and_pictures(mapolicy, run: Path, tmp_path: Path) -> None:
    assert mapolicy("evaluate", run, "digits", "--out", "found").code == 0
    folder = tmp_path / "found"
    assert sorted(path.name for path in folder.iterdir()) == [
        "classes.csv", "confusion.csv", "confusion.png", "confusion.svg", "evaluation.json", "reliability.png",
        "reliability.svg",
    ]  # fmt: skip
    figures = json.loads((folder / "evaluation.json").read_text())
    head, *counts = list(csv.reader((folder / "confusion.csv").read_text().splitlines()))
    assert head[1:] == [row[0] for row in counts] == list("0123456789")
    right = sum(int(row[number + 1]) for number, row in enumerate(counts))
    assert 100 * right / figures["images"] == pytest.approx(figures["top1"])
    classes = list(csv.DictReader((folder / "classes.csv").read_text().splitlines()))
    assert [float(row["recall"]) for row in classes] == [row["recall"] for row in figures["classes"].values()]
    for name in ("confusion", "reliability"):
        with Image.open(folder / f"{name}.png") as picture:
            assert len(picture.convert("L").getcolors()) > 5
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    mapolicy("evaluate", run, "digits", "--out", "found").is_error(2, "--force")
    assert mapolicy("evaluate", run, "digits", "--out", "found", "--force").code == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before, "equal runs give equal bytes"


def test_a_picture_of_many_classes_has_no_names(run: Path) -> None:
    from mapolicy.report.evaluation_files import confusion_figure

    names = [f"class {number}" for number in range(200)]
    figure = confusion_figure(names, [[int(a == b) for a in range(200)] for b in range(200)])
    assert not figure.axes[0].texts
    assert figure.get_figwidth() <= 14


def test_all_images(mapolicy, run: Path) -> None:
    found = mapolicy("evaluate", run, "digits", "--all-images", "--json").json
    assert found["images"] == 1797
    assert "the network learned from" in found["which"]


def test_what_does_not_fit_is_named(mapolicy, run: Path, bundle_file: Path, tmp_path: Path) -> None:
    mapolicy("evaluate", run, "nope").is_error(2, "data set")
    mapolicy("evaluate", run, "folder:missing").is_error(3, "missing")
    mapolicy("evaluate", bundle_file, "digits").is_error(3, "expected a network file")
    save_greys(tmp_path / "greys")
    mapolicy("evaluate", run, "folder:greys").is_error(3, "class 'dark' is not one of the network's")


def test_images_that_cannot_be_decoded_are_skipped_if_asked(mapolicy, make_train_config, tmp_path: Path) -> None:
    save_greys(tmp_path / "greys")
    config = make_train_config(
        policy="none", dataset=f"folder:{tmp_path / 'greys'}", epochs=1, batch_size=8, train_per_class=0,
        validation_per_class=4, test_per_class=4,
    )  # fmt: skip
    train_network(config, run_dir=tmp_path / "run")
    save_greys(tmp_path / "others")
    (tmp_path / "others" / "dark" / "03.png").write_text("no image")
    mapolicy("evaluate", "run", "folder:others").is_error(3, "dark/03.png", "is not an image")
    shown = mapolicy("evaluate", "run", "folder:others", "--skip-corrupt")
    assert shown.code == 0
    assert "39 of folder:others: all of them, those included that the network learned from" in shown.out
    assert re.search(r"warning: the network learned from about 3[12] of these 40 images", shown.err)
    assert "left out 1 image that cannot be decoded: " in shown.err
