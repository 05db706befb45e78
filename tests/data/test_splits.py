"""Splits, batches, statistics and fingerprint, on folders of small images made here."""

import multiprocessing
import os
import shutil
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from mapolicy.config import TrainConfig
from mapolicy.data import splits as data
from mapolicy.data.decode import CorruptImageError
from mapolicy.data.image_dataset import ArrayImages, FileImages
from mapolicy.data.loader import StreamedSplit
from mapolicy.data.reading import Cropper, ImageReading
from mapolicy.data.splits import load_splits
from mapolicy.data.stratify import per_class
from mapolicy.errors import EnvironmentFault, InputError, MapolicyError, UsageError
from tests.helpers.image_folders import CLASSES, write_folder
from tests.helpers.settings import TINY

CPU = torch.device("cpu")
BASE = TrainConfig(
    dataset="folder:zoo", arch="none", workers=0, **TINY | {"validation_per_class": 2, "test_per_class": 3}
)


@pytest.fixture
def zoo(tmp_path):
    return write_folder(tmp_path / "zoo")


def load(root, meta_validation=None, stage="train", **changes):
    return load_splits(replace(BASE, data_dir=str(root.parent), **changes), CPU, stage, meta_validation)


def every_batch(split, size=4, augment=False, first_step=0):
    parts = torch.arange(len(split)).split(size)
    return list(split.batches([(first_step + step, part) for step, part in enumerate(parts)], augment))


def all_images(split, **options):
    return torch.cat([images for images, _ in every_batch(split, **options)])


