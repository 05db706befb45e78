"""The pipeline: what each stage of it does to known pixels, and in which order."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from mapolicy.bundle.dataset_level import Stage, Step
from mapolicy.config import TrainConfig
from mapolicy.distributed import Communicator
from mapolicy.policy.augmentations import (
    Augmentation,
    AutoAugment,
    NoAugmentation,
    PublishedPolicy,
    SampledSubPolicies,
    SampledTransformations,
    ScheduledSteps,
)
from mapolicy.policy.pipeline import Pipeline
from mapolicy.policy.sampler import TransformationSampler
from mapolicy.runtime.shard import Shard
from mapolicy.transforms.auto_augment import RandAugment, TrivialAugmentWide
from mapolicy.transforms.basic import Normalisation, cutout, flip, pad_and_crop
from mapolicy.transforms.transformation import Transformation

CPU = torch.device("cpu")


def settings(**changes) -> TrainConfig:
    values = {
        "dataset": "digits",
        "arch": "wrn10_1",
        "image_size": 32,
        "train_per_class": 0,
        "validation_per_class": 1,
        "test_per_class": 1,
        "base_augmentation": "none",
        "cutout": 0,
        "epochs": 1,
        "batch_size": 4,
        "learning_rate": 0.1,
        "weight_decay": 0,
        "clip_norm": 0,
        "validation_batch_size": 4,
        "policy_learning_rate": 1e-3,
        "alpha_learning_rate": 1e-3,
        "sampler_every": 1,
        "sampler_history": 1,
    }
    return TrainConfig(**(values | changes))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(batch: int, channels: int = 3, side: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (batch, channels, side, side), dtype=torch.uint8, generator=generator(99))


def test_flip_mirrors_about_half_of_the_images_and_leaves_the_rest() -> None:
    images = noise(400, side=4)
    flipped = flip(images, generator())
    mirrored = sum(torch.equal(a, b.flip(2)) for a, b in zip(flipped, images, strict=True))
    kept = sum(torch.equal(a, b) for a, b in zip(flipped, images, strict=True))
    assert mirrored + kept == 400
    assert abs(mirrored - 200) < 5 * 10


def test_crop_cuts_every_offset_out_of_the_image_padded_with_black() -> None:
    image = noise(1, side=8)
    padded = torch.zeros(1, 3, 12, 12, dtype=torch.uint8)
    padded[:, :, 2:10, 2:10] = image
    windows = {(y, x): padded[0, :, y : y + 8, x : x + 8] for y in range(5) for x in range(5)}
    cropped = pad_and_crop(image.expand(2000, -1, -1, -1), 2, generator())
    counts = dict.fromkeys(windows, 0)
    for got in cropped:
        found = [offset for offset, window in windows.items() if torch.equal(got, window)]
        assert len(found) == 1
        counts[found[0]] += 1
    assert min(counts.values()) > 40  # 80 expected of each of the 25, deviation 9


@pytest.mark.parametrize("side", [16, 5, 1])
def test_cutout_hides_a_square_of_exactly_its_side_clipped_at_the_border(side: int) -> None:
    images = torch.full((3000, 3, 32, 32), 9, dtype=torch.uint8)
    fill = torch.tensor([1, 2, 3], dtype=torch.uint8)
    got = cutout(images, side, fill, generator())
    sides = set()
    for image in got:
        hidden = image[0] == 1
        assert torch.equal(image[1] == 2, hidden)
        assert torch.equal(image[2] == 3, hidden)
        rows, columns = hidden.any(1).nonzero()[:, 0], hidden.any(0).nonzero()[:, 0]
        height, width = int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1
        assert int(hidden.sum()) == height * width, "a full rectangle"
        inside_rows = rows[0] > 0 and rows[-1] < 31
        inside_columns = columns[0] > 0 and columns[-1] < 31
        if inside_rows and inside_columns:
            assert (height, width) == (side, side)
        sides.add((height, width))
        assert height <= side
        assert width <= side
    assert (side, side) in sides
    assert got.shape == images.shape
    assert int(images.min()) == 9, "the input is left alone"


def test_cutout_of_16_covers_what_devries_and_taylor_cover() -> None:
    """Their rows are clip(y - 8, 0, 32) to clip(y + 8, 0, 32) for a centre y uniform over the rows."""
    draws = generator(5)
    rows = torch.randint(0, 32, (64, 1), generator=generator(5))
    got = cutout(torch.full((64, 1, 32, 32), 200, dtype=torch.uint8), 16, torch.zeros(1, dtype=torch.uint8), draws)
    for image, y in zip(got, rows[:, 0].tolist(), strict=True):
        hidden = (image[0] == 0).any(1).nonzero()[:, 0]
        assert (int(hidden[0]), int(hidden[-1]) + 1) == (max(y - 8, 0), min(y + 8, 32))


# ---- the same draws and the same bytes, image by image


def flipped_by_hand(images: np.ndarray, draws: torch.Generator) -> np.ndarray:
    chosen = torch.randint(0, 2, (len(images),), generator=draws).tolist()
    return np.stack([image[:, :, ::-1] if mirror else image for image, mirror in zip(images, chosen, strict=True)])


def cropped_by_hand(padding: int) -> Callable[[np.ndarray, torch.Generator], np.ndarray]:
    def cropped(images: np.ndarray, draws: torch.Generator) -> np.ndarray:
        height, width = images.shape[2:]
        rows, columns = torch.randint(0, 2 * padding + 1, (2, len(images)), generator=draws).tolist()
        border = ((0, 0), (padding, padding), (padding, padding))
        cuts = zip(images, rows, columns, strict=True)
        return np.stack([np.pad(image, border)[:, y : y + height, x : x + width] for image, y, x in cuts])

    return cropped


def hidden_by_hand(side: int, fill: list[int]) -> Callable[[np.ndarray, torch.Generator], np.ndarray]:
    def hidden(images: np.ndarray, draws: torch.Generator) -> np.ndarray:
        result, (height, width) = images.copy(), images.shape[2:]
        rows, columns = (torch.randint(0, extent, (len(images), 1), generator=draws) for extent in (height, width))
        for image, y, x in zip(result, rows[:, 0].tolist(), columns[:, 0].tolist(), strict=True):
            top, left = y - side // 2, x - side // 2
            for channel, colour in enumerate(fill):
                image[channel, max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)] = colour
        return result

    return hidden


def hide(side: int, fill: list[int]) -> Callable[[torch.Tensor, torch.Generator], torch.Tensor]:
    return lambda images, draws: cutout(images, side, torch.tensor(fill, dtype=torch.uint8), draws)


COLOURS = {1: [77], 3: [255, 0, 131]}
LAYOUTS = {
    "contiguous": torch.Tensor.contiguous,
    "channels-last": lambda images: images.contiguous(memory_format=torch.channels_last),
    "a part": lambda images: torch.cat([images, images], 3)[..., : images.shape[3]],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("channels", "height", "width"), [(3, 32, 32), (1, 8, 8), (3, 5, 9)])
@pytest.mark.parametrize("stage", ["flip", "crop 0", "crop 1", "crop 4", "cutout 1", "cutout 5", "cutout 16"])
def test_each_stage_is_what_it_does_to_one_image(
    stage: str, channels: int, height: int, width: int, layout: str
) -> None:
    size = int(stage.split()[-1]) if " " in stage else 0
    stages: dict[str, tuple[Callable, Callable]] = {
        "flip": (flip, flipped_by_hand),
        "crop": (lambda images, draws: pad_and_crop(images, size, draws), cropped_by_hand(size)),
        "cutout": (hide(size, COLOURS[channels]), hidden_by_hand(size, COLOURS[channels])),
    }
    function, by_hand = stages[stage.split()[0]]
    images = torch.randint(0, 256, (40, channels, height, width), dtype=torch.uint8, generator=generator(1))
    given = LAYOUTS[layout](images)
    got = function(given, generator(7))
    assert got.dtype == torch.uint8
    np.testing.assert_array_equal(got.numpy(), by_hand(images.numpy(), generator(7)))
    assert torch.equal(given, images), "the input is left alone"


def test_normalisation_is_the_written_out_one_channels_last() -> None:
    images, mean, std = noise(8), (0.5, 0.48, 0.1), (0.2, 0.3, 0.25)
    got = Normalisation(mean, std, CPU)(images)
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert got.dtype == torch.float32
    of_channel = (np.asarray(values)[:, None, None] for values in (mean, std))
    shift, scale = of_channel
    expected = torch.from_numpy((images.numpy().astype(np.float64) / 255 - shift) / scale)
    torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=1e-6)
    pixels = images.float()
    assert torch.equal(Normalisation(mean, std, CPU)(pixels), got)
    assert torch.equal(pixels, images.float()), "the input is left alone"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_is_not_waited_for_and_gives_the_same_bytes() -> None:
    config = settings(base_augmentation="flip_crop", cutout=16)
    images, labels = noise(16), torch.arange(16)
    expected = Pipeline(config, (0.5,) * 3, (0.5,) * 3, CPU).augment(images, labels, NoAugmentation(), 3)
    pipeline = Pipeline(config, (0.5,) * 3, (0.5,) * 3, torch.device("cuda"))
    images, labels = images.cuda(), labels.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = pipeline.augment(images, labels, NoAugmentation(), 3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(got.images.cpu(), expected.images)


def test_normalisation_gives_mean_zero_and_deviation_one() -> None:
    images = noise(64)
    mean, std = images.double().mean((0, 2, 3)) / 255, images.double().std((0, 2, 3), correction=0) / 255
    pipeline = Pipeline(settings(), mean.tolist(), std.tolist(), CPU)
    inputs = pipeline.normalise(images).double()
    assert inputs.mean((0, 2, 3)).abs().max() < 1e-5
    assert (inputs.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-5


class Recorder:
    """An augmentation that paints the images black but for what it saw."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []
        self.fill: torch.Tensor | None = None

    def __call__(self, images: torch.Tensor, fill: torch.Tensor, generator: torch.Generator, shard: Shard):
        self.seen.append(images)
        self.fill = fill
        zeros = torch.zeros(len(images), dtype=torch.int64)
        return torch.zeros_like(images), Transformation.draw_magnitudes(zeros, zeros, generator)


