"""Images as people have them: orientation, alpha, ranges of values, shapes; and the values that say how to read."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from mapolicy import PolicyBundle, SearchConfig, recipes, search_policy
from mapolicy.config import TrainConfig
from mapolicy.data.decode import CorruptImageError, decode, read_header
from mapolicy.data.reading import ImageReading
from mapolicy.data.splits import DataSplits, load_splits
from mapolicy.errors import InputError, UsageError
from mapolicy.report.explain import read_image
from tests.helpers.image_folders import CLASSES, write_folder
from tests.helpers.settings import TINY

CPU = torch.device("cpu")
BASE = TrainConfig(
    dataset="folder:zoo", arch="none", workers=0, **TINY | {"validation_per_class": 2, "test_per_class": 3}
)


def load(root: Path, **changes: Any) -> DataSplits:
    return load_splits(replace(BASE, data_dir=str(root.parent), **changes), CPU, "train")


def pixels_of(splits: DataSplits) -> torch.Tensor:
    return torch.cat([images for images, _ in splits.train.batches([(0, torch.arange(len(splits.train)))])])


def saved(path: Path, image: Image.Image, **options: Any) -> bytes:
    image.save(path, **options)
    return path.read_bytes()


# ---- orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
def test_exif_orientation_is_applied(tmp_path: Path, ending: str, orientation: int) -> None:
    """The independent answer: numpy turns an arrow's pixels as EXIF 2.32 defines the eight orientations."""
    upright = np.kron(np.array([[0, 255, 0], [255, 255, 255], [0, 255, 0], [0, 255, 90]], np.uint8), np.ones((8, 8)))
    stored = {  # what a camera stores for an upright scene
        1: upright,
        2: np.fliplr(upright),
        3: np.rot90(upright, 2),
        4: np.flipud(upright),
        5: upright.T,
        6: np.rot90(upright, 1),
        7: np.rot90(upright, 2).T,
        8: np.rot90(upright, 3),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if ending == "jpg" else {"lossless": True} if ending == "webp" else {}
    image = Image.fromarray(np.ascontiguousarray(stored).astype(np.uint8)).convert("RGB")
    content = saved(tmp_path / f"x.{ending}", image, exif=exif, **options)
    found = np.asarray(decode(content, "x").convert("L")).astype(int)
    assert found.shape == upright.shape
    assert np.abs(found - upright).max() <= (30 if ending == "jpg" else 0)
    header = read_header(content, "x")
    assert (header.width, header.height) == (24, 32)
    assert header.turned == (orientation > 1) or ending == "tif"


def test_an_unreadable_orientation_is_none(tmp_path: Path) -> None:
    image = Image.new("RGB", (6, 4), "red")
    content = saved(tmp_path / "x.jpg", image, exif=b"Exif\0\0" + b"\xff" * 30)
    assert decode(content, "x").size == (6, 4)
    assert read_header(content, "x").width == 6


# ---- alpha


def shape_in_alpha(mode: str) -> Image.Image:
    """Black everywhere; the left half is opaque."""
    if mode == "P":
        image = Image.new("P", (8, 8), 1)
        image.putpalette([0, 0, 0, 0, 0, 0])
        image.paste(0, (0, 0, 4, 8))
        image.info["transparency"] = bytes([255, 0])
        return image
    if mode == "L":  # one grey is transparent
        image = Image.new("L", (8, 8), 7)
        image.paste(0, (0, 0, 4, 8))
        image.info["transparency"] = 7
        return image
    image = Image.new(mode, (8, 8), 0)
    image.putalpha(Image.new("L", (8, 8), 0))
    image.paste((0, 255) if mode == "LA" else (0, 0, 0, 255), (0, 0, 4, 8))
    return image


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("mode", "ending"), [("RGBA", "png"), ("LA", "png"), ("P", "png"), ("L", "png"), ("RGBA", "webp"), ("P", "gif")]
)
def test_a_shape_that_only_alpha_has_is_seen(tmp_path: Path, mode: str, ending: str, channels: int) -> None:
    options: dict[str, Any] = {"lossless": True} if ending == "webp" else {}
    if mode in ("P", "L"):
        options["transparency"] = 1 if ending == "gif" else shape_in_alpha(mode).info["transparency"]
    content = saved(tmp_path / f"x.{ending}", shape_in_alpha(mode), **options)
    assert read_header(content, "x").alpha
    for background, level in (("white", 255), ("black", 0), ("#808080", 128)):
        found = ImageReading(channels, 8, alpha_background=background).read(content, "x")
        assert found.shape == (channels, 8, 8)
        assert (found[:, :, :4] == 0).all(), background
        assert (found[:, :, 4:] == level).all(), background


