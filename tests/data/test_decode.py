"""The JPEG decoder beside Pillow's: the same pixels, and Pillow has the last word on every other file."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mapolicy.bench.synthetic import synthetic_images
from mapolicy.data import decode as module
from mapolicy.data.decode import CorruptImageError, bombs_as_errors, decode, decode_pixels

PHOTO = Image.fromarray(synthetic_images(1, 96)[0][:, :70].permute(1, 2, 0).numpy())


def jpeg(image: Image.Image = PHOTO, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def outcome(content: bytes, shrink: float = 1.0, ours: bool = True) -> tuple[bool, Any]:
    """Whether the turbo decoder gave it, and its pixels [H, W, C] or the error."""
    try:
        with bombs_as_errors():
            found = decode_pixels(content, "x", shrink) if ours else decode(content, "x", shrink)
    except CorruptImageError as problem:
        return False, str(problem)
    pixels = np.asarray(found)
    return isinstance(found, np.ndarray), pixels.reshape(*pixels.shape[:2], -1)


def sampled(factors: int) -> bytes:
    """A JPEG whose first channel claims other sampling factors; simplejpeg 1.9 has a KeyError for some."""
    content = bytearray(jpeg())
    content[content.index(b"\xff\xc0") + 11] = factors
    return bytes(content)


ORDINARY: dict[str, bytes] = {
    "quality 95": jpeg(quality=95),
    "quality 20": jpeg(quality=20),
    "no subsampling": jpeg(subsampling=0),
    "4:2:2": jpeg(subsampling=1),
    "progressive": jpeg(progressive=True),
    "grey": jpeg(PHOTO.convert("L")),
    "stored as RGB": jpeg(keep_rgb=True),
    "restarts": jpeg(restart_marker_rows=1),
    "upright by its EXIF": jpeg(exif=turned(1)),
    "EXIF and XMP": jpeg(exif=turned(1), xmp=b'<x tiff:Orientation="6"/>'),
    "XMP without an orientation": jpeg(xmp=b"<x/>"),
    "a colour profile": jpeg(icc_profile=b"\0" * 300),
    "something after the end": jpeg() + b"\0" * 50,
}


@pytest.mark.parametrize("shrink", [1.0, 1.9, 2.0, 3.7, 4.0, 9.0, 500.0])
@pytest.mark.parametrize("kind", ORDINARY)
def test_ordinary_jpegs_have_pillows_pixels(kind: str, shrink: float) -> None:
    """Both use libjpeg-turbo; other builds of it may round by one level."""
    turbo, found = outcome(ORDINARY[kind], shrink)
    _, expected = outcome(ORDINARY[kind], shrink, ours=False)
    assert turbo
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= 1


OTHERS: dict[str, bytes] = {
    "turned": jpeg(exif=turned(6)),
    "turned by XMP": jpeg(xmp=b'<x tiff:Orientation="6"/>'),
    "broken EXIF": jpeg(exif=b"Exif\0\0" + b"\xff" * 30),
    "turned by EXIF and not by XMP": jpeg(exif=turned(3), xmp=b"<x/>"),
    "a fill byte": jpeg()[:2] + b"\xff" + jpeg()[2:],
    "CMYK": jpeg(PHOTO.convert("CMYK")),
    "4:4:1": sampled(0x14),
    "cut short": jpeg()[:-200],
    "a header alone": jpeg()[:150],
    "a start": b"\xff\xd8\xff",
    "empty": b"",
    "no GIF": b"GIF89a",
}


@pytest.mark.parametrize("kind", OTHERS)
def test_every_other_file_is_pillows(kind: str) -> None:
    turbo, found = outcome(OTHERS[kind])
    assert not turbo
    _, expected = outcome(OTHERS[kind], ours=False)
    assert np.array_equal(found, expected)


def test_damaged_files_are_read_as_pillow_reads_them() -> None:
    """Whatever byte is wrong: never pixels where Pillow has an error, nor others."""
    draw, content = np.random.default_rng(0), ORDINARY["restarts"]
    turbos = 0
    for _ in range(300):
        damaged = bytearray(content)
        for place in draw.integers(2, len(content), draw.integers(1, 4)):
            damaged[place] = draw.integers(256)
        turbo, found = outcome(bytes(damaged))
        _, expected = outcome(bytes(damaged), ours=False)
        turbos += turbo
        assert isinstance(found, str) == isinstance(expected, str), (found, expected)
        assert np.array_equal(found, expected)
    assert 0 < turbos < 300


def test_a_decompression_bomb_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 70 * 96 - 1)
    turbo, found = outcome(jpeg())
    assert not turbo
    assert "decompression bomb" in found


def test_without_the_decoder_pillow_reads_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    _, expected = outcome(jpeg())
    monkeypatch.setattr(module, "simplejpeg", None)
    assert isinstance(decode_pixels(jpeg(), "x"), Image.Image)
    assert np.array_equal(outcome(jpeg())[1], expected)
    assert module.simplejpeg_version() == ""