def test_order_is_flip_crop_transformation_cutout_normalise() -> None:
    """Seen through a transformation that blackens: before it the crop, after it the hole in the mean's colour."""
    config = settings(base_augmentation="flip_crop", cutout=16)
    pipeline = Pipeline(config, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), CPU)
    images = noise(4)
    recorder = Recorder()
    batch = pipeline.augment(images, torch.arange(4), recorder, step=3)
    assert recorder.seen[0].shape == images.shape
    assert not torch.equal(recorder.seen[0], images), "flip and crop come before"
    assert set(batch.images.unique().tolist()) == {0, 128}, "the hole comes after, in the mean's colour"
    torch.testing.assert_close(batch.inputs, (batch.images.float() / 255 - 0.5) / 0.5)
    assert batch.transformation is not None


def test_imagenet_flips_but_does_not_crop_again() -> None:
    pipeline = Pipeline(settings(base_augmentation="random_resized_crop"), (0.5,) * 3, (0.5,) * 3, CPU)
    images = noise(64)
    batch = pipeline.augment(images, torch.zeros(64), NoAugmentation(), step=0)
    same = [torch.equal(a, b) for a, b in zip(batch.images, images, strict=True)]
    mirrored = [torch.equal(a, b.flip(2)) for a, b in zip(batch.images, images, strict=True)]
    assert sum(same) + sum(mirrored) == 64
    assert 16 < sum(mirrored) < 48