def test_half_transparent_pixels_are_blended() -> None:
    image = Image.new("RGBA", (2, 2), (100, 0, 200, 51))  # a fifth
    found = ImageReading(3, 2, alpha_background="#0a141e").pixels(image)
    assert found[:, 0, 0].tolist() == [round(0.2 * a + 0.8 * b) for a, b in ((100, 10), (0, 20), (200, 30))]


def test_the_user_is_told_of_alpha_once(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "zoo")
    shape_in_alpha("RGBA").save(root / "ant" / "00.png")
    splits = load(root, test_per_class=0.1)
    (note,) = (note for note in splits.notes if "transparent" in note)
    assert "blended over white (alpha_background)" in note
    assert not any("transparent" in note for note in load(write_folder(tmp_path / "plain" / "zoo")).notes)


# ---- ranges of values

RAMPS = {
    "12 bit": ("I;16", np.uint16, 0, 4095),
    "10 bit": ("I;16", np.uint16, 0, 1023),
    "8 bit in 32": ("I", np.int32, 0, 255),
    "signed": ("I", np.int32, -1000, 1000),
    "float": ("F", np.float32, -0.5, 2.0),
}


def write_ramps(root: Path, kind: str) -> Path:
    """Images whose rows go from the lowest to the highest value, but for noise."""
    mode, dtype, low, high = RAMPS[kind]
    draws = np.random.default_rng(0)
    for name in CLASSES:
        (root / name).mkdir(parents=True)
        for number in range(12):
            ramp = np.linspace(low, high, 64).reshape(8, 8)
            ramp[3] += (high - low) / 100 * draws.random(8)
            Image.fromarray(ramp.astype(dtype)).save(root / name / f"{number:02}.tif")
    with Image.open(root / CLASSES[0] / "00.tif") as first:
        assert first.mode == mode
    return root


@pytest.mark.parametrize("kind", RAMPS)
def test_values_are_scaled_by_the_range_of_the_training_split(tmp_path: Path, kind: str) -> None:
    _, dtype, low, high = RAMPS[kind]
    root = write_ramps(tmp_path / "zoo", kind)
    splits = load(root)
    assert splits.channels == 1
    assert splits.reading.value_range == (low, high)
    found = pixels_of(splits)
    assert (int(found.min()), int(found.max())) == (0, 255)
    ramp = np.linspace(low, high, 64).astype(dtype).astype(float).reshape(8, 8)
    expected = np.rint(255 * (ramp - low) / (high - low))
    for row in (0, 7):
        assert np.abs(found[0, 0, row].numpy().astype(int) - expected[row]).max() <= 1
    assert any("more than 8 bits" in note and "(value_range)" in note for note in splits.notes)
    assert torch.equal(pixels_of(load(root, memory_limit_gib=0.0)), found), "streamed images alike"


def test_the_range_is_the_training_splits_alone(tmp_path: Path) -> None:
    root = write_ramps(tmp_path / "zoo", "12 bit")
    first = load(root)
    names = sorted(root.glob("*/*.tif"))
    for part in (first.test(), first.meta_validation):
        path = names[int(part.indices[0])]
        Image.fromarray(np.full((8, 8), 60_000, np.uint16)).save(path)
    again = load(root)
    assert again.reading.value_range == (0, 4095)
    (images, _), *_ = again.meta_validation.batches([(0, torch.tensor([0]))])
    assert (images == 255).all(), "beyond the range is clipped"


def test_sixteen_bits_in_full_keep_their_upper_eight(tmp_path: Path) -> None:
    for name in CLASSES:
        (tmp_path / "zoo" / name).mkdir(parents=True)
        for number in range(12):
            values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8) - np.uint16(number)
            Image.fromarray(values.astype(np.uint16)).save(tmp_path / "zoo" / name / f"{number:02}.png")
    splits = load(tmp_path / "zoo")
    assert splits.reading.value_range is None
    assert pixels_of(splits)[0].max() == 255
    assert int(pixels_of(splits)[0, 0, 0, 1]) in (3, 4)  # 1040 // 256
    assert load(tmp_path / "zoo", value_range="0:131070").reading.value_range == (0.0, 131070.0)