def original(root, index, per_class=12):
    path = sorted((root / CLASSES[index // per_class]).iterdir())[index % per_class]
    return torch.from_numpy(np.asarray(Image.open(path)).transpose(2, 0, 1).copy())


# ---- splits


def test_splits_are_stratified_and_disjoint(zoo):
    splits = load(zoo)
    parts = {"train": splits.train, "validation": splits.meta_validation, "test": splits.test()}
    for (name, part), count in zip(parts.items(), (5, 2, 3), strict=True):
        assert torch.bincount(part.labels).tolist() == [count] * 3, name
        assert part.labels.tolist() == [index // 12 for index in part.indices.tolist()]
        assert part.indices.tolist() == sorted(part.indices.tolist())
        assert part.indices.dtype == part.labels.dtype == torch.int64
    together = torch.cat([part.indices for part in parts.values()])
    assert len(together.unique()) == len(together) == 30
    assert splits.counts == (7, 7, 7)
    assert (splits.name, splits.classes, splits.channels, splits.image_size) == ("folder:zoo", CLASSES, 3, 8)
    assert splits.resident
    assert splits.corrupt == ()


def test_splits_depend_on_split_seed_alone(zoo):
    def chosen(**changes):
        splits = load(zoo, **changes)
        return [part.indices.tolist() for part in (splits.test(), splits.meta_validation, splits.train)]

    first = chosen()
    assert chosen(seed=7, batch_size=3, image_size=4) == first
    other = chosen(split_seed=1)
    assert all(a != b for a, b in zip(first, other, strict=True))
    fewer = chosen(train_per_class=2)
    assert fewer[:2] == first[:2]
    assert set(fewer[2]) < set(first[2])
    everything = chosen(train_per_class=0)
    assert everything[:2] == first[:2]
    assert len(everything[2]) == 21
    assert chosen(validation_per_class=4)[0] == first[0]


def test_fractions_round_half_up_and_take_at_least_one(zoo):
    assert per_class(0.145, [100, 3, 1000]) == [15, 1, 145]
    assert per_class(0.5, [5]) == [3]
    assert per_class(1, [5, 9]) == [1, 1]
    splits = load(zoo, train_per_class=0.5, validation_per_class=0.1, test_per_class=0.125)
    sizes = [len(part) // 3 for part in (splits.train, splits.meta_validation, splits.test())]
    assert sizes == [6, 1, 2]


def test_the_bundles_meta_validation_is_taken_over(zoo):
    searched = load(zoo)
    again = load(zoo, searched.meta_validation.indices.flip(0), validation_per_class=0)
    assert torch.equal(again.meta_validation.indices, searched.meta_validation.indices)
    assert torch.equal(again.train.indices, searched.train.indices)
    assert again.fingerprint == searched.fingerprint
    mine = torch.tensor([int(order) for order in searched.train.indices[:2]])
    other = load(zoo, mine)
    assert other.meta_validation.indices.tolist() == mine.tolist()
    assert not torch.isin(other.train.indices, mine).any()
    assert torch.equal(other.test().indices, searched.test().indices)


def test_the_check_sees_the_data_set_before_its_images(zoo, monkeypatch):
    seen = []
    found = data.load_splits(
        replace(BASE, data_dir=str(zoo.parent)), CPU, "train", check=lambda *facts: seen.append(facts)
    )
    assert seen == [("folder:zoo", CLASSES, 36, None), ("folder:zoo", CLASSES, 36, found.fingerprint)]
    for label in CLASSES:
        for file in (zoo / label).iterdir():
            file.write_bytes(b"no image")

    def refuse(name, classes, images, fingerprint):
        raise InputError(name, "is refused")

    with pytest.raises(InputError, match="is refused"):
        data.load_splits(replace(BASE, data_dir=str(zoo.parent)), CPU, "train", check=refuse)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([], "names none"),
        ([-1, 2], "has 36 images"),
        ([0, 36], "has 36 images"),
        ([3, 3], "twice"),
        (None, "would be test images"),
    ],
)
def test_bad_indices_of_a_bundle(zoo, given, says):
    given = load(zoo).test().indices[:1] if given is None else torch.tensor(given, dtype=torch.int64)
    with pytest.raises(InputError, match=says):
        load(zoo, given)


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"train_per_class": 2.5}, UsageError, "not a count of images"),
        ({"validation_per_class": 0}, UsageError, "validation_per_class"),
        (
            {"train_per_class": 8},
            InputError,
            "class 'ant': has 12 images: 3 for testing, 2 for meta-validation, and 7 left, fewer than "
            "train_per_class = 8; add images to the class, or lower train_per_class",
        ),
        ({"test_per_class": 13}, InputError, "class 'ant': has 12 images, fewer than test_per_class = 13"),
        (
            {"validation_per_class": 9, "train_per_class": 0},
            InputError,
            "class 'ant': has 12 images: 3 for testing, 9 for meta-validation, and 0 left for training",
        ),
        (
            {"batch_size": 16},
            InputError,
            "has 15 training images, fewer than batch_size = 16; use --batch-size 15, or add",
        ),
        ({"dataset": "folder:nowhere"}, InputError, "there is no folder nowhere here"),
    ],
)
def test_splits_that_cannot_be_made(zoo, changes, error, says):
    with pytest.raises(error, match=says) as caught:
        load(zoo, **changes)
    assert "\n" not in str(caught.value)
    assert caught.value.remedy


def test_no_test_images_at_all(zoo):
    splits = load(zoo, test_per_class=0, stage="search")
    with pytest.raises(UsageError, match="no test split of its own"):
        splits.test()
    with pytest.raises(UsageError, match="no test split of its own"):
        load(zoo, test_per_class=0)


# ---- the test split stays closed


def test_drawn_test_images_are_not_read_before_they_are_asked_for(zoo):
    expected = load(zoo)
    content = all_images(expected.test())
    files = sorted(zoo.glob("*/*.png"))
    kept = {index: files[index].read_bytes() for index in expected.test().indices.tolist()}
    for index in kept:
        files[index].write_text("poison")
    for changes in ({}, {"skip_corrupt": True}, {"memory_limit_gib": 0.0}):
        splits = load(zoo, **changes)
        assert splits.fingerprint == expected.fingerprint
        assert splits.corrupt == ()
        splits.train_with_validation()
        every_batch(splits.train)
    with pytest.raises(InputError, match=r"\.png"):
        load(zoo).test()
    for index, old in kept.items():
        files[index].write_bytes(old)
    assert torch.equal(all_images(load(zoo).test()), content)


