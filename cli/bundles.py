"""A command's bundle: its file is checked before torch is imported, which takes seconds; its networks after."""

from typing import TYPE_CHECKING

from ..bundle.dataset_level import DatasetPolicy
from ..bundle.load import Opened, SearchedFile
from ..errors import InputError

if TYPE_CHECKING:
    from ..policy.policy_bundle import PolicyBundle


def build(opened: Opened) -> "PolicyBundle | DatasetPolicy":
    """The policy that a run takes, with its architecture checked; imports torch.

    Raises:
        InputError: the extractor's tensors do not fit its architecture.
    """
    if isinstance(opened.policy, DatasetPolicy):
        return opened.policy
    from ..policy.policy_bundle import PolicyBundle

    file, fetched = opened.policy, opened.fetched
    return PolicyBundle.from_raw(file.manifest, file.tensors, fetched.source, opened.limits, fetched.origin)


def build_searched(opened: Opened) -> "PolicyBundle":
    """A searched bundle with its networks; imports torch.

    Raises:
        InputError: a dataset-level policy, which has equal weights, or an extractor that does not fit its architecture.
    """
    from ..policy.policy_bundle import PolicyBundle

    policy = build(opened)
    if isinstance(policy, PolicyBundle):
        return policy
    why = "is a dataset-level policy: all samples weigh the same"
    raise InputError(opened.fetched.source, why, "name a searched bundle; `mapolicy report` shows this one")


def check_first_use(opened: Opened) -> None:
    """Check what a first use would find: the architecture, and whether the extractor gives finite features.

    Raises:
        InputError: the bundle cannot be used.
    """
    if isinstance(opened.policy, SearchedFile):
        import torch

        build_searched(opened).build_extractor(torch.device("cpu"))
