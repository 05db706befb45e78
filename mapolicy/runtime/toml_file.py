"""Settings are read from TOML files: recipes, and the configuration that a run folder keeps."""

import tomllib
from pathlib import Path
from typing import Any

from ..errors import InputError
from .files import read_regular_file

LARGEST = 2**20  # bytes


def read_toml(path: Path) -> dict[str, Any]:
    """The flat settings of a TOML file.

    Raises:
        InputError: the file is missing or not TOML.
    """
    content = read_regular_file(path, LARGEST)
    try:
        return tomllib.loads(content.decode())
    except (ValueError, RecursionError) as problem:  # bad TOML, bad UTF-8, a number too long, tables too deep
        raise InputError(str(path), f"not TOML ({problem})", "correct the file") from None
