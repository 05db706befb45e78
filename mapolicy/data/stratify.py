"""Stratified splits: which images of the pool are for training, meta-validation and testing.

Each class has one random permutation, which depends on `split_seed` and the class's name. Its first images are the test
split, the next ones the meta-validation split, the next ones the training split. A change of one split's size therefore
never changes the splits before it.
"""

import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from ..config import RunConfig
from ..errors import InputError, UsageError
from ..runtime.random import generator
from ..runtime.sanitize import printable
from ..runtime.words import plural
from .image_dataset import Source


def check_sizes(**values: float) -> None:
    """Check split sizes: counts of 1 or more must be whole.

    Raises:
        UsageError: a value of 1 or more that is not a whole number.
    """
    for setting, value in values.items():
        if value >= 1 and value != int(value):
            raise UsageError(setting, f"{value} is not a count of images", "give a whole number, or a fraction below 1")


def per_class(value: float, sizes: Sequence[int]) -> list[int]:
    """How many images to take of each class.

    Args:
        value: 1 or more: a count. Below 1: a fraction of the class, rounded half up, at least one image. 0: none.
        sizes: number of images of each class in the pool.
    """
    if value >= 1 or value == 0:
        return [int(value)] * len(sizes)
    # From the decimal digits: 0.145 of 100 is 14.5 and rounds up, but the binary float is a little less.
    return [max(1, math.floor(Fraction(str(value)) * size + Fraction(1, 2))) for size in sizes]


def shuffled_classes(labels: Tensor, classes: Sequence[str], seed: int) -> list[Tensor]:
    """The images of each class in the random order in which splits take them.

    Args:
        labels: int64 [N].
        classes: names, by label. A class keeps its order when others are added or removed.
        seed: `split_seed`.

    Returns:
        For each class, int64 positions in `labels`.
    """
    orders = []
    for label, name in enumerate(classes):
        members = torch.nonzero(labels == label).flatten()
        draws = generator(seed, "split", name, 0)
        orders.append(members[torch.randperm(len(members), generator=draws)])
    return orders


def without(orders: Sequence[Tensor], leave_out: Container[int]) -> list[Tensor]:
    """The orders of all classes without some images."""
    return [order[[index not in leave_out for index in order.tolist()]] for order in orders]


Taken = Sequence[tuple[str, Sequence[int]]]  # what a split is for, and its number of images of each class


def take(
    orders: Sequence[Tensor], counts: Sequence[int], classes: Sequence[str], setting: str, taken: Taken = ()
) -> tuple[Tensor, list[Tensor]]:
    """Take the first images of every class.

    Args:
        orders: for each class, its images that are not in a split yet.
        counts: how many to take of each class.
        classes: names of the classes, for an error.
        setting: name of the setting with the counts, for an error.
        taken: the splits before this one, for an error.

    Returns:
        The images taken, ascending int64, and the orders without them.

    Raises:
        InputError: a class has too few images left.
    """
    for label, (order, count) in enumerate(zip(orders, counts, strict=True)):
        if len(order) < count:
            raise _too_few(classes[label], len(order), count, setting, [(use, every[label]) for use, every in taken])
    chosen = torch.cat([order[:count] for order, count in zip(orders, counts, strict=True)])
    return chosen.sort().values, [order[count:] for order, count in zip(orders, counts, strict=True)]


def _too_few(name: str, left: int, count: int, setting: str, taken: Sequence[tuple[str, int]]) -> InputError:
    parts = [f"{number} for {use}" for use, number in taken if number]
    total = left + sum(number for _, number in taken)
    why = f"has {plural(total, 'image')}" + (f": {', '.join(parts)}, and {left} left" if parts else "")
    if count == 1:  # a fraction of a small class, or all that are left: not a number that the user has given
        use = {"train_per_class": "training", "validation_per_class": "meta-validation"}.get(setting, "testing")
        why, remedy = f"{why} for {use}", "add images to the class, or remove it"
    else:
        why, remedy = f"{why}, fewer than {setting} = {count}", f"add images to the class, or lower {setting}"
    return InputError(f"class {printable(name)!r}", why, remedy)


