"""The manifest: everything that a policy bundle says about itself besides its tensors, format 1.

A bundle comes from another team, so every text is bounded and printable, every number bounded and finite, every field
required and no other allowed. Nothing says when, where or by whom it was made: equal searches give equal bytes.
"""

from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, ValidationError, model_validator

from . import canonical_json
from .config import ALPHAS, BASE_AUGMENTATIONS, FILLS, MACHINE_FIELDS, POLICY_INPUTS
from .errors import UsageError
from .manifest_fields import (
    Arch,
    Count,
    DatasetName,
    Deviations,
    Digest,
    Identifier,
    ManyClasses,
    Means,
    Note,
    OptionalText,
    Parameter,
    PerClass,
    Positive,
    Text,
    check_model_args,
    check_setting,
    one_of,
)
from .refusal import refused, shown
from .space import EMBEDDING_OFFSET, EMBEDDING_WIDTH, EMBEDDING_WITHOUT_MAGNITUDE, OPERATION_NAMES, SPACES

FORMAT = 1
INTERPOLATION = "nearest"
EMBEDDING_ABSENT = 0.0
EXTRACTOR_CALL = "forward_head(forward_features(images), pre_logits=True)"
DTYPES = ("float32", "float16", "bfloat16")

MAX_DEPTH = 5
MAX_KEYS = 200


class ManifestPart(BaseModel):
    """Strict, frozen, every field required, no other allowed."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


class OperationRange(ManifestPart):
    """An operation's parameter at level 0 and at level 10 (`space.Range`, units there)."""

    at_zero: Parameter
    at_ten: Parameter
    signed: bool


class Operations(ManifestPart):
    """The operation space: names in order, each one's range (None: it has no magnitude), how pixels are filled in."""

    space: Text
    names: Annotated[tuple[Text, ...], Field(max_length=64), Strict(False)]
    ranges: Annotated[dict[Text, OperationRange | None], Field(max_length=64)]
    fill: Annotated[str, one_of(FILLS)]
    interpolation: Annotated[str, one_of((INTERPOLATION,))]

    @classmethod
    def of(cls, space: str, fill: str) -> Self:
        """The operations of a space that this version knows by name."""
        ranges = {
            name: None
            if spread is None
            else OperationRange(at_zero=spread.at_zero, at_ten=spread.at_ten, signed=spread.signed)
            for name, spread in SPACES[space].ranges.items()
        }
        return cls(space=space, names=OPERATION_NAMES, ranges=ranges, fill=fill, interpolation=INTERPOLATION)

    @model_validator(mode="after")
    def _is_known(self) -> Self:
        if self.space not in SPACES:
            raise ValueError(f"space {shown(self.space)} is not one of {', '.join(SPACES)}")
        for name in self.names:
            if name not in OPERATION_NAMES:
                raise ValueError(f"operation {shown(name)} is unknown")
        if len(self.names) != len(OPERATION_NAMES):
            raise ValueError(f"{len(self.names)} operations, expected {len(OPERATION_NAMES)}")
        for position, (found, expected) in enumerate(zip(self.names, OPERATION_NAMES, strict=True)):
            if found != expected:
                raise ValueError(f"operation {position} is {found}, expected {expected}")
        known = SPACES[self.space].ranges
        if set(self.ranges) != set(known):
            odd = sorted(set(self.ranges) ^ set(known))[0]
            raise ValueError(f"range of {shown(odd)} is {'unknown' if odd in self.ranges else 'missing'}")
        for name, spread in known.items():
            found_range = self.ranges[name]
            triple = None if found_range is None else (found_range.at_zero, found_range.at_ten, found_range.signed)
            wanted = None if spread is None else (spread.at_zero, spread.at_ten, spread.signed)
            if triple != wanted:
                raise ValueError(f"range of {name} in {self.space} is {_triple(triple)}, expected {_triple(wanted)}")
        return self


class Embedding(ManifestPart):
    """How a transformation is embedded: width 2K; 0 where absent, else the level plus 1, or 11 without a magnitude."""

    width: Annotated[int, one_of((EMBEDDING_WIDTH,))]
    absent: Annotated[float, one_of((EMBEDDING_ABSENT,))]
    offset: Annotated[float, one_of((EMBEDDING_OFFSET,))]
    without_magnitude: Annotated[float, one_of((EMBEDDING_WITHOUT_MAGNITUDE,))]

    @classmethod
    def standard(cls) -> Self:
        """The one embedding of format 1."""
        return cls(
            width=EMBEDDING_WIDTH,
            absent=EMBEDDING_ABSENT,
            offset=EMBEDDING_OFFSET,
            without_magnitude=EMBEDDING_WITHOUT_MAGNITUDE,
        )


