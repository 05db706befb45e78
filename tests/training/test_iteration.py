"""What an iteration reports. What it does is tested by search and train from end to end."""

import pytest
import timm
import torch

import mapolicy.models  # noqa: F401 - registers the networks in timm
from mapolicy.bilevel.bilevel_step import BilevelStep, StepRecord
from mapolicy.bilevel.diagnostics import PolicyMonitor
from mapolicy.bilevel.inner_rate import InnerRate
from mapolicy.bilevel.options import StepOptions
from mapolicy.data.batch_sampler import validation_plan
from mapolicy.policy.alignment_sampler import AlignmentSampler
from mapolicy.policy.augmentations import NoAugmentation, SampledTransformations
from mapolicy.policy.network import PolicyNetwork
from mapolicy.policy.sampler import TransformationSampler
from mapolicy.runtime.random import seed_for
from mapolicy.training.callbacks import Reporter
from mapolicy.training.checkpoint import RunState
from mapolicy.training.iteration import BilevelIteration, WeightedIteration, observation_of
from mapolicy.training.setup import TrainingSetup
from mapolicy.training.step_time import CostMeter
from mapolicy.training.trainer import Trainer
from mapolicy.transforms.space import SPACES


def test_equal_weights_are_the_mean_loss(make_train_config) -> None:
    config = make_train_config(policy="none", learning_rate=0.0)
    setup = TrainingSetup.build(config, torch.device("cpu"))
    images, labels = next(setup.training.batches([(0, torch.arange(256))]))
    loss, measures = WeightedIteration(setup, NoAugmentation())(0, (images, labels), None)
    logits = setup.network.train()(setup.pipeline.normalise(images))
    assert loss.item() == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    assert measures()["weight_spread"] == pytest.approx(0, abs=1e-6)


def test_the_sampler_hears_what_helps_as_positive() -> None:
    """A sample counts as helpful where a step along its own gradient lowers the validation loss."""
    torch.manual_seed(0)
    network = timm.create_model("wrn10_1", num_classes=3, in_chans=1).double()
    policy, rate = PolicyNetwork(network.head_hidden_size, policy_input="embedding").double(), InnerRate(1e-6).double()
    optimizers = torch.optim.SGD(network.parameters(), lr=0.0), torch.optim.SGD(policy.parameters(), lr=0.0)
    step = BilevelStep(network, policy, rate, *optimizers, StepOptions(equal_weights=True))
    images, labels = torch.randn(12, 1, 8, 8, dtype=torch.float64), torch.randint(3, (12,))
    sampler = AlignmentSampler(SPACES["metaaugment-v1"])
    drawn = sampler.sample(6, torch.Generator().manual_seed(0))
    held_out = images[6:], labels[6:]
    record = step(images[:6], labels[:6], drawn.embed().double(), held_out, noise_seed=1)
    observation = observation_of(record, sampler.code(drawn))
    assert observation.alignment is not None
    gradients = []
    for chosen in range(6):  # batch statistics make every loss one of the whole batch
        losses = torch.nn.functional.cross_entropy(network(images[:6]), labels[:6], reduction="none")
        gradients.append(torch.autograd.grad(losses[chosen], list(network.parameters())))
    loss = torch.nn.functional.cross_entropy(network(images[6:]), labels[6:])
    descent = torch.autograd.grad(loss, list(network.parameters()))
    helps = [float(sum((a * b).sum() for a, b in zip(descent, each, strict=True))) for each in gradients]
    # alpha is so small that the virtual step hardly moves w: s_i / alpha is the product of the two gradients.
    assert observation.alignment.tolist() == pytest.approx([1e-6 * value for value in helps], rel=1e-3, abs=1e-12)


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
