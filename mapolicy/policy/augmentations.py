"""What each `--policy` does to a batch in the pipeline: sampled transformations, published policies, nothing.

`registries.ZERO_COST_POLICIES` names the policies that need no bundle; the `build_` functions below are its entries.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor
from torchvision.transforms import v2

from ..bundle.dataset_level import Stage, Step
from ..config import TrainConfig
from ..errors import EnvironmentFault
from ..registries import ZERO_COST_POLICIES
from ..runtime.shard import Shard, whole_batch
from ..transforms.auto_augment import AppliedOperations, RandAugment, TrivialAugmentWide
from ..transforms.functional import operation_function
from ..transforms.space import OPERATION_SPECS, SPACES, OperationSpace
from ..transforms.transformation import Transformation
from .sampler import Draws, TransformationSampler

NOTHING = "unchanged"  # what was done to an image that no operation changed


class Augmentation(Protocol):
    """A policy's part of the pipeline, between base augmentation and Cutout."""

    def __call__(
        self, images: Tensor, fill: Tensor, generator: torch.Generator, shard: Shard | None = None
    ) -> tuple[Tensor, Transformation | None]:
        """Augment uint8 images [B, C, H, W]; return also the transformations if they come from an operation space.

        Args:
            images: left as they are.
            fill: uint8 [C], colour of pixels that come from outside the image.
            generator: on the CPU; the only source of randomness.
            shard: which rows of the batch the images are; None for all of it.
        """
        ...


@runtime_checkable
class FollowsProgress(Protocol):
    """An augmentation that changes over a run."""

    def at(self, progress: float | None) -> Augmentation:
        """The augmentation at this share of the run, in [0, 1); None if the run's length is not known."""
        ...


@runtime_checkable
class NamesOperations(Protocol):
    """An augmentation that can say what it did to each image."""

    def named(self, images: Tensor, fill: Tensor, generator: torch.Generator) -> tuple[Tensor, list[str]]:
        """Augment a whole batch as `Augmentation` does; also the operations of each image, one a line."""
        ...


class NoAugmentation:
    """Leaves the base augmentation's images as they are."""

    def named(self, images: Tensor, fill: Tensor, generator: torch.Generator) -> tuple[Tensor, list[str]]:
        """The images themselves."""
        return images, [NOTHING] * len(images)

    def __call__(
        self, images: Tensor, fill: Tensor, generator: torch.Generator, shard: Shard | None = None
    ) -> tuple[Tensor, Transformation | None]:
        """The images themselves."""
        return images, None


class SampledTransformations:
    """A transformation for each image, drawn by a sampler: uniform, learned or still being learned.

    Args:
        sampler: draws the transformations.
        space: name of the operation space.
        progress: share of the run that is done; None where the run's length is not known.
        context: h(x) of the batch's images, float [whole batch, D], for a sampler that sees images.
    """

    def __init__(
        self, sampler: Draws, space: str, progress: float | None = None, context: Tensor | None = None
    ) -> None:
        self.sampler, self.space, self._progress, self._context = sampler, space, progress, context

    def at(self, progress: float | None) -> "SampledTransformations":
        """The same sampler at this share of the run."""
        return SampledTransformations(self.sampler, self.space, progress, self._context)

    def seeing(self, context: Tensor) -> "SampledTransformations":
        """The same sampler, for images with this h(x)."""
        return SampledTransformations(self.sampler, self.space, self._progress, context)

    def __call__(
        self, images: Tensor, fill: Tensor, generator: torch.Generator, shard: Shard | None = None
    ) -> tuple[Tensor, Transformation | None]:
        """The transformed images and their transformations."""
        shard = shard or whole_batch(len(images))
        seen = {} if self._context is None else {"context": self._context}
        drawn = self.sampler.sample(shard.whole, generator, self._progress, **seen)
        transformation = drawn.shard(shard).to(images.device)
        return transformation.apply(images, self.space, fill), transformation

    def named(self, images: Tensor, fill: Tensor, generator: torch.Generator) -> tuple[Tensor, list[str]]:
        """The transformed images, and both operations of each in the operations' own units."""
        augmented, transformation = self(images, fill, generator)
        assert transformation is not None
        operations = torch.stack([transformation.first, transformation.second], 1)
        levels = torch.stack([transformation.magnitude1, transformation.magnitude2], 1)
        return augmented, _spelled(operations, levels, SPACES[self.space])


