"""The operations against Pillow itself, bit for bit."""

import os
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from mapolicy.transforms import functional as operations
from mapolicy.transforms.functional import OPERATIONS, apply_operation, apply_operations
from mapolicy.transforms.space import BUILT_IN_SPACES, DEFAULT_SPACE, SPACES, OperationSpace, Range

PAPER = (
    *("AutoContrast", "Equalize", "Rotate", "Posterize", "Solarize", "Color", "Contrast"),
    *("Brightness", "Sharpness", "ShearX", "ShearY", "TranslateX", "TranslateY", "Identity"),
)
ENHANCERS = ("Color", "Contrast", "Brightness", "Sharpness")

# name: value at level 0, at level 10, mirrored by the sign. Written out here, not read from the library.
DEFAULT = {
    "Rotate": (0, 30, True),
    "Posterize": (0, 4, False),
    "Solarize": (256, 0, False),
    "Color": (0, 0.9, True),
    "Contrast": (0, 0.9, True),
    "Brightness": (0, 0.9, True),
    "Sharpness": (0, 0.9, True),
    "ShearX": (0, 0.3, True),
    "ShearY": (0, 0.3, True),
    "TranslateX": (0, 0.3125, True),
    "TranslateY": (0, 0.3125, True),
}
RANGES = {
    "metaaugment-v1": DEFAULT,
    "metaaugment-v1-imagenet": DEFAULT | {"TranslateX": (0, 0.453, True), "TranslateY": (0, 0.453, True)},
    "autoaugment": DEFAULT | dict.fromkeys(ENHANCERS, (-0.9, 0.9, False)),
    "wide": {
        "Rotate": (0, 135, True),
        "Posterize": (0, 6, False),
        "Solarize": (256, 0, False),
        "Color": (0, 0.99, True),
        "Contrast": (0, 0.99, True),
        "Brightness": (0, 0.99, True),
        "Sharpness": (0, 0.99, True),
        "ShearX": (0, 0.99, True),
        "ShearY": (0, 0.99, True),
        "TranslateX": (0, 1, True),
        "TranslateY": (0, 1, True),
    },
}


