"""The policy in Lightning: a callback augments each training batch, and its step is in Lightning's checkpoints.

    from mapolicy.integrations.lightning import PolicyCallback

    policy = PolicyCallback("artifacts/digits.safetensors")
    trainer = lightning.Trainer(callbacks=[policy])

The module's `training_step` does not change: it gets normalised images and soft targets, which its cross entropy takes.
"""

from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from ..policy.policy_augment import PolicyAugment
from .build_policy import PolicySource, needs, normalised, open_policy

try:
    from lightning.pytorch import Callback
except ImportError as problem:
    raise needs("lightning") from problem


class PolicyCallback(Callback):
    """Augments, normalises and weights each training batch on the device; normalises the other batches.

    Requirements on module and loaders:

    - Training images are uint8 [B, C, H, W] after flips and crops; labels are int64 [B], positions in the bundle's
      classes. Images of evaluation may be uint8, or float and normalised already; those stay as they are.
    - A batch is a list, as the default `collate_fn` makes it, or a dictionary. A tuple cannot be changed in place.
    - The loss is the mean cross entropy, without label smoothing of its own; give `label_smoothing` here.

    Lightning's checkpoints keep the number of batches that were augmented, so a resumed training makes the draws that
    an uninterrupted one makes. Each process draws differently.

    Args:
        bundle: the bundle, its file or address.
        images, labels: where they are in a batch: positions, or keys of a dictionary.
        options: of `mapolicy.PolicyAugment`, without rank and device.

    Attributes:
        policy: the `PolicyAugment`.

    Raises:
        InputError, UsageError, EnvironmentFault: as `PolicyBundle.load`.
        ValueError: as `PolicyAugment`.
    """

    def __init__(self, bundle: PolicySource, *, images: Any = 0, labels: Any = 1, **options: Any) -> None:
        self._bundle, self._options = open_policy(bundle), options
        self._images, self._labels = images, labels
        self.policy = PolicyAugment(self._bundle, **options)

    @override
    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        # The rank is known here first, and the device may be another one than in the stage before.
        step = self.policy.step
        self.policy = PolicyAugment(self._bundle, rank=trainer.global_rank, **self._options)
        self.policy.step = step

    @override
    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        images, targets = self.policy(batch[self._images], batch[self._labels])
        self._replace(trainer, batch, {self._images: images, self._labels: targets})

    @override
    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._normalise(trainer, batch)

    @override
    def on_test_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._normalise(trainer, batch)

    @override
    def on_predict_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._normalise(trainer, batch)

    @override
    def state_dict(self) -> dict[str, Any]:
        return self.policy.state_dict()

    @override
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.policy.load_state_dict(state_dict)

    def _normalise(self, trainer: Any, batch: Any) -> None:
        images = batch[self._images]
        inputs = normalised(self.policy, images)
        if inputs is not images:
            self._replace(trainer, batch, {self._images: inputs})

    def _replace(self, trainer: Any, batch: Any, parts: Mapping[Any, Any]) -> None:
        """Put the parts into the batch, which the step gets next, in the precision of the trainer."""
        for place, part in parts.items():
            try:
                batch[place] = trainer.precision_plugin.convert_input(part)
            except TypeError:
                kind = type(batch).__name__
                raise TypeError(
                    f"the batch is a {kind}, which a callback cannot change; let collate_fn return a list or a dict"
                ) from None