class _StepTable:
    """Rows of steps as tensors, and their execution.

    Args:
        rows: steps; shorter rows are filled up with steps that are never taken.
    """

    def __init__(self, rows: Sequence[Sequence[Step]]) -> None:
        self.names = list(dict.fromkeys(step.operation for steps in rows for step in steps))
        shape = (len(rows), max(len(steps) for steps in rows))
        self.operation = torch.zeros(shape, dtype=torch.int64)
        self.probability, self.value = torch.zeros(shape), torch.zeros(shape, dtype=torch.float64)
        self.mirrored = torch.zeros(shape, dtype=torch.bool)
        for row, steps in enumerate(rows):
            for column, step in enumerate(steps):
                self.operation[row, column] = self.names.index(step.operation)
                self.probability[row, column] = step.probability
                self.value[row, column] = step.value
                self.mirrored[row, column] = step.mirrored

    def applied(self, images: Tensor, fill: Tensor, operation: Tensor, value: Tensor, taken: Tensor) -> Tensor:
        """The images after their steps, column by column; all three [B, columns]."""
        images = images.clone()
        for step in range(operation.shape[1]):
            for index in operation[taken[:, step], step].unique().tolist():
                rows = (taken[:, step] & (operation[:, step] == index)).nonzero().flatten()
                values, rows = value[rows, step].to(images.device), rows.to(images.device)
                images[rows] = operation_function(self.names[index])(images[rows], values, fill)
        return images

    def named(self, operation: Tensor, value: Tensor, taken: Tensor) -> list[str]:
        """The steps that were taken for each image, in the operations' own units, one a line."""
        found = []
        for row, values, wanted in zip(operation.tolist(), value.tolist(), taken.tolist(), strict=True):
            steps = [
                (self.names[each], number)
                for each, number, is_taken in zip(row, values, wanted, strict=True)
                if is_taken
            ]
            found.append("\n".join(_short(name, number) for name, number in steps) or NOTHING)
        return found


class _ListedSteps(ABC):
    """Applies steps of a table; which ones, the subclass draws for each image."""

    _table: _StepTable

    def __call__(
        self, images: Tensor, fill: Tensor, generator: torch.Generator, shard: Shard | None = None
    ) -> tuple[Tensor, Transformation | None]:
        """Augmented images; a step has a value, not a level, so there is no transformation of ours."""
        drawn = self._drawn(generator, shard or whole_batch(len(images)))
        return self._table.applied(images, fill, *drawn), None

    def named(self, images: Tensor, fill: Tensor, generator: torch.Generator) -> tuple[Tensor, list[str]]:
        """Augmented images, and the steps that were taken for each, in the operations' own units."""
        drawn = self._drawn(generator, whole_batch(len(images)))
        return self._table.applied(images, fill, *drawn), self._table.named(*drawn)

    @abstractmethod
    def _drawn(self, generator: torch.Generator, shard: Shard) -> tuple[Tensor, Tensor, Tensor]:
        """Operation int64, value float64, and whether it is taken, bool: each [B, steps]."""


