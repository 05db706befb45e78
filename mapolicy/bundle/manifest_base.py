"""Common base of both kinds of bundle: a strict manifest with a digest, its parsing, and the file that holds it.

All fields of a manifest are required, and no others are allowed. Texts are bounded and printable, numbers bounded and
finite (`manifest_fields`). An error is one line that names the field.
"""

import hmac
import os
import re
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from ..errors import InputError, UsageError
from ..runtime import files
from ..runtime.plugins import HOW_TO_REGISTER
from ..runtime.sanitize import NEW_COPY, escaped, invalid_bundle, quoted
from . import canonical_json
from .limits import Limits

FORMAT = 1
FORMATS = (1, 2)  # that a searched bundle may have; 2 adds levels and verification
DATASET_LEVEL = "dataset-level"  # `kind` of a bundle without a network; a searched bundle has no such field

MAX_DEPTH = 5
MAX_KEYS = 200
# Lists, tables and keys. A dataset-level policy has a list for each sub-policy, and a table of four keys for each step.
MAX_SUB_POLICIES, MAX_STEPS = 4096, 8
MAX_ENTRIES, MAX_DATASET_LEVEL_ENTRIES = 1_000, MAX_SUB_POLICIES * (1 + 5 * MAX_STEPS) + MAX_KEYS


class ManifestPart(BaseModel):
    """Base of the manifest's models: strict types, frozen, no unknown fields."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


class Draft(ManifestPart):
    """A manifest with or without its digest."""

    def content(self) -> str:
        """Canonical JSON of all fields but the digest; the digest covers it."""
        return canonical_json.canonical(self.model_dump(exclude={"digest"}))

    def to_json(self) -> str:
        """Canonical JSON: equal manifests give equal text."""
        return canonical_json.canonical(self.model_dump())


class PolicyFile(ABC):
    """A policy that is one file with one digest: what commands and comparisons ask of every kind of it.

    Attributes:
        has_network: it was searched, so it brings a data set, a split, an extractor and a policy network.
        origin: where it was read from; empty for one that was made here.
    """

    has_network: ClassVar[bool]
    origin: str

    @classmethod
    @abstractmethod
    def load(cls, path: str | os.PathLike[str], expect_digest: str | None = None, limits: Limits | None = None) -> Self:
        """The policy in a file, which may lie elsewhere.

        Args:
            path: a .safetensors file; as a text also an https address, or `hf://NAMESPACE/NAME[@REVISION]`.
            expect_digest: the digest that it must have; None accepts any.
            limits: of its size; None takes the default ones.

        Raises:
            InputError: not a policy of this kind that can be used; one line names the field.
            UsageError, EnvironmentFault: a remote name that cannot be meant, or cannot be reached.
        """

    @abstractmethod
    def needed_limits(self) -> Limits:
        """Limits under which its file can be loaded again."""

    @abstractmethod
    def data_settings(self) -> dict[str, Any]:
        """The `RunConfig` fields that a training run takes from it; none from a policy without a data set."""

    @abstractmethod
    def about(self) -> dict[str, Any]:
        """Where the policy comes from, as plain values, for the record of a comparison."""

    @property
    @abstractmethod
    def digest(self) -> str:
        """SHA-256 of the whole policy, 64 hexadecimal digits; it identifies the policy."""

    @abstractmethod
    def to_bytes(self) -> bytes:
        """The file's content; equal policies give equal bytes."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file atomically; its mode follows the umask.

        Raises:
            EnvironmentFault: the folder cannot be written, the disk is full, or `path` is a link.
        """
        files.write_atomically(Path(path), self.to_bytes())


def read_json(text: str, source: str) -> dict[str, Any]:
    """Parse a manifest's JSON; its fields are not checked yet.

    Args:
        text: the value of the file's only metadata key.
        source: the file's name, for the error.

    Raises:
        InputError: the text is not a JSON object, is too large, or is ambiguous, as with a duplicate key.
    """
    # Only decides how much may be read; the kind is looked up in the parsed object.
    listed = f'"{DATASET_LEVEL}"' in text
    most = MAX_DATASET_LEVEL_ENTRIES if listed else MAX_ENTRIES
    try:
        raw = canonical_json.parse(text.encode("utf-8", "surrogatepass"), MAX_DEPTH, MAX_KEYS, most)
    except ValueError as problem:
        raise invalid_bundle(source, f"manifest {problem}") from None
    if not isinstance(raw, dict):
        raise invalid_bundle(source, f"manifest is {quoted(raw)}, expected a JSON object")
    return raw


def check_format(raw: dict[str, Any], source: str, known: tuple[int, ...] = (FORMAT,)) -> None:
    """Check that the format version is one of `known`.

    Raises:
        InputError: the version is missing or another.
    """
    readable = " and ".join(map(str, known))
    if "format" not in raw:
        raise invalid_bundle(source, f"manifest has no format version; this mapolicy reads format {readable}")
    if type(raw["format"]) is not int or raw["format"] not in known:
        why = f"is a bundle of format {quoted(raw['format'])}; this mapolicy reads format {readable}"
        raise invalid_bundle(source, why, "upgrade mapolicy or ask for another bundle")


def check_spelling(text: str, manifest: Draft, source: str) -> None:
    """Check that the manifest is canonical JSON, so that equal digests mean equal files.

    Raises:
        InputError: the text is another spelling of the same manifest.
    """
    if text != manifest.to_json():
        raise invalid_bundle(source, "manifest is not spelled as mapolicy writes it (canonical JSON)")


def parse_digest(text: str) -> str:
    """A digest that a user typed, in lower case.

    Raises:
        UsageError: it is not 64 hexadecimal digits.
    """
    if not re.fullmatch("[0-9a-f]{64}", text.lower()):
        raise UsageError("expected digest", f"{quoted(text)} is not 64 hexadecimal digits", "copy it from `inspect`")
    return text.lower()


def check_digest(computed: str, stated: str, expected: str | None, source: str) -> None:
    """Check the digest of a file against the one in its manifest and the one that the user expects.

    Args:
        computed: of the content.
        stated: in the manifest.
        expected: by the user; None accepts any.
        source: the file's name, for the error.

    Raises:
        InputError: they differ.
        UsageError: `expected` is not a digest.
    """
    if not hmac.compare_digest(computed, stated):
        why = f"its digest says {stated[:12]}, its content has {computed[:12]}: it was damaged or edited"
        raise invalid_bundle(source, why)
    if expected is not None and (expected := parse_digest(expected)) != computed:
        why = f"has the digest {computed[:12]}..., expected {quoted(expected, 20)}"
        raise invalid_bundle(source, why, "it is another bundle than the one asked for")


def schema_of(manifest: type[ManifestPart], title: str) -> dict[str, Any]:
    """The JSON Schema (2020-12) of a kind of manifest; it checks each field, but not fields against each other."""
    schema = manifest.model_json_schema()
    for part in (schema, *schema["$defs"].values()):
        part.pop("title")
        for each in part["properties"].values():
            each.pop("title", None)
            if "patternProperties" in each:  # otherwise a key that matches no pattern is allowed
                each["additionalProperties"] = False
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title} | schema


class NotRegisteredError(ValueError):
    """A bundle names an operation or a space that is not registered in this process."""


class OtherSpaceError(ValueError):
    """A bundle's space is not the one that is registered under its name in this process."""


