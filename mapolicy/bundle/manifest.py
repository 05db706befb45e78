"""The manifest: everything that a searched bundle says about itself besides its tensors, formats 1 and 2.

Nothing says when, where or by whom it was made: equal searches give equal bytes.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Self

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

from ..config.choices import (
    ALPHAS,
    BASE_AUGMENTATIONS,
    EVALUATION_SHARE,
    FILLS,
    INTERPOLATIONS,
    LOSS,
    MACHINE_FIELDS,
    POLICY_INPUTS,
    RESIZES,
    REWEIGHT,
)
from ..errors import UsageError
from ..runtime.sanitize import invalid_bundle, quoted
from ..transforms.space import (
    BUILT_IN_SPACES,
    EMBEDDING_OFFSET,
    EMBEDDING_WITHOUT_MAGNITUDE,
    MAX_OPERATIONS,
    OPERATION_SPECS,
    SPACES,
)
from .manifest_base import (
    DATASET_LEVEL,
    FORMAT,
    FORMATS,
    MAX_KEYS,
    Draft,
    ManifestPart,
    NotRegisteredError,
    OtherSpaceError,
    check_format,
    first_problem,
    rejected,
    schema_of,
)
from .manifest_fields import (
    Arch,
    Colour,
    Count,
    DatasetName,
    Deviations,
    Digest,
    Identifier,
    ManyClasses,
    Means,
    ModelArgs,
    Note,
    OptionalText,
    Parameter,
    PerClass,
    Positive,
    Setting,
    Text,
    ValueRange,
    one_of,
)
from .manifest_levels import (
    LEVEL_INPUTS,
    Levels,
    Verification,
)

INTERPOLATION = "nearest"
EMBEDDING_ABSENT = 0.0
EXTRACTOR_CALL = "forward_head(forward_features(images), pre_logits=True)"
CHANNELS = (1, 3)
DTYPES = ("float32", "float16", "bfloat16")

SCHEMA_FILE = "bundle.schema.json"


class OperationRange(ManifestPart):
    """An operation's parameter at level 0 and at level 10 (`space.Range`, units there)."""

    at_zero: Parameter = Field(description="the operation's parameter at level 0")
    at_ten: Parameter = Field(description="the same at level 10; linear in between")
    signed: bool = Field(description="whether the parameter is mirrored for half of the draws")


def _spaces(schema: dict[str, Any]) -> None:
    """Each built-in space has its own operations and ranges; of a registered one the schema knows nothing."""
    known = [
        {
            "properties": {
                "space": {"const": name},
                "names": {"const": list(SPACES[name].names)},
                "ranges": {"const": _ranges(name)},
            }
        }
        for name in sorted(BUILT_IN_SPACES)
    ]
    schema["oneOf"] = [*known, {"properties": {"space": {"not": {"enum": sorted(BUILT_IN_SPACES)}}}}]


def _ranges(space: str) -> dict[str, Any]:
    return {name: None if spread is None else vars(spread) for name, spread in SPACES[space].ranges.items()}


