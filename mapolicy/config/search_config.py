"""The settings of a search."""

from typing import Annotated, ClassVar

from pydantic import (
    Field,
)
from pydantic.dataclasses import dataclass

from ..errors import UsageError
from .choices import (
    ALPHAS,
    EXTRACTORS,
    FEATURES,
    LOSS,
    NOT_IN_SEARCH,
    POLICY_INPUTS,
    SCHEDULES,
    STORED_DTYPES,
    VERIFICATIONS,
)
from .run_config import STRICT, Network, RunConfig
from .types import OneOf


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SearchConfig(RunConfig):
    """Settings of `search_policy`."""

    stage: ClassVar[str] = "search"
    network_field: ClassVar[str] = "proxy"

    proxy: Network = Field(description="timm name of the proxy network that the search trains")
    alpha: Annotated[str, OneOf(ALPHAS)] = Field(
        "scalar", description="one learnable inner learning rate, or one for each parameter tensor"
    )
    alpha_initial: float = Field(ge=1e-8, le=1e6, description="alpha of the first virtual step (Eq. 2)")
    policy_input: Annotated[str, OneOf(POLICY_INPUTS)] = Field(
        "both", description="input of the policy network; loss is Meta-Weight-Net's, a sample's training loss"
    )
    extractor: Annotated[str, OneOf(EXTRACTORS)] = Field(
        "shared",
        description="network of the policy's features: the proxy, or a second one trained with theta (ablation)",
    )
    schedule: Annotated[str, OneOf(SCHEDULES)] = Field(
        "cosine",
        description="cosine, or Theorem 1's constants: alpha_initial is c, policy_learning_rate c', learning_rate c''",
    )
    verify: bool = Field(
        False,
        description="end with a check: the proxy is trained anew under several policies and measured on the "
        "meta-validation images",
    )
    verify_per_class: float = Field(
        0.0,
        ge=0,
        description="training images of each class that the search sets aside for its check, a count or a fraction; "
        "0: the check uses the meta-validation images, which the policy has learned from",
    )
    verification: Annotated[str, OneOf(VERIFICATIONS)] = Field(
        "full",
        description="trainings of the check: full (none, uniform, trivialaugment, randaugment, the learned policy, and "
        "the same at half its strength), or short (uniform, trivialaugment, the learned policy)",
    )
    extractor_dtype: Annotated[str, OneOf(STORED_DTYPES)] = Field(
        "float32", description="dtype of the proxy's weights in the bundle"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._refuse(NOT_IN_SEARCH, "a search", "leave it out; `train` has it")
        if self.schedule == "theorem1" and (self.warmup_epochs or self.alpha_learning_rate):
            why = "all its learning rates are constant, also alpha's"
            raise UsageError("schedule theorem1", why, "set warmup_epochs=0 and alpha_learning_rate=0")
        if self.freeze and self.alpha == "per-layer":
            why = "frozen parameters take no virtual step, so they have no alpha"
            raise UsageError("freeze", why, "use alpha=scalar")
        if self.sampler_input != "none" and self.sampler in ("mean-weight", "adversarial"):
            why = f"{self.sampler} draws the same for every image"
            raise UsageError(f"sampler_input {self.sampler_input}", why, "set sampler=alignment")
        if self.sampler_input == FEATURES and self.extractor == "own":
            why = "the sampler would see the proxy's features, and the bundle would hold the other network"
            raise UsageError("sampler_input features", why, "set extractor=shared")
        if self.sampler == "mean-weight" and self.weighting == "equal" and self.meta_fraction < 1:
            why = "equal weights compute no policy outputs for the whole batch, so p_jk would learn nothing"
            raise UsageError("sampler mean-weight", why, "set meta_fraction=1, weighting=policy or sampler=alignment")
        if self.extractor == "own" and self.policy_input in ("embedding", LOSS):
            raise UsageError("extractor own", "the policy sees no features", "use another policy_input, or shared")

    @property
    def constant_rates(self) -> bool:
        """Whether the three learning rates are the constants of Theorem 1."""
        return self.schedule == "theorem1"
