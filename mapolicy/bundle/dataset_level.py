"""A dataset-level policy as a bundle: sub-policies of operations, without extractor, policy network and data set.

AutoAugment, Fast AutoAugment and RandAugment are lists of sub-policies. One is drawn for each image, evenly; each of
its steps is taken with its own probability, at a value in `space.Range`'s units. Population Based Augmentation is a
schedule instead: stages of a run, each with steps of which a few are taken in random order. All samples count the same.
The file is a safetensors container without tensors, whose manifest holds the list or the schedule; it is as untrusted
as any bundle.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

import numpy as np
from pydantic import (
    ConfigDict,
    FailFast,
    Field,
    SerializerFunctionWrapHandler,
    Strict,
    ValidationError,
    model_serializer,
    model_validator,
)

from ..errors import UsageError
from ..runtime.sanitize import invalid_bundle, quoted
from ..transforms.space import OPERATION_NAMES, OPERATION_SPECS
from .fetch import fetch_container
from .limits import Limits
from .manifest_base import (
    DATASET_LEVEL,
    FORMAT,
    MAX_STEPS,
    MAX_SUB_POLICIES,
    Draft,
    ManifestPart,
    NotRegisteredError,
    PolicyFile,
    check_digest,
    check_format,
    check_spelling,
    first_problem,
    read_json,
    rejected,
    schema_of,
)
from .manifest_fields import Digest, Identifier, Note, OptionalText, Rule, Text, one_of
from .safetensors_reader import RawTensor, read_container, write_container
from .source import Fetched

SCHEMA_FILE = "dataset-level.schema.json"
MAX_LOST = 64
MAX_STAGES, MAX_CHOICES = 256, 64  # of a schedule, and the steps that one stage draws from
ROUNDING = 1e-9  # of chances that sum to 1


def value_range(operation: str) -> tuple[float, float]:
    """Least and greatest value of a step with this operation; both 0 where it has no magnitude."""
    return OPERATION_SPECS.find(operation).limits


def _values(schema: dict[str, Any]) -> None:
    """Each of the 14 operations has its own range; of a registered one the schema knows nothing."""
    known = [
        {"properties": {"operation": {"const": name}, "value": {"minimum": low, "maximum": high}}}
        for name in OPERATION_NAMES
        for low, high in [value_range(name)]
    ]
    schema["oneOf"] = [*known, {"properties": {"operation": {"not": {"enum": list(OPERATION_NAMES)}}}}]


def _registered(operation: str) -> str:
    if operation not in OPERATION_SPECS:
        raise NotRegisteredError("a registered one")
    return operation


class Step(ManifestPart):
    """An operation, how likely it is taken, at which value (0 where it has none), and whether in either direction."""

    model_config = ConfigDict(json_schema_extra=_values)

    operation: Annotated[Text, Rule(_registered, {})] = Field(
        description="which it is: one of the table below, or a registered one"
    )
    probability: Annotated[float, Field(ge=0, le=1)] = Field(description="that it is taken, else the image stays")
    value: float = Field(description="the operation's parameter, in the units and ranges below")
    mirrored: bool = Field(
        description="whether the value's sign is drawn anew each time; the other one must be in range"
    )

    @model_validator(mode="after")
    def _is_in_range(self) -> Self:
        low, high = value_range(self.operation)
        if not low <= self.value <= high:
            raise ValueError(f"value of {self.operation} is {self.value:g}, expected {low:g} to {high:g}")
        if self.mirrored and not low <= -self.value <= high:
            raise ValueError(f"{self.operation} has no other direction, found mirrored")
        return self


SubPolicy = Annotated[tuple[Step, ...], Field(max_length=MAX_STEPS), Strict(False), FailFast()]


Share = Annotated[float, Field(ge=0, le=1)]


class Stage(ManifestPart):
    """A part of a run: a number of steps is drawn for each image; the steps are gone through in random order.

    Each step that is reached is taken with its probability, until as many were taken as were drawn. Source: Population
    Based Augmentation (Ho et al., ICML 2019), section 3.3, whose chances of 0, 1 and 2 steps are 0.2, 0.3 and 0.5.
    """

    until: Share = Field(description="share of the run at which it ends, more than of the one before; 1 for the last")
    counts: Annotated[tuple[Share, ...], Field(min_length=1, max_length=MAX_STEPS + 1), Strict(False), FailFast()] = (
        Field(description="chances that at most 0, 1, 2, ... steps are taken for an image; their sum is 1")
    )
    steps: Annotated[tuple[Step, ...], Field(max_length=MAX_CHOICES), Strict(False), FailFast()] = Field(
        description="what is gone through in random order, until as many are taken as were drawn"
    )

    @model_validator(mode="after")
    def _counts_are_chances(self) -> Self:
        if abs(sum(self.counts) - 1) > ROUNDING:
            raise ValueError(f"counts sum to {sum(self.counts):g}, expected 1")
        return self

    def uses(self) -> list[float]:
        """How often each step is taken for an image, on average.

        In a random order, the steps before a step are a random set: each is in it with a chance t, and t is uniform.
        Step j is taken if fewer than c of these are, c being the number drawn. So its mean is p_j times the integral
        over t of P(fewer than c), a polynomial that Gauss's rule integrates without error.
        """
        points, shares = np.polynomial.legendre.leggauss(len(self.steps) // 2 + 1)
        chances = np.array([step.probability for step in self.steps])
        before = np.zeros((len(self.steps), len(self.counts), len(points)))  # that 0, 1, 2, ... were taken before each
        before[:, 0] = 1
        for other, chance in enumerate(chances):
            taken = chance * (points + 1) / 2 * (np.arange(len(self.steps)) != other)[:, None, None]
            more = np.concatenate([np.zeros_like(before[:, :1]), before[:, :-1] * taken], 1)
            before = before * (1 - taken) + more
        goes_on = 1 - np.cumsum(self.counts)[:-1]  # chance that more than 0, 1, 2, ... may be taken
        found: list[float] = (chances * np.einsum("c,ncp,p->n", goes_on, before[:, :-1], shares / 2)).tolist()
        return found


def _either(schema: dict[str, Any]) -> None:
    """A schedule, or a list with a step: JSON Schema has no other word for it."""
    schedule, listed = {"required": ["stages"]}, {"minItems": 1, "contains": {"minItems": 1}}
    schema["oneOf"] = [
        schedule | {"properties": {"sub_policies": {"maxItems": 0}}},
        {"not": schedule, "properties": {"sub_policies": listed}},
    ]


class PublishedDraft(Draft):
    """What a dataset-level policy says of itself, before the digest is known."""

    model_config = ConfigDict(json_schema_extra=_either)

    format: Annotated[int, one_of((FORMAT,))] = Field(description="version of this format")
    kind: Annotated[str, one_of((DATASET_LEVEL,))] = Field(description="what tells it from a searched bundle")
    versions: Annotated[dict[Identifier, Text], Field(min_length=1, max_length=50)] = Field(
        description="of the programs that wrote the bundle, by name; for the record"
    )
    source: Text = Field(description="where the list is from")
    sub_policies: Annotated[tuple[SubPolicy, ...], Field(max_length=MAX_SUB_POLICIES), Strict(False), FailFast()] = (
        Field(
            description="one is drawn for each image, evenly, and its steps are gone through in order; one has a step; "
            "none for a schedule"
        )
    )
    stages: Annotated[tuple[Stage, ...], Field(min_length=1, max_length=MAX_STAGES), Strict(False), FailFast()] = Field(
        (), description="a schedule over a run, in place of sub-policies; absent for none"
    )
    lost: Annotated[tuple[Text, ...], Field(max_length=MAX_LOST), Strict(False), FailFast()] = Field(
        description="what of the list cannot be said here"
    )
    licence: OptionalText = Field(description="of the bundle; empty where nothing was said")
    note: Note = Field(description="free text; its only control character is the line break")

    @model_serializer(mode="wrap")
    def _without_what_is_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """One content has one spelling: a list has no stages."""
        found: dict[str, Any] = handler(self)
        if not self.stages:
            del found["stages"]
        return found

    @model_validator(mode="after")
    def _does_something(self) -> Self:
        if self.stages and self.sub_policies:
            raise ValueError("sub_policies and stages: both, expected one of them")
        if self.stages:
            ends = [stage.until for stage in self.stages]
            if sorted(set(ends)) != ends or ends[0] <= 0 or ends[-1] != 1:
                raise ValueError("stages: until has to ascend from above 0 to 1")
            if not any(stage.counts[0] < 1 and any(step.probability for step in stage.steps) for stage in self.stages):
                raise ValueError("stages: expected at least one step that is taken")
        elif not any(self.sub_policies):
            raise ValueError("sub_policies: expected at least one step")
        return self

    def uses(self) -> dict[str, float]:
        """How often each operation is applied to an image on average, over the whole run."""
        found: dict[str, float] = {}
        for steps in self.sub_policies:
            for step in steps:
                found[step.operation] = found.get(step.operation, 0.0) + step.probability / len(self.sub_policies)
        for start, stage in zip((0.0, *(stage.until for stage in self.stages)), self.stages, strict=False):
            for step, uses in zip(stage.steps, stage.uses(), strict=True):
                found[step.operation] = found.get(step.operation, 0.0) + (stage.until - start) * uses
        return found


class PublishedManifest(PublishedDraft):
    """The manifest with the SHA-256 over itself."""

    digest: Digest = Field(description="SHA-256 over the rest of the manifest")


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of this kind of manifest; `SCHEMA_FILE` beside this module holds it too."""
    return schema_of(PublishedManifest, f"mapolicy dataset-level policy, format {FORMAT}")