def test_own_test_split_is_not_opened_before_it_is_asked_for(tmp_path):
    root = tmp_path / "zoo"
    write_folder(root / "train")
    write_folder(root / "test", per_class=4)
    (root / "test" / "cow" / "03.png").write_bytes(b"")
    shutil.rmtree(root / "test" / "ant")
    for stage in ("search", "train"):  # a search is for trainings that would be refused
        with pytest.raises(InputError, match="'ant' is only in"):
            load(root, stage=stage)
    shutil.copytree(root / "train" / "ant", root / "test" / "ant")
    splits = load(root, test_per_class=11, stage="search")  # ignored: the data set has a test split of its own
    with pytest.raises(InputError, match=r"cow/03\.png: is empty"):
        splits.test()
    splits = load(root, skip_corrupt=True)
    assert splits.corrupt == ()
    assert torch.bincount(splits.test().labels).tolist() == [12, 4, 3]
    assert splits.corrupt == ("test/cow/03.png: is empty",)
    assert splits.test() is splits.test()
    assert len(splits.corrupt) == 1


# ---- batches


@pytest.mark.parametrize("limit", [1.0, 0.0])
def test_batches_hold_the_images_of_the_schedule(zoo, limit):
    splits = load(zoo, memory_limit_gib=limit)
    assert splits.resident == bool(limit)
    schedule = [(4, torch.tensor([3, 3, 0])), (5, torch.tensor([14]))]
    for part in (splits.train, splits.train_with_validation(), splits.test()):
        batches = list(part.batches([(step, positions % len(part)) for step, positions in schedule]))
        assert [len(images) for images, _ in batches] == [3, 1]
        for (_, positions), (images, labels) in zip(schedule, batches, strict=True):
            assert images.dtype == torch.uint8
            assert labels.dtype == torch.int64
            for position, image, label in zip(positions.tolist(), images, labels.tolist(), strict=True):
                index = int(part.indices[position % len(part)])
                assert torch.equal(image, original(zoo, index))
                assert label == index // 12


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_resident_and_streamed_are_the_same_pixels(tmp_path, mode):
    root = write_folder(tmp_path / "zoo", size=(19, 13), mode=mode)
    held, streamed = load(root), load(root, memory_limit_gib=0.0)
    assert held.channels == streamed.channels == len(mode) == all_images(held.train).shape[1]
    for name in ("train", "meta_validation"):
        assert torch.equal(all_images(getattr(held, name)), all_images(getattr(streamed, name)))
    assert torch.equal(all_images(held.test()), all_images(streamed.test()))
    assert held.fingerprint == streamed.fingerprint
    joined = held.train_with_validation()
    assert torch.equal(all_images(joined), all_images(streamed.train_with_validation()))
    assert len(joined) == 21
    assert joined.indices.tolist() == sorted(joined.indices.tolist())


@pytest.fixture
def two_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)


def test_number_of_workers_does_not_matter(tmp_path, two_cores):
    root = write_folder(tmp_path / "zoo", size=(20, 15))
    changes = {"base_augmentation": "random_resized_crop", "seed": 5}
    results = []
    for workers in (0, 1, 2):
        splits = load(root, workers=workers, **changes)
        assert splits.train.workers == workers
        results.append(all_images(splits.train, augment=True))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    plain = load(root, **changes).train
    assert not torch.equal(results[0], all_images(plain))
    assert not torch.equal(results[0], all_images(plain, augment=True, first_step=1))
    assert not torch.equal(results[0], all_images(load(root, **{**changes, "seed": 6}).train, augment=True))
    # Neither does the way a global batch is divided among ranks.
    (whole, _), *_ = plain.batches([(9, torch.arange(6))], augment=True)
    (half, _), *_ = plain.batches([(9, torch.arange(3, 6))], augment=True)
    assert torch.equal(whole[3:], half)