@pytest.fixture(params=["compiled", "batched"], autouse=True)
def route(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The loops that numba compiles for a CPU, and torch's way, which serves other devices."""
    if request.param == "batched":
        monkeypatch.setattr(operations, "COMPILED", frozenset())
    return str(request.param)


NEAREST, AFFINE = Image.Resampling.NEAREST, Image.Transform.AFFINE
PILLOW = {
    "AutoContrast": lambda image, value, fill: ImageOps.autocontrast(image),
    "Equalize": lambda image, value, fill: ImageOps.equalize(image),
    "Rotate": lambda image, value, fill: image.rotate(value, NEAREST, fillcolor=fill),
    "Posterize": lambda image, value, fill: ImageOps.posterize(image, 8 - round(value)),
    "Solarize": lambda image, value, fill: ImageOps.solarize(image, value),
    "Color": lambda image, value, fill: ImageEnhance.Color(image).enhance(1 + value),
    "Contrast": lambda image, value, fill: ImageEnhance.Contrast(image).enhance(1 + value),
    "Brightness": lambda image, value, fill: ImageEnhance.Brightness(image).enhance(1 + value),
    "Sharpness": lambda image, value, fill: ImageEnhance.Sharpness(image).enhance(1 + value),
    "ShearX": lambda image, value, fill: affine(image, (1, value, 0, 0, 1, 0), fill),
    "ShearY": lambda image, value, fill: affine(image, (1, 0, 0, value, 1, 0), fill),
    "TranslateX": lambda image, value, fill: affine(image, (1, 0, value * image.width, 0, 1, 0), fill),
    "TranslateY": lambda image, value, fill: affine(image, (1, 0, 0, 0, 1, value * image.height), fill),
    "Identity": lambda image, value, fill: image,
}

# Halves for Posterize's rounding and for shifts by half pixels; 20 / 3 is a quarter turn in the space "wide".
LEVELS = (0.0, 1e-12, 1e-6, 0.01, 0.5, 1.25, 2.5, 3.5, 3.75, 5.0, 6.25, 20 / 3, 7.5, 9.999999, 10.0)
MAGNITUDES = [sign * level for level in LEVELS for sign in (1, -1)]
# Noise meets every magnitude; the other kinds, mostly there for AutoContrast and Equalize, some random ones.
KINDS = {"noise": 36, "constant": 2, "two colours": 4, "few values": 4, "narrow": 4, "gradient": 4}
PAIRS = 54
SIZES = ((2, 5), (8, 8), (17, 19), (32, 32), (33, 47), (64, 64))
FILL = {1: (93,), 3: (17, 93, 201)}


def affine(image: Image.Image, matrix: tuple[float, ...], fill: int | tuple[int, ...]) -> Image.Image:
    return image.transform(image.size, AFFINE, matrix, NEAREST, fillcolor=fill)


def pillow(image: Tensor, name: str, value: float, fill: tuple[int, ...] | None) -> Tensor:
    array = image.permute(1, 2, 0).numpy()
    grey = array.shape[2] == 1
    colour = fill[0] if fill and grey else fill
    result = np.array(PILLOW[name](Image.fromarray(array[:, :, 0] if grey else array), value, colour))
    return torch.from_numpy(result.reshape(array.shape)).permute(2, 0, 1)


def value_of(name: str, magnitude: float, space: str) -> float:
    at_zero, at_ten, signed = RANGES[space].get(name, (0, 0, False))
    value = at_zero + (at_ten - at_zero) * abs(magnitude) / 10
    return -value if signed and magnitude < 0 else value


def draw(kind: str, count: int, channels: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    def integers(high: int, *shape: int) -> Tensor:
        return torch.randint(high, (count, channels, *shape), generator=generator)

    if kind == "noise":
        images = integers(256, *size)
    elif kind == "constant":
        images = integers(256, 1, 1).expand(-1, -1, *size)
    elif kind == "two colours":
        images = torch.where(integers(8, *size) == 0, integers(256, 1, 1), integers(256, 1, 1))
    elif kind == "few values":
        images = integers(256, 5).gather(2, integers(5, *size).flatten(2)).view(count, channels, *size)
    elif kind == "narrow":
        images = integers(200, 1, 1) + integers(40, *size)
    else:
        images = (torch.arange(size[1]) * 3 + torch.arange(size[0])[:, None] * 2 + integers(9, *size)).clamp(max=255)
    return images.to(torch.uint8).contiguous()


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("space", ["metaaugment-v1", "autoaugment", "wide"])
@pytest.mark.parametrize("name", PAPER)
def test_equals_pillow_bit_for_bit(name: str, space: str, channels: int, size: tuple[int, int]) -> None:
    """54 pairs of image and magnitude in each of 504 cases: 27,216 comparisons, 1,944 for each operation."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{name} {space} {channels} {size}".encode()))
    images = torch.cat([draw(kind, count, channels, size, generator) for kind, count in KINDS.items()])
    drawn = torch.rand(PAIRS - len(MAGNITUDES), generator=generator, dtype=torch.float64) * 20 - 10
    magnitudes = MAGNITUDES + drawn.tolist()
    assert len(images) == len(magnitudes) == PAIRS

    fill = FILL[channels]
    index = torch.full((PAIRS,), PAPER.index(name))
    magnitude = torch.tensor(magnitudes, dtype=torch.float64)
    result = apply_operation(images, index, magnitude, space, torch.tensor(fill, dtype=torch.uint8))
    expected = torch.stack(
        [
            pillow(image, name, value_of(name, magnitude, space), fill)
            for image, magnitude in zip(images, magnitudes, strict=True)
        ]
    )
    different = (result != expected).flatten(1).any(1).nonzero().flatten().tolist()
    assert not different, [(row, magnitudes[row]) for row in different[:5]]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", PAPER)
def test_smallest_and_thinnest_images(name: str, channels: int) -> None:
    for size in ((1, 1), (1, 2), (2, 1), (1, 7), (7, 1), (2, 2), (2, 9), (9, 2), (3, 3), (3, 8), (8, 3)):
        images = draw("noise", len(MAGNITUDES), channels, size, torch.Generator().manual_seed(size[0] * 16 + size[1]))
        index = torch.full((len(images),), PAPER.index(name))
        fill = torch.tensor(FILL[channels], dtype=torch.uint8)
        magnitude = torch.tensor(MAGNITUDES, dtype=torch.float64)
        result = apply_operation(images, index, magnitude, "wide", fill)
        for row, level in enumerate(MAGNITUDES):
            expected = pillow(images[row], name, value_of(name, level, "wide"), FILL[channels])
            assert torch.equal(result[row], expected), (size, level)


@pytest.mark.parametrize("size", [(3, 16_380), (16_380, 3)])
@pytest.mark.parametrize("name", ["Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY", "Contrast", "Sharpness"])
def test_longest_sides(name: str, size: tuple[int, int]) -> None:
    """16.16 fixed point at its limit: sides that add up to 16,383."""
    magnitudes = [10.0, -9.7, 0.003, -0.02]
    images = draw("noise", len(magnitudes), 1, size, torch.Generator().manual_seed(size[0]))
    index = torch.full((len(images),), PAPER.index(name))
    magnitude = torch.tensor(magnitudes, dtype=torch.float64)
    result = apply_operation(images, index, magnitude, "wide", torch.tensor(FILL[1], dtype=torch.uint8))
    for row, level in enumerate(magnitudes):
        assert torch.equal(result[row], pillow(images[row], name, value_of(name, level, "wide"), FILL[1])), level


def mixed(count: int, channels: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(channels)
    images = torch.cat([draw(kind, count, channels, (20, 28), generator) for kind in KINDS])
    index = torch.randint(len(PAPER), (len(images),), generator=generator)
    return images, index, torch.rand(len(images), generator=generator) * 20 - 10


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("space", RANGES)
def test_mixed_batch_equals_pillow_and_one_by_one(space: str, channels: int) -> None:
    images, index, magnitude = mixed(20, channels)
    assert set(index.tolist()) == set(range(14))
    result = apply_operation(images, index, magnitude, space)
    for row in range(len(images)):
        one = slice(row, row + 1)
        assert torch.equal(result[one], apply_operation(images[one], index[one], magnitude[one], space))
        name = PAPER[index[row]]
        # No fill colour is black.
        assert torch.equal(result[row], pillow(images[row], name, value_of(name, magnitude[row].item(), space), None))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("at_once", [1, 2, 3, 7])
def test_chunks_do_not_matter(at_once: int, channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk may begin and end inside an operation, or hold several of a family."""
    monkeypatch.setattr(operations, "COMPILED", frozenset())
    images, index, magnitude = mixed(20, channels)
    fill = torch.tensor(FILL[channels], dtype=torch.uint8)
    whole = apply_operation(images, index, magnitude, fill=fill)
    monkeypatch.setattr(operations, "CPU_CHUNK", at_once * images[0].numel())
    assert torch.equal(apply_operation(images, index, magnitude, fill=fill), whole)


def test_steps_are_applied_one_after_another() -> None:
    images, index, magnitude = mixed(50)
    generator = torch.Generator().manual_seed(0)
    steps = [(index[order], magnitude[order]) for order in (torch.randperm(300, generator=generator) for _ in range(3))]
    expected = images
    for step in steps:
        expected = apply_operation(expected, *step)
    assert torch.equal(apply_operations(images, steps), expected)
    assert torch.equal(apply_operations(images[:1], [(i[:1], m[:1]) for i, m in steps]), expected[:1])
    with pytest.raises(ValueError, match="index holds 14 to 14; expected 0 to 13"):
        apply_operations(images, [steps[0], (torch.full_like(index, 14), magnitude)])


def test_operations_own_functions_do_the_same() -> None:
    images, _, _ = mixed(10)
    before = images.clone()
    value = torch.linspace(0.05, 0.9, len(images), dtype=torch.float64)
    black = torch.zeros(3, dtype=torch.uint8)
    for operation in OPERATIONS:
        result = operation.function(images, value, black)
        for row in range(0, len(images), 7):
            expected = pillow(images[row], operation.name, value[row].item(), None)
            assert torch.equal(result[row], expected), operation.name
    assert torch.equal(images, before)


MEASURE_MEMORY = """
import pathlib, re, torch
from mapolicy.transforms import functional as module
from mapolicy.transforms.transformation import Transformation

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1])

torch.set_num_threads(1)
if "{route}" == "batched":
    module.COMPILED = frozenset()
count = {count}
generator = torch.Generator().manual_seed(0)
few = torch.randint(0, 256, (8, 3, 224, 224), dtype=torch.uint8, generator=generator)
images = few.repeat(count // 8, 1, 1, 1)
mixed = torch.randint(14, (2, count), generator=generator)
alike = [torch.full((2, count), operation) for operation in range(14)]
# The library's own pages come first.
every = torch.arange(14).expand(2, 14)
Transformation.draw_magnitudes(*every, generator).apply(images[:14, :, :32, :32])
before = peak()
for operations in (mixed, *alike[:: {every}]):
    Transformation.draw_magnitudes(*operations, generator).apply(images)
print((peak() - before) / images.numel())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("count", "every"), [(96, 4), pytest.param(1024, 1, marks=pytest.mark.slow)])
def test_memory_is_a_few_times_the_images(count: int, every: int, route: str) -> None:
    """Two operations on 224 x 224 images, mixed or all the same: the peak above the input, in the input's size."""
    code = MEASURE_MEMORY.format(count=count, every=every, route=route)
    # Freed tensors go back to the system, so that those alive are what is measured.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    # The result alone; or one copy for each step, two of which are alive at a time, and what a chunk needs.
    low, high = {"compiled": (0.9, 1.1), "batched": (1.9, 3)}[route]
    assert low < float(done.stdout) < high


def test_input_is_not_modified_and_result_is_a_new_tensor() -> None:
    images, index, magnitude = mixed(50)
    before = [tensor.clone() for tensor in (images, index, magnitude)]
    result = apply_operation(images, index, magnitude)
    assert result.dtype == torch.uint8
    assert result.data_ptr() != images.data_ptr()
    for tensor, copy in zip((images, index, magnitude), before, strict=True):
        assert torch.equal(tensor, copy)
    only = torch.full_like(index, PAPER.index("Identity"))
    assert apply_operation(images, only, magnitude).data_ptr() != images.data_ptr()


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_layout_in_memory_does_not_matter(layout: torch.memory_format) -> None:
    images, index, magnitude = mixed(20)
    every_other = images.repeat_interleave(2, dim=3)[:, :, :, ::2]
    for view in (images.to(memory_format=layout), every_other):
        assert torch.equal(apply_operation(view, index, magnitude), apply_operation(images, index, magnitude))


@pytest.mark.parametrize("space", RANGES)
@pytest.mark.parametrize("name", DEFAULT)
def test_level_zero_leaves_the_image_alone(name: str, space: str) -> None:
    images, index, magnitude = mixed(5)
    for zero in (0.0, -0.0):
        result = apply_operation(images, index.fill_(PAPER.index(name)), magnitude.fill_(zero), space)
        alone = not (space == "autoaugment" and name in ENHANCERS)
        assert torch.equal(result, images) == alone


@pytest.mark.parametrize(("turn", "transpose"), [(90, "ROTATE_90"), (-90, "ROTATE_270"), (180, "ROTATE_180")])
def test_quarter_and_half_turns_are_exact(turn: int, transpose: str) -> None:
    """A space of one's own: its operations are counted in its own order."""
    space = OperationSpace("turns", {"Rotate": Range(0, 180, signed=True)})
    for size in ((9, 9), (10, 10), (9, 12)):
        images = draw("noise", 3, 3, size, torch.Generator().manual_seed(turn % 360))
        result = apply_operation(images, torch.zeros(3, dtype=torch.int64), torch.full((3,), turn / 18), space)
        for image, turned in zip(images, result, strict=True):
            assert torch.equal(turned, pillow(image, "Rotate", turn, None))
            if size[0] == size[1] or turn == 180:
                whole = Image.fromarray(image.permute(1, 2, 0).numpy()).transpose(Image.Transpose[transpose])
                assert torch.equal(turned, torch.from_numpy(np.array(whole)).permute(2, 0, 1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("space", RANGES)
def test_cuda_equals_cpu(space: str) -> None:
    images, index, magnitude = mixed(300)
    result = apply_operation(images.cuda(), index.cuda(), magnitude.cuda(), space)
    assert torch.equal(result.cpu(), apply_operation(images, index, magnitude, space))


def test_empty_batch() -> None:
    images, index, magnitude = mixed(1)
    assert apply_operation(images[:0], index[:0], magnitude[:0]).shape == (0, 3, 20, 28)


IMAGES = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
GOOD = {"images": IMAGES, "index": torch.tensor([0, 13]), "magnitude": torch.tensor([0.0, -10.0])}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"images": IMAGES.float()}, r"images is torch.float32 \[2, 3, 8, 8\]; expected torch.uint8"),
        ({"images": IMAGES[0]}, r"images is torch.uint8 \[3, 8, 8\]; expected torch.uint8 \[B, C, H, W\]"),
        ({"images": IMAGES[:, :2]}, r"with C = 1 or 3"),
        ({"images": IMAGES[..., :0]}, r"images is torch.uint8 \[2, 3, 8, 0\]"),
        ({"index": torch.tensor([0, 1], dtype=torch.int32)}, r"index is torch.int32 \[2\]; expected torch.int64 \[2\]"),
        ({"index": torch.tensor([0])}, r"index is torch.int64 \[1\]; expected torch.int64 \[2\]"),
        ({"index": torch.tensor([0, 14])}, r"index holds 0 to 14; expected 0 to 13"),
        ({"index": torch.tensor([-1, 1])}, r"index holds -1 to 1; expected 0 to 13"),
        ({"magnitude": torch.tensor([1, 2])}, r"magnitude is torch.int64 \[2\]; expected floating point"),
        ({"magnitude": torch.ones(2, 1)}, r"magnitude is torch.float32 \[2, 1\]"),
        ({"magnitude": torch.tensor([0, 10.1])}, r"magnitude holds 10.1\d*; expected a level of 0 to 10"),
        ({"magnitude": torch.tensor([-10.1, 0])}, r"magnitude holds -10.1"),
        ({"magnitude": torch.tensor([0, torch.nan])}, r"magnitude holds nan"),
        ({"fill": torch.zeros(3)}, r"fill is torch.float32 \[3\]; expected torch.uint8 \[3\]"),
        ({"fill": torch.zeros(1, dtype=torch.uint8)}, r"fill is torch.uint8 \[1\]; expected torch.uint8 \[3\]"),
        ({"fill": torch.zeros(3, dtype=torch.uint8, device="meta")}, r"fill is on meta and images on cpu"),
        ({"space": "narrow"}, r"space is 'narrow'; expected one of metaaugment-v1, "),
        ({"space": OperationSpace("own", {"Blur": None})}, r"space own names Blur; expected only AutoContrast, "),
    ],
)
def test_bad_input_says_what_was_expected(bad: dict[str, object], message: str) -> None:
    apply_operation(**GOOD)
    with pytest.raises(ValueError, match=message):
        apply_operation(**GOOD | bad)


def test_table_is_the_papers_list() -> None:
    assert [operation.name for operation in OPERATIONS] == list(PAPER)
    assert set(operations._RANKS) == set(PAPER)
    for operation in OPERATIONS:
        assert operation.has_magnitude == (operation.name in DEFAULT)
        assert operation.signed == DEFAULT.get(operation.name, (0, 0, False))[2]


def test_ranges_are_the_ones_written_out_above() -> None:
    assert set(BUILT_IN_SPACES) == set(RANGES)
    assert {operation.name: operation.range for operation in OPERATIONS} == SPACES[DEFAULT_SPACE].ranges
    for space, ranges in RANGES.items():
        for name, spread in SPACES[space].ranges.items():
            expected = ranges.get(name)
            assert (spread and (spread.at_zero, spread.at_ten, spread.signed)) == expected, (space, name)