class Operations(ManifestPart):
    """The operation space: names in order, each one's range (None: it has no magnitude), how pixels are filled in."""

    model_config = ConfigDict(json_schema_extra=_spaces)

    space: Text = Field(description="name of the space, which fixes names and ranges")
    names: Annotated[
        tuple[Text, ...],
        Field(max_length=MAX_OPERATIONS),
        Strict(False),
        FailFast(),
    ] = Field(description="the operations in the order of the tensors; in a built-in space the 14 of the table above")
    ranges: Annotated[dict[Text, OperationRange | None], Field(max_length=MAX_OPERATIONS)] = Field(
        description="of each operation its parameter's range; null: it has no magnitude"
    )
    fill: Annotated[str, one_of(FILLS)] = Field(description="colour of pixels that an operation moves in from outside")
    interpolation: Annotated[str, one_of((INTERPOLATION,))] = Field(description="how moved pixels are looked up")

    @classmethod
    def of(cls, space: str, fill: str) -> Self:
        """The operations of a space that this version knows by name."""
        ranges = {name: spread and OperationRange(**spread) for name, spread in _ranges(space).items()}
        return cls(space=space, names=SPACES[space].names, ranges=ranges, fill=fill, interpolation=INTERPOLATION)

    @model_validator(mode="after")
    def _is_known(self) -> Self:
        for name in self.names:
            if name not in OPERATION_SPECS:
                raise NotRegisteredError(f"operation {quoted(name)} is unknown here")
        if self.space not in SPACES:
            raise NotRegisteredError(f"space {quoted(self.space)} is not one of {', '.join(SPACES)}")
        # The format fixes a built-in space; a registered one may be another version of it.
        differs = ValueError if self.space in BUILT_IN_SPACES else OtherSpaceError
        names = SPACES[self.space].names
        if len(self.names) != len(names):
            raise differs(f"{len(self.names)} operations, expected {len(names)}")
        for position, (found, expected) in enumerate(zip(self.names, names, strict=True)):
            if found != expected:
                raise differs(f"operation {position} is {found}, expected {expected}")
        known = SPACES[self.space].ranges
        if set(self.ranges) != set(known):
            odd = sorted(set(self.ranges) ^ set(known))[0]
            raise differs(f"range of {quoted(odd)} is {'unknown' if odd in self.ranges else 'missing'}")
        for name, spread in known.items():
            found_range = self.ranges[name]
            triple = None if found_range is None else (found_range.at_zero, found_range.at_ten, found_range.signed)
            wanted = None if spread is None else (spread.at_zero, spread.at_ten, spread.signed)
            if triple != wanted:
                raise differs(f"range of {name} in {self.space} is {_triple(triple)}, expected {_triple(wanted)}")
        return self


class Embedding(ManifestPart):
    """How a transformation is embedded: width 2K; 0 where absent, else the level plus 1, or 11 without a magnitude."""

    width: Annotated[int, Field(ge=4, le=2 * MAX_OPERATIONS)] = Field(
        description="numbers of an embedding, 2K: 28 in a built-in space"
    )
    absent: Annotated[float, one_of((EMBEDDING_ABSENT,))] = Field(description="of an operation that was not drawn")
    offset: Annotated[float, one_of((EMBEDDING_OFFSET,))] = Field(description="added to the level of one that was")
    without_magnitude: Annotated[float, one_of((EMBEDDING_WITHOUT_MAGNITUDE,))] = Field(
        description="of one that was drawn and has no magnitude"
    )

    @classmethod
    def of(cls, operations: int) -> Self:
        """The one embedding of so many operations."""
        return cls(
            width=2 * operations,
            absent=EMBEDDING_ABSENT,
            offset=EMBEDDING_OFFSET,
            without_magnitude=EMBEDDING_WITHOUT_MAGNITUDE,
        )


class PolicyShape(ManifestPart):
    """Arguments of `PolicyNetwork`."""

    hidden: Annotated[int, Field(ge=1, le=65_536)] = Field(description="units of each branch, H")
    input: Annotated[str, one_of(POLICY_INPUTS)] = Field(description="what the policy network sees: its branches")


class Extractor(ManifestPart):
    """The frozen proxy: timm name, constructor arguments, width of the feature, dtype in the file, how it is called."""

    arch: Arch = Field(description="name in timm's registry, mapolicy's own networks included")
    model_args: ModelArgs = Field(description="arguments of its constructor besides classes and channels")
    feature_width: Annotated[int, Field(ge=1, le=65_536)] = Field(description="width of the deep feature, F")
    dtype: Annotated[str, one_of(DTYPES)] = Field(description="of the extractor's tensors in the file")
    call: Annotated[str, one_of((EXTRACTOR_CALL,))] = Field(description="how the feature is computed")


