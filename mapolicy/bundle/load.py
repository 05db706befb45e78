"""A bundle of either kind: fetched once, taken apart once, told apart, checked. Neither torch nor timm is imported."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from .dataset_level import DatasetPolicy, is_listed
from .fetch import fetch_container
from .format import check_parts
from .limits import Limits
from .manifest import Manifest
from .manifest_base import read_json
from .safetensors_reader import RawTensor, read_container
from .source import Fetched


@dataclass(frozen=True)
class SearchedFile:
    """A searched bundle as `format.read_bundle` reads it: all checked but the architecture.

    Attributes:
        manifest: with the digest.
        tensors: by name, views of the file's bytes.
    """

    has_network: ClassVar[bool] = True

    manifest: Manifest
    tensors: Mapping[str, RawTensor]

    def data_settings(self) -> dict[str, Any]:
        """The `RunConfig` fields that a training run takes from it (`Manifest.data_settings`)."""
        return self.manifest.data_settings()

    @property
    def digest(self) -> str:
        """The policy's name."""
        return self.manifest.digest


@dataclass(frozen=True)
class Opened:
    """A bundle of either kind, its file, and the limits under which it was opened."""

    policy: SearchedFile | DatasetPolicy
    fetched: Fetched
    limits: Limits


def open_bundle(
    reference: str | os.PathLike[str], expect_digest: str | None = None, limits: Limits | None = None
) -> Opened:
    """A bundle of either kind.

    Args:
        reference: a file, an https address or `hf://...` (see `hub`); it is read once, and only what was read is used.
        expect_digest: the digest that it must have; None accepts any.
        limits: of its size; None takes the default ones.

    Raises:
        InputError: no bundle of either kind; one line of printable ASCII names the field.
        UsageError, EnvironmentFault: a remote name that cannot be meant, or cannot be reached.
    """
    limits = limits or Limits()
    fetched = fetch_container(reference, limits)
    return Opened(parse_any(fetched, expect_digest, limits), fetched, limits)


def parse_any(
    fetched: Fetched, expect_digest: str | None = None, limits: Limits | None = None
) -> SearchedFile | DatasetPolicy:
    """Parse a fetched bundle of either kind; arguments and errors as in `open_bundle`."""
    limits = limits or Limits()
    text, tensors = read_container(fetched.content, fetched.source, limits)
    raw = read_json(text, fetched.source)
    if is_listed(raw):
        return DatasetPolicy.from_parts(text, raw, tensors, fetched, expect_digest)
    return SearchedFile(check_parts(text, raw, tensors, fetched.source, expect_digest, limits), tensors)
