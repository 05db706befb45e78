"""The batched modules against torchvision: what they draw, what they do to pixels, what they accept; and the record."""

import json
import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset, default_collate
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from mapolicy.transforms.auto_augment import (
    AppliedOperations,
    RandAugment,
    TrivialAugmentWide,
    UniformTransformations,
    draw_operations,
)
from mapolicy.transforms.space import SPACES, OperationSpace, Range

MODULES = (RandAugment, TrivialAugmentWide, UniformTransformations)
NAMES = list(v2.RandAugment._AUGMENTATION_SPACE)
SIZE = (20, 28)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=seeded(99))


def nothing_but_a_size(count: int, size: tuple[int, int]) -> Tensor:
    return torch.zeros(1, dtype=torch.uint8).expand(count, 3, *size)


def torchvision_values(reference: v2.Transform, bins: int, size: tuple[int, int], name: str) -> list[float]:
    """Every value that torchvision can draw for the operation, as often as it is as likely; 0 without a magnitude."""
    build, signed = reference._AUGMENTATION_SPACE[name]
    magnitudes = build(bins, *size)
    if magnitudes is None:
        return [0.0]
    values = [float(magnitude) for magnitude in magnitudes]
    if name.startswith("Translate"):
        values = [float(int(value)) for value in values]  # as _apply_image_or_video_transform does
    return values + [-value for value in values] if signed else values


def values(applied: AppliedOperations, size: tuple[int, int]) -> list[list[tuple[str, float]]]:
    """Names and values in torchvision's units, from the record alone."""
    sides = {"TranslateX": size[1], "TranslateY": size[0]}

    def value(name: str, magnitude: float) -> float:
        spread = applied.space.ranges[name]
        if spread is None:
            return magnitude
        level = spread.at_zero + (spread.at_ten - spread.at_zero) * abs(magnitude) / 10
        number = -level if spread.signed and magnitude < 0 else level
        if name == "Posterize":
            return 8 - number
        return number / 255 if name == "Solarize" else number * sides.get(name, 1)

    rows = zip(applied.names(), applied.magnitudes.tolist(), strict=True)
    return [[(name, value(name, magnitude)) for name, magnitude in zip(*row, strict=True)] for row in rows]


def assert_drawn_as(drawn: list[tuple[str, float]], expected: dict[str, list[float]]) -> None:
    """Operations equally likely, and of each the values of a list, equally likely; within 6 standard deviations."""
    assert {name for name, _ in drawn} == set(expected)
    for name, likely in expected.items():
        got = Counter(round(value, 9) + 0.0 for other, value in drawn if other == name)
        want = Counter(round(value, 9) + 0.0 for value in likely)
        assert set(got) == set(want), name
        for value, times in want.items():
            mean = len(drawn) / len(expected) * times / len(likely)
            assert abs(got[value] - mean) < 6 * mean**0.5, (name, value)


# ---- what is drawn


@pytest.mark.parametrize(("bins", "size"), [(31, (32, 32)), (31, (224, 160)), (9, (7, 13)), (2, (1, 1))])
def test_trivialaugment_draws_torchvisions_values(bins: int, size: tuple[int, int]) -> None:
    """9 bins make Posterize round halves; 7 pixels are fewer than 32."""
    applied = TrivialAugmentWide(num_magnitude_bins=bins).draw(nothing_but_a_size(1400 * bins, size), seeded())
    drawn = [choice for (choice,) in values(applied, size)]
    reference = v2.TrivialAugmentWide(num_magnitude_bins=bins)
    assert_drawn_as(drawn, {name: torchvision_values(reference, bins, size, name) for name in NAMES})


@pytest.mark.parametrize(("bins", "size"), [(31, (32, 32)), (11, (224, 160)), (9, (7, 13))])
def test_randaugment_draws_torchvisions_values(bins: int, size: tuple[int, int]) -> None:
    reference = v2.RandAugment(num_magnitude_bins=bins)
    for magnitude in range(bins):
        module = RandAugment(3, magnitude, bins)
        drawn = values(module.draw(nothing_but_a_size(1000, size), seeded(magnitude)), size)
        likely = {name: torchvision_values(reference, bins, size, name) for name in NAMES}
        one_bin = {name: among[magnitude::bins] if len(among) > 1 else among for name, among in likely.items()}
        for step in zip(*drawn, strict=True):
            assert_drawn_as(list(step), one_bin)


