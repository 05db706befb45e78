"""What a sampler sees of images: the rows of the batch's own images, whatever the epoch, the copies and the split."""

import pytest
import torch

from mapolicy.models.features import deep_features
from mapolicy.policy.alignment_sampler import AlignmentSampler
from mapolicy.policy.augmentations import SampledTransformations
from mapolicy.policy.levels import SampleEffects, StagedLevels, class_context
from mapolicy.training.iteration import WeightedIteration
from mapolicy.training.sample_context import ProxyContext, SampleContext
from mapolicy.training.setup import TrainingSetup
from mapolicy.transforms.space import SPACES

CPU = torch.device("cpu")
SPACE = SPACES["metaaugment-v1"]
ROTATE = SPACE.names.index("Rotate")


@pytest.mark.parametrize("copies", [1, 2])
def test_rows_are_those_of_the_batch(make_search_config, copies: int) -> None:
    setup = TrainingSetup.build(make_search_config(copies=copies), CPU)
    context = SampleContext.of_classes(setup)
    for epoch in (1, 0):
        plan = setup.plan(epoch)
        for (step, _), (_, labels) in zip(plan, setup.batches(setup.training, plan), strict=True):
            assert torch.equal(context.at(step), class_context(labels.repeat_interleave(copies), 10))


def test_features_are_those_of_each_image(make_search_config) -> None:
    setup = TrainingSetup.build(make_search_config(), CPU)
    sampler = AlignmentSampler(SPACE, inputs=5)
    context = ProxyContext(setup, sampler)
    context.prepare(0)
    assert setup.network.training
    plan = setup.plan(0)
    (step, _), (images, _) = plan[1], list(setup.batches(setup.training, plan))[1]
    with torch.no_grad():
        features = deep_features(setup.network.eval(), setup.pipeline.normalise(images))
    torch.testing.assert_close(context.at(step), context.features.context(features), rtol=0, atol=1e-4)
    mean = context.table.mean(0)
    torch.testing.assert_close(mean, torch.zeros(5), rtol=0, atol=0.05)  # clipped at 4 deviations


def test_a_refresh_keeps_what_was_learned(make_search_config) -> None:
    """Equal features after the refresh: V . h(x) of every image stays what it was."""
    setup = TrainingSetup.build(make_search_config(), CPU)
    sampler = AlignmentSampler(SPACE, inputs=5)
    context = ProxyContext(setup, sampler)
    context.refresh()
    sampler.restore(sampler.state() | {"seen": torch.randn(sampler.grid.groups, 5).double()}, 0)
    before = context.table.double() @ sampler.state()["seen"].T
    context.refresh()
    after = context.table.double() @ sampler.state()["seen"].T
    assert float((after - before).norm() / before.norm()) < 0.2, "clipped rows are not quite uncorrelated"


def test_a_frozen_policy_draws_for_each_images_own_class(make_train_config) -> None:
    """V forbids Rotate to classes 0 to 4 alone; what the pipeline did to each image is read from the sampler."""
    setup = TrainingSetup.build(make_train_config(policy="none"), CPU)
    table = torch.zeros(10, 14, 8)
    table[:5, ROTATE] = -100.0
    drawn: list[torch.Tensor] = []

    class Recording(StagedLevels):
        def sample(self, *arguments, **named):
            found = super().sample(*arguments, **named)
            drawn.append((found.first == ROTATE) | (found.second == ROTATE))
            return found

    sampler = Recording(SPACE, torch.zeros(1, 14, 8), 3.0, SampleEffects(table))
    augmentation = SampledTransformations(sampler, "metaaugment-v1")
    iteration = WeightedIteration(setup, augmentation, context=SampleContext.of_classes(setup))
    plan = setup.plan(0)
    seen = []
    for (step, _), batch in zip(plan, setup.batches(setup.training, plan, augment=True), strict=True):
        iteration(step, batch, None)
        seen.append(batch[1])
    rotated, labels = torch.cat(drawn), torch.cat(seen)
    assert not rotated[labels < 5].any()
    assert rotated[labels >= 5].any()