def check_given(given: Tensor, total: int, test: Tensor, name: str) -> Tensor:
    """Check the meta-validation indices of a bundle and sort them.

    Args:
        given: int64 [n].
        total: number of images in the pool.
        test: test images drawn from the same pool.
        name: of the data set, for an error.

    Raises:
        InputError: there are none, or one is out of range, repeated, or a test image.
    """
    ordered = given.to(device="cpu", dtype=torch.int64).flatten().sort().values
    if len(ordered) == 0:
        why = "has none of the bundle's meta-validation images: the bundle names none"
    elif ordered[0] < 0 or ordered[-1] >= total:
        why = f"has {plural(total, 'image')}, and the bundle's meta-validation split names others"
    elif (ordered[1:] == ordered[:-1]).any():
        why = "cannot be split as the bundle says: its meta-validation split names an image twice"
    elif torch.isin(ordered, test).any():
        why = "is not split as the bundle's was: images that the policy learned from would be test images"
    else:
        return ordered
    raise InputError(name, why, "name the data set that the policy was searched on")


def set_aside(train: Tensor, labels: Tensor, classes: Sequence[str], value: float, seed: int) -> tuple[Tensor, Tensor]:
    """Take images of each class out of a training split.

    Args:
        train: int64, ascending positions in the pool.
        labels: int64 [N], of the pool.
        classes: names, by label.
        value: `verify_per_class`: a count, or a fraction of the class's training images below 1.
        seed: `split_seed`.

    Returns:
        The training images that stay, and those taken; both ascending.

    Raises:
        InputError: a class would have no training image left.
    """
    own = labels[train]
    orders = [train[order] for order in shuffled_classes(own, classes, seed)]
    counts = per_class(value, [len(order) for order in orders])
    for name, order, count in zip(classes, orders, counts, strict=True):
        if count >= len(order):
            why = f"has {len(order)} training images, and verify_per_class sets {count} aside"
            raise InputError(f"class {printable(name)!r}", why, "lower verify_per_class or raise train_per_class")
    aside, rest = take(orders, counts, classes, "verify_per_class")
    return torch.cat(rest).sort().values, aside


@dataclass(frozen=True)
class SplitIndices:
    """Which images of a pool are in which split.

    Attributes:
        train, meta_validation, test: int64, ascending positions in the pool; `test` is empty where the data set has a
            test split of its own.
        usable: for each class, int64 positions of all images that are neither test images nor corrupt.
        corrupt: by position, what is wrong with the images left out.
    """

    train: Tensor
    meta_validation: Tensor
    test: Tensor
    usable: list[Tensor]
    corrupt: Mapping[int, str]


def draw_splits(
    source: Source,
    config: RunConfig,
    meta_validation: Tensor | None,
    find_corrupt: Callable[[Tensor], Mapping[int, str]],
) -> SplitIndices:
    """Divide the pool of a data set by the settings `train_per_class`, `validation_per_class` and `test_per_class`.

    Args:
        source: the data set.
        config: the run's settings.
        meta_validation: int64 indices that a bundle records; None draws them.
        find_corrupt: from int64 positions to what is wrong with those that are corrupt; called once, without the test
            images.

    Raises:
        InputError: a class has too few images, or the bundle's indices cannot be used.
    """
    labels, classes = source.pool.labels, source.classes
    sizes = torch.bincount(labels, minlength=len(classes)).tolist()
    orders = shuffled_classes(labels, classes, config.split_seed)
    test_counts = per_class(0 if source.open_test else config.test_per_class, sizes)
    test, orders = take(orders, test_counts, classes, "test_per_class")
    taken = [("testing", test_counts)]
    corrupt = find_corrupt(torch.cat(orders).sort().values)
    usable = orders = without(orders, corrupt)
    if meta_validation is None and source.meta_validation is not None:
        validation = source.meta_validation[[index not in corrupt for index in source.meta_validation.tolist()]]
        orders = without(orders, set(validation.tolist()))
    elif meta_validation is None:
        counts = per_class(config.validation_per_class, sizes)
        validation, orders = take(orders, counts, classes, "validation_per_class", taken)
        taken.append(("meta-validation", counts))
    else:
        validation = check_given(meta_validation, len(labels), test, source.name)
        if lost := [index for index in validation.tolist() if index in corrupt]:
            why = f"has a corrupt image: {corrupt[lost[0]]}"
            raise InputError("the bundle's meta-validation split", why, "restore it")
        orders = without(orders, set(validation.tolist()))
    # `train_per_class` 0 takes all that are left; a class without any is an error all the same.
    counts = per_class(config.train_per_class, sizes) if config.train_per_class else [max(1, len(o)) for o in orders]
    train, _ = take(orders, counts, classes, "train_per_class", taken)
    return SplitIndices(train, validation, test, usable, corrupt)