@dataclass(frozen=True)
class DatasetPolicy(PolicyFile):
    """A dataset-level policy that was checked.

    Attributes:
        manifest: all of it.
        origin: where it was read from; empty for one that was made here.
    """

    has_network: ClassVar[bool] = False

    manifest: PublishedManifest
    origin: str = ""

    @classmethod
    def make(cls, **parts: Any) -> Self:
        """The policy of these fields of `PublishedDraft`; format and kind are filled in.

        Raises:
            UsageError: a part is missing, unknown or out of range; one line names it.
        """
        try:
            draft = PublishedDraft(format=FORMAT, kind=DATASET_LEVEL, **parts)
        except ValidationError as problem:
            raise UsageError("policy to be written", first_problem(problem)) from None
        given = {name: value for name, value in draft if name in draft.model_fields_set}
        return cls(PublishedManifest(**given, digest=_digest(draft)))

    @classmethod
    def load(cls, path: str | os.PathLike[str], expect_digest: str | None = None, limits: Limits | None = None) -> Self:
        """The dataset-level policy in a file, at an https address or on the hub."""
        limits = limits or Limits()
        return cls.from_fetched(fetch_container(path, limits), expect_digest, limits)

    @classmethod
    def from_fetched(cls, fetched: Fetched, expect_digest: str | None = None, limits: Limits | None = None) -> Self:
        """Parse a fetched file; arguments and errors as in `load`."""
        text, tensors = read_container(fetched.content, fetched.source, limits or Limits())
        return cls.from_parts(text, read_json(text, fetched.source), tensors, fetched, expect_digest)

    @classmethod
    def from_parts(
        cls,
        text: str,
        raw: dict[str, Any],
        tensors: Mapping[str, RawTensor],
        fetched: Fetched,
        expect_digest: str | None,
    ) -> Self:
        """Check the parsed parts of a file; arguments as in `format.check_parts`."""
        source = fetched.source
        if not is_listed(raw):
            raise invalid_bundle(source, "is not a dataset-level policy", "load it with PolicyBundle")
        check_format(raw, source)
        try:
            manifest = PublishedManifest.model_validate(raw)
        except ValidationError as problem:
            raise rejected(source, problem) from None
        if tensors:
            raise invalid_bundle(source, f"tensor {quoted(min(tensors))} is not one that a dataset-level policy has")
        check_spelling(text, manifest, source)
        check_digest(_digest(manifest), manifest.digest, expect_digest, source)
        return cls(manifest, fetched.origin)

    def to_bytes(self) -> bytes:
        """The policy's file; equal policies give equal bytes."""
        return write_container(self.manifest.to_json(), {})

    def needed_limits(self) -> Limits:
        """Limits whose header holds the whole list."""
        return Limits(header_bytes=len(self.to_bytes()))

    def data_settings(self) -> dict[str, Any]:
        """None: it fits every data set."""
        return {}

    def about(self) -> dict[str, Any]:
        """The source of the list."""
        return {"source": self.manifest.source}

    @property
    def digest(self) -> str:
        """SHA-256 over the manifest, 64 hexadecimal digits: the policy's name."""
        return self.manifest.digest


