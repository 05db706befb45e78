"""The policy with Accelerate: a rank for each process, and the policy's step in Accelerate's checkpoints.

from mapolicy.integrations.accelerate import prepare_policy

policy = prepare_policy(accelerator, "artifacts/digits.safetensors")
for images, labels in train_loader:
    inputs, targets = policy(images, labels)
"""

from typing import TYPE_CHECKING, Any

from ..policy.policy_augment import PolicyAugment
from .build_policy import PolicySource, build_policy

if TYPE_CHECKING:
    from accelerate import Accelerator


def prepare_policy(accelerator: "Accelerator", bundle: PolicySource, **options: Any) -> PolicyAugment:
    """The policy for this process, on its device; `save_state` and `load_state` keep its step.

    Call it where you call `accelerator.prepare`, and before `accelerator.load_state`.

    Args:
        accelerator: of this process.
        bundle: the bundle, its file or address.
        options: of `mapolicy.PolicyAugment`, without rank and device.

    Raises:
        InputError, UsageError, EnvironmentFault: as `PolicyBundle.load`.
        ValueError: as `PolicyAugment`.
    """
    policy = build_policy(bundle, rank=accelerator.process_index, device=accelerator.device, **options)
    accelerator.register_for_checkpointing(policy)
    return policy
