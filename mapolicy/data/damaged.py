"""Images that cannot be decoded. An image is decoded to find out, once in a process unless its file changes."""

from collections.abc import Container, Sequence

import torch
from torch import Tensor

from ..runtime.sanitize import printable
from ..runtime.words import plural
from .decode import CorruptImageError, bombs_as_errors
from .image_dataset import ImageSet
from .loader import threaded_map

LISTED = 10  # images in a note

_KNOWN: dict[int, str] = {}  # by the hash of a file's path, size and time, what is wrong with it


def find_corrupt(images: ImageSet, indices: Tensor) -> dict[int, str]:
    """By index, why images cannot be decoded; all of them are decoded to find out."""

    def fault(index: int) -> str:
        state = images.state(index)
        key = None if state is None else hash(state)
        if key is not None and key in _KNOWN:
            return _KNOWN[key]
        why = _fault(images, index)
        if key is not None:
            _KNOWN[key] = why
        return why

    order = indices.tolist()
    with bombs_as_errors():
        return {index: why for index, why in zip(order, threaded_map(order, fault), strict=True) if why}


def _fault(images: ImageSet, index: int) -> str:
    try:
        images.read(index)
    except CorruptImageError as problem:
        return problem.why
    return ""


def left_out(images: ImageSet, skip_corrupt: bool, indices: Tensor) -> dict[int, str]:
    """By index, name and fault of the images that a run leaves out; without `skip_corrupt` none is looked at."""
    found = find_corrupt(images, indices) if skip_corrupt else {}
    return {index: f"{printable(images.place(index))}: {why}" for index, why in found.items()}


def note(corrupt: Sequence[str]) -> str:
    """What a run says of the images that it leaves out, each given as `name: why`."""
    listed = "; ".join(corrupt[:LISTED]) + ("; ..." if len(corrupt) > LISTED else "")
    return f"left out {plural(len(corrupt), 'image')} that cannot be decoded: {listed}"


def without(indices: Tensor, some: Container[int]) -> Tensor:
    """The indices that are not among some."""
    return indices[torch.tensor([index not in some for index in indices.tolist()], dtype=torch.bool)]