def is_listed(raw: dict[str, Any]) -> bool:
    """Whether these are the fields of a dataset-level policy; nothing else of them is checked."""
    return raw.get("kind") == DATASET_LEVEL


def has_magnitude(operation: str) -> bool:
    """Whether a step of this operation has a value."""
    return OPERATION_SPECS.find(operation).range is not None


def spelled_step(step: Step) -> str:
    """A step on one line: operation, probability and, where it has one, value."""
    sign = "+-" if step.mirrored else ""
    value = f", {sign}{step.value:g}" if has_magnitude(step.operation) else ""
    return f"{step.operation} ({step.probability:g}{value})"


def spelled_stage(stage: Stage) -> str:
    """A stage on one line: when it ends, how many steps are taken, and the steps."""
    counts = ", ".join(f"{number} ({chance:g})" for number, chance in enumerate(stage.counts) if chance)
    steps = ", ".join(spelled_step(step) for step in stage.steps if step.probability) or "nothing"
    return f"to {stage.until:.1%} of the run, {counts} of: {steps}"


def spelled_list(manifest: PublishedDraft) -> tuple[str, list[str]]:
    """What a policy consists of, as a heading, and a line for each sub-policy or stage."""
    if manifest.stages:
        title = f"{len(manifest.stages)} stages of a run, a number of steps in random order for each image"
        return f"{title} (probability, value)", [spelled_stage(stage) for stage in manifest.stages]
    title = f"{len(manifest.sub_policies)} sub-policies, one for each image, all equally likely (probability, value)"
    return title, [" then ".join(map(spelled_step, steps)) or "nothing" for steps in manifest.sub_policies]


def _digest(draft: PublishedDraft) -> str:
    return hashlib.sha256(draft.content().encode("ascii") + b"\n").hexdigest()