class PolicyShape(ManifestPart):
    """Arguments of `PolicyNetwork`."""

    hidden: Annotated[int, Field(ge=1, le=65_536)]
    input: Annotated[str, one_of(POLICY_INPUTS)]


class Extractor(ManifestPart):
    """The frozen proxy: timm name, constructor arguments, width of the feature, dtype in the file, how it is called."""

    arch: Arch
    model_args: Annotated[dict[str, Any], AfterValidator(check_model_args)]
    feature_width: Annotated[int, Field(ge=1, le=65_536)]
    dtype: Annotated[str, one_of(DTYPES)]
    call: Annotated[str, one_of((EXTRACTOR_CALL,))]


class InputContract(ManifestPart):
    """What the extractor sees: [B, channels, size, size], pixels in [0, 1] less `mean`, divided by `std`."""

    size: Annotated[int, Field(ge=1, le=4096)]
    channels: Annotated[int, one_of((1, 3))]
    mean: Means
    std: Deviations
    base_augmentation: Annotated[str, one_of(BASE_AUGMENTATIONS)]
    cutout: Annotated[int, Field(ge=0, le=4096)]

    @model_validator(mode="after")
    def _one_for_each_channel(self) -> Self:
        for name in ("mean", "std"):
            if len(getattr(self, name)) != self.channels:
                raise ValueError(f"{name} has {len(getattr(self, name))} numbers, expected {self.channels} (channels)")
        return self


class Split(ManifestPart):
    """The settings of the fixed splits (`RunConfig`)."""

    seed: Annotated[int, Field(ge=0, le=2**31)]
    train_per_class: PerClass
    validation_per_class: PerClass
    test_per_class: PerClass


class Counts(ManifestPart):
    """`images`: how many the split's indices count over; of them `train` and `meta_validation` were used."""

    images: Positive
    train: Positive
    meta_validation: Positive


class DatasetDescription(ManifestPart):
    """The data set by name (never a path), its class names in order and a fingerprint of its images."""

    name: DatasetName
    classes: ManyClasses
    counts: Counts
    fingerprint: Digest
    split: Split

    @model_validator(mode="after")
    def _counts_fit(self) -> Self:
        used = self.counts.train + self.counts.meta_validation
        if used > self.counts.images:
            raise ValueError(f"counts: {used} images used, expected at most {self.counts.images} (images)")
        return self


class Search(ManifestPart):
    """`SearchConfig.portable()`: the settings as resolved."""

    settings: Annotated[dict[Identifier, Annotated[Any, AfterValidator(check_setting)]], Field(max_length=200)]

    @model_validator(mode="after")
    def _says_nothing_of_the_machine(self) -> Self:
        for name in sorted(MACHINE_FIELDS & set(self.settings)):
            raise ValueError(f"settings has {name}, which says where the search ran")
        return self


class Run(ManifestPart):
    """What the search took; threads and device because float sums depend on them."""

    epochs: Count
    iterations: Count
    threads: Annotated[int, Field(ge=1, le=4096)]
    device: Annotated[str, one_of(("cpu", "cuda"))]


class ManifestDraft(ManifestPart):
    """A manifest before the digest is known."""

    format: Annotated[int, one_of((FORMAT,))]
    versions: Annotated[dict[Identifier, Text], Field(min_length=1, max_length=50)]
    operations: Operations
    embedding: Embedding
    policy: PolicyShape
    alpha: Annotated[str, one_of(ALPHAS)]
    extractor: Extractor
    input: InputContract
    dataset: DatasetDescription
    search: Search
    run: Run
    results: Annotated[dict[Identifier, Annotated[float, Field(ge=-1e12, le=1e12)]], Field(max_length=200)]
    licence: OptionalText
    note: Note

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if "validation_top1" not in self.results:
            raise ValueError("results has no validation_top1")
        said = self.data_settings() | {
            "proxy": self.extractor.arch,
            "model_args": self.extractor.model_args,
            "alpha": self.alpha,
            "policy_input": self.policy.input,
        }
        for name in sorted(set(said) & set(self.search.settings)):
            if self.search.settings[name] != said[name]:
                found, expected = shown(self.search.settings[name]), shown(said[name])
                raise ValueError(f"search.settings has {name} {found}, the rest of the manifest {expected}")
        return self

    def data_settings(self) -> dict[str, Any]:
        """The `RunConfig` fields that a training run with this bundle must share with the search."""
        split = self.dataset.split
        return {
            "dataset": self.dataset.name,
            "image_size": self.input.size,
            "train_per_class": split.train_per_class,
            "validation_per_class": split.validation_per_class,
            "test_per_class": split.test_per_class,
            "split_seed": split.seed,
            "base_augmentation": self.input.base_augmentation,
            "cutout": self.input.cutout,
            "operation_space": self.operations.space,
            "fill": self.operations.fill,
        }

    def content(self) -> str:
        """Canonical JSON of everything but the digest: what the digest is taken over."""
        return canonical_json.canonical(self.model_dump(exclude={"digest"}))


