"""A file's bytes and where they came from; reading one from disk.

No network code is imported here or by what reads a file on disk (`fetch` does it for a remote name alone).
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..runtime.files import ReadAt, read_regular_file
from .limits import Limits

BUNDLE_FILE, CARD_FILE, PICTURE_FILE = "policy.safetensors", "README.md", "p_jk.png"  # in a repository on the hub

Precheck = Callable[[ReadAt, int], None]


@dataclass(frozen=True)
class Fetched:
    """A file's content and where it came from.

    Attributes:
        content: the bytes, unchecked.
        source: as it was named, for errors; an address as `web.redacted` has it.
        origin: what finds the same file again: the path, the address as in `source`, or `hf://...@COMMIT`.
        commit: of the hub's repository; None elsewhere.
    """

    content: bytes
    source: str
    origin: str
    commit: str | None = None


def is_remote(reference: str | os.PathLike[str]) -> bool:
    """Whether fetching it means the network."""
    return isinstance(reference, str) and "://" in reference


def read_file(path: Path, limits: Limits, look: Precheck = lambda read_at, size: None) -> bytes:
    """The bytes of a regular file.

    Args:
        path: of the file.
        limits: a file of more than `file_bytes` is refused before it is read.
        look: may refuse the file before it is read whole (`files.read_regular_file`).

    Raises:
        InputError: there is no such file, it may not be read, or it is too large.
    """
    return read_regular_file(path, limits.file_bytes, partial(limits.how_to_raise, "file_bytes"), look)
