"""What a bundle says of levels: how the table is read, and how the search checked itself."""

from typing import Annotated, Any, Self

from pydantic import (
    FailFast,
    Field,
    SerializerFunctionWrapHandler,
    Strict,
    model_serializer,
    model_validator,
)

from ..transforms.space import (
    MAX_LEVEL,
    level_edges,
)
from .manifest_base import (
    ManifestPart,
)
from .manifest_fields import (
    MAX_COUNT,
    Count,
    PolicyName,
    Positive,
    one_of,
)

MAX_STAGES, MAX_BINS, MAX_STRENGTH, MAX_ROWS = 100, 64, 1000.0, 32
MAX_CONTEXT = 65_536
LEVEL_INPUTS = ("none", "class", "features")  # what the draws see of an image
LEARNED, UNIFORM = "learned", "uniform"  # rows of a verification


class Levels(ManifestPart):
    """How `sampler.log_levels` [stages, K, bins] is read: q(o, b) goes as exp(strength * log_levels(o, b))."""

    stages: Annotated[int, Field(ge=1, le=MAX_STAGES)] = Field(description="tables, for equal shares of a run")
    edges: Annotated[
        tuple[Annotated[float, Field(ge=-MAX_LEVEL, le=MAX_LEVEL)], ...],
        Field(min_length=3, max_length=MAX_BINS + 1),
        Strict(False),
        FailFast(),
    ] = Field(description="signed levels between which the bins lie, ascending from -10 to 10, of equal width")
    strength: Annotated[float, Field(ge=0, le=MAX_STRENGTH)] = Field(description="kappa; 0 draws uniformly")
    input: Annotated[str, one_of(LEVEL_INPUTS)] = Field(
        LEVEL_INPUTS[0], description="what the draws see of an image before augmentation; absent for none"
    )
    context: Annotated[int, Field(ge=0, le=MAX_CONTEXT)] = Field(
        0, description="how many numbers describe an image: classes, or directions of the features; absent for none"
    )

    @model_serializer(mode="wrap")
    def _without_what_is_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """One content has one spelling: draws that do not see images do not say so."""
        found: dict[str, Any] = handler(self)
        if self.context == 0:
            del found["input"], found["context"]
        return found

    @model_validator(mode="after")
    def _sees_what_it_says(self) -> Self:
        if (self.input == LEVEL_INPUTS[0]) != (self.context == 0):
            raise ValueError(f"input is {self.input!r}, context {self.context}")
        return self

    @model_validator(mode="after")
    def _has_even_bins(self) -> Self:
        if len(self.edges) % 2 == 0:
            raise ValueError(f"{len(self.edges) - 1} bins cannot be as many for each direction")
        if self.edges != level_edges((len(self.edges) - 1) // 2):
            raise ValueError("edges are not those of bins of equal width from -10 to 10")
        return self


class VerifiedPolicy(ManifestPart):
    """A training from scratch of the proxy under one policy, and how it did on images held out from it."""

    policy: PolicyName = Field(description="name of the policy")
    strength: Annotated[float, Field(ge=0, le=MAX_STRENGTH)] | None = Field(
        description="kappa, of the learned policy; null for another one"
    )
    correct: Annotated[int, Field(ge=0, le=MAX_COUNT)] = Field(description="images that it classifies correctly")
    only_kept: Annotated[int, Field(ge=0, le=MAX_COUNT)] = Field(
        description="images that the policy of this bundle is right about, and this one is not"
    )
    only_this: Annotated[int, Field(ge=0, le=MAX_COUNT)] = Field(description="the other way round")


class Verification(ManifestPart):
    """How a search checked itself: the same training under several policies."""

    images: Positive = Field(description="held-out images that all rows were measured on")
    unseen: bool = Field(description="whether the policy has learned nothing from these images")
    epochs: Count = Field(description="of each training")
    rows: Annotated[tuple[VerifiedPolicy, ...], Field(min_length=1, max_length=MAX_ROWS), Strict(False), FailFast()] = (
        Field(description="one for each training")
    )

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        for row in self.rows:
            if row.correct > self.images or row.only_this > row.correct:
                raise ValueError(f"{row.correct} images of {self.images} are correct, {row.only_this} here alone")
        return self

    def kept(self, strength: float) -> VerifiedPolicy | None:
        """The row of the policy that a bundle of this strength holds: uniform draws where it is 0; None without one."""
        names = (LEARNED, UNIFORM) if strength == 0 else (LEARNED,)
        return next((row for row in self.rows if row.policy in names and (row.strength or 0.0) == strength), None)
