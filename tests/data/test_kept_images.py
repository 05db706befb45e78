"""Kept images: what is kept changes no batch, damaged files cost an image, and processes share a file."""

import os
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mapolicy import TrainConfig
from mapolicy.bench.synthetic import synthetic_images
from mapolicy.data.kept_images import CACHE, PAGE, KeptImages, Owner, clear, open_file
from mapolicy.data.loader import Split
from mapolicy.data.reading import ImageReading
from mapolicy.data.splits import DataSplits, load_splits
from mapolicy.errors import InputError
from mapolicy.runtime.random import generator
from mapolicy.transforms.random_resized_crop import random_crop_box
from tests.helpers.settings import TINY

BASE = TrainConfig(
    dataset="folder:photos",
    arch="none",
    workers=0,
    **TINY | {"validation_per_class": 2, "test_per_class": 2, "image_size": 16},
).with_changes(base_augmentation="random_resized_crop", keep_images="small")
OWNER = Owner("folder:x", "/x")
SHAPES = [(3, 4), (5, 2)]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """JPEGs of different sizes, one of them turned by its orientation."""
    root = tmp_path / "photos"
    for number, image in enumerate(synthetic_images(20, 90)):
        path = root / str(number % 2) / f"{number:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        if number == 2:
            exif[0x0112] = 6
        picture = Image.fromarray(image[:, : 50 + 2 * number].permute(1, 2, 0).numpy())
        picture.save(path, quality=95, exif=exif)
    return root


def load(root: Path, **changes: object) -> DataSplits:
    places = {"data_dir": str(root.parent), "cache_dir": str(root.parent / "cache")}
    config = replace(BASE, **(places | changes))
    return load_splits(config, torch.device("cpu"), "train")


def batches(split: Split, augment: bool = True, first_step: int = 0) -> torch.Tensor:
    parts = torch.arange(len(split)).split(5)
    plan = [(first_step + step, part) for step, part in enumerate(parts)]
    return torch.cat([images for images, _ in split.batches(plan, augment)])


def cache_files(root: Path) -> list[Path]:
    return sorted((root.parent / "cache" / CACHE).glob("*.images"))


@pytest.mark.parametrize(
    ("resize", "keep_images"), [("crop", "small"), ("pad", "small"), ("squash", "small"), ("crop", "whole")]
)
def test_batches_do_not_depend_on_where_images_are_kept(photos: Path, resize: str, keep_images: str) -> None:
    """Not on memory, a new file, a filled one, or nowhere; nor on the epoch that decoded them."""
    how = {"resize": resize, "keep_images": keep_images}
    memory, new = load(photos, **how), load(photos, memory_limit_gib=0.0, **how)
    expected = [batches(memory.train, first_step=step) for step in (0, 7)]
    assert not torch.equal(*expected)
    assert torch.equal(batches(new.train), expected[0])
    filled = load(photos, memory_limit_gib=0.0, **how)
    assert filled.train.kept.crops.expected().sum() == len(filled.train)  # type: ignore[attr-defined]
    assert torch.equal(batches(filled.train, first_step=7), expected[1])
    nowhere = load(photos, memory_limit_gib=0.0, **how, cache_dir=str(photos / "0" / "00.jpg"))
    assert "decoded anew" in nowhere.notes[-1]
    assert torch.equal(batches(nowhere.train), expected[0])
    assert torch.equal(batches(nowhere.train, first_step=7), expected[1])
    # Central squares are those of a run that keeps nothing.
    plain = load(photos, resize=resize, keep_images="off")
    for splits in (memory, filled, nowhere):
        for _ in range(2):
            assert torch.equal(
                batches(splits.meta_validation, augment=False), batches(plain.meta_validation, augment=False)
            )


