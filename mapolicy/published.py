"""A dataset-level policy as a bundle: sub-policies of operations, without extractor, policy network and data set.

AutoAugment, Fast AutoAugment and RandAugment are lists of sub-policies. One is drawn for each image, evenly; each of
its steps is taken with its own probability, at a value in `space.Range`'s units. All samples count the same. The file
is a safetensors container without tensors, whose manifest holds the list; it is as untrusted as any bundle.
"""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, FailFast, Field, Strict, ValidationError, model_validator

from . import canonical_json, files, hub
from .bundle_format import MAX_BYTES
from .errors import UsageError
from .manifest import FORMAT, MAX_DEPTH, MAX_KEYS, ManifestPart, first_problem
from .manifest_fields import Digest, Identifier, Note, OptionalText, Text, one_of
from .refusal import refused, shown
from .space import DEFAULT_SPACE, OPERATION_NAMES, SPACES
from .tensor_container import read_container, write_container

KIND = "dataset-level"
MAX_SUB_POLICIES, MAX_STEPS = 4096, 8

# Least and greatest value of each operation that has a magnitude, in `space.Range`'s units.
LIMITS: Mapping[str, tuple[float, float]] = {
    "Rotate": (-180.0, 180.0),
    "Posterize": (0.0, 7.0),
    "Solarize": (0.0, 256.0),
    **dict.fromkeys(("Color", "Contrast", "Brightness", "Sharpness"), (-1.0, 9.0)),
    **dict.fromkeys(("ShearX", "ShearY", "TranslateX", "TranslateY"), (-1.0, 1.0)),
}


class Step(ManifestPart):
    """An operation, how likely it is taken, at which value (0 where it has none), and whether in either direction."""

    operation: Annotated[str, one_of(OPERATION_NAMES)]
    probability: Annotated[float, Field(ge=0, le=1)]
    value: float
    mirrored: bool

    @model_validator(mode="after")
    def _is_in_range(self) -> Self:
        low, high = LIMITS.get(self.operation, (0.0, 0.0))
        if not low <= self.value <= high:
            raise ValueError(f"value of {self.operation} is {self.value:g}, expected {low:g} to {high:g}")
        if self.mirrored and not low <= -self.value <= high:
            raise ValueError(f"{self.operation} has no other direction, found mirrored")
        return self


SubPolicy = Annotated[tuple[Step, ...], Field(max_length=MAX_STEPS), Strict(False), FailFast()]


def _not_idle(sub_policies: tuple[tuple[Step, ...], ...]) -> tuple[tuple[Step, ...], ...]:
    if not any(sub_policies):
        raise ValueError("at least one step")
    return sub_policies


class PublishedDraft(ManifestPart):
    """What a dataset-level policy says of itself, before the digest is known.

    `source` names the list, `lost` what of it cannot be said here.
    """

    format: Annotated[int, one_of((FORMAT,))]
    kind: Annotated[str, one_of((KIND,))]
    versions: Annotated[dict[Identifier, Text], Field(min_length=1, max_length=50)]
    source: Text
    sub_policies: Annotated[
        tuple[SubPolicy, ...],
        Field(min_length=1, max_length=MAX_SUB_POLICIES),
        Strict(False),
        FailFast(),
        AfterValidator(_not_idle),
    ]
    lost: Annotated[tuple[Text, ...], Field(max_length=64), Strict(False)]
    licence: OptionalText
    note: Note

    def content(self) -> str:
        """Canonical JSON of everything but the digest: what the digest is taken over."""
        return canonical_json.canonical(self.model_dump(exclude={"digest"}))


class PublishedManifest(PublishedDraft):
    """The manifest with the SHA-256 over itself."""

    digest: Digest


