"""Images of a data set that have the same content: within a split harmless, across splits and classes a fault."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..runtime.sanitize import printable
from ..runtime.words import plural_are
from .decode import CorruptImageError, bombs_as_errors
from .image_dataset import ImageSet
from .loader import threaded_map

SHOWN = 3  # names in a sentence


@dataclass(frozen=True)
class Copies:
    """Images that have the same content.

    Attributes:
        names: of the images, relative to the data set.
        splits: of the images, in the same order.
        classes: of the images, likewise.
    """

    names: tuple[str, ...]
    splits: tuple[str, ...]
    classes: tuple[str, ...]

    def __str__(self) -> str:
        named = [f"{name} ({split})" for name, split in zip(self.names, self.splits, strict=True)][:SHOWN]
        rest = len(self.names) - len(named)
        return " = ".join(named) + (f" = {rest} more" if rest else "")


def find_copies(classes: Sequence[str], parts: Mapping[str, tuple[ImageSet, Tensor]]) -> tuple[Copies, ...]:
    """Groups of images with the same content, in the order of the first image of each.

    Files are compared by their sizes first, and read only where sizes are equal.

    Args:
        classes: names, by label.
        parts: for each split its image set, and int64 positions in it.
    """
    places = [(part, images, index) for part, (images, at) in parts.items() for index in at.tolist()]

    def size(number: int) -> int:
        _, images, index = places[number]
        try:
            return images.size(index)
        except CorruptImageError:
            return -1

    def digest(number: int) -> bytes:
        _, images, index = places[number]
        try:
            return hashlib.sha256(images.content(index)).digest()
        except CorruptImageError:
            return b""

    sizes = threaded_map(range(len(places)), size)
    often = Counter(sizes)
    alike = [number for number, each in enumerate(sizes) if often[each] > 1 and each >= 0]  # a lone size has no copy
    groups: dict[bytes, list[int]] = defaultdict(list)
    with bombs_as_errors():
        for number, content in zip(alike, threaded_map(alike, digest), strict=True):
            groups[content].append(number)
    return tuple(
        Copies(
            names=tuple(printable(places[n][1].place(places[n][2])) for n in numbers),
            splits=tuple(places[n][0] for n in numbers),
            classes=tuple(classes[int(places[n][1].labels[places[n][2]])] for n in numbers),
        )
        for content, numbers in groups.items()
        if content and len(numbers) > 1
    )


def trouble_of_copies(copies: Sequence[Copies]) -> list[str]:
    """Sentences on images that are in several splits or in several classes."""
    lines = []
    across = [group for group in copies if len(set(group.splits)) > 1]
    if across:
        pairs = Counter(tuple(dict.fromkeys(group.splits)) for group in across)
        found = ", ".join(f"{count} in {' and '.join(splits)}" for splits, count in pairs.most_common(SHOWN))
        what, named = plural_are(len(across), "image"), some([str(group) for group in across])
        lines.append(f"{what} in several splits, {found} ({named}): accuracies will be too high")
    contradictory = [group for group in copies if len(set(group.classes)) > 1]
    if contradictory:
        what, named = plural_are(len(contradictory), "image"), some([str(group) for group in contradictory])
        lines.append(f"{what} in several classes ({named}): one of the labels is wrong")
    return lines


def some(names: Sequence[str]) -> str:
    """The first names for a sentence."""
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
