"""mapolicy: search a sample-aware augmentation policy once, keep it in one file, train any network with it.

The names below are loaded at first use, so that importing the package (and `mapolicy --help`) does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .adapters import PolicyAugment as PolicyAugment
    from .bundle import PolicyBundle as PolicyBundle
    from .compare import Comparison as Comparison
    from .compare import compare_policies as compare_policies
    from .config import SearchConfig as SearchConfig
    from .config import TrainConfig as TrainConfig
    from .hypergradients import hypergradient as hypergradient
    from .limits import Limits as Limits
    from .operations import OPERATIONS as OPERATIONS
    from .operations import apply_operation as apply_operation
    from .policy import PolicyNetwork as PolicyNetwork
    from .sampler import TransformationSampler as TransformationSampler
    from .search import search_policy as search_policy
    from .train import TrainResult as TrainResult
    from .train import train_network as train_network
    from .transformation import Transformation as Transformation

_HOMES = {
    "Comparison": "compare",
    "Limits": "limits",
    "OPERATIONS": "operations",
    "PolicyAugment": "adapters",
    "PolicyBundle": "bundle",
    "PolicyNetwork": "policy",
    "SearchConfig": "config",
    "TrainConfig": "config",
    "TrainResult": "train",
    "Transformation": "transformation",
    "TransformationSampler": "sampler",
    "apply_operation": "operations",
    "compare_policies": "compare",
    "hypergradient": "hypergradients",
    "search_policy": "search",
    "train_network": "train",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
