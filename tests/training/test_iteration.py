"""What an iteration reports. What it does is tested by search and train from end to end."""

import pytest
import torch

from mapolicy.bilevel.bilevel_step import StepRecord
from mapolicy.bilevel.diagnostics import PolicyMonitor
from mapolicy.data.batch_sampler import validation_plan
from mapolicy.policy.augmentations import NoAugmentation, SampledTransformations
from mapolicy.policy.sampler import TransformationSampler
from mapolicy.runtime.random import seed_for
from mapolicy.training.callbacks import Reporter
from mapolicy.training.checkpoint import RunState
from mapolicy.training.iteration import BilevelIteration, WeightedIteration
from mapolicy.training.setup import TrainingSetup
from mapolicy.training.step_time import CostMeter
from mapolicy.training.trainer import Trainer


def test_equal_weights_are_the_mean_loss(make_train_config) -> None:
    config = make_train_config(policy="none", learning_rate=0.0)
    setup = TrainingSetup.build(config, torch.device("cpu"))
    images, labels = next(setup.training.batches([(0, torch.arange(256))]))
    loss, measures = WeightedIteration(setup, NoAugmentation())(0, (images, labels), None)
    logits = setup.network.train()(setup.pipeline.normalise(images))
    assert loss.item() == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    assert measures()["weight_spread"] == pytest.approx(0, abs=1e-6)


def test_what_the_bilevel_step_is_given(make_search_config) -> None:
    """Both batches normalised alike, the embedding of the transformations that were applied, the run's noise."""
    config = make_search_config(copies=2)
    setup = TrainingSetup.build(config, torch.device("cpu"))
    given = {}

    def bilevel(inputs, labels, embedding, validation, noise_seed, features):
        given.update(locals())
        raw = torch.linspace(0.1, 0.9, len(labels))
        return StepRecord(torch.zeros(()), raw, raw / raw.sum(), torch.ones(()), None, None, None)

    sampler = TransformationSampler()
    batch = next(setup.training.batches([(3, torch.arange(256))]))
    held_out = next(setup.splits.meta_validation.batches([(3, torch.arange(64))]))
    monitor = PolicyMonitor(1, 1, 10)
    features = lambda augmented: augmented.inputs.flatten(1)  # noqa: E731
    BilevelIteration(setup, sampler, bilevel, monitor, features)(3, batch, held_out)
    assert monitor.spread().value > 0

    expected = setup.pipeline.augment(*batch, SampledTransformations(TransformationSampler(), "metaaugment-v1"), 3)
    assert expected.transformation is not None
    assert torch.equal(given["inputs"], expected.inputs)
    assert torch.equal(given["labels"], batch[1].repeat_interleave(2))
    assert torch.equal(given["embedding"], expected.transformation.embed())
    assert torch.equal(given["validation"][0], setup.pipeline.normalise(held_out[0]))
    assert torch.equal(given["validation"][1], held_out[1])
    assert torch.equal(given["features"], expected.inputs.flatten(1))
    assert given["noise_seed"] == seed_for(config.seed, "search", "noise", 3)
    first = expected.transformation.pair[0]
    raw = torch.linspace(0.1, 0.9, 512)[expected.transformation.pair == first]
    assert sampler.iteration == 1
    assert sampler.means.flatten()[first].item() == pytest.approx(raw.mean().item(), rel=1e-5)


def test_the_policy_is_learned_every_so_many_iterations(make_search_config, monkeypatch) -> None:
    """Meta-validation batches are drawn for those iterations alone, each of its own step's draw."""
    config = make_search_config(meta_every=3, epochs=2)
    setup = TrainingSetup.build(config, torch.device("cpu"))
    validations = []

    def bilevel(inputs, labels, embedding, validation, noise_seed, features):
        validations.append(validation)
        raw = torch.full((len(labels),), 0.5)
        return StepRecord(torch.zeros(()), raw, raw / raw.sum(), torch.ones(()), None, None, None)

    monkeypatch.setattr(CostMeter, "__call__", lambda self, batch, iteration: iteration())
    sampler = TransformationSampler()
    iteration = BilevelIteration(setup, sampler, bilevel, PolicyMonitor(1, 1, 10))
    with Trainer(config, RunState({}, {}), setup, Reporter(), None) as run:
        run.loop(iteration)
    assert len(validations) == 10
    assert [step for step, validation in enumerate(validations) if validation is not None] == [0, 3, 6, 9]
    images = len(setup.splits.meta_validation)
    ((_, drawn),) = validation_plan(config, images, [6])
    expected = next(setup.splits.meta_validation.batches([(6, drawn)]))
    assert torch.equal(validations[6][1], expected[1])
    assert sampler.iteration == 10, "the sampler hears of every iteration"