def test_randaugments_steps_are_drawn_apart() -> None:
    rows = RandAugment().draw(nothing_but_a_size(196 * 60, (8, 8)), seeded()).names()
    pairs = Counter(map(tuple, rows))
    assert len(pairs) == 196, "with replacement"
    assert max(abs(count - 60) for count in pairs.values()) < 6 * 60**0.5


def test_defaults_are_torchvisions() -> None:
    for ours, theirs in ((RandAugment, v2.RandAugment), (TrivialAugmentWide, v2.TrivialAugmentWide)):
        reference = theirs(interpolation="nearest")
        assert repr(ours()) == repr(reference)
        assert repr(ours(fill=[1, 2, 3])) == repr(theirs(interpolation="nearest", fill=[1, 2, 3]))
        assert isinstance(ours(), v2.Transform)
        assert set(NAMES) == set(ours().draw(noise(500, 3, 8, 8), seeded()).space.names)


@pytest.mark.parametrize("space", [*SPACES, OperationSpace("two", {"Rotate": Range(0, 9, signed=True), "Color": None})])
def test_uniform_transformations_are_uniform(space: str | OperationSpace) -> None:
    """Pairs equally likely, levels uniform in [0, 10] (Kolmogorov's distance), a direction for signed operations."""
    count = 20_000
    applied = UniformTransformations(space).draw(nothing_but_a_size(count, (8, 8)), seeded(1))
    operations = len(applied.space.names)
    pairs = Counter(map(tuple, applied.operations.tolist()))
    mean = count / operations**2
    assert len(pairs) == operations**2
    assert max(abs(drawn - mean) for drawn in pairs.values()) < 6 * mean**0.5
    for index, spread in enumerate(applied.space.ranges.values()):
        drawn = applied.magnitudes[applied.operations == index]
        if spread is None:
            assert not drawn.any()
            continue
        levels = drawn.abs().sort().values
        uniform = torch.linspace(0, 10, len(levels), dtype=torch.float64)
        assert (levels - uniform).abs().max() / 10 < 2 / len(levels) ** 0.5
        backwards = int((drawn < 0).sum())
        assert abs(backwards - len(drawn) / 2) < 3 * len(drawn) ** 0.5 if spread.signed else backwards == 0


def test_bins_are_evenly_spaced_levels() -> None:
    applied = TrivialAugmentWide().draw(nothing_but_a_size(20_000, (32, 32)), seeded())
    rotated = applied.magnitudes[applied.operations == applied.space.names.index("Rotate")]
    expected = torch.arange(-30, 31, dtype=torch.float64) / 3
    torch.testing.assert_close(rotated.unique(), expected, atol=1e-6, rtol=0)
    assert rotated.max() == 10


# ---- what happens to the pixels


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("magnitude", [None, 0, 9, 16, 30])
def test_pixels_are_torchvisions_for_a_pil_image(magnitude: int | None, channels: int) -> None:
    """Bit for bit: TrivialAugment's operations in every bin and direction, and RandAugment's at some magnitudes."""
    module = TrivialAugmentWide(fill=93) if magnitude is None else RandAugment(1, magnitude, fill=93)
    theirs = v2.TrivialAugmentWide(fill=93) if magnitude is None else v2.RandAugment(1, magnitude, fill=93)
    drawn = module.draw(nothing_but_a_size(15_000, SIZE)[:, :channels], seeded())
    choices = {choice: row for row, (choice,) in enumerate(values(drawn, SIZE))}
    expected = {name: set(torchvision_values(theirs, 31, SIZE, name)) for name in NAMES}
    applied = drawn[list(choices.values())]
    images = noise(len(applied), channels, *SIZE)
    images[::4] = images[::4] // 8 + 90
    results = applied.apply(images)
    assert len({name for name, _ in choices}) == 14
    assert len(applied) > (450 if isinstance(module, TrivialAugmentWide) else 13)
    for image, result, (name, value) in zip(images, results, choices, strict=True):
        exact = min(expected[name], key=lambda other, value=value: abs(other - value))
        # torchvision counts the way that the content moves, Pillow the way to its source; either is as likely.
        exact = -exact if name.startswith("Translate") else exact
        picture = theirs._apply_image_or_video_transform(
            F.to_pil_image(image), name, exact, v2.InterpolationMode.NEAREST, theirs._fill
        )
        assert torch.equal(result, F.pil_to_tensor(picture)), (name, exact)