@dataclass(frozen=True)
class DatasetPolicy:
    """A dataset-level policy that was checked.

    Attributes:
        manifest: all of it.
        origin: where it was read from; empty for one that was made here.
    """

    manifest: PublishedManifest
    origin: str = ""

    @classmethod
    def make(cls, **parts: Any) -> Self:
        """The policy of these fields of `PublishedDraft`; format and kind are filled in.

        Raises:
            UsageError: a part is missing, unknown or out of range; one line names it.
        """
        try:
            draft = PublishedDraft(format=FORMAT, kind=KIND, **parts)
        except ValidationError as problem:
            raise UsageError("policy to be written", first_problem(problem)) from None
        return cls(PublishedManifest(**dict(draft), digest=_digest(draft)))

    @classmethod
    def load(cls, reference: Path | str, expect_digest: str | None = None) -> Self:
        """The policy in a file, at an https address or on the hub; as `PolicyBundle.load`.

        Raises:
            InputError: not a dataset-level policy that can be used; one line names the field.
            UsageError, EnvironmentFault: a remote name that cannot be meant, or cannot be reached.
        """
        return cls.from_fetched(hub.fetch(reference, MAX_BYTES), expect_digest)

    @classmethod
    def from_fetched(cls, fetched: hub.Fetched, expect_digest: str | None = None) -> Self:
        """As `load`, of what `hub.fetch` has returned."""
        source = fetched.source
        text, tensors = read_container(fetched.content, source)
        raw = _raw_manifest(text, source)
        if not _is_of_this_kind(raw):
            raise refused(source, "is not a dataset-level policy", "load it with PolicyBundle")
        try:
            manifest = PublishedManifest.model_validate(raw)
        except ValidationError as problem:
            raise refused(source, first_problem(problem)) from None
        if tensors:
            raise refused(source, f"tensor {shown(min(tensors))} is not one that a dataset-level policy has")
        if text != canonical_json.canonical(manifest.model_dump()):
            raise refused(source, "manifest is not spelled as mapolicy writes it (canonical JSON)")
        computed = _digest(manifest)
        if not hmac.compare_digest(computed, manifest.digest):
            why = f"its digest says {manifest.digest[:12]}, its content has {computed[:12]}: it was damaged or edited"
            raise refused(source, why)
        if expect_digest is not None and expect_digest != computed:
            why = f"has the digest {computed[:12]}..., expected {shown(expect_digest, 20)}"
            raise refused(source, why, "it is another bundle than the one asked for")
        return cls(manifest, fetched.origin)

    def to_bytes(self) -> bytes:
        """The policy's file; equal policies give equal bytes."""
        return write_container(canonical_json.canonical(self.manifest.model_dump()), {})

    def save(self, path: Path | str) -> None:
        """Write the file: whole or not at all.

        Raises:
            EnvironmentFault: the folder cannot be written, the disk is full, or `path` is a link.
        """
        files.write_atomically(Path(path), self.to_bytes())

    @property
    def digest(self) -> str:
        """SHA-256 over the manifest, 64 hexadecimal digits: the policy's name."""
        return self.manifest.digest


def is_published(fetched: hub.Fetched) -> bool:
    """Whether the file is a dataset-level policy and not a searched one; nothing else of it is checked.

    Raises:
        InputError: no safetensors container of ours.
    """
    text, _ = read_container(fetched.content, fetched.source)
    return _is_of_this_kind(_raw_manifest(text, fetched.source))


def has_magnitude(operation: str) -> bool:
    """Whether a step of this operation has a value."""
    return SPACES[DEFAULT_SPACE].ranges[operation] is not None


def _raw_manifest(text: str, source: str) -> Any:
    try:
        return canonical_json.parse(text.encode("utf-8", "surrogatepass"), MAX_DEPTH, MAX_KEYS)
    except ValueError as problem:
        raise refused(source, f"manifest {problem}") from None


def _is_of_this_kind(raw: Any) -> bool:
    return isinstance(raw, dict) and raw.get("kind") == KIND


def _digest(draft: PublishedDraft) -> str:
    return hashlib.sha256(draft.content().encode("ascii") + b"\n").hexdigest()
