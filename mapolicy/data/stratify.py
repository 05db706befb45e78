"""Which images go where: stratified draws that depend on `split_seed` and nothing else.

Every class has one permutation. Test images are its beginning, then come meta-validation images, then training images;
so a change of one count never moves an image of an earlier split, and `train_per_class` moves none at all.
"""

import math
from collections.abc import Container, Sequence
from fractions import Fraction

import torch
from torch import Tensor

from ..errors import InputError, UsageError
from ..runtime.random import generator
from ..runtime.sanitize import printable


def check_sizes(**values: float) -> None:
    """Refuse counts that are not whole.

    Raises:
        UsageError: a value of 1 or more that is no whole number.
    """
    for setting, value in values.items():
        if value >= 1 and value != int(value):
            raise UsageError(setting, f"{value} is no count of images", "give a whole number, or a fraction below 1")


def per_class(value: float, sizes: Sequence[int]) -> list[int]:
    """Images to take of each class.

    Args:
        value: a count from 1 up, or a fraction of the class below 1, rounded half up but at least 1; 0 takes none.
        sizes: images of each class in the whole pool.
    """
    if value >= 1 or value == 0:
        return [int(value)] * len(sizes)
    # As written: 0.145 of 100 is 14.5 and goes up, which the nearest binary fraction would not.
    return [max(1, math.floor(Fraction(str(value)) * size + Fraction(1, 2))) for size in sizes]


def shuffled_classes(labels: Tensor, classes: Sequence[str], seed: int) -> list[Tensor]:
    """The images of each class in the order in which splits take them.

    Args:
        labels: int64 [N].
        classes: names, by label; a class keeps its order when others come or go.
        seed: `split_seed`.

    Returns:
        For each class, positions int64 into `labels`.
    """
    orders = []
    for label, name in enumerate(classes):
        members = torch.nonzero(labels == label).flatten()
        draws = generator(seed, "split", name, 0)
        orders.append(members[torch.randperm(len(members), generator=draws)])
    return orders


def without(orders: Sequence[Tensor], leave_out: Container[int]) -> list[Tensor]:
    """The same orders less some images."""
    return [order[[index not in leave_out for index in order.tolist()]] for order in orders]


def take(
    orders: Sequence[Tensor], counts: Sequence[int], classes: Sequence[str], setting: str
) -> tuple[Tensor, list[Tensor]]:
    """The first images of every class.

    Args:
        orders: what is left of each class.
        counts: how many to take of each.
        classes: their names, for an error.
        setting: the setting that asks for them, for an error.

    Returns:
        The images taken, ascending int64, and what is left of each class.

    Raises:
        InputError: a class has too few images left.
    """
    for order, count, name in zip(orders, counts, classes, strict=True):
        if len(order) < count:
            raise InputError(
                setting,
                f"asks for {count} images of class {printable(name)!r}, which has {len(order)} left",
                "lower the images per class or add some",
            )
    taken = torch.cat([order[:count] for order, count in zip(orders, counts, strict=True)])
    return taken.sort().values, [order[count:] for order, count in zip(orders, counts, strict=True)]


def check_given(given: Tensor, total: int, test: Tensor, name: str) -> Tensor:
    """Meta-validation indices that come from a bundle, ascending.

    Args:
        given: int64 [n].
        total: images in the pool.
        test: test images drawn from the same pool.
        name: of the data set, for an error.

    Raises:
        InputError: out of range, repeated, none at all, or among the test images.
    """
    ordered = given.to(device="cpu", dtype=torch.int64).flatten().sort().values
    if len(ordered) == 0:
        why = "has none of the bundle's meta-validation images: the bundle names none"
    elif ordered[0] < 0 or ordered[-1] >= total:
        why = f"has {total} images, and the bundle's meta-validation split names others"
    elif (ordered[1:] == ordered[:-1]).any():
        why = "cannot be split as the bundle says: its meta-validation split names an image twice"
    elif torch.isin(ordered, test).any():
        why = "is not split as the bundle's was: images that the policy learned from would be test images"
    else:
        return ordered
    raise InputError(name, why, "name the data set that the policy was searched on")