def test_copies_are_augmented_apart() -> None:
    pipeline = Pipeline(settings(copies=4, cutout=8), (0.5,) * 3, (0.5,) * 3, CPU)
    batch = pipeline.augment(noise(5), torch.arange(5), NoAugmentation(), step=0)
    assert batch.images.shape[0] == 20
    assert batch.labels.tolist() == [label for label in range(5) for _ in range(4)]
    assert not torch.equal(batch.images[0], batch.images[1])


@pytest.mark.parametrize(("fill", "expected"), [("mean", [26, 51, 255]), ("black", [0, 0, 0])])
def test_fill_is_the_mean_colour_or_black(fill: str, expected: list[int]) -> None:
    recorder = Recorder()
    pipeline = Pipeline(settings(fill=fill), (0.1, 0.2, 1.0), (1.0, 1.0, 1.0), CPU)
    pipeline.augment(noise(2), torch.zeros(2), recorder, step=0)
    assert recorder.fill is not None
    assert recorder.fill.tolist() == expected


def test_cutout_has_the_mean_colour_whatever_the_fill() -> None:
    config = settings(fill="black", cutout=16)
    batch = Pipeline(config, (0.5,), (0.5,), CPU).augment(
        torch.zeros(8, 1, 32, 32, dtype=torch.uint8), torch.zeros(8), NoAugmentation(), step=0
    )
    assert set(batch.images.unique().tolist()) == {0, 128}