def test_batches_do_not_depend_on_workers_threads_or_ranks(
    photos: Path, monkeypatch: pytest.MonkeyPatch, set_threads: Callable[[int], None]
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    expected = batches(load(photos).train)
    set_threads(2)
    split = load(photos, workers=2).train
    assert split.workers == 2  # type: ignore[attr-defined]
    assert torch.equal(batches(split), expected)
    # Nor on how many images a worker hands over at once.
    monkeypatch.setattr("mapolicy.data.kept_split.PIECE", 2 * max(split.kept.crops.sizes))  # type: ignore[attr-defined]
    split = load(photos, workers=1).train
    assert {len(piece) for piece in split._pieces(split.indices.tolist(), True)} >= {2}  # type: ignore[attr-defined]
    assert torch.equal(batches(split), expected)
    (half, _), *_ = load(photos).train.batches([(1, torch.arange(7, 10))], augment=True)
    assert torch.equal(half, expected[7:10])
    both = load(photos).train_with_validation()
    assert batches(both).shape == (len(both), 3, 16, 16)


@pytest.mark.parametrize("resize", ["crop", "pad", "squash"])
def test_crops_of_whole_images_are_those_of_the_files(photos: Path, resize: str) -> None:
    """To the byte, although a JPEG's decoder could reduce the file for such small crops; Pillow's within 1 level."""
    how = {"resize": resize, "image_size": 8}
    streamed = load(photos, keep_images="off", **how).train
    plain = batches(streamed)
    kept = [load(photos, keep_images=each, **how).train for each in ("memory", "whole")]
    small = load(photos, keep_images="small", **how)
    for split in kept:
        for _ in ("decoded", "kept"):
            assert torch.equal(batches(split), plain)
    assert (batches(small.train).int() - plain.int()).abs().max() > 10
    for row, index in enumerate(streamed.indices.tolist()):
        image = streamed.crop.reading._for_crops(streamed.images.read(index))  # type: ignore[attr-defined]
        box = random_crop_box(*image.size, generator(BASE.seed, "train", f"crop/{index}", row // 5))
        theirs = np.asarray(image.crop(box).resize((8, 8), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
        assert np.abs(theirs.astype(int) - plain[row].numpy()).max() <= 1


def test_crops_of_small_copies_look_like_those_of_the_files(photos: Path) -> None:
    """The same boxes: the mean difference is what a smaller copy loses; with another step's boxes it is far larger."""
    kept, plain = batches(load(photos).train).float(), batches(load(photos, keep_images="off").train).float()
    assert (kept - plain).abs().mean() < 6
    other = batches(load(photos, keep_images="off").train, first_step=50).float()
    assert (kept - other).abs().mean() > 3 * (kept - plain).abs().mean()


def test_a_small_copy_is_an_eighth_larger_than_the_crops() -> None:
    reading = ImageReading(3, 224)
    squash, pad = ImageReading(3, 224, "squash"), ImageReading(3, 224, "pad")
    assert (reading.whole_size(484, 387), reading.small_size(484, 387)) == ((484, 387), (320, 256))
    assert (reading.whole_size(100, 90), reading.small_size(100, 90)) == ((100, 90), (100, 90))
    assert (squash.whole_size(484, 387), squash.small_size(484, 387)) == ((484, 484), (256, 256))
    assert (squash.whole_size(4000, 10), squash.small_size(4000, 10)) == ((40, 40), (40, 40))
    assert (pad.whole_size(484, 387), pad.small_size(484, 387)) == ((484, 484), (256, 256))
    pixels = synthetic_images(1, 120)[0][:, :100].permute(1, 2, 0).numpy()
    image = Image.fromarray(pixels)
    got = ImageReading(3, 28).small(image, (38, 32))
    assert np.abs(got.transpose(1, 2, 0).astype(int) - np.asarray(image.resize((38, 32), 2))).max() <= 1


def test_a_jpeg_is_decoded_smaller_where_that_suffices(photos: Path) -> None:
    """The difference is a few levels, where neighbouring pixels differ by many."""
    split = load(photos, image_size=8).train  # kept at 9 of 50 to 90 pixels
    reader = split.reader  # type: ignore[attr-defined]
    index = int(split.indices[-1])
    assert reader.images.read(index).size == reader.sizes[index]
    assert np.array_equal(np.asarray(reader.images.pixels(index, 1.9)), np.asarray(reader.images.read(index)))
    small = reader.images.pixels(index, 3)
    assert small.shape[1::-1] == tuple(-(-side // 2) for side in reader.sizes[index])
    whole = reader.reading.small(reader.images.read(index), reader.size(index))
    assert np.abs(whole.astype(int) - reader.for_crops(index)).mean() < 4


def test_a_damaged_file_costs_its_images_only(photos: Path) -> None:
    first = load(photos, memory_limit_gib=0.0)
    expected, told = batches(first.train), first.notes[-1]
    assert "KiB, more than memory_limit_gib = 0" in told
    assert "mapolicy data folder:photos --data-dir " in told
    path = max(cache_files(photos), key=lambda path: path.stat().st_size)
    one, other = (first.train.kept.slots[0][int(index)] for index in first.train.indices[:2])  # type: ignore[attr-defined]
    start = int(first.train.kept.crops.starts[one])  # type: ignore[attr-defined]
    for damage in (start + 5, PAGE + 16 * one + 8):  # a pixel, a digest
        content = bytearray(path.read_bytes())
        content[damage] ^= 255
        path.write_bytes(content)
        again = load(photos, memory_limit_gib=0.0).train
        assert not again.kept.crops.has(one)  # type: ignore[attr-defined]
        assert again.kept.crops.has(other)  # type: ignore[attr-defined]
        assert torch.equal(batches(again), expected)
        assert load(photos, memory_limit_gib=0.0).train.kept.crops.has(one)  # type: ignore[attr-defined]
    for broken in (path.read_bytes()[:-1], b"\0" * path.stat().st_size, b""):
        path.write_bytes(broken)
        again = load(photos, memory_limit_gib=0.0).train
        assert not again.kept.crops.expected().any()  # type: ignore[attr-defined]
        assert torch.equal(batches(again), expected)


def test_other_images_and_other_readings_have_other_files(photos: Path) -> None:
    splits = load(photos, memory_limit_gib=0.0)
    known = len(cache_files(photos))
    load(photos, memory_limit_gib=0.0, seed=5, epochs=3)
    assert len(cache_files(photos)) == known
    load(photos, memory_limit_gib=0.0, image_size=20)
    assert len(cache_files(photos)) == 2 * known
    images, index = splits.train.images, int(splits.train.indices[0])  # type: ignore[attr-defined]
    Image.new("RGB", (70, 60)).save(photos / images.name(index))
    load(photos, memory_limit_gib=0.0)
    assert len(cache_files(photos)) == 3 * known
    # Whole images are found again at another size, where the central squares differ.
    before = load(photos, memory_limit_gib=0.0, keep_images="whole")
    assert len(cache_files(photos)) == 3 * known + 1
    after = load(photos, memory_limit_gib=0.0, keep_images="whole", image_size=24)
    assert before.train.kept.crops.path == after.train.kept.crops.path  # type: ignore[attr-defined]
    assert len(cache_files(photos)) == 3 * known + 2


def test_clearing_removes_a_data_sets_files_alone(tmp_path: Path) -> None:
    for owner in (OWNER, Owner("folder:x", "/y")):
        open_file(tmp_path, owner, {}, SHAPES, 3).put(0, np.ones((3, 3, 4), np.uint8))
    assert clear(tmp_path / "missing", OWNER) == (0, 0)
    files, space = clear(tmp_path, OWNER)
    assert files == 1
    assert space >= PAGE
    assert len(list(tmp_path.glob("*.images"))) == 1
    assert clear(tmp_path, OWNER) == (0, 0)


def test_processes_share_a_file_and_a_kill_leaves_it_usable(tmp_path: Path) -> None:
    """One opens it while another fills it; one is killed with half an image written."""
    mine = open_file(tmp_path, OWNER, {}, SHAPES, 3)
    image = np.random.default_rng(0).integers(0, 256, (3, 5, 2), dtype=np.uint8)
    child = os.fork()
    if child == 0:
        theirs = open_file(tmp_path, OWNER, {}, SHAPES, 3)
        theirs.put(1, image)
        os.pwrite(theirs._descriptor, b"half", int(theirs.starts[0]))
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert mine.has(1)
    assert np.array_equal(mine.image(1), image)
    assert not mine.has(0)
    assert open_file(tmp_path, OWNER, {}, SHAPES, 3).has(1)


def test_a_turned_image_is_kept_turned_and_another_size_not_at_all(tmp_path: Path) -> None:
    kept = open_file(tmp_path, OWNER, {}, SHAPES, 1)
    turned = np.arange(12, dtype=np.uint8).reshape(1, 4, 3)
    assert kept.put(0, turned)
    assert np.array_equal(kept.image(0), turned)
    again = open_file(tmp_path, OWNER, {}, SHAPES, 1)
    assert again.has(0)
    assert np.array_equal(again.image(0), turned)
    assert not again.put(1, np.zeros((1, 5, 3), np.uint8))


def test_a_full_disk_stops_keeping_and_not_the_run(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = batches(load(photos).train)
    splits = load(photos, memory_limit_gib=0.0)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    assert torch.equal(batches(splits.train), expected)
    assert torch.equal(batches(splits.train), expected)
    assert not splits.train.kept.crops.expected().any()  # type: ignore[attr-defined]


def test_too_little_room_is_said_before(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 100})())
    assert "KiB are needed and 100 bytes are free" in load(photos, memory_limit_gib=0.0).notes[-1]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_image_is_named(photos: Path, workers: int) -> None:
    path = sorted((photos / "1").iterdir())[0]
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(InputError, match=path.name):
        batches(load(photos, workers=workers, train_per_class=0.0).train_with_validation())


def test_a_run_that_could_keep_images_says_so(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose whole images exceed memory: of a file for them in half of what is free, or else of small copies."""
    sizes = {each: load(photos, keep_images=each).train.kept.crops.size for each in ("whole", "small")}  # type: ignore[attr-defined]
    free = 0
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": free})())

    def told(**changes: object) -> tuple[str, str, bool] | None:
        """The value, the place, and whether accuracy is warned of; the size is right."""
        notes = [note for note in load(photos, keep_images="memory", **changes).notes if "keep_images=" in note]
        if not notes:
            return None
        found = re.search(r"--set keep_images=(\w+) decodes each once, and keeps about (\S+) KiB in (.+);", notes[0])
        assert found is not None, notes
        assert float(found[2]) == pytest.approx(sizes[found[1]] / 2**10, rel=0.2)
        return found[1], found[3], "accuracy" in notes[0]

    assert told() is None  # it keeps them
    limit = {"memory_limit_gib": sizes["small"] * 1.3 / 2**30}
    assert told(**limit) == ("small", "memory", True)
    free = sizes["whole"] * 3
    assert told(**limit) == ("whole", "a file", False)
    free = sizes["whole"]
    assert told(memory_limit_gib=0.0) == ("small", "a file", True)
    free = 0
    assert told(memory_limit_gib=0.0) is None
    assert told(interpolation="bicubic", memory_limit_gib=0.0) is None
    assert told(base_augmentation="none") is None
    assert not any("decodes each once" in note for note in load(photos).notes)


def test_without_memory_images_are_decoded_anew(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where their number seems to fit and does not, or the system gives none: with the same batches."""
    expected = batches(load(photos, keep_images="off").train)

    def refused(self: KeptImages) -> KeptImages:
        raise MemoryError

    for note, name, value in (
        ("KiB of memory are not to be had", "mapolicy.data.kept_images.KeptImages.allocate", refused),
        ("more than memory_limit_gib", "mapolicy.data.kept_loader.seem_to_fit", lambda *_: True),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(name, value)
            limit = {} if value is refused else {"memory_limit_gib": 0.0}
            splits = load(photos, keep_images="memory", **limit)
        assert note in splits.notes[-1]
        assert torch.equal(batches(splits.train), expected)
        assert not splits.train.kept.crops.expected().any()  # type: ignore[attr-defined]


def test_files_of_many_images_are_known_by_their_times(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fingerprint of a large data set has no contents, so a photo that was written again must change the key."""
    monkeypatch.setattr("mapolicy.data.splits.FINGERPRINT_IMAGES", 3)
    how = {"memory_limit_gib": 0.0, "keep_images": "whole"}

    def there() -> bool:
        return bool(load(photos, **how).train.kept.crops.expected().any())  # type: ignore[attr-defined]

    batches(load(photos, **how).train)
    assert there()
    first = load(photos).train.indices[0]
    os.utime(photos / load(photos).train.images.name(int(first)), ns=(0, 10**9))  # type: ignore[attr-defined]
    assert not there()


def test_other_filters_keep_nothing(photos: Path) -> None:
    splits = load(photos, interpolation="bicubic", keep_images="memory")
    assert type(splits.train).__name__ == "StreamedSplit"
    assert not any("kept" in note for note in splits.notes)