def test_a_range_can_be_given(tmp_path: Path) -> None:
    root = write_ramps(tmp_path / "zoo", "10 bit")
    assert load(root, value_range="-24:1000").reading.value_range == (-24.0, 1000.0)
    full = load(root, value_range="full")
    assert full.reading.value_range is None
    assert int(pixels_of(full).max()) == 3, "as it was before: nearly black"
    for bad in ("3:1", "1:1", "low:high", "0:1e999", "white"):
        with pytest.raises(UsageError, match="value_range"):
            replace(BASE, value_range=bad)


def test_floating_point_pixels_need_a_range() -> None:
    image = Image.fromarray(np.array([[0.0, np.nan], [0.5, np.inf]], np.float32))
    with pytest.raises(CorruptImageError, match="x: has floating-point pixels, whose range is not known"):
        ImageReading(1, 2).pixels(image, "x")
    assert ImageReading(1, 2, value_range=(0.0, 1.0)).pixels(image).tolist() == [[[0, 0], [128, 255]]]


def test_a_bundle_keeps_how_images_are_read_and_later_images_follow_it(tmp_path: Path) -> None:
    root = write_ramps(tmp_path / "zoo", "signed")
    _, values = recipes.load("search-digits")
    short = {"epochs": 1, "batch_size": 8, "threads": 1, "proxy": "wrn10_1", "verify": False, "sampler": "mean-weight"}
    sizes = {"train_per_class": 5, "validation_per_class": 2, "test_per_class": 3, "weighting": "policy"}
    config = SearchConfig.from_mapping(
        {**values, **short, **sizes, "dataset": f"folder:{root}", "resize": "pad", "validation_batch_size": 4}
    )
    bundle = search_policy(config)
    bundle.save(tmp_path / "x.safetensors")
    manifest = PolicyBundle.load(tmp_path / "x.safetensors").manifest
    assert manifest.format == 2
    assert manifest.reading is not None
    assert (manifest.reading.resize, manifest.reading.value_range) == ("pad", (-1000.0, 1000.0))
    settings = manifest.data_settings()
    assert (settings["resize"], settings["value_range"]) == ("pad", "-1000.0:1000.0")
    trained = TrainConfig.from_mapping(BASE.to_mapping() | settings | {"dataset": f"folder:{root}", "image_size": 8})
    assert load_splits(trained, CPU, "train").reading == ImageReading.from_dict(manifest.image_reading())
    # An image that explain is given has the same scale, although its own range is another.
    Image.fromarray(np.full((8, 8), 0, np.int32)).save(tmp_path / "one.tif")
    assert (read_image(str(tmp_path / "one.tif"), manifest) == 128).all()


def test_plain_images_leave_no_trace_in_a_bundle(bundle: PolicyBundle) -> None:
    assert bundle.manifest.reading is None
    reading = ImageReading.from_dict(bundle.manifest.image_reading())
    assert reading == ImageReading(channels=1, image_size=8)
    assert not {"resize", "value_range", "alpha_background", "interpolation"} & set(bundle.manifest.search.settings)


# ---- nothing to learn


@pytest.mark.parametrize("limit", [1.0, 0.0])
@pytest.mark.parametrize("pixels", [0, 200])
def test_images_that_are_all_equal_are_refused(tmp_path: Path, pixels: int, limit: float) -> None:
    for name in CLASSES:
        (tmp_path / "zoo" / name).mkdir(parents=True)
        for number in range(12):
            Image.new("L", (8, 8), pixels).save(tmp_path / "zoo" / name / f"{number:02}.png")
    with pytest.raises(InputError, match=r"all 15 training images are the same at the network's input.*nothing to lea"):
        load(tmp_path / "zoo", memory_limit_gib=limit)
    Image.new("L", (8, 8), pixels + 1).save(tmp_path / "zoo" / "ant" / "00.png")
    for number in range(12):
        Image.new("L", (8, 8), pixels + number).save(tmp_path / "zoo" / "bee" / f"{number:02}.png")
    load(tmp_path / "zoo", memory_limit_gib=limit)


# ---- shapes


def cue_at_the_end() -> Image.Image:
    """128 x 32, grey; the last 32 columns are white."""
    image = Image.new("L", (128, 32), 100)
    image.paste(255, (96, 0, 128, 32))
    return image


