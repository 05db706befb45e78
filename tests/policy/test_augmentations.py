"""Policies' parts of the pipeline."""

import pytest
import torch
from torchvision.transforms import v2

from mapolicy.bundle.dataset_level import Stage, Step
from mapolicy.policy.augmentations import (
    AutoAugment,
    NoAugmentation,
    PublishedPolicy,
    SampledSubPolicies,
    SampledTransformations,
    ScheduledSteps,
)
from mapolicy.policy.sampler import TransformationSampler
from mapolicy.runtime.shard import Shard
from mapolicy.transforms.auto_augment import RandAugment, TrivialAugmentWide
from mapolicy.transforms.functional import OPERATIONS

FILL = torch.tensor([10, 20, 30], dtype=torch.uint8)


def noise(batch: int, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, channels, 16, 16), dtype=torch.uint8, generator=generator)


def test_none_leaves_the_images_alone() -> None:
    images = noise(3)
    assert NoAugmentation()(images, FILL, torch.Generator()) == (images, None)


def test_sampled_transformations_are_those_it_reports() -> None:
    augmentation = SampledTransformations(TransformationSampler(), "wide")
    images = noise(64)
    augmented, transformation = augmentation(images, FILL, torch.Generator().manual_seed(1))
    assert transformation is not None
    assert torch.equal(augmented, transformation.apply(images, "wide", FILL))
    assert len(transformation.pair.unique()) > 30


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("kind", "argument"),
    [(PublishedPolicy, TrivialAugmentWide), (PublishedPolicy, RandAugment), (AutoAugment, "cifar10")],
)
def test_published_policies_choose_for_each_image(kind: type, argument: object, channels: int) -> None:
    image = noise(1, channels)
    images = image.expand(32, -1, -1, -1)
    augmented, transformation = kind(argument)(images, FILL[:channels], torch.Generator().manual_seed(1))
    assert transformation is None
    assert augmented.shape == images.shape
    assert augmented.dtype == torch.uint8
    assert len({bytes(one.numpy().tobytes()) for one in augmented}) > 8, "each image has its own operations"


@pytest.mark.parametrize("module", [TrivialAugmentWide, RandAugment])
def test_published_policy_has_the_defaults_and_our_fill(module: type) -> None:
    images = noise(40)
    augmented, _ = PublishedPolicy(module)(images, FILL, torch.Generator().manual_seed(5))
    assert torch.equal(augmented, module(fill=[10, 20, 30])(images, generator=torch.Generator().manual_seed(5)))


def test_autoaugment_is_torchvisions_with_our_fill() -> None:
    images = noise(6)
    augmented, _ = AutoAugment("digits")(images, FILL, torch.Generator().manual_seed(5))
    reference = v2.AutoAugment(fill=[10, 20, 30])
    torch.manual_seed(5)
    assert torch.equal(augmented, torch.stack([reference(image) for image in images]))


@pytest.mark.parametrize("dataset", ["cifar10", "digits"])
def test_autoaugment_makes_the_same_draws_in_every_process(dataset: str) -> None:
    images = noise(60)
    whole, _ = AutoAugment(dataset)(images, FILL, torch.Generator().manual_seed(5))
    for first in (0, 1, 20, 40):
        shard = Shard(first, 20, 60)
        part, _ = AutoAugment(dataset)(shard.of(images), FILL, torch.Generator().manual_seed(5), shard)
        assert torch.equal(part, whole[first : first + 20])


def test_autoaugment_augments_no_image_of_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, forward = [], v2.AutoAugment.forward

    def counted(self: v2.AutoAugment, image: torch.Tensor) -> torch.Tensor:
        seen.append(image)
        return forward(self, image)

    monkeypatch.setattr(v2.AutoAugment, "forward", counted)
    AutoAugment("digits")(noise(2), FILL, torch.Generator().manual_seed(5), Shard(50, 2, 52))
    assert len(seen) == 2


def test_autoaugment_has_a_policy_for_cifar_and_one_for_the_rest() -> None:
    images, draws = noise(24), torch.Generator().manual_seed(2)
    cifar, _ = AutoAugment("cifar100")(images, FILL, draws)
    other, _ = AutoAugment("folder:birds")(images, FILL, draws)
    assert not torch.equal(cifar, other)


@pytest.mark.parametrize(("kind", "argument"), [(PublishedPolicy, RandAugment), (AutoAugment, "digits")])
def test_published_policies_leave_the_global_generator_alone(kind: type, argument: object) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    kind(argument)(noise(4), FILL, torch.Generator())
    assert torch.equal(torch.get_rng_state(), before)


def step(operation: str, probability: float = 1.0, value: float = 0.0, mirrored: bool = False) -> Step:
    return Step(operation=operation, probability=probability, value=value, mirrored=mirrored)