class InputContract(ManifestPart):
    """What the extractor sees: [B, channels, size, size], pixels in [0, 1] less `mean`, divided by `std`."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {
                    "properties": {
                        "channels": {"const": n},
                        "mean": {"maxItems": n, "minItems": n},
                        "std": {"maxItems": n, "minItems": n},
                    }
                }
                for n in CHANNELS
            ]
        }
    )

    size: Annotated[int, Field(ge=1, le=4096)] = Field(description="side of the extractor's square input, pixels")
    channels: Annotated[int, one_of(CHANNELS)] = Field(description="of the images")
    mean: Means = Field(description="subtracted from each channel's pixels, which are in [0, 1]")
    std: Deviations = Field(description="each channel is then divided by")
    base_augmentation: Annotated[str, one_of(BASE_AUGMENTATIONS)] = Field(
        description="what came before the transformation"
    )
    cutout: Annotated[int, Field(ge=0, le=4096)] = Field(
        description="side of the square that Cutout hid, pixels; 0 is none"
    )

    @model_validator(mode="after")
    def _one_for_each_channel(self) -> Self:
        for name in ("mean", "std"):
            if len(getattr(self, name)) != self.channels:
                raise ValueError(f"{name} has {len(getattr(self, name))} numbers, expected {self.channels} (channels)")
        return self


class Split(ManifestPart):
    """The settings of the fixed splits (`RunConfig`)."""

    seed: Annotated[int, Field(ge=0, le=2**31)] = Field(description="seed of the split")
    train_per_class: PerClass = Field(
        description="training images of each class: a count, a fraction below 1, or 0 for all that were left"
    )
    validation_per_class: PerClass = Field(description="meta-validation images of each class, likewise")
    test_per_class: PerClass = Field(
        description="test images of each class; 0 where the data set has a test split of its own"
    )


class Counts(ManifestPart):
    """`images`: how many the split's indices count over; of them `train` and `meta_validation` were used."""

    images: Positive = Field(
        description="images that the split's indices count over, the test images among them if "
        "they were drawn from the same ones"
    )
    train: Positive = Field(description="of them for training")
    meta_validation: Positive = Field(description="of them for meta-validation, V")


class DatasetDescription(ManifestPart):
    """The data set by name (never a path), its class names in order and a fingerprint of its images."""

    name: DatasetName = Field(description="the data set's name; a folder's is `folder:` and its last component")
    classes: ManyClasses = Field(description="class names by label, C of them")
    counts: Counts = Field(description="how many images there were")
    fingerprint: Digest = Field(description="SHA-256 of class names and of the images used")
    split: Split = Field(description="how the split was drawn")

    @model_validator(mode="after")
    def _counts_fit(self) -> Self:
        counts, classes = self.counts, len(self.classes)
        used = counts.train + counts.meta_validation
        if used > counts.images:
            raise ValueError(f"counts: {used} images used, expected at most {counts.images} (images)")
        for name, found, per_class in (
            ("train", counts.train, self.split.train_per_class),
            ("meta_validation", counts.meta_validation, self.split.validation_per_class),
        ):
            # A fraction or "all that are left" is at least one image of each class.
            if found != per_class * classes if per_class >= 1 else found < classes:
                wanted = f"{per_class * classes:g}" if per_class >= 1 else f"at least {classes}"
                raise ValueError(f"counts: {name} is {found}, expected {wanted} (the split of {classes} classes)")
        return self


class Search(ManifestPart):
    """`SearchConfig.portable()`: the settings as resolved."""

    settings: Annotated[dict[Identifier, Setting], Field(max_length=MAX_KEYS)] = Field(
        description="every setting of the search as resolved; for the record"
    )

    @model_validator(mode="after")
    def _says_nothing_of_the_machine(self) -> Self:
        for name in sorted(MACHINE_FIELDS & set(self.settings)):
            raise ValueError(f"settings has {name}, which says where the search ran")
        return self


