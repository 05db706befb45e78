"""The policy in place of timm's MixUp, with its step in timm's checkpoints.

from mapolicy.integrations.timm import PolicyMixup

mixup_fn = PolicyMixup("artifacts/digits.safetensors", optimizer, label_smoothing=0.1)
...
input, target = mixup_fn(input, target)  # as in timm's train.py, before SoftTargetCrossEntropy
"""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from ..policy.policy_augment import PolicyAugment, weighted_targets
from .build_policy import PolicySource, open_policy

STATE = "mapolicy_policy"  # in the optimiser's state dict


class PolicyMixup(PolicyAugment):
    """`PolicyAugment` with the interface of `timm.data.Mixup`.

    The loader must give uint8 images: `create_loader(..., use_prefetcher=False)` with a transform from
    `create_transform(..., normalize=False)`. Label smoothing moves from timm's MixUp or loss to here.

    timm saves and restores the optimiser, and nothing of a MixUp. With an optimiser given, the policy's step travels in
    the optimiser's state: `CheckpointSaver` saves it, `resume_checkpoint` restores it. So build it after the optimiser
    and before `resume_checkpoint`. A checkpoint without a policy's step leaves the step as it is.

    Args:
        bundle: the bundle, its file or address.
        optimizer: whose state keeps the step; None keeps it nowhere.
        rank: of this process; None takes torch.distributed's, 0 without a process group.
        options: of `mapolicy.PolicyAugment`.

    Attributes:
        mixup_enabled: timm's train.py sets it to False after `--mixup-off-epoch`; then images are normalised and
            nothing else, and all samples weigh the same.

    Raises:
        InputError, UsageError, EnvironmentFault: as `PolicyBundle.load`.
        ValueError: as `PolicyAugment`; or the optimiser's `state_dict` runs no hooks.
    """

    def __init__(
        self, bundle: PolicySource, optimizer: Optimizer | None = None, *, rank: int | None = None, **options: Any
    ) -> None:
        distributed = torch.distributed
        if rank is None:
            rank = distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0
        super().__init__(open_policy(bundle), rank=rank, **options)
        self.mixup_enabled = True
        if optimizer is not None:
            self._travel_with(optimizer)

    @override
    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if self.mixup_enabled:
            return super().__call__(images, labels)
        equal = torch.full((len(labels),), 1 / len(labels), device=labels.device)
        return self.normalise(images), weighted_targets(labels, equal, len(self.classes), self._label_smoothing)

    def _travel_with(self, optimizer: Optimizer) -> None:
        """Add this state to the optimiser's, and take it back where that is loaded."""

        def save(optimizer: Optimizer, state: dict[str, Any]) -> None:
            state[STATE] = self.state_dict()

        def load(optimizer: Optimizer, state: dict[str, Any]) -> None:
            if STATE in state:
                self.load_state_dict(state[STATE])

        inner = getattr(optimizer, "_base_optimizer", optimizer)  # timm's Lookahead saves and loads only that
        inner.register_state_dict_post_hook(save)
        inner.register_load_state_dict_pre_hook(load)
        if STATE not in optimizer.state_dict():
            raise ValueError(
                f"the state_dict of {type(optimizer).__name__} runs no hooks, so it cannot keep the policy's step; "
                "give the optimiser that it wraps"
            )
