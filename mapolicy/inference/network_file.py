"""A network file: weights and description in one safetensors file. Reading imports no torch.

A network file is untrusted, like a bundle: the same strict reader reads it, every value must be finite, and
`network.py` checks the architecture without weights before it builds anything.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..bundle.limits import Limits
from ..bundle.safetensors_reader import NETWORK, SMALL_FILE, RawTensor, check_header, read_container, write_container
from ..errors import InputError
from ..runtime.files import NETWORK_FILE, PICKLES, ReadAt, read_regular_file
from ..runtime.sanitize import invalid_bundle, quoted
from .network_config import NetworkConfig, read_config


@dataclass(frozen=True)
class NetworkFile:
    """A network file that was read and checked, all but its architecture.

    Attributes:
        config: its description.
        tensors: by name, views of the file's bytes.
        source: its path, for errors.
        limits: under which it was read.
    """

    config: NetworkConfig
    tensors: Mapping[str, RawTensor]
    source: str
    limits: Limits


def network_path(reference: str | os.PathLike[str]) -> Path:
    """The network file that a user means: the file itself, or `network.safetensors` in the folder of a run.

    Raises:
        InputError: a folder without a network.
    """
    path = Path(reference)
    if not path.is_dir():
        return path
    if not (path / NETWORK_FILE).exists():
        why = f"holds no {NETWORK_FILE}: it is no run's folder, or its run is not finished"
        raise InputError(str(path), why, "name the folder of a finished run, or a network file")
    return path / NETWORK_FILE


def read_network_file(reference: str | os.PathLike[str], limits: Limits | None = None) -> NetworkFile:
    """Read and check a network file; the header of a large one is checked before the rest is read.

    Args:
        reference: a network file, or the folder of a finished run.
        limits: of its size; None takes the default ones.

    Raises:
        InputError: it is missing, or not a network file; one line of printable ASCII names what is wrong.
    """
    limits, path = limits or Limits(), network_path(reference)
    source = str(path)
    if path.suffix.lower() in PICKLES:
        remedy = f"name a run's {NETWORK_FILE}; `mapolicy train --weights {path.name}` says how to convert weights"
        raise InputError(source, "is a pickle, which could run code", remedy)

    def check_large(read_at: ReadAt, size: int) -> None:
        if size > SMALL_FILE:
            check_header(source, read_at, size, limits, NETWORK)

    content = read_regular_file(path, limits.file_bytes, partial(limits.how_to_raise, "file_bytes"), check_large)
    return parse_network_file(content, source, limits)


def parse_network_file(content: bytes, source: str, limits: Limits | None = None) -> NetworkFile:
    """Check the bytes of a network file.

    Args:
        content: the whole file.
        source: its name, for the error.
        limits: of its size; None takes the default ones.

    Raises:
        InputError: it is not a network file.
    """
    limits = limits or Limits()
    text, tensors = read_container(content, source, limits, NETWORK)
    config = read_config(text, source)
    if config.image_size**2 > limits.pixels:
        why = f"takes images of {config.image_size} x {config.image_size} pixels, more than the {limits.pixels} allowed"
        raise invalid_bundle(source, why, limits.how_to_raise("pixels", config.image_size**2))
    for name, tensor in tensors.items():
        if not tensor.is_finite():
            raise invalid_bundle(source, f"tensor {quoted(name)} has a number that is not finite")
    return NetworkFile(config, tensors, source, limits)


def network_bytes(config: NetworkConfig, tensors: Mapping[str, RawTensor]) -> bytes:
    """The content of a network file; equal arguments give equal bytes."""
    return write_container(config.to_json(), tensors, NETWORK)