class Run(ManifestPart):
    """What the search took; threads and device because float sums depend on them."""

    epochs: Count = Field(description="passes over the training images")
    iterations: Count = Field(description="steps of the proxy")
    threads: Annotated[int, Field(ge=1, le=4096)] = Field(description="CPU threads")
    device: Annotated[str, one_of(("cpu", "cuda"))] = Field(description="kind of device")


class Reading(ManifestPart):
    """How images of any size and kind become the network's uint8 input (`mapolicy.data.reading.ImageReading`).

    Absent where every value is the usual one: `crop`, `bilinear`, `white`, null.
    """

    resize: Annotated[str, one_of(RESIZES)] = Field(
        description="how images become square: cut to the centre, padded with black, or squashed"
    )
    interpolation: Annotated[str, one_of(INTERPOLATIONS)] = Field(description="filter that resizes them")
    alpha_background: Colour = Field(description="what transparent pixels are blended over")
    value_range: ValueRange | None = Field(
        description="of pixels with more than 8 bits: the values that become 0 and 255; null: 0 and 65535"
    )

    @model_validator(mode="after")
    def _is_unusual(self) -> Self:
        """One content has one spelling."""
        if self == USUAL_READING:
            raise ValueError("its values are the usual ones, which are not written")
        return self

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self | None:
        """The part for an image reading's plain values; None where they are the usual ones."""
        chosen = {name: values[name] for name in cls.model_fields}
        return None if chosen == USUAL_READING.model_dump() else cls(**chosen)


USUAL_READING = Reading.model_construct(
    resize="crop", interpolation="bilinear", alpha_background="white", value_range=None
)

LATER_PARTS = ("levels", "verification", "reading")


def format_of(**parts: object) -> int:
    """The lowest format that has these parts, of `LATER_PARTS`; None stands for an absent one."""
    return 2 if any(parts.get(name) is not None for name in LATER_PARTS) else FORMAT


def _formats(schema: dict[str, Any]) -> None:
    """Format 1 has none of `LATER_PARTS`, format 2 at least one."""
    absent = dict.fromkeys(LATER_PARTS, False)
    present = [{"required": [name]} for name in LATER_PARTS]
    schema["oneOf"] = [
        {"properties": {"format": {"const": 1}, **absent}},
        {"properties": {"format": {"const": 2}}, "anyOf": present},
    ]


def _not_null(schema: dict[str, Any]) -> None:
    """A part that is absent is not there: null does not spell it."""
    schema.pop("default")
    schema.update(*(branch for branch in schema.pop("anyOf") if branch != {"type": "null"}))


