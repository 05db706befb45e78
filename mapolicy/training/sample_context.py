"""What a sampler sees of the training images before augmentation: h(x), a row of numbers for each image.

Plain training images do not change, so h(x) is computed once for each of them (again a few times in a search, whose
extractor is still being trained). An iteration looks its rows up, and costs what it costs without them.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..config.choices import CLASS
from ..models.features import deep_features
from ..policy.alignment_sampler import AlignmentSampler
from ..policy.levels import FeatureDirections, class_context
from ..policy.sampler import Sampler
from .setup import TrainingSetup

DIRECTIONS = 16  # of the features: the leading ones
REFRESHES = 10  # in a search, for features


class SampleContext(nn.Module):
    """h(x) of every image of the training split, by iteration. A module, because a checkpoint keeps its buffers.

    Args:
        setup: of the run; fixes which images are in which batch.
        table: float32 [training images, D].
    """

    table: Tensor

    def __init__(self, setup: TrainingSetup, table: Tensor) -> None:
        super().__init__()
        self._setup = setup
        self.register_buffer("table", table.float().cpu())
        self._epoch = -1
        self._batches: dict[int, Tensor] = {}  # of this epoch

    @classmethod
    def of_classes(cls, setup: TrainingSetup) -> "SampleContext":
        """The class of each training image."""
        return cls(setup, class_context(setup.training.labels.cpu(), len(setup.splits.classes)))

    @classmethod
    def of_features(
        cls, setup: TrainingSetup, directions: FeatureDirections, features: Callable[[Tensor], Tensor]
    ) -> "SampleContext":
        """The features of each training image along given directions.

        Args:
            setup: of the run.
            directions: of a bundle.
            features: float [n, F] of uint8 images [n, C, H, W].
        """
        return cls(setup, directions.context(features_of(setup, directions.directions.shape[1], features)))

    @property
    def inputs(self) -> int:
        """D."""
        return self.table.shape[1]

    def at(self, step: int) -> Tensor:
        """h(x) of the whole batch of an iteration, float32 [batch * copies, D]; all processes' shards in order."""
        epoch, copies = step // self._setup.iterations_per_epoch, self._setup.config.copies
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, dict(self._setup.plan(epoch))
        rows = self.table[self._batches[step]]
        return rows if copies == 1 else rows.repeat_interleave(copies, 0)

    def prepare(self, step: int) -> None:
        """Called before each iteration; a context that moves is brought up to date here."""


class ProxyContext(SampleContext):
    """The features of a proxy that is being searched with, along their leading directions.

    Ten times in a run features and directions are computed anew, and what the sampler has learned is expressed in the
    new directions.

    Args:
        setup: of the search.
        sampler: that draws by it.
    """

    center: Tensor
    directions: Tensor

    def __init__(self, setup: TrainingSetup, sampler: AlignmentSampler) -> None:
        super().__init__(setup, torch.zeros(len(setup.training), sampler.inputs))
        self._sampler, count = sampler, sampler.inputs
        self.register_buffer("center", torch.zeros(setup.feature_width))
        self.register_buffer("directions", torch.zeros(count, setup.feature_width))

    @property
    def features(self) -> FeatureDirections:
        """The present directions."""
        return FeatureDirections(self.center, self.directions)

    def prepare(self, step: int) -> None:
        """Compute features and directions anew where they are due."""
        iterations = self._setup.iterations
        if step == 0 or step * REFRESHES // iterations != (step - 1) * REFRESHES // iterations:
            self.refresh()

    def refresh(self) -> None:
        """Compute features and directions of the network as it is now."""
        features = features_of(self._setup, self._setup.feature_width, self._of_network)
        directions, before = FeatureDirections.leading(features, self.inputs), self.table
        self.table = directions.context(features)
        self.center, self.directions = directions.center, directions.directions
        self._sampler.turn(self.table.double().T @ before.double() / len(before))

    def _of_network(self, images: Tensor) -> Tensor:
        network = self._setup.network
        training = network.training
        network.eval()
        features = deep_features(network, self._setup.pipeline.normalise(images))
        network.train(training)
        return features


def features_of(setup: TrainingSetup, width: int, features: Callable[[Tensor], Tensor]) -> Tensor:
    """Features of all training images as they are evaluated, float32 [images, F], CPU; all processes get all of them.

    Args:
        setup: of the run.
        width: F.
        features: float [n, F] of uint8 images [n, C, H, W].
    """
    group, split = setup.communicator, setup.training
    batches = list(enumerate(torch.arange(len(split)).split(setup.config.batch_size)))
    own = batches[group.rank :: group.size]
    found = torch.zeros(len(split), width, device=setup.pipeline.device)
    with torch.no_grad():
        for (_, positions), (images, _) in zip(own, split.batches(own), strict=True):
            found[positions.to(found.device)] = features(images).float()
    return group.sum([found])[0].cpu()


def build_context(setup: TrainingSetup, sampler: Sampler) -> SampleContext | None:
    """What a search's sampler sees of the images; None where it sees nothing."""
    if not isinstance(sampler, AlignmentSampler) or not sampler.inputs:
        return None
    if setup.config.sampler_input == CLASS:
        return SampleContext.of_classes(setup)
    return ProxyContext(setup, sampler)
