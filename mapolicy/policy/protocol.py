"""The interface of a policy in a training run, for every kind of policy file.

Only `policy_of` looks at the kind of a policy file. A new kind of file is a subclass of `PolicyFile`
and an implementation of `Policy`, registered with `policy_of.register`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import singledispatch

import torch
from torch import Tensor

from ..bundle.dataset_level import DatasetPolicy
from ..bundle.manifest_base import PolicyFile
from ..config import TrainConfig
from ..config.choices import REWEIGHT
from ..distributed import Communicator
from .augmentations import Augmentation, SampledSubPolicies, SampledTransformations, ScheduledSteps
from .frozen import FrozenExtractor, FrozenWeights
from .pipeline import AugmentedBatch
from .policy_bundle import PolicyBundle
from .sampler import TransformationSampler

Weights = Callable[[AugmentedBatch], Tensor]


class Policy(ABC):
    """A policy that is applied and not learned.

    Attributes:
        searched: the bundle that brings a data set and a split and can be fine-tuned; None for a policy without these.
    """

    searched: PolicyBundle | None = None

    @abstractmethod
    def augmentation(self, config: TrainConfig) -> Augmentation:
        """What the policy does to a batch; `config.policy` may ask for a half of the policy."""

    @abstractmethod
    def weights(self, config: TrainConfig, device: torch.device, communicator: Communicator) -> Weights | None:
        """The weights of an augmented batch, float [n] with sum 1; None for equal ones.

        Args:
            config: of the run.
            device: of the batches.
            communicator: to the processes that have the other shards of a batch.
        """


class SearchedPolicy(Policy):
    """The policy of a searched bundle, or half of it: the sampler with equal weights, or weights for uniform draws."""

    def __init__(self, bundle: PolicyBundle) -> None:
        self.searched: PolicyBundle = bundle

    def augmentation(self, config: TrainConfig) -> Augmentation:
        """Transformations drawn as the search learned, or uniformly."""
        space = self.searched.operation_space
        uniform = config.policy == "weights-only"
        draws = TransformationSampler(space=space) if uniform else self.searched.sampler()
        return SampledTransformations(draws, space.name)

    def weights(self, config: TrainConfig, device: torch.device, communicator: Communicator) -> Weights | None:
        """Those of the frozen policy network, unless `config.weighting` asks for equal ones."""
        if config.policy == "sampler-only" or (config.policy == "learned" and config.weighting in ("equal", REWEIGHT)):
            return None  # weights of Ren et al. exist only while their hypergradients are computed
        policy, extractor = self.searched.build_policy().to(device), FrozenExtractor(self.searched, device)
        return FrozenWeights(extractor, policy, config.reject_below_mean, communicator, config.weight_limit)


class DatasetLevelPolicy(Policy):
    """A list of sub-policies, or a schedule; all samples weigh the same."""

    def __init__(self, file: DatasetPolicy) -> None:
        self._manifest = file.manifest

    def augmentation(self, config: TrainConfig) -> Augmentation:
        """A sub-policy for each image, or steps of the run's present stage."""
        if self._manifest.stages:
            return ScheduledSteps(self._manifest.stages)
        return SampledSubPolicies(self._manifest.sub_policies)

    def weights(self, config: TrainConfig, device: torch.device, communicator: Communicator) -> Weights | None:
        """Equal ones."""
        return None


@singledispatch
def policy_of(file: PolicyFile) -> Policy:
    """The policy of a file.

    Raises:
        TypeError: a kind of file that is not registered here.
    """
    raise TypeError(f"there is no policy for a {type(file).__name__}")


policy_of.register(PolicyBundle, SearchedPolicy)
policy_of.register(DatasetPolicy, DatasetLevelPolicy)


def searched_bundle(file: PolicyFile | None) -> PolicyBundle | None:
    """The file where it is a searched bundle, else None."""
    return None if file is None else policy_of(file).searched