def test_crop_loses_what_pad_and_squash_keep() -> None:
    wide = cue_at_the_end()
    crop, pad, squash = (ImageReading(1, 32, resize=name).pixels(wide)[0] for name in ("crop", "pad", "squash"))
    assert (crop == 100).all()
    assert (pad[:12] == 0).all()
    assert (pad[20:] == 0).all()
    assert (pad[12:20, :23] == 100).all()
    assert (pad[12:20, 25:] == 255).all()
    assert (squash[:, :23] == 100).all()
    assert (squash[:, 25:] == 255).all()
    tall = ImageReading(1, 32, resize="pad").pixels(wide.transpose(Image.Transpose.ROTATE_90))[0]
    assert np.array_equal(tall, np.rot90(pad))


def test_pad_and_squash_against_pillow() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    padded = ImageOps.pad(image, (32, 32), Image.Resampling.BILINEAR, color=0)
    squashed = image.resize((32, 32), Image.Resampling.BILINEAR)
    for name, expected in (("pad", padded), ("squash", squashed)):
        found = ImageReading(3, 32, resize=name).pixels(image).transpose(1, 2, 0)
        assert np.array_equal(found, np.asarray(expected)), name
    cubic = ImageReading(3, 32, resize="squash", interpolation="bicubic").pixels(image).transpose(1, 2, 0)
    assert np.array_equal(cubic, np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC)))


@pytest.mark.parametrize("resize", ["crop", "pad", "squash"])
@pytest.mark.parametrize("size", [(1, 10_000), (10_000, 1), (1, 1), (32, 32)])
def test_any_shape_can_be_read(resize: str, size: tuple[int, int]) -> None:
    reading = ImageReading(3, 32, resize=resize)
    image = Image.new("RGB", size, (9, 8, 7))
    assert reading.pixels(image).shape == (3, 32, 32)
    draws = torch.Generator().manual_seed(0)
    assert reading.random_crop(image, draws).shape == (3, 32, 32)


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "P", "LAB", "HSV", "1", "I;16"])
def test_pillows_modes_are_read(mode: str) -> None:
    image = Image.new("I;16", (8, 8), 0x8000) if mode == "I;16" else Image.new("RGB", (8, 8), (128, 128, 128))
    if mode not in ("I;16", "LAB"):
        image = image.convert(mode)
    assert abs(int(ImageReading(3, 8).pixels(image).mean()) - 128) < (130 if mode == "1" else 3)


def test_wide_images_get_a_hint_and_resize_is_a_setting(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "zoo", size=(128, 32))
    crop = load(root, image_size=32)
    (hint,) = (note for note in crop.notes if "--resize" in note)
    assert "is 25 % of it" in hint
    for resize in ("pad", "squash"):
        splits = load(root, image_size=32, resize=resize)
        assert splits.reading.resize == resize
        assert not any("--resize" in note for note in splits.notes)
        assert not torch.equal(pixels_of(splits), pixels_of(crop))
    assert not any("--resize" in note for note in load(write_folder(tmp_path / "b" / "zoo", size=(50, 33))).notes)


# ---- plain values


def test_a_reading_goes_to_plain_values_and_back() -> None:
    for reading in (
        ImageReading(1, 8),
        ImageReading(3, 224, "pad", 0.875, "bicubic", "#00ff7f", (-1000.0, 3071.5)),
    ):
        values = reading.to_dict()
        assert ImageReading.from_dict(values) == reading
        assert all(isinstance(value, int | float | str | list | None) for value in values.values())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("channels", 2),
        ("channels", True),
        ("image_size", 0),
        ("image_size", 5000),
        ("image_size", "8"),
        ("resize", "stretch"),
        ("resize", ["crop"]),
        ("share", 0),
        ("share", float("nan")),
        ("interpolation", "hamming"),
        ("interpolation", {}),
        ("alpha_background", "red"),
        ("alpha_background", "white\n"),
        ("value_range", [1.0]),
        ("value_range", [2.0, 1.0]),
        ("value_range", [0.0, float("inf")]),
        ("value_range", "0:1"),
        ("value_range", {"0": 1}),
        ("value_range", [False, True]),
        ("share", True),
        ("more", 1),
    ],
)
def test_hostile_values_are_refused(name: str, value: Any) -> None:
    values = ImageReading(3, 32).to_dict() | {name: value}
    with pytest.raises(InputError, match="x: does not say how images are read") as caught:
        ImageReading.from_dict(values, "x")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 240


def test_a_missing_value_is_refused() -> None:
    values = ImageReading(3, 32).to_dict()
    del values["resize"]
    with pytest.raises(InputError, match="'resize' is missing"):
        ImageReading.from_dict(values)
