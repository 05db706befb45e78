"""A bundle's policy at work: the extractor's features and the weights, against the parts used by hand."""

import pytest
import torch
import torch.nn.functional as F

from mapolicy import PolicyBundle, Transformation
from mapolicy.features import features_and_logits
from mapolicy.pipeline import AugmentedBatch
from mapolicy.reuse import FrozenExtractor, FrozenWeights

CPU = torch.device("cpu")


def images(side: int) -> torch.Tensor:
    return torch.randint(0, 256, (12, 1, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def by_hand(bundle: PolicyBundle, pixels: torch.Tensor) -> torch.Tensor:
    contract = bundle.manifest.input
    inputs = (pixels / 255 - torch.tensor(contract.mean)[:, None, None]) / torch.tensor(contract.std)[:, None, None]
    with torch.no_grad():
        return features_and_logits(bundle.build_extractor(CPU), inputs)[0]


def test_features_are_the_proxys_in_evaluation_mode_with_its_normalisation(bundle: PolicyBundle) -> None:
    features = FrozenExtractor(bundle, CPU)(images(8))
    assert features.shape == (12, 64)
    assert not features.requires_grad
    torch.testing.assert_close(features, by_hand(bundle, images(8).float()), rtol=1e-4, atol=1e-5)
    one = FrozenExtractor(bundle, CPU)(images(8)[:1])
    torch.testing.assert_close(one, features[:1], rtol=1e-4, atol=1e-5, msg="no batch statistics")


@pytest.mark.parametrize(("height", "width"), [(20, 20), (20, 8), (8, 20)])
def test_images_of_another_size_are_brought_to_the_proxys(bundle: PolicyBundle, height: int, width: int) -> None:
    pixels = images(20)[:, :, :height, :width]
    features = FrozenExtractor(bundle, CPU)(pixels)
    smaller = F.interpolate(pixels.float(), size=(8, 8), mode="bilinear", antialias=True)
    torch.testing.assert_close(features, by_hand(bundle, smaller), rtol=1e-4, atol=1e-5)


def test_weights_are_the_policys_outputs_normalised(bundle: PolicyBundle) -> None:
    generator = torch.Generator().manual_seed(1)
    pairs = torch.randint(0, 14, (2, 12), generator=generator)
    transformation = Transformation.draw_magnitudes(*pairs, generator)
    batch = AugmentedBatch(images(8), torch.empty(0), torch.zeros(12), transformation)
    policy = bundle.build_policy()
    weights = FrozenWeights(FrozenExtractor(bundle, CPU), policy)(batch)
    with torch.no_grad():
        raw = policy(by_hand(bundle, images(8).float()), transformation.embed())
    torch.testing.assert_close(weights, raw / raw.sum(), rtol=1e-4, atol=1e-6)
    assert weights.sum().item() == pytest.approx(1)
    assert not weights.requires_grad
    assert weights.std() > 0
