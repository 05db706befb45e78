"""A data set looked at before a run."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mapolicy.config import TrainConfig
from mapolicy.data.copies import find_copies
from mapolicy.data.dataset_report import DatasetReport, report_dataset
from mapolicy.data.image_dataset import ArrayImages, FileImages
from mapolicy.data.splits import count_training_images, load_splits
from mapolicy.errors import InputError
from tests.helpers.image_folders import CLASSES, write_folder
from tests.helpers.settings import TINY

CPU = torch.device("cpu")
BASE = TrainConfig(
    dataset="folder:zoo", arch="none", workers=0, **TINY | {"validation_per_class": 2, "test_per_class": 3}
)


def report(root: Path, **changes: Any) -> DatasetReport:
    return report_dataset(replace(BASE, data_dir=str(root.parent), **changes))


def distinct(root: Path) -> Path:
    """The folder with every image another one."""
    for number, path in enumerate(sorted(root.rglob("*.png"))):
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    return root


def test_a_drawn_split_is_reported_as_a_run_would_draw_it(tmp_path: Path) -> None:
    root = distinct(write_folder(tmp_path / "zoo"))
    (root / "ant" / "notes.txt").write_text("x")
    found = report(root)
    assert found.images == {"training": 15, "meta-validation": 6, "testing": 9, "unused": 6}
    each = {"training": 5, "meta-validation": 2, "testing": 3, "unused": 2}
    assert found.classes == dict.fromkeys(CLASSES, each)
    assert [each.path for each in found.left_out] == ["ant/notes.txt"]
    assert found.pool.formats == {"PNG": 27}
    assert found.test is not None
    assert found.test.formats == {"PNG": 9}
    assert (found.copies, found.unreadable) == ((), ())
    assert found.trouble == (
        "15 training images make 3 batches of 4 an epoch, which leave out 3 of them: set batch_size=3",
    )
    document = json.loads(json.dumps(found.document()))
    assert document["classes"]["ant"]["training"] == 5


def test_copies_across_splits_and_classes_are_found_by_content(tmp_path: Path) -> None:
    root = tmp_path / "zoo"
    for part, count in (("train", 6), ("test", 3)):
        write_folder(root / part, per_class=count)
    distinct(root)
    shutil.copy(root / "train" / "ant" / "00.png", root / "test" / "ant" / "another name.png")
    shutil.copy(root / "train" / "ant" / "01.png", root / "train" / "bee" / "99.png")
    found = report(root, train_per_class=0)
    assert len(found.copies) == 2
    groups = {tuple(sorted(group.names)) for group in found.copies}
    assert groups == {("test/ant/another name.png", "train/ant/00.png"), ("train/ant/01.png", "train/bee/99.png")}
    (line,) = (line for line in found.trouble if "in several splits" in line)
    assert line == (
        "1 image is in several splits, 1 in training and testing (train/ant/00.png (training) = "
        "test/ant/another name.png (testing)): accuracies will be too high"
    )
    assert any("1 image is in several classes" in line for line in found.trouble)
    # A run says the same at its start, of the same images.
    notes = load_splits(replace(BASE, data_dir=str(tmp_path), train_per_class=0), CPU, "train").notes
    assert [line for line in found.trouble if "in several" in line] == [line for line in notes if "in several" in line]


def test_two_files_of_a_size_of_their_own_are_compared(tmp_path: Path) -> None:
    root = distinct(write_folder(tmp_path / "zoo"))
    large = np.random.default_rng(99).integers(0, 256, (30, 20, 3), dtype=np.uint8)
    for name in ("ant/00.png", "bee/01.png"):
        Image.fromarray(large).save(root / name)
    (group,) = report(root, train_per_class=0).copies
    assert set(group.names) == {"ant/00.png", "bee/01.png"}


def test_images_that_are_all_equal_are_told_in_a_sentence(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "zoo")
    content = (root / "ant" / "00.png").read_bytes()
    for path in root.glob("*/*.png"):
        path.write_bytes(content)
    found = report(root)
    assert found.trouble[-1] == "all 36 images are equal, so there is nothing to learn: look at the files"
    assert not any("several" in line for line in found.trouble)
    (group,) = found.copies
    assert str(group).endswith(" = 33 more")
    assert str(group).count(".png") == 3
    assert len(found.document()["copies"][0]["names"]) == 36


def test_arrays_are_compared_too() -> None:
    arrays = np.random.default_rng(0).integers(0, 256, (6, 4, 4), dtype=np.uint8)
    arrays[5] = arrays[0]
    images = ArrayImages(arrays, [0, 0, 0, 1, 1, 1])
    (group,) = find_copies(("a", "b"), {"x": (images, torch.arange(3)), "y": (images, torch.arange(3, 6))})
    assert (group.names, group.splits, group.classes) == (("0", "5"), ("x", "y"), ("a", "b"))


def test_a_damaged_file_is_found_and_left_out_where_a_run_would(tmp_path: Path) -> None:
    root = distinct(write_folder(tmp_path / "zoo"))
    half = root / "bee" / "00.png"
    half.write_bytes(half.read_bytes()[:-60])  # its header is whole
    (root / "cow" / "01.png").write_bytes(b"")
    found = report(root, train_per_class=0)
    assert found.images == {"training": 21, "meta-validation": 6, "testing": 9}
    assert [line.partition(":")[0] for line in found.unreadable] == ["bee/00.png", "cow/01.png"]
    assert any(line.startswith("2 images cannot be read (bee/00.png: cannot be decoded") for line in found.trouble)
    assert not any("are in colour" in line for line in found.notes), "what has no header is not grey"
    skipped = report(root, train_per_class=0, skip_corrupt=True)
    splits = load_splits(replace(BASE, data_dir=str(tmp_path), train_per_class=0, skip_corrupt=True), CPU, "train")
    drawn = {"training": splits.train, "meta-validation": splits.meta_validation, "testing": splits.test()}
    assert skipped.images == {name: len(split) for name, split in drawn.items()}
    assert sum(skipped.images.values()) == 34
    assert any(line.startswith("left out 2 images that cannot be decoded: bee/00.png: ") for line in skipped.notes)
    assert not any("cannot be read" in line for line in skipped.trouble)


def test_a_file_is_decoded_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = distinct(write_folder(tmp_path / "zoo"))
    config = replace(BASE, data_dir=str(tmp_path), train_per_class=0, skip_corrupt=True)
    decoded: list[int] = []
    read = FileImages.read

    def counting(self: FileImages, index: int) -> Image.Image:
        decoded.append(index)
        return read(self, index)

    monkeypatch.setattr(FileImages, "read", counting)
    assert count_training_images(config) == 21
    assert sorted(decoded) == sorted(set(decoded)), "each once"
    seen = len(decoded)
    assert count_training_images(config) == 21
    assert len(decoded) == seen == 27, "all but the test images"
    for path in root.glob("bee/*.png"):
        path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(InputError, match="'bee'"):
        count_training_images(config)


def test_a_large_set_is_not_searched_for_copies_at_a_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "zoo")
    monkeypatch.setattr("mapolicy.data.splits.COMPARED_CONTENTS", 20)
    (note,) = load_splits(replace(BASE, data_dir=str(tmp_path)), CPU, "train").notes
    assert note == (
        "30 images are too many to look for the same image in several splits; `mapolicy data folder:zoo` does"
    )


def test_of_a_large_set_some_images_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mapolicy.data.dataset_report.DECODED_PIXELS", 10 * 8 * 8)
    found = report(distinct(write_folder(tmp_path / "zoo")))
    assert "10 of 36 images were decoded to look for damaged ones; --skip-corrupt decodes all" in found.notes


def test_trouble_does_not_end_the_report(tmp_path: Path) -> None:
    root = distinct(write_folder(tmp_path / "zoo"))
    (root / "bee" / "00.png").write_text("no image")
    found = report(root, train_per_class=100)
    assert found.images == {"unused": 36}
    assert any("fewer than train_per_class = 100" in line for line in found.trouble)
    assert any("1 image cannot be read (bee/00.png: is not an image" in line for line in found.trouble)
    small = report(root, batch_size=64)
    assert any("15 training images are fewer than batch_size = 64" in line for line in small.trouble)
