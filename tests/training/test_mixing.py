"""MixUp and CutMix are timm's, with the same draws; and a run with everything resumes to the same bytes."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.data import Mixup
from torch import Tensor

from mapolicy import PolicyBundle
from mapolicy.bilevel.sample_loss import class_weights, training_loss
from mapolicy.policy.augmentations import NoAugmentation
from mapolicy.runtime.random import seed_for
from mapolicy.training.iteration import WeightedIteration
from mapolicy.training.mixing import mix
from mapolicy.training.setup import TrainingSetup

CPU = torch.device("cpu")
CLASSES = 4


def batch(count: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    weights = torch.rand(count)
    return torch.rand(count, 3, 16, 16), torch.randint(CLASSES, (count,)), weights / weights.sum()


@pytest.mark.parametrize("changes", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}])
@pytest.mark.parametrize("step", [0, 1, 2])
def test_a_batch_is_mixed_as_timm_mixes_it(changes: dict[str, float], step: int, make_train_config) -> None:
    config = make_train_config(**changes)
    images, labels, weights = batch()
    np.random.seed(seed_for(config.seed, "train", "mixup", step) % 2**32)
    timms = Mixup(changes.get("mixup", 0.0), changes.get("cutmix", 0.0), label_smoothing=0.0, num_classes=CLASSES)
    expected, targets = timms(images.clone(), labels)
    mixed, found, shares = mix(config, images.clone(), labels, weights, CLASSES, step)
    assert torch.equal(mixed, expected)
    assert not torch.equal(mixed, images)
    torch.testing.assert_close(found, targets)
    # An image's weight is mixed as its label is.
    share = float((found[0] - F.one_hot(labels[5], CLASSES))[labels[0]]) if labels[0] != labels[5] else 0.5
    assert shares.sum().item() == pytest.approx(1, abs=1e-6)
    if labels[0] != labels[5]:
        assert shares[0].item() == pytest.approx(share * weights[0].item() + (1 - share) * weights[5].item(), rel=1e-5)


def test_numpys_own_generator_is_left_alone(make_train_config) -> None:
    np.random.seed(5)
    expected = np.random.rand()
    np.random.seed(5)
    first = mix(make_train_config(mixup=0.4), *batch(), CLASSES, 3)
    assert np.random.rand() == expected
    again = mix(make_train_config(mixup=0.4), *batch(), CLASSES, 3)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def test_the_middle_of_an_odd_batch_stays(make_train_config) -> None:
    images, labels, weights = batch(5)
    mixed, targets, shares = mix(make_train_config(mixup=0.4), images.clone(), labels, weights, CLASSES, 0)
    assert torch.equal(mixed[4], images[4])
    assert torch.equal(targets[4], F.one_hot(labels[4], CLASSES).float())
    assert shares[4] == weights[4]
    assert not torch.equal(mixed[:4], images[:4])


def test_an_iteration_mixes_after_the_policy(make_train_config) -> None:
    config = make_train_config(policy="none", mixup=0.4, label_smoothing=0.1, learning_rate=0.0)
    setup = TrainingSetup.build(config, CPU)
    images, labels = next(setup.training.batches([(0, torch.arange(256))]))
    loss, _ = WeightedIteration(setup, NoAugmentation())(0, (images, labels), None)
    np.random.seed(seed_for(config.seed, "train", "mixup", 0) % 2**32)
    timms = Mixup(0.4, 0.0, label_smoothing=0.1, num_classes=10)
    inputs, targets = timms(setup.pipeline.normalise(images), labels)
    expected = F.cross_entropy(setup.network.train()(inputs), targets)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_mixing_and_a_frozen_policy_go_together(make_train_config, bundle: PolicyBundle) -> None:
    from mapolicy import train_network

    config = make_train_config(mixup=0.2, cutmix=1.0, label_smoothing=0.1, balance="loss", epochs=1, accumulate=2)
    assert train_network(config, bundle).weight_spread > 0


# ---- the loss


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("balance", ["none", "loss"])
def test_smoothing_and_balance_are_torchs(smoothing: float, balance: str, make_train_config) -> None:
    logits, labels = torch.randn(8, CLASSES), torch.tensor([0, 0, 0, 0, 0, 1, 1, 2])
    config = make_train_config(label_smoothing=smoothing, balance=balance)
    weight = torch.tensor([8 / 15, 8 / 6, 8 / 3, 0.0]) if balance == "loss" else None
    expected = torch.nn.CrossEntropyLoss(weight=weight, label_smoothing=smoothing, reduction="none")(logits, labels)
    loss = training_loss(config, labels, CLASSES, CPU)
    torch.testing.assert_close(loss(logits, labels), expected)
    torch.testing.assert_close(loss(logits, F.one_hot(labels, CLASSES).float()), expected)


def test_class_weights_have_mean_one_over_the_images() -> None:
    labels = torch.tensor([0] * 200 + [1] * 40 + [2] * 4)
    weights = class_weights(labels, 3)
    assert weights.tolist() == pytest.approx([244 / 600, 244 / 120, 244 / 12])
    assert weights[labels].mean().item() == pytest.approx(1)


def test_a_policy_is_learned_with_smoothed_and_balanced_labels(make_train_config, make_search_config, bundle) -> None:
    from mapolicy import search_policy, train_network

    changes = {"label_smoothing": 0.1, "balance": "loss", "epochs": 1}
    assert train_network(make_train_config(mode="finetune", **changes), bundle).refined is not None
    settings = search_policy(make_search_config(**changes)).manifest.search.settings
    assert (settings["label_smoothing"], settings["balance"]) == (0.1, "loss")