def by_value(images: torch.Tensor, operation: str, value: float) -> torch.Tensor:
    (function,) = (entry.function for entry in OPERATIONS if entry.name == operation)
    return function(images, torch.full((len(images),), value, dtype=torch.float64), FILL)


def test_steps_are_taken_in_order_at_their_values() -> None:
    images = noise(6)
    before = images.clone()
    policy = SampledSubPolicies([[step("Rotate", value=20.0), step("Posterize", value=3.0)]])
    found, transformation = policy(images, FILL, torch.Generator().manual_seed(0))
    expected = by_value(by_value(images, "Rotate", 20.0), "Posterize", 3.0)
    assert torch.equal(found, expected)
    assert not torch.equal(found, by_value(by_value(images, "Posterize", 3.0), "Rotate", 20.0))
    assert transformation is None
    assert torch.equal(images, before)


def test_sub_policies_probabilities_and_directions_come_as_often_as_said() -> None:
    # Four outcomes of one pixel row: unchanged, inverted, moved left, moved right.
    images = torch.arange(16, dtype=torch.uint8).expand(8000, 1, 4, 16)
    fill = torch.tensor([255], dtype=torch.uint8)
    policy = SampledSubPolicies(
        [[step("Solarize", 0.3)], [step("TranslateX", 0.8, 0.25, mirrored=True)], [step("Equalize", 0.0)], []]
    )
    found, _ = policy(images, fill, torch.Generator().manual_seed(0))
    inverted = (found[:, 0, 0, 0] == 255) & (found[:, 0, 0, 15] == 240)
    left, right = found[:, 0, 0, 0] == 4, (found[:, 0, 0, 0] == 255) & (found[:, 0, 0, 15] == 11)
    unchanged = (found == images).flatten(1).all(1)
    assert bool((inverted | left | right | unchanged).all())
    for share, expected in ((inverted, 0.075), (left, 0.1), (right, 0.1)):
        deviation = (expected * (1 - expected) / len(images)) ** 0.5
        assert abs(float(share.float().mean()) - expected) < 5 * deviation


def test_sub_policies_depend_on_the_generator_alone() -> None:
    policy = SampledSubPolicies([[step("Rotate", 0.5, 30.0, mirrored=True)], [step("Color", 0.5, -0.5)]])
    before = torch.get_rng_state()
    first, again, other = (policy(noise(9), FILL, torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


# Three operations that can be told apart in a row of 0 to 15 after any of the others, in any order.
CHOICES = (step("Solarize", 0.5), step("TranslateX", 0.8, 0.25), step("Brightness", 0.3, -0.5))
STAGES = (
    Stage(until=0.25, counts=(1.0,), steps=()),
    Stage(until=1.0, counts=(0.2, 0.3, 0.5), steps=CHOICES),
)


def test_a_schedule_follows_the_progress_of_a_run() -> None:
    images, schedule = noise(64), ScheduledSteps(STAGES)
    drawn = {
        progress: schedule.at(progress)(images, FILL, torch.Generator().manual_seed(0))[0]
        for progress in (0.0, 0.2499, 0.25, 0.9, None)
    }
    assert torch.equal(drawn[0.0], images)
    assert torch.equal(drawn[0.2499], images)
    assert not torch.equal(drawn[0.25], images)
    assert torch.equal(drawn[0.25], drawn[0.9])
    assert torch.equal(drawn[0.25], drawn[None])


def test_a_schedules_steps_come_as_often_as_said_and_in_every_order() -> None:
    count = 8000
    _, named = ScheduledSteps(STAGES).named(noise(count), FILL, torch.Generator().manual_seed(0))
    taken = [[line.split()[0] for line in lines.splitlines() if line != "unchanged"] for lines in named]
    assert {len(names) for names in taken} == {0, 1, 2}
    for choice, expected in zip(CHOICES, STAGES[1].uses(), strict=True):
        found = sum(choice.operation in names for names in taken) / count
        assert abs(found - expected) < 5 * (expected * (1 - expected) / count) ** 0.5
    pairs = {tuple(names) for names in taken if len(names) == 2}
    assert len(pairs) == 6, "each pair in both orders"


def test_a_schedules_steps_are_taken_at_their_values() -> None:
    stage = Stage(until=1.0, counts=(0.0, 1.0), steps=(step("Rotate", 1.0, 20.0, mirrored=True),))
    images = noise(40)
    found, transformation = ScheduledSteps([stage])(images, FILL, torch.Generator().manual_seed(0))
    assert transformation is None
    left, right = ((found == by_value(images, "Rotate", value)).flatten(1).all(1) for value in (20.0, -20.0))
    assert bool((left ^ right).all())
    assert 8 < int(left.sum()) < 32