class SampledSubPolicies(_ListedSteps):
    """A sub-policy for each image, drawn evenly from a list; each step is taken with its own probability.

    Args:
        sub_policies: as in the manifest of `dataset_level`.
    """

    def __init__(self, sub_policies: Sequence[Sequence[Step]]) -> None:
        self._table = _StepTable(sub_policies)

    def _drawn(self, generator: torch.Generator, shard: Shard) -> tuple[Tensor, Tensor, Tensor]:
        table = self._table
        chosen = shard.of(torch.randint(0, len(table.operation), (shard.whole,), generator=generator))
        shape = (shard.whole, table.operation.shape[1])
        taken = shard.of(torch.rand(shape, generator=generator)) < table.probability[chosen]
        turned = (shard.of(torch.randint(0, 2, shape, generator=generator)) == 1) & table.mirrored[chosen]
        value = table.value[chosen]
        return table.operation[chosen], torch.where(turned, -value, value), taken


class ScheduledSteps(_ListedSteps):
    """A schedule over a run: in each stage a few steps for each image, in random order.

    Source: Population Based Augmentation (Ho et al., ICML 2019); `bundle.dataset_level.Stage` says what a stage does.

    Args:
        stages: as in the manifest of `dataset_level`.
        progress: share of the run that is done; None, where the run's length is not known, takes the last stage.
    """

    def __init__(self, stages: Sequence[Stage], progress: float | None = None) -> None:
        self._stages, share = stages, 1.0 if progress is None else progress
        stage = next((stage for stage in stages if share < stage.until), stages[-1])
        self._table = _StepTable([stage.steps])
        self._counts = torch.tensor(stage.counts, dtype=torch.float64)

    def at(self, progress: float | None) -> "ScheduledSteps":
        """The same schedule at this share of the run."""
        return ScheduledSteps(self._stages, progress)

    def _drawn(self, generator: torch.Generator, shard: Shard) -> tuple[Tensor, Tensor, Tensor]:
        table, shape = self._table, (shard.whole, self._table.operation.shape[1])
        count = shard.of(torch.multinomial(self._counts, shard.whole, replacement=True, generator=generator))
        order = shard.of(torch.rand(shape, generator=generator)).argsort(1)
        reached = shard.of(torch.rand(shape, generator=generator)) < table.probability[0][order]
        turned = shard.of(torch.randint(0, 2, shape, generator=generator)) == 1
        # The first `count` of those that would be taken, in their order, moved to the first columns.
        taken = reached & (reached.cumsum(1) <= count[:, None])
        first = (~taken).byte().argsort(dim=1, stable=True)[:, : len(self._counts) - 1]
        chosen, taken, turned = order.gather(1, first), taken.gather(1, first), turned.gather(1, first)
        value = table.value[0][chosen]
        return table.operation[0][chosen], torch.where(turned & table.mirrored[0][chosen], -value, value), taken


class PublishedPolicy:
    """TrivialAugment or RandAugment with torchvision's defaults and our fill, a choice for each image.

    Args:
        module: which of the two.
    """

    def __init__(self, module: type[RandAugment] | type[TrivialAugmentWide]) -> None:
        self._build = module
        self._augment: RandAugment | TrivialAugmentWide | None = None

    def __call__(
        self, images: Tensor, fill: Tensor, generator: torch.Generator, shard: Shard | None = None
    ) -> tuple[Tensor, Transformation | None]:
        """Augmented images; there is no transformation, since the levels are not those of one of our spaces."""
        shard = shard or whole_batch(len(images))
        drawn = self._drawn(images, fill, generator, shard.whole)
        return drawn[shard.first : shard.first + shard.count].apply(images), None

    def named(self, images: Tensor, fill: Tensor, generator: torch.Generator) -> tuple[Tensor, list[str]]:
        """Augmented images, and the operations of each in the operations' own units."""
        drawn = self._drawn(images, fill, generator, len(images))
        return drawn.apply(images), _spelled(drawn.operations, drawn.magnitudes, drawn.space)

    def _drawn(self, images: Tensor, fill: Tensor, generator: torch.Generator, whole: int) -> AppliedOperations:
        if self._augment is None:
            self._augment = self._build(fill=fill.tolist())
        return self._augment.draw(images[:1].expand(whole, -1, -1, -1), generator)