def test_random_crop_pipelines_evaluate_on_the_centre(tmp_path):
    from torchvision.transforms import functional

    root = write_folder(tmp_path / "zoo", size=(64, 64))
    splits = load(root, base_augmentation="random_resized_crop", image_size=28)
    image = Image.open(sorted(root.glob("*/*.png"))[int(splits.meta_validation.indices[0])])
    expected = np.asarray(functional.center_crop(functional.resize(image, 32), 28)).transpose(2, 0, 1).astype(int)
    got = all_images(splits.meta_validation)[0].numpy()
    assert np.abs(got - expected).max() <= 1


def test_global_random_state_is_not_touched(tmp_path, two_cores):
    root = write_folder(tmp_path / "zoo")
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    for changes in ({}, {"base_augmentation": "random_resized_crop", "workers": 1}):
        every_batch(load(root, **changes).train, augment=True)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)


def test_many_resident_images_are_decoded_by_workers(zoo, monkeypatch, two_cores):
    expected = load(zoo)
    monkeypatch.setattr("mapolicy.data.loader.WORTH_WORKERS", 10)
    monkeypatch.setattr("mapolicy.data.loader.CHUNK", 4)
    got = load(zoo, workers=2)
    assert torch.equal(got.train.images, expected.train.images)


# ---- faults


@pytest.mark.parametrize("workers", [0, 2])
def test_corrupt_image_in_a_stream_is_named(zoo, workers, two_cores):
    splits = load(zoo, memory_limit_gib=0.0, workers=workers)
    index = int(splits.train.indices[6])
    path = sorted(zoo.glob("*/*.png"))[index]
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(InputError) as caught:
        every_batch(splits.train)
    assert str(path) in str(caught.value)
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("limit", [1.0, 0.0])
def test_skip_corrupt_leaves_out_lists_and_keeps_positions(zoo, limit):
    clean = load(zoo, train_per_class=0)
    bad = int(clean.train.indices[2])
    path = sorted(zoo.glob("*/*.png"))[bad]
    path.write_text("text")
    if limit:
        with pytest.raises(InputError, match=path.name):
            load(zoo, train_per_class=0)
    splits = load(zoo, train_per_class=0, skip_corrupt=True, memory_limit_gib=limit)
    assert splits.corrupt == (f"{path.parent.name}/{path.name}: is not an image that Pillow can read",)
    assert splits.train.indices.tolist() == [index for index in clean.train.indices.tolist() if index != bad]
    assert torch.equal(splits.meta_validation.indices, clean.meta_validation.indices)
    assert sum(splits.counts) == sum(clean.counts) - 1
    with pytest.raises(InputError, match="corrupt image"):
        load(zoo, torch.tensor([bad]), skip_corrupt=True)


class Dying(ArrayImages):
    def read(self, index):
        if index == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(index)


class Hanging(ArrayImages):
    def read(self, index):
        if index == 5:
            time.sleep(60)
        return super().read(index)


@pytest.mark.parametrize(("kind", "says"), [(Dying, "exited unexpectedly|killed by signal"), (Hanging, "timed out")])
def test_dead_and_hanging_workers(kind, says, monkeypatch):
    monkeypatch.setattr("mapolicy.data.loader.PATIENCE", 1.0)
    images = kind(np.zeros((8, 4, 4), dtype=np.uint8), [0] * 8)
    split = StreamedSplit(images, Cropper(ImageReading(1, 4, share=1.0), False, 0, "train"), torch.arange(8), CPU, 1)
    start = time.monotonic()
    with pytest.raises(EnvironmentFault, match=says):
        every_batch(split)
    assert time.monotonic() - start < 45, "found out by patience, not by the end of the hanging"


