"""Who is compared, and under whose split: learned policies, dataset-level ones beside them, and those without a bundle.

A searched bundle brings its split with it, and all others are trained under it too. Without any the settings draw one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ..bundle.dataset_level import DatasetPolicy
from ..config import SEARCHED_POLICIES, RunConfig, TrainConfig
from ..errors import UsageError
from ..policy.policy_bundle import PolicyBundle

SHOWN_DIGITS = 12  # of a digest


@dataclass(frozen=True)
class Contender:
    """A policy that is compared.

    Attributes:
        policy, mode: as in a `TrainConfig`.
        listed: the dataset-level policy; None for all others.
    """

    policy: str
    mode: str = "frozen"
    listed: DatasetPolicy | None = None

    @property
    def label(self) -> str:
        """Its name in folders."""
        if self.listed is not None:
            return listed_name(self.listed.digest)
        return f"{self.policy}-{self.mode}" if self.mode == "finetune" else self.policy

    def of(self, config: TrainConfig) -> TrainConfig:
        """The training with this policy."""
        return config.with_changes(policy=self.policy, mode=self.mode)

    def bundle(self, split_of: PolicyBundle | None) -> PolicyBundle | DatasetPolicy | None:
        """What it is trained with under a searched bundle's split, or under one that the settings draw (None)."""
        return split_of if self.listed is None else self.listed


def contenders(
    searched: Sequence[PolicyBundle], listed: Sequence[DatasetPolicy], modes: Sequence[str], against: Sequence[str]
) -> list[Contender]:
    """All of a comparison, in the order in which they are trained.

    Args:
        searched: bundles with a learned policy.
        listed: dataset-level policies.
        modes: of the learned policies.
        against: policies that need no bundle, or a part of the learned one.

    Raises:
        UsageError: a mode or a policy that needs a searched bundle, and there is none.
    """
    if not searched:
        for name in [name for name in modes if name != "frozen"] + [
            name for name in against if name in SEARCHED_POLICIES
        ]:
            raise UsageError(name, "only a searched bundle has a network", "add one, or leave it out")
    learned = [Contender("learned", mode) for mode in modes] if searched else []
    return [
        *learned,
        *(Contender("learned", listed=policy) for policy in listed),
        *(Contender(name) for name in against),
    ]


def short_digest(bundle: PolicyBundle | DatasetPolicy) -> str:
    """What names a bundle in folders and tables."""
    return bundle.digest[:SHOWN_DIGITS]


def listed_name(digest: str) -> str:
    """What names a dataset-level policy in folders and tables."""
    return f"dataset-level-{digest[:SHOWN_DIGITS]}"


def split_name(split_of: PolicyBundle | None, config: RunConfig) -> str:
    """What names a split in folders and tables."""
    return f"split{config.split_seed}" if split_of is None else short_digest(split_of)


def under_split(config: TrainConfig, split_of: PolicyBundle | None) -> TrainConfig:
    """The training under a searched bundle's split; None leaves the one that its settings draw."""
    return config if split_of is None else config.with_changes(split_seed=split_of.data_settings()["split_seed"])
