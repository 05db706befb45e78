"""What is found out about a data set before a search's settings are chosen."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from mapolicy.data.dataset_factory import open_source
from mapolicy.data.image_dataset import ArrayImages, Source
from mapolicy.data.profile import profile
from tests.helpers.image_folders import write_folder

DRAWS = np.random.default_rng(0)


def stroke(number: int) -> Image.Image:
    """A character: a smooth dark stroke on white paper."""
    large = Image.new("L", (120, 120), 255)
    ImageDraw.Draw(large).line((20, 20 + 4 * number, 60, 90, 100, 30), fill=0, width=12)
    return large.resize((30, 30), Image.Resampling.BILINEAR)


def noise(_: int) -> Image.Image:
    """A grey picture with all values."""
    return Image.fromarray(DRAWS.integers(0, 256, (30, 40), dtype=np.uint8))


def colours(_: int) -> Image.Image:
    return Image.fromarray(DRAWS.integers(0, 256, (30, 40, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("draw", "mode", "ending", "grey", "drawn"),
    [
        (stroke, "L", "png", True, True),
        (stroke, "1", "png", True, True),
        (stroke, "RGB", "jpg", True, True),
        (noise, "L", "png", True, False),
        (noise, "RGB", "png", True, False),
        (colours, "RGB", "png", False, False),
        (colours, "RGBA", "png", False, False),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_characters_are_told_from_pictures(
    tmp_path: Path, draw, mode: str, ending: str, grey: bool, drawn: bool
) -> None:
    for number in range(6):
        folder = tmp_path / "set" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        draw(number).convert(mode).save(folder / f"{number}.{ending}")
    found = profile(open_source(f"folder:{tmp_path / 'set'}", tmp_path))
    assert (found.grey, found.drawn) == (grey, drawn)


def test_sizes_and_classes(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "set", per_class=4, size=(20, 12))
    (root / "ant" / "00.png").write_bytes(b"no image")
    found = profile(open_source(f"folder:{root}", tmp_path))
    assert (found.names, found.sizes, found.images) == (("ant", "bee", "cow"), (4, 4, 4), 12)
    assert (found.side, found.own_validation, found.own_test) == (12, 0, False)
    split = [write_folder(tmp_path / "split" / part, per_class=3).name for part in ("train", "val", "test")]
    assert split == ["train", "val", "test"]
    found = profile(open_source(f"folder:{tmp_path / 'split'}", tmp_path))
    assert (found.own_validation, found.own_test, found.images) == (9, True, 18)


def test_sixteen_bits_are_no_characters() -> None:
    class Wide(ArrayImages):
        def read(self, index: int) -> Image.Image:
            return Image.fromarray(DRAWS.integers(0, 65536, (16, 16)).astype(np.uint16))

    pool = Wide([np.zeros((16, 16), np.uint8)] * 4, [0, 0, 1, 1])
    found = profile(Source("wide", "wide", ("a", "b"), pool))
    assert (found.grey, found.drawn) == (True, False)
