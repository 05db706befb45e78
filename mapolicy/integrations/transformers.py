"""The policy in Hugging Face's Trainer: augmented images and a weighted loss, with the step in Trainer's checkpoints.

from mapolicy.integrations.transformers import PolicyTrainerMixin

class PolicyTrainer(PolicyTrainerMixin, Trainer): ...

trainer = PolicyTrainer(model, arguments, train_dataset=train, policy="artifacts/digits.safetensors")
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from ..policy.policy_augment import PolicyAugment
from .build_policy import PolicySource, build_policy, needs, normalised

try:
    from transformers import TrainerCallback
except ImportError as problem:
    raise needs("transformers") from problem

STATE = "mapolicy.PolicyTrainerMixin"


class PolicyTrainerMixin:
    """Put it before `transformers.Trainer` in a class's bases, and give the trainer a `policy`.

    Batches have uint8 `pixel_values` [B, C, H, W], after flips and crops and without a processor's rescaling and
    normalisation, and int64 `labels` [B], positions in the bundle's classes. In training, the policy augments and
    normalises the images, and the loss is the mean cross entropy of the model's logits with its soft targets. In
    evaluation and prediction uint8 images are normalised; float images stay as they are.

    `label_smoothing_factor` of the training arguments goes to the policy. `trainer_state.json` of a checkpoint keeps
    the policy's step, so that `train(resume_from_checkpoint=True)` makes the draws of an uninterrupted training.

    Args:
        args, kwargs: of the Trainer.
        policy: the bundle, its file or address.
        policy_options: of `mapolicy.PolicyAugment`, without rank and device.

    Attributes:
        policy: the `PolicyAugment`.

    Raises:
        InputError, UsageError, EnvironmentFault: as `PolicyBundle.load`.
        ValueError: as `PolicyAugment`; or a checkpoint is of another bundle or seed.
    """

    args: Any  # the Trainer's

    def __init__(
        self, *args: Any, policy: PolicySource, policy_options: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        smoothing = {"label_smoothing": self.args.label_smoothing_factor}
        self.policy = build_policy(policy, rank=self.args.process_index, **{**smoothing, **(policy_options or {})})
        # The loss is a mean over the micro-batch, so Trainer has to divide it where it accumulates gradients.
        self.model_accepts_loss_kwargs = False
        trainer: Any = self
        trainer.add_callback(PolicyStep(self.policy))

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean cross entropy, with the policy's soft targets in training."""
        images, targets = inputs["pixel_values"], inputs["labels"]
        if model.training:
            images, targets = self.policy(images, targets)
        else:
            images = normalised(self.policy, images)
        others = {name: value for name, value in inputs.items() if name != "labels"}
        outputs = model(**(others | {"pixel_values": images}))
        loss: Tensor = F.cross_entropy(outputs.logits, targets)
        return (loss, outputs) if return_outputs else loss

    def prediction_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """One batch of evaluation or prediction, whose images are normalised first."""
        images = inputs["pixel_values"]
        if images.dtype == torch.uint8:
            inputs = {**inputs, "pixel_values": self.policy.normalise(images.to(self.args.device))}
        trainer: Any = super()
        return trainer.prediction_step(model, inputs, *args, **kwargs)


class PolicyStep(TrainerCallback):
    """Keeps a policy's state where Trainer keeps that of its callbacks, in every checkpoint.

    Args:
        policy: the `PolicyAugment` of a trainer.
    """

    # It is no `ExportableState`: Trainer would build a new callback from a checkpoint, without the policy.

    def __init__(self, policy: PolicyAugment) -> None:
        self._policy = policy

    @override
    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        kept = state.stateful_callbacks.get(STATE)
        if kept is None:
            self._policy.step = 0
        else:
            self._policy.load_state_dict(kept["attributes"])

    @override
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        state.stateful_callbacks[STATE] = {"args": {}, "attributes": self._policy.state_dict()}