class ManifestDraft(Draft):
    """A manifest before the digest is known."""

    model_config = ConfigDict(json_schema_extra=_formats)

    format: Annotated[int, one_of(FORMATS)] = Field(
        description="version of this format: 2 has levels, verification or reading"
    )
    versions: Annotated[dict[Identifier, Text], Field(min_length=1, max_length=50)] = Field(
        description="of the programs that wrote the bundle, by name; for the record"
    )
    operations: Operations = Field(description="the operation space")
    embedding: Embedding = Field(description="how the policy network is told of a transformation")
    policy: PolicyShape = Field(description="shape of the policy network")
    alpha: Annotated[str, one_of(ALPHAS)] = Field(description="one step size, or one for each of A parameter tensors")
    extractor: Extractor = Field(description="the frozen proxy")
    input: InputContract = Field(description="what the extractor sees, and how images were prepared in the search")
    dataset: DatasetDescription = Field(description="what the policy was searched on")
    search: Search = Field(description="how it was searched")
    run: Run = Field(description="what the search took")
    results: Annotated[
        dict[Identifier, Annotated[float, Field(ge=-1e12, le=1e12)]],
        Field(
            max_length=MAX_KEYS,
            json_schema_extra={
                "required": ["validation_top1"],
                "properties": {"validation_top1": {"minimum": 0, "maximum": 100}},
            },
        ),
    ] = Field(description="figures of the search; `validation_top1` is the proxy's accuracy, per cent, for the record")
    licence: OptionalText = Field(description="of the bundle; empty where nothing was said")
    note: Note = Field(description="free text; its only control character is the line break")
    levels: Levels | None = Field(
        None, description="how `sampler.log_levels` is read; format 2", json_schema_extra=_not_null
    )
    verification: Verification | None = Field(
        None, description="how the search checked itself; format 2", json_schema_extra=_not_null
    )
    reading: Reading | None = Field(
        None, description="how images are read, where it is not the usual way; format 2", json_schema_extra=_not_null
    )

    @model_serializer(mode="wrap")
    def _without_what_is_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """One content has one spelling: a part that is absent is not written as null."""
        found: dict[str, Any] = handler(self)
        return {key: value for key, value in found.items() if key not in LATER_PARTS or value is not None}

    @model_validator(mode="after")
    def _has_the_format_of_its_parts(self) -> Self:
        needed = format_of(levels=self.levels, verification=self.verification, reading=self.reading)
        if self.format != needed:
            raise ValueError(f"format is {self.format}, its parts are those of format {needed}")
        return self

    @model_validator(mode="after")
    def _was_verified_itself(self) -> Self:
        """One row of the verification is this policy's, and the other rows' counts follow from its own."""
        if self.verification is None:
            return self
        strength = 0.0 if self.levels is None else self.levels.strength
        kept = self.verification.kept(strength)
        if kept is None:
            raise ValueError(f"verification has no row of this policy, of strength {strength:g}")
        for row in self.verification.rows:
            if row.correct != kept.correct - row.only_kept + row.only_this or row.only_kept > kept.correct:
                why = f"{kept.correct} correct less {row.only_kept} and {row.only_this} more are not {row.correct}"
                raise ValueError(f"verification of {row.policy}: {why}")
            if row.only_this > self.verification.images - kept.correct:
                why = f"{row.only_this} images more than {kept.correct} of {self.verification.images}"
                raise ValueError(f"verification of {row.policy}: {why} cannot be correct")
        return self

    @model_validator(mode="after")
    def _sees_its_own_classes_or_features(self) -> Self:
        if self.levels is not None and self.levels.input != LEVEL_INPUTS[0]:
            by_class = self.levels.input == LEVEL_INPUTS[1]
            most = len(self.dataset.classes) if by_class else self.extractor.feature_width
            if self.levels.context > most or (by_class and self.levels.context != most):
                what = "classes" if by_class else "features"
                raise ValueError(f"levels.context is {self.levels.context}, there are {most} {what}")
        return self

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if "validation_top1" not in self.results:
            raise ValueError("results has no validation_top1")
        if not 0 <= self.results["validation_top1"] <= 100:
            raise ValueError(f"results.validation_top1 is {self.results['validation_top1']:g}, expected 0 to 100")
        if self.embedding.width != 2 * len(self.operations.names):
            raise ValueError(f"embedding.width is {self.embedding.width}, expected {2 * len(self.operations.names)}")
        said = {name: value for name, value in self.data_settings().items() if name != "value_range"} | {
            "proxy": self.extractor.arch,
            "model_args": self.extractor.model_args,
            "alpha": self.alpha,
            "policy_input": self.policy.input,
        }
        for name in sorted(set(said) & set(self.search.settings)):
            if self.search.settings[name] != said[name]:
                found, expected = quoted(self.search.settings[name]), quoted(said[name])
                raise ValueError(f"search.settings has {name} {found}, the rest of the manifest {expected}")
        return self

    def image_reading(self) -> dict[str, Any]:
        """How images are read, as plain values: the fields of `mapolicy.data.reading.ImageReading`."""
        reading = (self.reading or USUAL_READING).model_dump()
        crops = self.input.base_augmentation == "random_resized_crop" and reading["resize"] == "crop"
        share = EVALUATION_SHARE if crops else 1.0
        return {"channels": self.input.channels, "image_size": self.input.size, "share": share, **reading}

    @property
    def equal_weights(self) -> bool:
        """Whether training with the bundle weighs all samples alike: its search did, or its weights ended with it."""
        return self.search.settings.get("weighting") in ("equal", REWEIGHT)

    @property
    def weighs_images(self) -> bool:
        """Whether the bundle gives an image and its transformation a weight; a weight by the training loss is none."""
        return not self.equal_weights and self.policy.input != LOSS

    def data_settings(self) -> dict[str, Any]:
        """The `RunConfig` fields that a training run with this bundle takes from it.

        `download` is false: a bundle's word does not reach for the network, the user's does.
        """
        split, reading = self.dataset.split, self.reading or USUAL_READING
        return {
            "dataset": self.dataset.name,
            "download": False,
            "image_size": self.input.size,
            "train_per_class": split.train_per_class,
            "validation_per_class": split.validation_per_class,
            "test_per_class": split.test_per_class,
            "split_seed": split.seed,
            "base_augmentation": self.input.base_augmentation,
            "cutout": self.input.cutout,
            "operation_space": self.operations.space,
            "fill": self.operations.fill,
            "resize": reading.resize,
            "interpolation": reading.interpolation,
            "alpha_background": reading.alpha_background,
            "value_range": "auto" if reading.value_range is None else "{!r}:{!r}".format(*reading.value_range),
            "nested_classes": self.search.settings.get("nested_classes") is True,
        }


