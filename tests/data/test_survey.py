"""What headers say of a data set, and what the user is told before a run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mapolicy import SearchConfig, recipes, search_policy, train_network
from mapolicy.config import TrainConfig
from mapolicy.data import survey as module
from mapolicy.data.dataset_factory import open_source
from mapolicy.data.image_dataset import ArrayImages
from mapolicy.data.profile import profile
from mapolicy.data.splits import DataSplits, load_splits
from mapolicy.data.survey import choose_reading, notes, survey
from mapolicy.errors import InputError
from mapolicy.training.callbacks import Reporter
from tests.helpers.image_folders import CLASSES, write_folder
from tests.helpers.settings import TINY

CPU = torch.device("cpu")
BASE = TrainConfig(
    dataset="folder:zoo", arch="test_resnet", workers=0, **TINY | {"validation_per_class": 2, "test_per_class": 3}
)


def load(root: Path, stage: str = "train", **changes: Any) -> DataSplits:
    return load_splits(replace(BASE, data_dir=str(root.parent), **changes), CPU, stage)


def search_settings(root: Path, **changes: Any) -> SearchConfig:
    _, values = recipes.load("search-digits")
    short = {"epochs": 1, "batch_size": 4, "threads": 1, "proxy": "wrn10_1", "verify": False, "sampler": "mean-weight"}
    sizes = {"train_per_class": 4, "validation_per_class": 2, "test_per_class": 3, "weighting": "policy"}
    more = {"validation_batch_size": 4, "dataset": f"folder:{root}"}
    return SearchConfig.from_mapping({**values, **short, **sizes, **more, **changes})


class Notes(Reporter):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.facts: dict[str, str] = {}

    def on_note(self, text: str) -> None:
        self.notes.append(text)

    def on_start(self, what, iterations, facts, seconds) -> None:
        self.facts = dict(facts)


# ---- one colour image among many grey ones


@pytest.mark.parametrize("at", [0, 1999, 2599])
def test_one_colour_image_among_many_grey_ones_is_seen(at: int) -> None:
    arrays = [np.zeros((2, 2), np.uint8)] * 2600
    arrays[at] = np.zeros((2, 2, 3), np.uint8)
    found = survey(ArrayImages(arrays, [0] * 2600), torch.arange(2600))
    assert (found.colour, found.images, found.total) == (1, 2600, 2600)


def test_a_colour_image_is_seen_in_a_set_too_large_for_all_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SURVEYED", 10)
    arrays = [np.zeros((2, 2), np.uint8)] * 100
    arrays[50] = np.zeros((2, 2, 3), np.uint8)
    found = survey(ArrayImages(arrays, [0] * 100), torch.arange(100))
    assert (found.colour, found.images, found.total) == (1, 10, 100)


def test_a_set_with_few_colour_images_is_read_in_colour_and_said(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "zoo", mode="L")
    assert load(root).channels == 1
    with Image.open(root / "cow" / "11.png") as image:
        pixels = image.convert("RGB")
    pixels.save(root / "cow" / "11.png")
    splits = load(root, test_per_class=0.1)
    assert splits.channels == 3
    assert "1 of 33 images are in colour, so all are read in colour" in splits.notes


# ---- sizes


def test_sizes_are_said_and_larger_ones_suggested(tmp_path: Path) -> None:
    splits = load(write_folder(tmp_path / "zoo", size=(250, 166)), image_size=32)
    assert splits.survey is not None
    assert splits.survey.fact(splits.reading) == "250 x 166 (median), used at 32 x 32"
    (note,) = splits.notes
    assert note == (
        "the images' shorter side has 166 pixels (median), and they are used at 32 x 32: --image-size 96 or 128 or 160 "
        "shows more"
    )
    assert load(write_folder(tmp_path / "small" / "zoo", size=(32, 32)), image_size=32).notes == ()


def test_upright_and_lying_photos_have_the_shorter_side_of_either(tmp_path: Path) -> None:
    for number in range(12):
        size = (120, 90) if number % 2 else (90, 120)
        write_folder(tmp_path / "zoo", (f"class {number}",), 1, size)
    source = open_source(f"folder:{tmp_path / 'zoo'}", tmp_path)
    found = survey(source.pool, torch.arange(12))
    assert (found.width, found.height, found.side) == (105, 105, 90)
    reading = choose_reading(BASE, found, source.pool, torch.arange(12))
    assert found.fact(reading) == "105 x 105 (medians; that of the shorter side is 90), used at 8 x 8"
    (note,) = notes(found, reading, [1] * 12)
    assert note.startswith("the images' shorter side has 90 pixels (median)")
    assert profile(source).side == 90


def test_a_run_says_what_it_found_and_lists_it_in_its_folder(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "zoo", size=(40, 16))
    (root / "ant" / "notes.txt").write_text("x")
    heard, config = Notes(), replace(BASE, dataset=f"folder:{root}", policy="none", threads=1)
    train_network(config, reporter=heard, run_dir=tmp_path / "run")
    assert heard.facts["image size"] == "40 x 16 (median), used at 8 x 8"
    assert "1 files and folders are not used: 1 .txt is not the ending of an image format" in heard.notes
    assert any("--resize pad" in note for note in heard.notes)
    import json

    document = json.loads((tmp_path / "run" / "data.json").read_text())
    assert document["left_out"] == [{"path": "ant/notes.txt", "why": ".txt is not the ending of an image format"}]
    assert document["classes"] == dict.fromkeys(CLASSES, 7)
    assert document["splits"] == {"train": 15, "meta_validation": 6}
    assert document["reading"]["resize"] == "crop"
    assert document["images"]["formats"] == {"PNG": 27}


# ---- few images


def test_a_class_that_is_too_small_is_named_in_the_users_terms(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "zoo")
    for path in sorted((root / "bee").iterdir())[2:]:
        path.unlink()
    with pytest.raises(InputError) as caught:
        load(root, train_per_class=0, validation_per_class=0.1, test_per_class=0.15)
    assert str(caught.value) == (
        "class 'bee': has 2 images: 1 for testing, 1 for meta-validation, and 0 left for training; "
        "add images to the class, or remove it"
    )


def test_classes_of_uneven_size_are_said(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "zoo", per_class=40)
    for path in sorted((root / "bee").iterdir())[5:]:
        path.unlink()
    splits = load(root, train_per_class=0, validation_per_class=1, test_per_class=1)
    (note,) = splits.notes
    assert note.startswith("classes have 4 to 39 images: top-1 is mostly that of the large ones")
    assert note.endswith("; --balance sampler or --balance loss makes up for it")
    (balanced,) = load(root, train_per_class=0, validation_per_class=1, test_per_class=1, balance="loss").notes
    assert balanced == note.partition(";")[0]
    assert load(write_folder(tmp_path / "even" / "zoo")).notes == ()


# ---- a validation split of the user's own


def test_an_own_validation_split_is_searched_on_and_trained_with(tmp_path: Path) -> None:
    root = tmp_path / "zoo"
    for part, count in (("train", 8), ("valid", 3), ("test", 4)):
        write_folder(root / part, per_class=count)
        for path in root.glob(f"{part}/*/*.png"):  # no image twice
            noise = np.random.default_rng(abs(hash(str(path))) % 2**32).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(noise).save(path)
    bundle = search_policy(search_settings(root, validation_per_class=7.0, train_per_class=0.0))
    counts, split = bundle.manifest.dataset.counts, bundle.manifest.dataset.split
    assert (counts.images, counts.train, counts.meta_validation) == (33, 24, 9)
    assert split.validation_per_class == bundle.manifest.search.settings["validation_per_class"] == 0
    names = open_source(f"folder:{root}", tmp_path).pool
    assert {names.name(int(index)).split("/")[0] for index in bundle.meta_validation} == {"valid"}
    settings = bundle.data_settings() | {"dataset": f"folder:{root}"}
    config = TrainConfig.from_mapping(BASE.to_mapping() | settings | {"threads": 1})
    result = train_network(config, bundle)
    assert result.dataset_mismatch == ()
    splits = load_splits(config, CPU, "train", bundle.meta_validation)
    assert torch.equal(splits.meta_validation.indices, bundle.meta_validation)
    assert (len(splits.train), len(splits.test())) == (24, 12)
    # Without a bundle it is the meta-validation split too.
    alone = load(root, train_per_class=0)
    assert torch.equal(alone.meta_validation.indices, bundle.meta_validation)
