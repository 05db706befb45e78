"""The file that a path, an https address or an `hf://` reference names.

The network is reached for a name that says so and for nothing else; its code is imported then.
"""

import os
from pathlib import Path

from ..runtime.files import ReadAt
from .limits import Limits
from .safetensors_reader import SMALL_FILE, check_header
from .source import Fetched, Precheck, is_remote, read_file


def fetch(reference: str | os.PathLike[str], limits: Limits, look: Precheck = lambda read_at, size: None) -> Fetched:
    """The file that a path, an https address or an `hf://` reference names.

    Args:
        reference: a `Path` is never remote; a text is where it has a scheme.
        limits: a file of more than `file_bytes` is refused before it is downloaded or read.
        look: may refuse a file on disk before it is read whole (`files.read_regular_file`).

    Raises:
        UsageError: a reference that cannot be meant.
        InputError: there is no such file, or it may not be read, or it is too large.
        EnvironmentFault: the network or the hub's server failed, or offline mode forbids it.
    """
    if not is_remote(reference):
        return Fetched(read_file(Path(reference), limits, look), str(reference), str(reference))
    address = str(reference)
    if address.startswith("hf://"):
        from .hub import from_hub

        return from_hub(address, limits, look)
    from .download import download, redacted

    place = redacted(address)
    return Fetched(download(address, limits), place, place)


def fetch_container(reference: str | os.PathLike[str], limits: Limits) -> Fetched:
    """As `fetch`; a large file is read whole only if its header is in order and says its size.

    Raises:
        InputError: as `fetch` and `read_container`.
        UsageError, EnvironmentFault: as `fetch`.
    """

    def look(read_at: ReadAt, size: int) -> None:
        if size > SMALL_FILE:
            check_header(str(reference), read_at, size, limits)

    return fetch(reference, limits, look)
