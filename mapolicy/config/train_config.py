"""The settings of a training."""

from typing import Annotated, ClassVar

from pydantic import (
    Field,
)
from pydantic.dataclasses import dataclass

from ..errors import UsageError
from ..registries import SAMPLERS, SEARCHED_POLICIES, policy_names
from .choices import (
    AS_SEARCHED,
    MODES,
    NOT_WHILE_LEARNING,
    SAMPLER_INPUTS,
    TRAIN_SCHEDULES,
    WEIGHTINGS,
)
from .run_config import STRICT, Network, RunConfig
from .types import OneOf


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainConfig(RunConfig):
    """Settings of `train_network`."""

    stage: ClassVar[str] = "train"
    network_field: ClassVar[str] = "arch"

    arch: Network = Field(description="timm name of the network to train")
    sampler: Annotated[str, OneOf(lambda: (AS_SEARCHED, *SAMPLERS))] = Field(
        AS_SEARCHED, description="what fine-tuned draws learn from: as in its search, or otherwise"
    )
    sampler_input: Annotated[str, OneOf((AS_SEARCHED, *SAMPLER_INPUTS))] = Field(
        AS_SEARCHED, description="what fine-tuned draws see of an image: as in its search"
    )
    weighting: Annotated[str, OneOf((AS_SEARCHED, *WEIGHTINGS))] = Field(
        AS_SEARCHED,
        description="weights of a learned policy's samples: as in its search, or others",
    )
    policy: Annotated[str, OneOf(policy_names)] = Field(
        "learned", description="learned (from a bundle), one of its two halves, or a baseline"
    )
    mode: Annotated[str, OneOf(MODES)] = Field(
        "frozen", description="keep the bundle's policy frozen, or go on training it"
    )
    weight_limit: float = Field(
        0.0,
        ge=0,
        le=1000,
        description="largest factor between a frozen policy's weight and the batch's mean, above 1; 0 for no limit",
    )
    include_validation: bool = Field(False, description="train on the meta-validation images as well")
    schedule: Annotated[str, OneOf(TRAIN_SCHEDULES)] = Field(
        "cosine", description="timm's schedule of the learning rate after the warm-up"
    )
    decay_epochs: float = Field(
        0.3,
        ge=0.001,
        description="epochs between the drops of `step`, or of the last part of `wsd` and `rsqrt`; below 1 a share of "
        "the epochs after the warm-up",
    )
    decay_rate: float = Field(0.1, ge=0, le=10, description="factor of `step`, or power of `poly`")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode == "finetune" and self.policy != "learned":
            raise UsageError(
                "mode finetune", f"policy {self.policy!r} has nothing to learn", "use --mode frozen or --policy learned"
            )
        if self.mode == "finetune":
            self._refuse(NOT_WHILE_LEARNING, "mode finetune", "use --mode frozen or leave it out")
        if self.weight_limit and (self.weight_limit <= 1 or self.mode == "finetune"):
            why = "it is a factor, so 1 or less leaves nothing"
            why = why if self.weight_limit <= 1 else "a policy that is learned needs the derivatives of its own weights"
            raise UsageError("weight_limit", why, "give a factor above 1 with --mode frozen, or 0 for no limit")
        if self.include_validation and self.keeps_best:
            why = "the best epoch is found on the meta-validation images, so they cannot be trained on"
            raise UsageError("include_validation", why, "leave it out, or leave early_stopping and keep_best out")
        if self.mode == "finetune" and self.include_validation:
            raise UsageError(
                "include_validation",
                "the meta-validation images guide the fine-tuning, so they cannot be trained on",
                "use --mode frozen or leave --include-validation out",
            )

    @property
    def learns_policy(self) -> bool:
        """Whether the run goes on learning the bundle's policy."""
        return self.mode == "finetune"

    @property
    def trains_on_validation(self) -> bool:
        """Whether the meta-validation images are among the training images."""
        return self.include_validation

    def check_bundle(self, given: bool, dataset_level: bool = False, other_data: bool = False) -> None:
        """Check that a bundle brings what the policy needs.

        Args:
            given: whether there is a bundle.
            dataset_level: whether it is a dataset-level policy, which has equal weights and no network.
            other_data: whether it may be a bundle of another data set.

        Raises:
            UsageError: it does not.
        """
        what, finetune = f"policy {self.policy}", self.mode == "finetune"
        if self.policy in SEARCHED_POLICIES and not given:
            raise UsageError(what, "there is no bundle", "give --bundle FILE, or --policy for a baseline")
        if self.policy in SEARCHED_POLICIES and self.policy != "learned" and dataset_level:
            why = "a dataset-level policy has no weights of its own"
            raise UsageError(what, why, "use --policy learned, or a searched bundle")
        if finetune and dataset_level:
            why = "a dataset-level policy has no network that could learn"
            raise UsageError("mode finetune", why, "use --mode frozen")
        if finetune and other_data:
            why = "the refined bundle would name a data set that its policy was not learned on"
            raise UsageError("--allow-dataset-mismatch", why, "use --mode frozen, or search on this data set")
