"""mapolicy: search a sample-aware augmentation policy once, keep it in one file, train any network with it.

The names below are loaded at first use, so that importing the package (and `mapolicy --help`) does not import torch.
"""

from typing import TYPE_CHECKING

from .runtime.lazy import lazy_names

__version__ = "0.1.0"  # the only place; the package's metadata and `mapolicy --version` have it from here

if TYPE_CHECKING:
    from .bilevel.hypergradients import hypergradient as hypergradient
    from .bundle.limits import Limits as Limits
    from .compare.comparison import Comparison as Comparison
    from .compare.comparison import compare_policies as compare_policies
    from .config import SearchConfig as SearchConfig
    from .config import TrainConfig as TrainConfig
    from .inference.network import TrainedNetwork as TrainedNetwork
    from .inference.network import load_network as load_network
    from .policy.network import PolicyNetwork as PolicyNetwork
    from .policy.policy_augment import PolicyAugment as PolicyAugment
    from .policy.policy_bundle import PolicyBundle as PolicyBundle
    from .policy.sampler import TransformationSampler as TransformationSampler
    from .report.preview import preview as preview
    from .search import search_policy as search_policy
    from .train import TrainResult as TrainResult
    from .train import train_network as train_network
    from .training.callbacks import Reporter as Reporter
    from .transforms.functional import OPERATIONS as OPERATIONS
    from .transforms.functional import apply_operation as apply_operation
    from .transforms.transformation import Transformation as Transformation

_HOMES = {
    "Comparison": "compare.comparison",
    "Limits": "bundle.limits",
    "OPERATIONS": "transforms.functional",
    "PolicyAugment": "policy.policy_augment",
    "PolicyBundle": "policy.policy_bundle",
    "PolicyNetwork": "policy.network",
    "Reporter": "training.callbacks",
    "SearchConfig": "config",
    "TrainConfig": "config",
    "TrainResult": "train",
    "TrainedNetwork": "inference.network",
    "Transformation": "transforms.transformation",
    "TransformationSampler": "policy.sampler",
    "apply_operation": "transforms.functional",
    "compare_policies": "compare.comparison",
    "hypergradient": "bilevel.hypergradients",
    "load_network": "inference.network",
    "preview": "report.preview",
    "search_policy": "search",
    "train_network": "train",
}
__all__ = sorted(_HOMES)
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
