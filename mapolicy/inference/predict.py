"""Predictions for image files: many at a time, and those that cannot be read are named."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..data.decode import EXTENSIONS, CorruptImageError, bombs_as_errors, decode, read_file
from ..data.folders import is_leftover
from ..errors import InputError
from ..runtime.sanitize import printable
from .network import TrainedNetwork
from .read_ahead import read_ahead


@dataclass(frozen=True)
class Prediction:
    """What a network says of one file.

    Attributes:
        path: of the file, as it was named or found.
        likeliest: classes and their probabilities, the likeliest first; empty if the file cannot be read.
        error: why it cannot be read; empty if it can.
        dark: whether it has more than 8 bits a pixel but small values, so that a network of 8-bit images sees it dark.
    """

    path: str
    likeliest: tuple[tuple[str, float], ...] = ()
    error: str = ""
    dark: bool = False


def find_images(names: Sequence[str]) -> list[str]:
    """Paths of image files: files as they are named, folders with everything below them that is an image by its ending.

    Raises:
        InputError: a folder holds no images, or cannot be read.
    """
    found: list[str] = []
    for name in names:
        if not Path(name).is_dir():
            found.append(name)
            continue
        inside = sorted(_inside(name))
        if not inside:
            raise InputError(printable(name), "holds no images", "name another folder, or files")
        found += inside
    return found


def _inside(folder: str) -> Iterator[str]:
    def give_up(problem: OSError) -> None:
        raise InputError(printable(problem.filename), problem.strerror or "cannot be read", "check the folder")

    for parent, folders, files in os.walk(folder, onerror=give_up):
        folders[:] = [name for name in folders if not is_leftover(name)]
        for file in files:
            if not is_leftover(file) and Path(file).suffix.lower() in EXTENSIONS:
                yield str(Path(parent) / file)


def predict_files(
    network: TrainedNetwork, paths: Sequence[str], top: int = 5, batch_size: int = 64
) -> Iterator[list[Prediction]]:
    """Predictions in the order of the paths, a batch at a time.

    Args:
        network: as `load_network` returned it.
        paths: image files.
        top: classes of each image, at most as many as the network knows.
        batch_size: images in one forward.
    """

    def read(path: str) -> tuple[Tensor, bool] | str:
        try:
            image = decode(read_file(path), path)
            return torch.tensor(network.reading.pixels(image, path)), network.reading.looks_dark(image)
        except CorruptImageError as problem:
            return problem.why

    with bombs_as_errors():
        for batch, found in read_ahead(paths, read, batch_size):
            yield _predicted(network, batch, found, min(top, len(network.classes)))


def _predicted(
    network: TrainedNetwork, paths: Sequence[str], read: Sequence[tuple[Tensor, bool] | str], top: int
) -> list[Prediction]:
    """Predictions for the images that were read, and why the others were not."""
    pixels = [each[0] for each in read if not isinstance(each, str)]
    answers = iter(_likeliest(network, torch.stack(pixels), top) if pixels else [])
    return [
        Prediction(path, error=each) if isinstance(each, str) else Prediction(path, next(answers), dark=each[1])
        for path, each in zip(paths, read, strict=True)
    ]


def _likeliest(network: TrainedNetwork, pixels: Tensor, top: int) -> list[tuple[tuple[str, float], ...]]:
    values, labels = network.predict(pixels, len(pixels)).topk(top, dim=1)
    return [
        tuple((network.classes[label], value) for label, value in zip(*row, strict=True))
        for row in zip(labels.tolist(), values.tolist(), strict=True)
    ]