@pytest.mark.parametrize(
    "stage", [{"base_augmentation": "flip_crop"}, {"base_augmentation": "random_resized_crop"}, {"cutout": 16}]
)
def test_each_stages_draws_depend_on_seed_and_step_alone(stage: dict) -> None:
    config = settings(**stage)

    def run(config: TrainConfig, step: int) -> torch.Tensor:
        pipeline = Pipeline(config, (0.5,) * 3, (0.5,) * 3, CPU)
        return pipeline.augment(noise(16), torch.zeros(16), NoAugmentation(), step).images

    torch.manual_seed(0)
    one = run(config, 5)
    torch.manual_seed(1)
    assert torch.equal(one, run(config, 5))
    assert not torch.equal(one, run(config, 6))
    assert not torch.equal(one, run(config.with_changes(seed=1), 5))


def test_transformations_depend_on_seed_and_step_alone() -> None:
    def drawn(config: TrainConfig, step: int) -> torch.Tensor:
        pipeline = Pipeline(config, (0.5,) * 3, (0.5,) * 3, CPU)
        augmentation = SampledTransformations(TransformationSampler(), "metaaugment-v1")
        transformation = pipeline.augment(noise(16), torch.zeros(16), augmentation, step).transformation
        assert transformation is not None
        return transformation.pair

    assert torch.equal(drawn(settings(), 5), drawn(settings(), 5))
    assert not torch.equal(drawn(settings(), 5), drawn(settings(), 6))
    assert not torch.equal(drawn(settings(), 5), drawn(settings(seed=1), 5))


class Half(Communicator):
    """Of one of two processes, without the other."""

    size = 2

    def __init__(self, rank: int) -> None:
        self.rank = rank


SUB_POLICIES = [
    [Step(operation="Rotate", probability=0.7, value=20.0, mirrored=True)],
    [
        Step(operation="ShearX", probability=1.0, value=0.2, mirrored=True),
        Step(operation="Solarize", probability=0.5, value=100.0, mirrored=False),
    ],
]


@pytest.mark.parametrize(
    "augmentation",
    [
        NoAugmentation(),
        SampledTransformations(TransformationSampler(), "metaaugment-v1"),
        SampledSubPolicies(SUB_POLICIES),
        ScheduledSteps([Stage(until=1.0, counts=(0.2, 0.3, 0.5), steps=(*SUB_POLICIES[0], *SUB_POLICIES[1]))]),
        PublishedPolicy(TrivialAugmentWide),
        PublishedPolicy(RandAugment),
        AutoAugment("cifar10"),
    ],
    ids=["none", "sampled", "sub-policies", "schedule", "trivialaugment", "randaugment", "autoaugment"],
)
def test_the_parts_of_a_batch_are_augmented_like_the_whole(augmentation: Augmentation) -> None:
    config, images, labels = settings(copies=2, cutout=8, base_augmentation="flip_crop"), noise(6), torch.arange(6)
    mean = (0.5,) * 3
    whole = Pipeline(config, mean, mean, CPU).augment(images, labels, augmentation, 4)
    assert not torch.equal(whole.images[::2], images)
    parts = [
        Pipeline(config, mean, mean, CPU, Half(rank)).augment(
            images[3 * rank : 3 * rank + 3], labels[3 * rank : 3 * rank + 3], augmentation, 4
        )
        for rank in (0, 1)
    ]
    assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
    assert torch.equal(torch.cat([part.labels for part in parts]), whole.labels)
    if whole.transformation is not None:
        halves = [part.transformation.embed() for part in parts if part.transformation is not None]
        assert torch.equal(torch.cat(halves), whole.transformation.embed())