@pytest.mark.parametrize("fill", [None, 7, 7.0, [7], (7, 8, 9), np.uint8(7), np.array([7, 8, 9])])
def test_fill_is_the_colour_from_outside(fill) -> None:
    white = torch.full((2, 3, 8, 8), 255, dtype=torch.uint8)
    space = OperationSpace("only", {"TranslateX": Range(0, 1, signed=True)})
    moved = AppliedOperations(
        torch.zeros(2, 1, dtype=torch.int64),
        torch.full((2, 1), 10.0, dtype=torch.float64),
        space,
        UniformTransformations(space, fill).draw(white).fill,
    ).apply(white)
    expected = [0, 0, 0] if fill is None else [7, 8, 9] if np.size(fill) == 3 else [7, 7, 7]
    assert moved.unique(dim=0)[0, :, 0, 0].tolist() == expected
    assert moved.flatten(2).unique(dim=2).shape[2] == 1


# ---- each image for itself


@pytest.mark.parametrize("kind", MODULES)
def test_each_image_has_its_own_choice(kind: type) -> None:
    images = noise(1, 3, *SIZE).expand(64, -1, -1, -1)
    augmented = kind()(images, generator=seeded())
    assert len(augmented.flatten(1).unique(dim=0)) > 12


@pytest.mark.parametrize("kind", MODULES)
def test_batch_mates_do_not_matter(kind: type) -> None:
    images, module = noise(40, 3, *SIZE), kind()
    augmented, applied = module(images, generator=seeded(), return_applied=True)
    for row in range(len(images)):
        alone = applied[row].apply(images[row])
        assert alone.shape == images.shape[1:]
        assert torch.equal(alone, augmented[row])
    others = noise(40, 3, *SIZE).flip(0)
    others[7] = images[7]
    assert torch.equal(module(others, generator=seeded())[7], augmented[7])
    assert torch.equal(module(images[:5], generator=seeded()), augmented[:5]), "nor how many follow"


@pytest.mark.parametrize("kind", MODULES)
def test_shapes(kind: type) -> None:
    """One image is a batch of one, leading dimensions are one batch, no images are none."""
    images, module = noise(6, 3, *SIZE), kind()
    augmented = module(images, generator=seeded())
    assert augmented.shape == images.shape
    assert augmented.dtype == torch.uint8
    assert torch.equal(module(images[0], generator=seeded()), augmented[0])
    assert torch.equal(module(images.view(2, 3, 3, *SIZE), generator=seeded()).flatten(0, 1), augmented)
    empty, applied = module(images[:0], return_applied=True)
    assert empty.shape == (0, 3, *SIZE)
    assert len(applied) == 0
    assert AppliedOperations.from_state(applied.state()).apply(images[:0]).shape == (0, 3, *SIZE)


def test_no_operations_change_nothing_and_the_input_stays() -> None:
    images = noise(9, 3, *SIZE)
    before = images.clone()
    untouched = RandAugment(num_ops=0)(images)
    assert torch.equal(untouched, images)
    assert untouched.data_ptr() != images.data_ptr(), "as everywhere, the result is the caller's own"
    RandAugment()(images)
    assert torch.equal(images, before)


# ---- the record


@pytest.mark.parametrize("kind", MODULES)
def test_a_record_replays_to_the_bit(kind: type) -> None:
    images = noise(200, 3, *SIZE)
    augmented, applied = kind(fill=(1, 2, 3))(images, return_applied=True)
    assert torch.equal(applied.apply(images), augmented)
    restored = AppliedOperations.from_state(json.loads(json.dumps(applied.state())))
    assert torch.equal(restored.magnitudes, applied.magnitudes)
    assert torch.equal(restored.apply(images), augmented)
    rows = torch.tensor([5, 5, 190])
    assert torch.equal(applied[rows].apply(images[rows]), augmented[rows])
    assert torch.equal(applied[20:].to("cpu").apply(images[20:]), augmented[20:])


def test_a_record_says_what_was_done() -> None:
    images = noise(50, 3, *SIZE)
    augmented, applied = RandAugment()(images, return_applied=True)
    assert applied.operations.shape == applied.magnitudes.shape == (50, 2)
    assert [len(names) for names in applied.names()] == [2] * 50
    steps = [
        AppliedOperations(applied.operations[:, [step]], applied.magnitudes[:, [step]], applied.space, applied.fill)
        for step in range(2)
    ]
    assert [[first, second] for (first,), (second,) in zip(*(step.names() for step in steps), strict=True)] == (
        applied.names()
    )
    assert torch.equal(steps[1].apply(steps[0].apply(images)), augmented)
    assert list(zip(applied, range(3), strict=False))[2][0].names() == [applied.names()[2]], "iterable"
    assert len(list(applied)) == 50


