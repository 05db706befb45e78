"""What an iteration reports. What it does is tested by search and train from end to end."""

import pytest
import torch

from mapolicy.augment import NoAugmentation
from mapolicy.iteration import WeightedIteration, weight_spread
from mapolicy.task import Task


def test_weight_spread_is_deviation_over_mean() -> None:
    assert weight_spread(torch.full((8,), 1 / 8)) == pytest.approx(0, abs=1e-7)
    assert weight_spread(torch.tensor([0.25, 0.75])) == pytest.approx(0.5)
    assert weight_spread(torch.tensor([0.5, 1.5])) == pytest.approx(0.5), "the scale does not matter"


def test_equal_weights_are_the_mean_loss(make_train_config) -> None:
    config = make_train_config(policy="none", learning_rate=0.0)
    task = Task.build(config, torch.device("cpu"))
    images, labels = next(task.training.batches([(0, torch.arange(256))]))
    loss, measures = WeightedIteration(task, NoAugmentation())(0, (images, labels), None)
    logits = task.network.train()(task.pipeline.normalise(images))
    assert loss.item() == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    assert measures()["weight_spread"] == pytest.approx(0, abs=1e-6)