class Manifest(ManifestDraft):
    """A manifest with the SHA-256 over itself and the bundle's tensors."""

    digest: Digest

    def draft(self, **changes: Any) -> ManifestDraft:
        """A manifest without the digest, some parts replaced: what a changed policy is assembled with.

        Raises:
            UsageError: as `draft_manifest`.
        """
        return draft_manifest(**self.model_dump(exclude={"digest", "format", "embedding"}) | changes)

    def to_json(self) -> str:
        """Canonical JSON: equal manifests give equal text."""
        return canonical_json.canonical(self.model_dump())


def draft_manifest(**parts: Any) -> ManifestDraft:
    """A manifest that this version writes; `format` and `embedding` are filled in.

    Raises:
        UsageError: a part is missing, unknown or out of range; one line names the field.
    """
    try:
        return ManifestDraft(format=FORMAT, embedding=Embedding.standard(), **parts)
    except ValidationError as problem:
        raise UsageError("bundle manifest", first_problem(problem)) from None


def parse_manifest(text: str, source: str) -> Manifest:
    """The manifest that stands in a bundle.

    Args:
        text: the value of the bundle's one metadata key.
        source: the bundle's name, for the error.

    Raises:
        InputError: another format, or a field that is missing, unknown or out of range; one line names it.
    """
    try:
        raw = canonical_json.parse(text.encode("utf-8", "surrogatepass"), MAX_DEPTH, MAX_KEYS)
    except ValueError as problem:
        raise refused(source, f"manifest {problem}") from None
    if not isinstance(raw, dict):
        raise refused(source, f"manifest is {shown(raw)}, expected a JSON object")
    if raw.get("kind") is not None:
        why = f"is a bundle of kind {shown(raw['kind'])}, without extractor and policy network"
        raise refused(source, why, "train with it or inspect it; a searched bundle is needed here")
    if "format" not in raw:
        raise refused(source, f"manifest has no format version; this mapolicy reads format {FORMAT}")
    if type(raw["format"]) is not int or raw["format"] != FORMAT:
        why = f"is a bundle of format {shown(raw['format'])}; this mapolicy reads format {FORMAT}"
        raise refused(source, why, "upgrade mapolicy or ask for another bundle")
    try:
        return Manifest.model_validate(raw)
    except ValidationError as problem:
        raise refused(source, first_problem(problem)) from None


def first_problem(problem: ValidationError) -> str:
    """The first error as `manifest <field>: ...`, printable ASCII; pydantic's own text is many lines."""
    error = problem.errors(include_url=False)[0]
    place = ".".join(str(part) for part in error["loc"] if part != "[key]")
    field = f"manifest {shown(place, 60)[1:-1]}" if place else "manifest"
    match error["type"]:
        case "missing":
            return f"{field} is missing"
        case "extra_forbidden":
            return f"{field} is not a field of format {FORMAT}"
        case "value_error" if isinstance(error["input"], dict):
            return f"{field}: {error['ctx']['error']}"
        case "value_error":
            return f"{field}: found {shown(error['input'])}, expected {error['ctx']['error']}"
        case _:
            # Pydantic's words: "Input should be a valid string", "Tuple should have at most 9 items after validation".
            expected = error["msg"].removeprefix("Input should be ").removeprefix("Input should ")
            return f"{field}: found {shown(error['input'])}, expected {expected}"


def _triple(values: tuple[float, float, bool] | None) -> str:
    """A range for an error: whole numbers without a decimal point, as they stand in the table of spaces."""
    return "none" if values is None else f"({values[0]:g}, {values[1]:g}, {values[2]})"
