"""A command's bundle: its file is checked before torch is imported, which takes seconds; its networks after."""

from typing import TYPE_CHECKING

from ..bundle.load import Opened, SearchedFile
from ..errors import InputError

if TYPE_CHECKING:
    from ..bundle.manifest_base import PolicyFile
    from ..policy.policy_bundle import PolicyBundle


def searched_file(opened: Opened, why: str, remedy: str) -> SearchedFile:
    """The file of a searched bundle.

    Args:
        opened: of either kind.
        why: why the command cannot use a dataset-level policy: "is a dataset-level policy, which ...".
        remedy: what to do instead.

    Raises:
        InputError: a dataset-level policy.
    """
    if isinstance(opened.policy, SearchedFile):
        return opened.policy
    raise InputError(opened.fetched.source, why, remedy)


def build(opened: Opened) -> "PolicyFile":
    """The policy that a run takes, with its architecture checked; imports torch.

    Raises:
        InputError: the extractor's tensors do not fit its architecture.
    """
    return build_searched(opened) if isinstance(opened.policy, SearchedFile) else opened.policy


def build_searched(opened: Opened) -> "PolicyBundle":
    """A searched bundle with its networks; imports torch.

    Raises:
        InputError: a dataset-level policy, which has equal weights, or an extractor that does not fit its architecture.
    """
    from ..policy.policy_bundle import PolicyBundle

    why = "is a dataset-level policy: all samples weigh the same"
    file = searched_file(opened, why, "name a searched bundle; `mapolicy report` shows this one")
    fetched = opened.fetched
    return PolicyBundle.from_raw(file.manifest, file.tensors, fetched.source, opened.limits, fetched.origin)


def check_first_use(opened: Opened) -> None:
    """Check what a first use would find: the architecture, and whether the extractor gives finite features.

    Raises:
        InputError: the bundle cannot be used.
    """
    if opened.policy.has_network:
        import torch

        build_searched(opened).build_extractor(torch.device("cpu"))
