"""The policy network, the samplers, and what a bundle's policy does to a batch."""

from typing import TYPE_CHECKING

from ..runtime.lazy import lazy_names

if TYPE_CHECKING:
    from .network import PolicyNetwork as PolicyNetwork
    from .pipeline import Pipeline as Pipeline
    from .policy_augment import PolicyAugment as PolicyAugment
    from .policy_bundle import PolicyBundle as PolicyBundle
    from .sampler import TransformationSampler as TransformationSampler

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Pipeline": "pipeline",
        "PolicyAugment": "policy_augment",
        "PolicyBundle": "policy_bundle",
        "PolicyNetwork": "network",
        "TransformationSampler": "sampler",
    },
)
