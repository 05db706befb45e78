"""The bytes of a bundle named by a path, an https address or an `hf://` reference.

Only a remote reference uses the network, and only then is network code imported.
"""

import os
from pathlib import Path

from ..runtime.files import Precheck, ReadAt
from .limits import Limits
from .safetensors_reader import SMALL_FILE, check_header
from .source import Fetched, is_remote, read_file, redacted


def fetch(
    reference: str | os.PathLike[str], limits: Limits, precheck: Precheck = lambda read_at, size: None
) -> Fetched:
    """Read or download the file that a reference names.

    Args:
        reference: a path, an https address or an `hf://` reference. A `Path` is never remote.
        limits: a file of more than `file_bytes` is rejected before it is downloaded or read.
        precheck: may reject a file on disk before it is read whole (`files.read_regular_file`).

    Raises:
        UsageError: the reference is not valid.
        InputError: the file does not exist, may not be read, or is too large.
        EnvironmentFault: the network or the hub's server failed, or offline mode forbids the download.
    """
    if not is_remote(reference):
        return Fetched(read_file(Path(reference), limits, precheck), str(reference), str(reference))
    address = str(reference)
    if address.startswith("hf://"):
        from .hub import from_hub

        return from_hub(address, limits, precheck)
    from .download import download

    place = redacted(address)
    return Fetched(download(address, limits), place, place)


def fetch_container(reference: str | os.PathLike[str], limits: Limits) -> Fetched:
    """Read or download a bundle; the header of a large file is checked before the rest of it is read.

    Args:
        reference: as in `fetch`.
        limits: of the file's size and of its header.

    Raises:
        InputError: the file cannot be fetched, or its header is not that of a bundle (`read_container`).
        UsageError, EnvironmentFault: as in `fetch`.
    """

    def check_large(read_at: ReadAt, size: int) -> None:
        if size > SMALL_FILE:
            check_header(str(reference), read_at, size, limits)

    return fetch(reference, limits, check_large)
