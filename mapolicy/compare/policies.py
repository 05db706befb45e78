"""The compared policies, and how policies and data splits are named in folders and tables.

There are three kinds: the policy of a searched bundle, a dataset-level policy, and a baseline such as `uniform`.
A searched bundle also fixes the data split, and every other policy is trained on that split too. Without a searched
bundle the settings draw the split.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from ..bundle.manifest_base import PolicyFile
from ..config import RunConfig, TrainConfig
from ..errors import UsageError
from ..policy.policy_bundle import PolicyBundle
from ..registries import SEARCHED_POLICIES

DIGEST_DIGITS = 12  # of a digest in folder names, tables and messages


@dataclass(frozen=True)
class ComparedPolicy:
    """One policy of a comparison.

    Attributes:
        policy, mode: as in `TrainConfig`.
        dataset_level: the dataset-level policy; None for the other kinds.
    """

    policy: str
    mode: str = "frozen"
    dataset_level: PolicyFile | None = None

    @property
    def label(self) -> str:
        """The policy's name in folders."""
        if self.dataset_level is not None:
            return dataset_level_name(self.dataset_level.digest)
        return f"{self.policy}-{self.mode}" if self.mode == "finetune" else self.policy

    def configure(self, config: TrainConfig) -> TrainConfig:
        """The same training with this policy.

        Raises:
            UsageError: the settings and the policy contradict each other.
        """
        return config.with_changes(policy=self.policy, mode=self.mode)

    def bundle(self, split_of: PolicyBundle | None) -> PolicyFile | None:
        """The bundle to train with on the split of `split_of` (None: on the split that the settings draw)."""
        return split_of if self.dataset_level is None else self.dataset_level


def compared_policies(
    searched: Sequence[PolicyBundle],
    dataset_level: Sequence[PolicyFile],
    modes: Sequence[str],
    against: Sequence[str],
) -> list[ComparedPolicy]:
    """All policies of a comparison, in training order.

    Args:
        searched: searched bundles.
        dataset_level: dataset-level policies.
        modes: modes of the searched policies, `frozen` or `finetune`.
        against: names of the baselines.

    Raises:
        UsageError: a mode or a baseline needs a searched bundle, and there is none.
    """
    if not searched:
        for name in [mode for mode in modes if mode != "frozen"] + [n for n in against if n in SEARCHED_POLICIES]:
            raise UsageError(name, "needs a searched bundle, and none was given", "add one, or leave it out")
    return [
        *(ComparedPolicy("learned", mode) for mode in modes if searched),
        *(ComparedPolicy("learned", dataset_level=policy) for policy in dataset_level),
        *(ComparedPolicy(name) for name in against),
    ]


def short_digest(bundle: PolicyFile) -> str:
    """A bundle's name in folders and tables."""
    return bundle.digest[:DIGEST_DIGITS]


def dataset_level_name(digest: str) -> str:
    """A dataset-level policy's name in folders and tables."""
    return f"dataset-level-{digest[:DIGEST_DIGITS]}"


def titles(bundles: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What people read instead of a dataset-level policy's name: what it was asked for by, or its source.

    Args:
        bundles: what a comparison says of each, with its `digest`, `origin` and, of a dataset-level policy, `source`.

    Returns:
        By the policy's name in tables. Where two have one title, each gets its digest as well.
    """
    found = {
        about["digest"]: _file_name(about["origin"]) or str(about["source"]) for about in bundles if "source" in about
    }
    times = Counter(found.values())
    return {
        dataset_level_name(digest): title if times[title] == 1 else f"{title} ({digest[:DIGEST_DIGITS]})"
        for digest, title in found.items()
    }


def _file_name(origin: str) -> str:
    return PurePath(origin.rpartition("/")[2]).name.removesuffix(".safetensors")


def split_name(split_of: PolicyBundle | None, config: RunConfig) -> str:
    """A split's name in folders and tables."""
    return f"split{config.split_seed}" if split_of is None else short_digest(split_of)


def with_split_of(config: TrainConfig, split_of: PolicyBundle | None) -> TrainConfig:
    """The same training on a searched bundle's split; None keeps the split that the settings draw."""
    return config if split_of is None else config.with_changes(split_seed=split_of.data_settings()["split_seed"])
