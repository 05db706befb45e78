"""`bench.photos`: both sides make random resized crops of the same files, ours through a run's loader."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from mapolicy.bench import photos
from mapolicy.bench.synthetic import synthetic_images
from mapolicy.data.image_dataset import FileImages
from mapolicy.errors import InputError


def write(folder: Path, *names: str) -> None:
    for name, image in zip(names, synthetic_images(len(names), 40), strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[:, :30].permute(1, 2, 0).numpy()).save(folder / name)


def test_a_folders_jpegs_are_measured_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path, "a/0.jpg", "a/1.JPEG", "2.jpeg", "3.png", "b/c/4.jpg")
    report = photos.measure_photos(tmp_path, [8, 12], 3, 2, 1).document()
    assert report["settings"]["photos"] == 3
    assert report["settings"]["median_size"] == "40 x 30"
    rows = {(row["what"], row["image_size"]): row for row in report["rows"]}
    assert len(rows) == 18
    for (name, _), row in rows.items():
        reference = photos.THEIR_POLICY if "randaugment" in name else photos.TORCHVISION
        assert row["against"] == reference
        assert row["times_as_fast"] * row["ratio"] == pytest.approx(1)
        assert row["us_per_image"] == pytest.approx(1000 * row["median_ms"] / 3)
    assert report["settings"]["source"] == str(tmp_path)
    with pytest.raises(InputError, match="is no folder"):
        photos.measure_photos(tmp_path / "missing", [8], 4, 1, 1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="has 0 JPEGs, and two are needed"):
        photos.measure_photos(Path(f"folder:{tmp_path / 'empty'}"), [8], 4, 1, 1)


def test_with_several_threads_ours_is_measured_on_one_too(tmp_path: Path, set_threads: Callable[[int], None]) -> None:
    set_threads(1)
    write(tmp_path, "0.jpg", "1.jpg")
    report = photos.measure_photos(tmp_path, [8], 2, 1, 2).document()
    names = {row["what"] for row in report["rows"]}
    assert {"later-epochs-one-thread", "later-epochs-small+randaugment-one-thread"} <= names
    assert "wall-clock" in report["time"]


def test_epochs_differ_in_where_pixels_come_from_alone(tmp_path: Path) -> None:
    names = [f"{number}.jpg" for number in range(6)]
    write(tmp_path, *names)
    case = photos._Case(FileImages(tmp_path, names, [0] * 6), 12)
    first, later, anew = case.first_epoch(3), case.later(3), case.anew(3)
    assert torch.equal(first, later)
    assert first.shape == case.torchvision(3).shape == case.torchvision_policy(3).shape == (6, 3, 12, 12)
    assert torch.equal(first, anew)
    small = case.later_small(3)
    assert torch.equal(case.first_epoch_small(3), small)
    assert 0 < (small.float() - anew.float()).abs().mean() < 12
    assert not torch.equal(case.later_policy(3), later)
    assert not torch.equal(case.later_small_policy(3), small)
    for name in names:
        (tmp_path / name).unlink()
    assert torch.equal(case.later(3), later), "nothing is read again"
    assert torch.equal(case.later_small(3), small)


def test_a_file_that_torchvision_cannot_decode_is_told(tmp_path: Path) -> None:
    write(tmp_path, "a.jpg", "b.jpg")
    case = photos._Case(FileImages(tmp_path, ["a.jpg", "b.jpg"], [0, 0]), 8)
    (tmp_path / "b.jpg").write_bytes((tmp_path / "b.jpg").read_bytes()[:300])
    with pytest.raises(InputError, match="torchvision cannot decode"):
        case.torchvision(0)
    with pytest.raises(InputError, match=r"b\.jpg: cannot be decoded .*; leave it out"):
        photos.measure_photos(tmp_path, [8], 2, 1, 1)
