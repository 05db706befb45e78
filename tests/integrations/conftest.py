"""What the tests of the integrations share: batches, a network, and the training that each of them has to equal."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mapolicy import PolicyAugment

Batches = list[tuple[Tensor, Tensor]]
LEARNING_RATE = 0.05


@pytest.fixture(scope="session")
def batches(bundle) -> Batches:
    """An epoch of three batches: uint8 [16, 1, 8, 8] and int64 [16], the same in every epoch."""
    draws = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (3, 16, 1, 8, 8), dtype=torch.uint8, generator=draws)
    return list(zip(pixels, torch.randint(0, 10, (3, 16), generator=draws), strict=True))


@pytest.fixture(scope="session")
def network() -> Callable[[], nn.Module]:
    """Builds the same network at each call."""

    def build() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    return build


@pytest.fixture(scope="session")
def by_hand(bundle, batches: Batches, network: Callable[[], nn.Module]) -> Callable[..., Tensor]:
    """Weights of the network after a plain loop of so many epochs."""

    def train(epochs: int, forgets: bool = False, **options) -> Tensor:
        trained, policy = network(), PolicyAugment(bundle, **options)
        optimizer = torch.optim.SGD(trained.parameters(), LEARNING_RATE, momentum=0.9)
        for _ in range(epochs):
            policy.step = 0 if forgets else policy.step
            for images, labels in batches:
                inputs, targets = policy(images, labels)
                optimizer.zero_grad()
                F.cross_entropy(trained(inputs), targets).backward()
                optimizer.step()
        return trained[1].weight.detach()

    assert not torch.allclose(train(2), train(2, forgets=True), atol=1e-3)  # so a test sees a step that is lost
    return train