class AutoAugment:
    """torchvision's AutoAugment with our fill, image by image, because it draws one sub-policy for a whole batch.

    Args:
        dataset: data set's name; there is a policy for CIFAR and one for everything else (ImageNet's).
    """

    def __init__(self, dataset: str) -> None:
        cifar = dataset.startswith("cifar")
        self._policy = v2.AutoAugmentPolicy.CIFAR10 if cifar else v2.AutoAugmentPolicy.IMAGENET
        self._augment: v2.AutoAugment | None = None
        space = v2.AutoAugment(self._policy)._AUGMENTATION_SPACE
        # Operations for which torchvision draws a direction.
        self._signed = {name for name, (levels, signed) in space.items() if signed and levels(1, 1, 1) is not None}

    def __call__(
        self, images: Tensor, fill: Tensor, generator: torch.Generator, shard: Shard | None = None
    ) -> tuple[Tensor, Transformation | None]:
        """Augmented images; their operations are torchvision's, so there is no transformation of ours."""
        if self._augment is None:
            self._augment = v2.AutoAugment(self._policy, fill=fill.tolist())
        # torchvision draws from torch's global generator, image by image.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator.initial_seed())
            for _ in range(0 if shard is None else shard.first):
                self._skip_image(self._augment)
            return torch.stack([self._augment(image) for image in images]), None

    def _skip_image(self, augment: v2.AutoAugment) -> None:
        """Make the draws of one image and nothing else: images of lower ranks are not here."""
        steps = augment._policies[int(torch.randint(len(augment._policies), ()))]
        for operation, probability, _ in steps:
            if torch.rand(()) <= probability and operation in self._signed:
                torch.rand(())


def _spelled(operations: Tensor, levels: Tensor, space: OperationSpace) -> list[str]:
    """The operations [B, N] of each image, one a line; Identity is left out."""
    found = []
    for row, own in zip(operations.tolist(), levels.tolist(), strict=True):
        lines = []
        for index, level in zip(row, own, strict=True):
            name, spread = space.names[index], space.ranges[space.names[index]]
            if name != "Identity":
                lines.append(_short(name, None if spread is None else spread.value(level)))
        found.append("\n".join(lines) or NOTHING)
    return found


def _short(operation: str, value: float | None) -> str:
    """An operation and its parameter in few characters: "Rotate 12.5°", "Solarize 96", "Equalize"."""
    spec = OPERATION_SPECS[operation]
    return operation if value is None or spec.range is None else f"{operation} {spec.short(value)}"


def build_augmentation(config: TrainConfig, dataset: str) -> Augmentation:
    """What the configuration's policy does to a batch, for a policy that needs no bundle.

    Args:
        config: of the run; its `policy` is an entry of `ZERO_COST_POLICIES`.
        dataset: the data set's name.
    """
    augmentation = ZERO_COST_POLICIES.find(config.policy)(config, dataset)
    if not callable(augmentation):
        why = f"it gave a {type(augmentation).__name__}, expected an object that augments a batch when it is called"
        raise EnvironmentFault(f"policy {config.policy}", why, "mend the class that registers it")
    return cast(Augmentation, augmentation)


def build_none(config: TrainConfig, dataset: str) -> Augmentation:
    """The policy `none`."""
    return NoAugmentation()


def build_uniform(config: TrainConfig, dataset: str) -> Augmentation:
    """The policy `uniform`."""
    return SampledTransformations(TransformationSampler(space=SPACES[config.operation_space]), config.operation_space)


def build_trivialaugment(config: TrainConfig, dataset: str) -> Augmentation:
    """The policy `trivialaugment`."""
    return PublishedPolicy(TrivialAugmentWide)


def build_randaugment(config: TrainConfig, dataset: str) -> Augmentation:
    """The policy `randaugment`."""
    return PublishedPolicy(RandAugment)


def build_autoaugment(config: TrainConfig, dataset: str) -> Augmentation:
    """The policy `autoaugment`."""
    return AutoAugment(dataset)
