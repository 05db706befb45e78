"""What the integrations have in common: a policy from a bundle or its file, and normalised images."""

import os
from typing import Any

import torch
from torch import Tensor

from ..policy.policy_augment import PolicyAugment
from ..policy.policy_bundle import PolicyBundle

PolicySource = PolicyBundle | str | os.PathLike[str]


def open_policy(bundle: PolicySource) -> PolicyBundle:
    """The bundle itself, or the one in a file or at an address.

    Raises:
        InputError, UsageError, EnvironmentFault: as `PolicyBundle.load`.
    """
    return bundle if isinstance(bundle, PolicyBundle) else PolicyBundle.load(bundle)


def build_policy(bundle: PolicySource, **options: Any) -> PolicyAugment:
    """A `PolicyAugment` of a bundle.

    Args:
        bundle: the bundle, its file or address.
        options: of `PolicyAugment`.

    Raises:
        InputError, UsageError, EnvironmentFault: as `PolicyBundle.load`.
        ValueError: as `PolicyAugment`.
    """
    return PolicyAugment(open_policy(bundle), **options)


def normalised(policy: PolicyAugment, images: Tensor) -> Tensor:
    """Float32 [B, C, H, W] of uint8 images; images of another dtype, which the loader has normalised, stay."""
    return policy.normalise(images) if images.dtype == torch.uint8 else images


def needs(package: str) -> ImportError:
    """The error of a module whose project is not installed."""
    return ImportError(f"mapolicy.integrations.{package} needs {package}; pip install 'mapolicy[integrations]'")
