"""A bundle file's bytes with their origin, reading one from disk, and addresses without their secrets.

Neither this module nor reading a local file imports network code; `fetch` imports it for a remote name.
"""

import os
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..runtime.files import Precheck, read_regular_file
from .limits import Limits

# File names in a repository on the Hugging Face Hub.
BUNDLE_FILE, CARD_FILE, PICTURE_FILE = "policy.safetensors", "README.md", "p_jk.png"
LEVELS_FILE = "levels.png"

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
_HOST = re.compile(r"(?:[\w.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?")


@dataclass(frozen=True)
class Fetched:
    """A file's content and where it came from.

    Attributes:
        content: the bytes, unchecked.
        source: the name that the user gave, for errors; an address without its secrets (`redacted`).
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


def redacted(reference: str) -> str:
    """An address without account, password, query and fragment, which may be secret; other text unchanged.

    Where the host is not a host name, as after a slash in a password, only the scheme remains.
    """
    scheme, separator, rest = reference.partition("://")
    if not separator:
        return reference
    host, slash, path = re.split("[?#]", rest, maxsplit=1)[0].partition("/")
    host = host.rpartition("@")[2]
    if not _SCHEME.fullmatch(scheme):
        return "...://..."
    return f"{scheme}://{host}{slash}{path}" if _HOST.fullmatch(host) else f"{scheme}://..."


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
