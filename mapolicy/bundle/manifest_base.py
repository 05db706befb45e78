"""What both kinds of bundle share: strict manifests under a digest, how they are read, and a file that holds one.

Every text of a manifest is bounded and printable, every number bounded and finite, every field required and no other
allowed (`manifest_fields`); what is wrong is said in one line that names the field.
"""

import hmac
import os
import re
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from ..errors import UsageError
from ..runtime import files
from ..runtime.sanitize import escaped, invalid_bundle, quoted
from . import canonical_json

FORMAT = 1
DATASET_LEVEL = "dataset-level"  # the kind of bundle that has no network; a searched one names no kind

MAX_DEPTH = 5
MAX_KEYS = 200
# Lists, tables and keys. A dataset-level policy has a list for each sub-policy, and a table of four for each step.
MAX_SUB_POLICIES, MAX_STEPS = 4096, 8
MAX_ENTRIES, MAX_DATASET_LEVEL_ENTRIES = 1_000, MAX_SUB_POLICIES * (1 + 5 * MAX_STEPS) + MAX_KEYS


class ManifestPart(BaseModel):
    """Strict, frozen, every field required, no other allowed."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


class Draft(ManifestPart):
    """A manifest, whether the digest is known or not."""

    def content(self) -> str:
        """Canonical JSON of everything but the digest: what the digest is taken over."""
        return canonical_json.canonical(self.model_dump(exclude={"digest"}))

    def to_json(self) -> str:
        """Canonical JSON: equal manifests give equal text."""
        return canonical_json.canonical(self.model_dump())


class PolicyFile(ABC):
    """A policy that stands in one file under one digest."""

    @property
    @abstractmethod
    def digest(self) -> str:
        """SHA-256 over all of it, 64 hexadecimal digits: the policy's name."""

    @abstractmethod
    def to_bytes(self) -> bytes:
        """The file; equal policies give equal bytes."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file: whole or not at all, its mode by the umask.

        Raises:
            EnvironmentFault: the folder cannot be written, the disk is full, or `path` is a link.
        """
        files.write_atomically(Path(path), self.to_bytes())


def read_json(text: str, source: str) -> dict[str, Any]:
    """A manifest's fields, unchecked but for what no manifest may be.

    Args:
        text: the value of the file's one metadata key.
        source: the file's name, for the error.

    Raises:
        InputError: no JSON object, too large a one, or one that can be read in two ways.
    """
    # A hint that decides nothing but how much is read: the kind is looked up in what was read.
    listed = f'"{DATASET_LEVEL}"' in text
    most = MAX_DATASET_LEVEL_ENTRIES if listed else MAX_ENTRIES
    try:
        raw = canonical_json.parse(text.encode("utf-8", "surrogatepass"), MAX_DEPTH, MAX_KEYS, most)
    except ValueError as problem:
        raise invalid_bundle(source, f"manifest {problem}") from None
    if not isinstance(raw, dict):
        raise invalid_bundle(source, f"manifest is {quoted(raw)}, expected a JSON object")
    return raw


def check_format(raw: dict[str, Any], source: str) -> None:
    """Accept the one format that this version reads.

    Raises:
        InputError: the version is missing, or another one.
    """
    if "format" not in raw:
        raise invalid_bundle(source, f"manifest has no format version; this mapolicy reads format {FORMAT}")
    if type(raw["format"]) is not int or raw["format"] != FORMAT:
        why = f"is a bundle of format {quoted(raw['format'])}; this mapolicy reads format {FORMAT}"
        raise invalid_bundle(source, why, "upgrade mapolicy or ask for another bundle")


def check_spelling(text: str, manifest: Draft, source: str) -> None:
    """One content has one file: comparing files and comparing digests is then the same.

    Raises:
        InputError: the text is another spelling of the manifest.
    """
    if text != manifest.to_json():
        raise invalid_bundle(source, "manifest is not spelled as mapolicy writes it (canonical JSON)")


def parse_digest(text: str) -> str:
    """A digest that somebody typed, as it is compared: in small letters.

    Raises:
        UsageError: it is no digest.
    """
    if not re.fullmatch("[0-9a-f]{64}", text.lower()):
        raise UsageError("expected digest", f"{quoted(text)} is not 64 hexadecimal digits", "copy it from `inspect`")
    return text.lower()


def check_digest(computed: str, stated: str, expected: str | None, source: str) -> None:
    """The digest of what was read is the one that it states, and the one that was asked for.

    Raises:
        InputError: it is not.
        UsageError: what was asked for is no digest.
    """
    if not hmac.compare_digest(computed, stated):
        why = f"its digest says {stated[:12]}, its content has {computed[:12]}: it was damaged or edited"
        raise invalid_bundle(source, why)
    if expected is not None and (expected := parse_digest(expected)) != computed:
        why = f"has the digest {computed[:12]}..., expected {quoted(expected, 20)}"
        raise invalid_bundle(source, why, "it is another bundle than the one asked for")


def schema_of(manifest: type[ManifestPart], title: str) -> dict[str, Any]:
    """The JSON Schema (2020-12) of a kind of manifest.

    It refuses what a single field says wrong. What fields say of each other, and of the tensors, it does not know.
    """
    schema = manifest.model_json_schema()
    for part in (schema, *schema["$defs"].values()):
        part.pop("title")
        for each in part["properties"].values():
            each.pop("title", None)
            if "patternProperties" in each:  # a key that the pattern does not match is not just one without a rule
                each["additionalProperties"] = False
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title} | schema


def first_problem(problem: ValidationError) -> str:
    """The first error as `manifest <field>: ...`, printable ASCII; pydantic's own text is many lines."""
    error = problem.errors(include_url=False)[0]
    place = ".".join(str(part) for part in error["loc"] if part != "[key]")
    field = f"manifest {escaped(place, 60)}" if place else "manifest"
    match error["type"]:
        case "missing":
            return f"{field} is missing"
        case "extra_forbidden":
            return f"{field} is not a field of format {FORMAT}"
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