def rejected(source: str, problem: ValidationError) -> InputError:
    """The error for a manifest that does not validate: its first problem, and what to do."""
    cause = problem.errors(include_url=False)[0].get("ctx", {}).get("error")
    match cause:
        case NotRegisteredError():
            remedy = HOW_TO_REGISTER
        case OtherSpaceError():
            remedy = "the space registered here differs: use the sender's version of the plugin"
        case _:
            remedy = NEW_COPY
    return invalid_bundle(source, first_problem(problem), remedy)


def first_problem(problem: ValidationError) -> str:
    """The first of pydantic's errors as one line of printable ASCII: `manifest <field>: ...`."""
    error = problem.errors(include_url=False)[0]
    place = ".".join(str(part) for part in error["loc"] if part != "[key]")
    field = f"manifest {escaped(place, 60)}" if place else "manifest"
    match error["type"]:
        case "missing":
            return f"{field} is missing"
        case "extra_forbidden":
            return f"{field} is not a field of this format"
        case "value_error" if isinstance(error["input"], dict):
            return f"{field}: {error['ctx']['error']}"
        case "value_error":
            return f"{field}: found {quoted(error['input'])}, expected {error['ctx']['error']}"
        case "too_long" | "string_too_long":
            return f"{field}: found {_with_length(error['input'])}, expected at most {error['ctx']['max_length']}"
        case "too_short" | "string_too_short":
            return f"{field}: found {_with_length(error['input'])}, expected at least {error['ctx']['min_length']}"
        case _:
            expected = error["msg"].removeprefix("Input should be ")  # pydantic's words: "a valid string"
            return f"{field}: found {quoted(error['input'])}, expected {expected}"


def _with_length(value: Any) -> str:
    return f"{quoted(value)} of {len(value)} characters" if isinstance(value, str) else quoted(value)