class Manifest(ManifestDraft):
    """A manifest with the SHA-256 over itself and the bundle's tensors."""

    digest: Digest = Field(description="SHA-256 over the rest of the manifest and the tensors")

    def draft(self, **changes: Any) -> ManifestDraft:
        """A manifest without the digest, some parts replaced: what a changed policy is assembled with.

        Raises:
            UsageError: as `draft_manifest`.
        """
        return draft_manifest(**self.model_dump(exclude={"digest", "format", "embedding"}) | changes)


def draft_manifest(**parts: Any) -> ManifestDraft:
    """A manifest that this version writes; `format` and `embedding` are filled in.

    Raises:
        UsageError: a part is missing, unknown or out of range; one line names the field.
    """
    operations = parts.get("operations")
    names = operations.names if isinstance(operations, Operations) else dict(operations or {}).get("names", ())
    count = min(max(len(names), 2), MAX_OPERATIONS)  # any other number of names is an error of theirs
    try:
        return ManifestDraft(format=format_of(**parts), embedding=Embedding.of(count), **parts)
    except ValidationError as problem:
        raise UsageError("bundle manifest", first_problem(problem)) from None


def check_manifest(raw: dict[str, Any], source: str) -> Manifest:
    """The manifest of a searched bundle.

    Args:
        raw: its fields (`sealed.read_json`).
        source: the bundle's name, for the error.

    Raises:
        InputError: another kind or format, or a field that is missing, unknown or out of range; one line names it.
    """
    if raw.get("kind") == DATASET_LEVEL:
        why = f"is a bundle of kind {DATASET_LEVEL!r}, without extractor and policy network"
        raise invalid_bundle(source, why, "train with it or inspect it; a searched bundle is needed here")
    if "kind" in raw:
        why = f"is a bundle of kind {quoted(raw['kind'])}, which this mapolicy does not know"
        raise invalid_bundle(source, why, "upgrade mapolicy or ask for another bundle")
    check_format(raw, source, FORMATS)
    try:
        return Manifest.model_validate(raw)
    except ValidationError as problem:
        raise rejected(source, problem) from None


def json_schema() -> dict[str, Any]:
    """The manifest's JSON Schema, as `sealed.schema_of`; it also lies beside this module, as `SCHEMA_FILE`."""
    return schema_of(Manifest, f"mapolicy bundle, formats {' and '.join(map(str, FORMATS))}")


def _triple(values: tuple[float, float, bool] | None) -> str:
    """A range for an error: whole numbers without a decimal point, as they stand in the table of spaces."""
    return "none" if values is None else f"({values[0]:g}, {values[1]:g}, {values[2]})"