@pytest.mark.parametrize(
    "spoil",
    [
        lambda state: state.pop("fill"),
        lambda state: state["operations"].__setitem__(0, ["Nope", "Nope"]),
        lambda state: state["magnitudes"].pop(),
        lambda state: state.update(space="wide"),
    ],
)
def test_a_foreign_state_is_refused(spoil) -> None:
    state = RandAugment().draw(noise(4, 3, *SIZE)).state()
    spoil(state)
    with pytest.raises(ValueError, match=r"not a state of applied operations .*; give what state\(\) returned"):
        AppliedOperations.from_state(state)


def test_a_record_knows_how_many_images_it_is_for() -> None:
    applied = RandAugment().draw(noise(4, 3, *SIZE))
    with pytest.raises(ValueError, match="5 images came with the operations of 4"):
        applied.apply(noise(5, 3, *SIZE))
    with pytest.raises(ValueError, match="one for each channel"):
        applied.apply(noise(4, 1, *SIZE))


# ---- as one of torchvision's transforms


def test_everything_but_the_images_passes_through() -> None:
    module, images, labels = TrivialAugmentWide(), noise(8, 3, *SIZE), torch.arange(8)
    expected = module(images, generator=seeded())
    got = module(images, labels, generator=seeded())
    assert isinstance(got, tuple)
    assert torch.equal(got[0], expected)
    assert got[1] is labels
    sample, applied = module(
        {"labels": labels, "image": tv_tensors.Image(images), "path": ["a", 3]}, generator=seeded(), return_applied=True
    )
    assert type(sample["image"]) is tv_tensors.Image
    assert torch.equal(sample["image"], expected), "an explicit image goes before the first plain tensor"
    assert sample["labels"] is labels
    assert sample["path"] == ["a", 3]
    assert torch.equal(applied.apply(images), expected)


def test_global_generator_or_ones_own() -> None:
    module, images = RandAugment(), noise(30, 3, *SIZE)
    torch.manual_seed(4)
    first, second = module(images), module(images)
    assert not torch.equal(first, second)
    before = torch.get_rng_state()
    assert torch.equal(module(images, generator=seeded(4)), first)
    assert torch.equal(torch.get_rng_state(), before), "the global one is left alone"
    torch.manual_seed(4)
    assert torch.equal(module(images), first)


def test_in_compose() -> None:
    images, labels = tv_tensors.Image(noise(8, 3, *SIZE)), torch.arange(8)
    chain = v2.Compose([v2.RandomHorizontalFlip(0), TrivialAugmentWide(), v2.ToDtype(torch.float32, scale=True)])
    torch.manual_seed(1)
    got, same = chain(images, labels)
    assert same is labels
    # The flip takes a number from the global generator, too.
    torch.manual_seed(1)
    torch.rand(1)
    expected = TrivialAugmentWide()(images)
    assert torch.equal(got, F.to_dtype(expected, torch.float32, scale=True))
    assert type(got) is tv_tensors.Image


def collate(samples: list) -> tuple[Tensor, Tensor]:
    return TrivialAugmentWide()(*default_collate(samples))


def test_in_a_loaders_workers() -> None:
    """Each worker's draws are its own, and come from the loader's seed."""
    images = noise(1, 3, *SIZE).expand(32, -1, -1, -1).contiguous()
    data = TensorDataset(images, torch.arange(32))

    def epoch() -> list[Tensor]:
        loader = DataLoader(data, 16, num_workers=2, collate_fn=collate, generator=seeded(6))
        return [batch for batch, _ in loader]

    first, again = epoch(), epoch()
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize("kind", MODULES)
def test_pickles(kind: type) -> None:
    module, images = kind(fill=[3, 2, 1]), noise(20, 3, *SIZE)
    copy = pickle.loads(pickle.dumps(module))
    assert repr(copy) == repr(module)
    augmented, applied = copy(images, generator=seeded(), return_applied=True)
    assert torch.equal(augmented, module(images, generator=seeded()))
    assert torch.equal(pickle.loads(pickle.dumps(applied)).apply(images), augmented), "out of a worker, too"