def test_an_abandoned_loop_ends_its_workers(zoo, two_cores):
    splits = load(zoo, memory_limit_gib=0.0, workers=2)
    batches = splits.train.batches([(step, torch.arange(4)) for step in range(50)])
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    batches.close()
    assert multiprocessing.active_children() == []


def test_errors_of_ours_survive_the_way_out_of_a_worker():
    import pickle

    error = pickle.loads(pickle.dumps(CorruptImageError("a", "b", "c")))
    assert isinstance(error, MapolicyError)
    assert str(error) == "a: b; c"


# ---- statistics and fingerprint


def test_mean_and_std_are_those_of_the_training_split(zoo):
    splits = load(zoo)
    pixels = np.stack([original(zoo, index).numpy() for index in splits.train.indices.tolist()]) / 255
    assert splits.mean == pytest.approx(pixels.mean((0, 2, 3)), abs=1e-12)
    assert splits.std == pytest.approx(pixels.std((0, 2, 3)), abs=1e-12)
    streamed = load(zoo, memory_limit_gib=0.0)
    assert streamed.mean == (0.485, 0.456, 0.406)


def test_constant_channel_has_std_one(tmp_path):
    for name in CLASSES:
        (tmp_path / "zoo" / name).mkdir(parents=True)
        for number in range(12):
            Image.new("RGB", (8, 8), (51, 20 * number, 0)).save(tmp_path / "zoo" / name / f"{number}.png")
    splits = load(tmp_path / "zoo")
    assert (splits.mean[0], splits.std[0], splits.mean[2], splits.std[2]) == (0.2, 1.0, 0.0, 1.0)
    assert splits.std[1] < 0.5


@pytest.mark.parametrize("most", [100_000, 0])
def test_fingerprint(zoo, tmp_path, monkeypatch, most):
    monkeypatch.setattr(data, "FINGERPRINT_IMAGES", most)
    first = load(zoo)
    assert len(first.fingerprint) == 64
    shutil.copytree(zoo, tmp_path / "elsewhere" / "other name")
    moved = load(tmp_path / "elsewhere" / "other name", dataset="folder:other name")
    same = [moved, load(zoo, seed=3, batch_size=2, image_size=5), load(zoo, memory_limit_gib=0.0)]
    assert {each.fingerprint for each in same} == {first.fingerprint}
    assert load(zoo, train_per_class=4).fingerprint != first.fingerprint

    path = sorted(zoo.glob("*/*.png"))[int(first.train.indices[0])]
    old = path.read_bytes()
    pixels = np.asarray(Image.open(path)).copy()
    pixels[0, 0, 0] ^= 255
    Image.fromarray(pixels).save(path)
    if most:
        assert load(zoo).fingerprint != first.fingerprint
    path.write_bytes(old + b"x")  # a byte behind the end: the size changes, the picture does not
    assert load(zoo).fingerprint != first.fingerprint
    path.write_bytes(old)
    assert load(zoo).fingerprint == first.fingerprint

    (zoo / "cow").rename(zoo / "doe")
    assert load(zoo).fingerprint != first.fingerprint


def test_fingerprint_covers_labels():
    arrays = np.zeros((4, 2, 2), dtype=np.uint8)
    indices = torch.arange(4)
    prints = {
        data.fingerprint(("a", "b"), ArrayImages(arrays, labels), indices) for labels in ([0, 0, 1, 1], [0, 1, 0, 1])
    }
    assert len(prints) == 2


def test_channels_are_those_of_the_images(tmp_path):
    root = write_folder(tmp_path / "zoo", mode="1")
    assert load(root).channels == 1
    for path in (root / "bee").iterdir():
        Image.open(path).convert("RGB").save(path)
    splits = load(root)
    assert splits.channels == 3
    assert all_images(splits.train).shape == (15, 3, 8, 8)


def test_file_images_are_relative(zoo):
    images = FileImages(zoo, ["ant/00.png"], [0])
    assert images.name(0) == "ant/00.png"
    assert images.size(0) == (zoo / "ant" / "00.png").stat().st_size
