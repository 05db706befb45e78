"""The policy file alone: its format, where it comes from, and what can be made of it. Imports no torch."""

from typing import TYPE_CHECKING

from ..runtime.lazy import lazy_names

if TYPE_CHECKING:
    from .dataset_level import DatasetPolicy as DatasetPolicy
    from .limits import Limits as Limits
    from .load import open_bundle as open_bundle
    from .manifest import Manifest as Manifest

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "DatasetPolicy": "dataset_level",
        "Limits": "limits",
        "Manifest": "manifest",
        "open_bundle": "load",
    },
)