@pytest.mark.parametrize(
    ("inputs", "match"),
    [
        ((noise(2, 3, 8, 8).float(),), r"torch.float32, expected torch.uint8; augment before v2.ToDtype"),
        ((torch.arange(2), noise(2, 3, 8, 8)), r"torch.int64, expected torch.uint8; .* first one counts"),
        ((F.to_pil_image(noise(3, 8, 8)), 1), r"found a PIL image; put v2.PILToTensor\(\) before it"),
        ((tv_tensors.Image(noise(3, 8, 8)), tv_tensors.Mask(noise(1, 8, 8))), "images alone, found Mask"),
        (
            (
                noise(3, 8, 8),
                tv_tensors.BoundingBoxes(torch.ones(1, 4), format="XYXY", canvas_size=(8, 8)),  # type: ignore[call-overload]
            ),
            "images alone, found BoundingBoxes",
        ),
        ((tv_tensors.Video(noise(2, 3, 8, 8)),), "images alone, found Video"),
        (([tv_tensors.Image(noise(3, 8, 8)), tv_tensors.Image(noise(3, 8, 8))],), "found 2 images; stack them"),
        (("cat.png", 3), "found no image among its inputs; give it a uint8 tensor"),
        ((), "found no image among its inputs"),
    ],
)
@pytest.mark.parametrize("kind", MODULES)
def test_refuses_what_it_cannot_augment(kind: type, inputs: tuple, match: str) -> None:
    with pytest.raises(TypeError, match=match):
        kind()(*inputs)


@pytest.mark.parametrize("shape", [(8, 8), (2, 4, 8, 8), (2, 3, 0, 8)])
def test_refuses_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \[\.\.\., C, H, W\] with C = 1 or 3"):
        RandAugment()(noise(*shape))


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: RandAugment(num_ops=-1), "num_ops is -1; expected a whole number, 0 or more"),
        (lambda: RandAugment(num_ops=1.5), "num_ops is 1.5; expected a whole number"),
        (lambda: RandAugment(magnitude=9.5), "magnitude is 9.5; expected 0 to 30"),
        (lambda: RandAugment(num_magnitude_bins=31.5), "num_magnitude_bins is 31.5; expected a whole number"),
        (lambda: RandAugment(magnitude=31), "magnitude is 31; expected 0 to 30"),
        (lambda: RandAugment(magnitude=-1), "magnitude is -1; expected 0 to 30"),
        (lambda: TrivialAugmentWide(num_magnitude_bins=1), "num_magnitude_bins is 1; expected a whole number, at"),
        (lambda: RandAugment(interpolation="bilinear"), "'bilinear'; the batched operations take the nearest pixel"),
        (lambda: TrivialAugmentWide(fill=256), "fill is 256; expected whole numbers from 0 to 255"),
        (lambda: TrivialAugmentWide(fill=[0.5]), r"fill is \[0.5\]; expected whole numbers"),
        (lambda: TrivialAugmentWide(fill={"others": 3}), "fill is {'others': 3}; expected whole numbers"),
        (lambda: TrivialAugmentWide(fill=(1, 2)).draw(noise(3, 8, 8)), "one for each of 3 channels"),
        (lambda: UniformTransformations("narrow"), "space is 'narrow'; expected one of metaaugment-v1"),
        (lambda: UniformTransformations(None), "space is None; expected one of metaaugment-v1"),
    ],
)
def test_refuses_arguments(build, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        build()


@pytest.mark.parametrize("interpolation", ["nearest", v2.InterpolationMode.NEAREST, 0])
def test_takes_each_spelling_of_nearest(interpolation) -> None:
    assert RandAugment(interpolation=interpolation).interpolation == "nearest"


def test_draws_stay_on_the_cpu() -> None:
    """Also where the default device is another one: the draw does not depend on the device."""
    space, images = SPACES["wide"], noise(2, 3, 8, 8)
    with torch.device("meta"):
        operations, _ = draw_operations(space, 4, 2, generator=seeded())
        applied = TrivialAugmentWide(17).draw(images)
        augmented = applied.apply(images)
    assert torch.equal(operations, draw_operations(space, 4, 2, generator=seeded())[0])
    assert applied.magnitudes.device.type == "cpu"
    assert torch.equal(augmented, applied.apply(images)), "images stay where they are"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", MODULES)
def test_cuda_equals_cpu(kind: type) -> None:
    images = noise(300, 3, *SIZE)
    expected = kind()(images, generator=seeded())
    got, applied = kind()(images.cuda(), generator=seeded(), return_applied=True)
    assert torch.equal(got.cpu(), expected)
    assert applied.operations.device.type == "cpu"
    assert torch.equal(applied.to("cuda").apply(images.cuda()), got)
