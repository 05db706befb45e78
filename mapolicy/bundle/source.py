"""A bundle file's bytes with their origin, and reading one from disk.

Neither this module nor reading a local file imports network code; `fetch` imports it for a remote name.
"""

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..runtime.files import Precheck, read_regular_file
from .limits import Limits

# File names in a repository on the Hugging Face Hub.
BUNDLE_FILE, CARD_FILE, PICTURE_FILE = "policy.safetensors", "README.md", "p_jk.png"
LEVELS_FILE = "levels.png"


@dataclass(frozen=True)
class Fetched:
    """A file's content and where it came from.

    Attributes:
        content: the bytes, unchecked.
        source: the name that the user gave, for errors; an address without its secrets (`download.redacted`).
        origin: a name that finds the same file again: the path, the address as in `source`, or `hf://...@COMMIT`.
        commit: of the repository on the hub; None for other sources.
    """

    content: bytes
    source: str
    origin: str
    commit: str | None = None


def is_remote(reference: str | os.PathLike[str]) -> bool:
    """Whether fetching this reference needs the network: a text with a scheme does, a `Path` never does."""
    return isinstance(reference, str) and "://" in reference


def read_file(path: Path, limits: Limits, precheck: Precheck = lambda read_at, size: None) -> bytes:
    """The bytes of a regular file.

    Args:
        path: the file.
        limits: a file of more than `file_bytes` is rejected before it is read.
        precheck: may reject the file before it is read whole (`files.read_regular_file`).

    Raises:
        InputError: the file is missing, may not be read, or is too large.
    """
    return read_regular_file(path, limits.file_bytes, partial(limits.how_to_raise, "file_bytes"), precheck)
