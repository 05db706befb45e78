"""Policies' parts of the pipeline."""

import pytest
import torch
from torchvision.transforms import v2

from mapolicy.augment import RandAugment, TrivialAugmentWide
from mapolicy.policies import AutoAugment, NoAugmentation, PublishedPolicy, SampledTransformations
from mapolicy.sampler import TransformationSampler

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
    ("kind", "name"),
    [(PublishedPolicy, "trivialaugment"), (PublishedPolicy, "randaugment"), (AutoAugment, "cifar10")],
)
def test_published_policies_choose_for_each_image(kind: type, name: str, channels: int) -> None:
    image = noise(1, channels)
    images = image.expand(32, -1, -1, -1)
    augmented, transformation = kind(name)(images, FILL[:channels], torch.Generator().manual_seed(1))
    assert transformation is None
    assert augmented.shape == images.shape
    assert augmented.dtype == torch.uint8
    assert len({bytes(one.numpy().tobytes()) for one in augmented}) > 8, "each image has its own operations"


@pytest.mark.parametrize(("name", "module"), [("trivialaugment", TrivialAugmentWide), ("randaugment", RandAugment)])
def test_published_policy_has_the_defaults_and_our_fill(name: str, module: type) -> None:
    images = noise(40)
    augmented, _ = PublishedPolicy(name)(images, FILL, torch.Generator().manual_seed(5))
    assert torch.equal(augmented, module(fill=[10, 20, 30])(images, generator=torch.Generator().manual_seed(5)))


def test_autoaugment_is_torchvisions_with_our_fill() -> None:
    images = noise(6)
    augmented, _ = AutoAugment("digits")(images, FILL, torch.Generator().manual_seed(5))
    reference = v2.AutoAugment(fill=[10, 20, 30])
    torch.manual_seed(5)
    assert torch.equal(augmented, torch.stack([reference(image) for image in images]))


def test_autoaugment_has_a_policy_for_cifar_and_one_for_the_rest() -> None:
    images, draws = noise(24), torch.Generator().manual_seed(2)
    cifar, _ = AutoAugment("cifar100")(images, FILL, draws)
    other, _ = AutoAugment("folder:birds")(images, FILL, draws)
    assert not torch.equal(cifar, other)


@pytest.mark.parametrize(("kind", "name"), [(PublishedPolicy, "randaugment"), (AutoAugment, "digits")])
def test_published_policies_leave_the_global_generator_alone(kind: type, name: str) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    kind(name)(noise(4), FILL, torch.Generator())
    assert torch.equal(torch.get_rng_state(), before)
