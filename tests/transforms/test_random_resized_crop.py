"""Crops against Pillow, on a CPU and by torch; boxes against torchvision's distribution and the data loader's."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from mapolicy.augment import RandomResizedCrop
from mapolicy.data.reading import Cropper, ImageReading
from mapolicy.transforms import random_resized_crop as module
from mapolicy.transforms.random_resized_crop import random_crop_box, resize_boxes, resize_flat, scaled_boxes

SHAPES = [(3, 40, 57), (3, 9, 200), (3, 131, 16), (3, 1, 1), (3, 300, 270)]


def some_images(*shapes: tuple[int, int, int]) -> list[torch.Tensor]:
    draws = np.random.default_rng(0)
    return [torch.from_numpy(draws.integers(0, 256, shape, dtype=np.uint8)) for shape in shapes]


def some_boxes(images: list[torch.Tensor], seed: int = 0) -> torch.Tensor:
    """Boxes anywhere in the images, not at whole pixels."""
    share = np.sort(np.random.default_rng(seed).random((len(images), 2, 2)), 1).reshape(-1, 4)
    sizes = np.array([[image.shape[2], image.shape[1]] * 2 for image in images])
    return torch.from_numpy((share * sizes).astype(np.float32))


def pillow_crop(image: torch.Tensor, box: torch.Tensor, size: int) -> torch.Tensor:
    """`resize(box=...)` of a planar image."""
    pixels = image.permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels if len(image) == 3 else pixels[..., 0])
    resized = np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR, box=tuple(box.tolist())))
    return torch.from_numpy(resized.reshape(size, size, len(image)).copy()).permute(2, 0, 1)


@pytest.mark.parametrize("size", [1, 7, 32, 97])
def test_is_within_one_level_of_pillow_on_a_cpu(size: int) -> None:
    """Enlarged and made smaller by up to 300, so of 2 to several hundred filter taps; rounded twice by both."""
    for seed in range(3):
        images = some_images(*SHAPES)
        boxes = some_boxes(images, seed)
        got = resize_boxes(images, boxes, size)
        for image, box, crop in zip(images, boxes, got, strict=True):
            difference = (crop.int() - pillow_crop(image, box, size).int()).abs()
            assert difference.max() <= 1, (image.shape, box)
            # Pillow makes the vertical pass first for some boxes of upright images.
            assert image.shape[1] >= image.shape[2] or not difference.any(), (image.shape, box)


def test_whole_images_and_the_brightest_do_not_overflow() -> None:
    white = torch.full((2, 1, 500, 499), 255, dtype=torch.uint8)
    boxes = torch.tensor([[0.0, 0.0, 499.0, 500.0], [3.3, 4.4, 470.1, 444.4]])
    assert (resize_boxes(white, boxes, 13) == 255).all()
    small = some_images((3, 24, 24))[0][None]
    assert torch.equal(resize_boxes(small, torch.tensor([[0.0, 0.0, 24.0, 24.0]]), 24), small)


def test_torch_is_within_one_level_of_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 2**17)  # several chunks
    images = some_images(*SHAPES, (3, 64, 64))
    boxes = some_boxes(images)
    got = torch.empty(len(images), 3, 33, 33, dtype=torch.uint8)
    module._by_torch(images, boxes, got)
    for image, box, crop in zip(images, boxes, got, strict=True):
        assert (crop.int() - pillow_crop(image, box, 33).int()).abs().max() <= 1
    batch = torch.stack(some_images(*[(1, 30, 41)] * 5))
    one = torch.empty(5, 1, 16, 16, dtype=torch.uint8)
    module._by_torch(batch, some_boxes(list(batch)), one)
    assert (one.int() - resize_boxes(batch, some_boxes(list(batch)), 16).int()).abs().max() <= 1


def test_interleaved_images_give_the_same_pixels() -> None:
    for channels in (1, 3):
        (image,) = some_images((channels, 37, 61))
        boxes, sizes = np.array([[1.5, 0.25, 60.0, 33.0]], np.float32), np.array([[37, 61]])
        planar, interleaved = np.empty((2, 1, channels, 20, 31), np.uint8)
        for pixels, result in ((image, planar), (image.permute(1, 2, 0), interleaved)):
            flat = pixels.contiguous().reshape(-1).numpy()
            resize_flat(flat, np.zeros(1, np.int64), sizes, boxes, result, interleaved=result is interleaved)
        assert np.array_equal(planar, interleaved)
        picture = Image.fromarray(image.permute(1, 2, 0).numpy().squeeze())
        resized = np.asarray(picture.resize((31, 20), Image.Resampling.BILINEAR, box=tuple(boxes[0].tolist())))
        assert np.array_equal(planar[0].transpose(1, 2, 0).squeeze(), resized)


@pytest.mark.parametrize("size", [9, 64])
def test_a_box_that_is_cut_out_first_is_pillows_crop_resized(size: int) -> None:
    """No pixel outside the box has a weight, which moves those at an edge by many levels."""
    images = some_images(*SHAPES)
    for image, box in zip(images, some_boxes(images).numpy(), strict=True):
        low, high = np.floor(box[:2]), np.ceil(box[2:])
        (left, top), (right, bottom) = low.astype(int), high.astype(int)
        boxes, sizes = np.concatenate([low, high])[None], np.array([image.shape[1:]])
        cut_out = image[:, top:bottom, left:right]
        expected = pillow_crop(cut_out, torch.tensor([0, 0, right - left, bottom - top]), size).int()
        for cut in (True, False):
            result = np.empty((1, len(image), size, size), np.uint8)
            resize_flat(image.reshape(-1).numpy(), np.zeros(1, np.int64), sizes, boxes, result, cut=cut)
            same = (torch.from_numpy(result[0]).int() - expected).abs().max() <= 1
            assert same == (cut or cut_out.shape == image.shape)


def test_threads_do_not_change_the_crops(set_threads: Callable[[int], None]) -> None:
    images = torch.stack(some_images(*[(3, 90, 70)] * 40))
    crops = []
    for threads in (1, 2, 3):
        set_threads(threads)
        crops.append(RandomResizedCrop(128)(images, range(40), 5))
    assert torch.equal(crops[0], crops[1])
    assert torch.equal(crops[0], crops[2])


def test_boxes_are_those_of_the_data_loader() -> None:
    """Its crops are cut out first, which moves only pixels at an edge: the box of a flat area shows."""
    crop, reading = RandomResizedCrop(16, seed=3, stage="search"), ImageReading(1, 16)
    images = some_images((1, 60, 80), (1, 50, 50))
    got = crop(images, [7, 9], 4)
    for row, (image, index) in enumerate(zip(images, (7, 9), strict=True)):
        theirs = Cropper(reading, True, 3, "search").random(Image.fromarray(image[0].numpy()), index, 4)
        assert np.array_equal(got[row, :, 2:-2, 2:-2], theirs[:, 2:-2, 2:-2])
    assert crop.boxes([7], 4, [(80, 60)]) != crop.boxes([7], 5, [(80, 60)])
    assert crop.boxes([7], 4, [(80, 60)]) != crop.boxes([8], 4, [(80, 60)])


def test_boxes_of_smaller_copies_show_the_same_part() -> None:
    """A crop of an image and of its half: the same part, up to what the smaller one has lost."""
    wave = torch.linspace(0, 30, 200).sin().mul(120).add(128).to(torch.uint8)
    image = wave.expand(1, 160, 200).contiguous()
    half = resize_flat_to(image, 80, 100)
    crop = RandomResizedCrop(24)
    whole = crop([image], [0], 1).int()
    assert (crop([half], [0], 1, [(200, 160)]).int() - whole).abs().max() <= 6
    assert (crop([half], [0], 1).int() - whole).abs().max() > 6  # boxes drawn on the half are rounded to other pixels
    boxes = scaled_boxes([(10, 20, 110, 100)], [(200, 160)], [(100, 80)])
    assert boxes.tolist() == [[5.0, 10.0, 55.0, 50.0]]


def resize_flat_to(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    resized = Image.fromarray(image[0].numpy()).resize((width, height), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.asarray(resized).copy())[None]


def test_nothing_gives_nothing() -> None:
    assert RandomResizedCrop(8)([], [], 0).shape == (0, 3, 8, 8)
    assert RandomResizedCrop(8)(torch.empty(0, 1, 4, 4, dtype=torch.uint8), [], 0).shape == (0, 1, 8, 8)
    assert repr(RandomResizedCrop(8, seed=2)) == "RandomResizedCrop(size=8, seed=2, stage='train')"


@pytest.mark.parametrize(
    ("images", "error", "text"),
    [
        (torch.zeros(2, 3, 4, 4), TypeError, "float32"),
        (torch.zeros(2, 4, 4, 4, dtype=torch.uint8), ValueError, "C = 1 or 3"),
        ([np.zeros((3, 4, 4), np.uint8)], TypeError, "image 0 is ndarray"),
        (some_images((3, 4, 4), (1, 4, 4)), ValueError, "image 1 has other channels"),
        (some_images((3, 0, 4)), ValueError, "image 0 has shape"),
    ],
)
def test_wrong_images_are_named(images: list[torch.Tensor], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        RandomResizedCrop(8)(images, range(len(images)), 0)


def test_wrong_boxes_and_sizes_are_named() -> None:
    images = some_images((3, 10, 20))
    for box in ([5.0, 0, 5, 3], [0, 0, 20.5, 10], [-1, 0, 3, 3], [float("nan"), 0, 3, 3]):
        with pytest.raises(ValueError, match="not inside image 0 of 20 x 10"):
            resize_boxes(images, torch.tensor([box]), 8)
    with pytest.raises(ValueError, match="expected \\(1, 4\\)"):
        resize_boxes(images, torch.zeros(2, 4), 8)
    with pytest.raises(ValueError, match="indices came with"):
        RandomResizedCrop(8)(images, [0, 1], 0)
    with pytest.raises(ValueError, match="2 sizes came with 1 images"):
        RandomResizedCrop(8)(images, [0], 0, [(20, 10), (20, 10)])
    with pytest.raises(ValueError, match="sizes have 0"):
        RandomResizedCrop(8)(images, [0], 0, [(0, 10)])
    for indices, step, sizes in (([0.0], 0, None), ([0], 1.5, None), ([0], 0, [(20.5, 10)]), ([True], 0, None)):
        with pytest.raises(TypeError, match="is no whole number"):
            RandomResizedCrop(8)(images, indices, step, sizes)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"5\.0 is no whole number"):
        RandomResizedCrop(8)(images, torch.tensor([5.0]), 0)
    for size in (0, 2.5):
        with pytest.raises(ValueError, match="whole number"):
            RandomResizedCrop(size)  # type: ignore[arg-type]


def test_random_crops_have_torchvisions_distribution():
    draws = torch.Generator().manual_seed(0)
    boxes = np.array([random_crop_box(100, 80, draws) for _ in range(2000)], dtype=float)
    wide, tall = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert boxes.min() >= 0
    assert boxes[:, 2].max() <= 100
    assert boxes[:, 3].max() <= 80
    area, ratio = wide * tall / 8000, wide / tall
    assert 0.07 < area.min() < 0.1
    assert 0.95 < area.max() <= 1
    assert ratio.min() > 0.7
    assert ratio.max() < 1.4
    with torch.random.fork_rng():
        from torchvision.transforms import RandomResizedCrop

        torch.manual_seed(0)
        image = torch.empty(3, 80, 100)
        theirs = np.array([RandomResizedCrop.get_params(image, (0.08, 1), (3 / 4, 4 / 3)) for _ in range(2000)])
    assert abs(area.mean() - (theirs[:, 2] * theirs[:, 3]).mean() / 8000) < 0.03
    assert abs(boxes[:, 0].mean() - theirs[:, 1].mean()) < 1.5
    assert abs(np.log(ratio).mean() - np.log(theirs[:, 3] / theirs[:, 2]).mean()) < 0.03
    assert random_crop_box(1, 5000, draws)[2] == 1
