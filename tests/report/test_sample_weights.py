"""Weights of chosen transformations: those of a training batch, in the same numbers."""

import torch

from mapolicy import PolicyBundle
from mapolicy.policy.compress import synthetic_images
from mapolicy.policy.frozen import FrozenExtractor, FrozenWeights
from mapolicy.policy.sampler import TransformationSampler
from mapolicy.report.sample_weights import SampleWeights, ranks, relative_weights
from mapolicy.runtime.random import generator
from mapolicy.transforms.basic import Normalisation
from mapolicy.transforms.parse import parse_transformations

CPU = torch.device("cpu")


def test_they_are_those_of_a_training_batch(bundle: PolicyBundle) -> None:
    sample_weights = SampleWeights(bundle, CPU)
    images = synthetic_images(bundle.manifest.input)
    drawn = TransformationSampler(probabilities=bundle.probabilities).sample(len(images), generator(0, "t", "t", 0))
    augmented = sample_weights.augmented(images, drawn)
    contract = bundle.manifest.input
    fill = Normalisation(contract.mean, contract.std, CPU).mean_colour()
    assert torch.equal(augmented, drawn.apply(images, bundle.manifest.operations.space, fill))
    expected = FrozenWeights(FrozenExtractor(bundle, CPU), bundle.build_policy()).of(augmented, drawn)
    found = relative_weights(sample_weights.logits(augmented, drawn))
    torch.testing.assert_close(found, expected.double() * len(images), rtol=1e-5, atol=0)
    assert found.std() > 1e-3, "a bundle whose weights are equal tests nothing"

    sample_weights.chunk = 7  # parts of a batch have the batch's weights
    torch.testing.assert_close(relative_weights(sample_weights.logits(augmented, drawn)), found, rtol=1e-5, atol=0)
    assert torch.equal(images, synthetic_images(contract)), "left as they are"


def test_relative_to_another_batch() -> None:
    logits, batch = torch.tensor([0.0, 2.0]), torch.tensor([-1.0, 0.5, 3.0])
    expected = logits.double().sigmoid() / batch.double().sigmoid().mean()
    torch.testing.assert_close(relative_weights(logits, batch), expected)
    saturated = relative_weights(torch.tensor([-900.0, -901.0]))  # whose sigmoids are 0
    torch.testing.assert_close(saturated, 2 * torch.tensor([0.0, -1.0]).double().softmax(0))


def test_ranks() -> None:
    assert ranks(torch.tensor([0.5, 2.0, 1.0, 2.0])) == [4, 1, 3, 2]


def test_a_transformation_of_its_own(bundle: PolicyBundle) -> None:
    sample_weights = SampleWeights(bundle, CPU)
    images = synthetic_images(bundle.manifest.input)[:2]
    same = sample_weights.augmented(images, parse_transformations("Identity;Identity"))
    assert torch.equal(same, images)
