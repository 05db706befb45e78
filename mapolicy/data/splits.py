"""A data set as training needs it: fixed splits, statistics, a fingerprint. Batches are loaded in `loader.py`."""

import hashlib
import json
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..config import RunConfig
from ..distributed import communicator
from ..errors import InputError, UsageError
from ..runtime.sanitize import printable
from .dataset_factory import open_source
from .decode import EVALUATION_SHARE, CorruptImageError, ResizedCrop, bombs_as_errors
from .image_dataset import ImageSet, Source
from .loader import ResidentSplit, Split, SplitLoader, StreamedSplit, threaded_map, worker_faults
from .stratify import check_given, check_sizes, per_class, shuffled_classes, take, without

__all__ = ["DataSplits", "ResidentSplit", "Split", "StreamedSplit", "load_splits", "worker_faults"]

# Looks at name, classes, number of images and fingerprint (None: not known yet) of a data set, and may raise.
Check = Callable[[str, tuple[str, ...], int, str | None], None]

FINGERPRINT_IMAGES = 100_000  # more than these, and the fingerprint covers names and sizes instead of contents
INSPECTED_IMAGES = 2_000  # whose headers decide between one channel and three


@dataclass
class DataSplits:
    """A data set, split.

    Attributes:
        name: the data set's name, without a path.
        classes: names, by label.
        channels: 1 or 3.
        image_size: side of the images, pixels.
        pool_size: images that the indices of training and meta-validation split count over.
        counts: images of each class in training and meta-validation split together.
        train: training split.
        meta_validation: meta-validation split.
        mean: of the training split at the network's input, per channel, in [0, 1].
        std: likewise; 1 where a channel is constant.
        fingerprint: SHA-256, hexadecimal, of class names and the training and meta-validation images: their indices,
            labels and contents (of more than `FINGERPRINT_IMAGES` images: names and file sizes). It does not depend
            on where the data lies, on the image size, or on how images are held.
        corrupt: images left out, each as `name: reason`; `test` adds those of the test split.
        resident: whether the images are in memory.
    """

    name: str
    classes: tuple[str, ...]
    channels: int
    image_size: int
    pool_size: int
    counts: tuple[int, ...]
    train: Split
    meta_validation: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    corrupt: tuple[str, ...]
    resident: bool
    _open_test: Callable[[], tuple[Split, tuple[str, ...]]] = field(repr=False)
    _test: Split | None = field(default=None, init=False, repr=False)

    def test(self) -> Split:
        """The test split; nothing of it is read before the first call.

        Raises:
            InputError: it cannot be read.
            UsageError: the data set has none of its own, and `test_per_class` is 0.
        """
        if self._test is None:
            self._test, corrupt = self._open_test()
            self.corrupt += corrupt
        return self._test

    def train_with_validation(self) -> Split:
        """Training and meta-validation split as one."""
        return self.train.merge(self.meta_validation)


def load_splits(
    config: RunConfig,
    device: torch.device,
    stage: str,
    meta_validation: Tensor | None = None,
    check: Check | None = None,
) -> DataSplits:
    """Open a data set and split it.

    Args:
        config: the run's settings.
        device: where batches go.
        stage: `search` or `train`; part of every draw's seed except those of the splits.
        meta_validation: int64 indices that a bundle records; None draws them by `validation_per_class`.
        check: called before any image is read, and again with the fingerprint.

    Raises:
        UsageError: no such data set, or a count that cannot be meant.
        InputError: the data set or the bundle's indices cannot be used.
        EnvironmentFault: the images do not fit on the device.
    """
    check_sizes(
        train_per_class=config.train_per_class,
        validation_per_class=config.validation_per_class,
        test_per_class=config.test_per_class,
    )
    if meta_validation is None and config.validation_per_class == 0:
        raise UsageError("validation_per_class", "0 leaves no images to learn from", "give a count or a fraction")
    with communicator().local_main_process_first():
        source = open_source(config.dataset, Path(config.data_dir), config.memory_limit_gib, config.download)
    pool, classes = source.pool, source.classes
    if check is not None:
        check(source.name, classes, len(pool), None)
    if stage == "train":
        # What would only be found out after the training.
        if source.open_test is None and config.test_per_class == 0:
            raise _no_test_split(source)
        if source.check_test is not None:
            source.check_test()
    sizes = torch.bincount(pool.labels, minlength=len(classes)).tolist()

    orders = shuffled_classes(pool.labels, classes, config.split_seed)
    test_counts = per_class(0 if source.open_test else config.test_per_class, sizes)
    test, orders = take(orders, test_counts, classes, "test_per_class")
    bad = _corrupt(pool, torch.cat(orders).sort().values) if config.skip_corrupt else {}
    eligible = orders = without(orders, bad)
    if meta_validation is None:
        counts = per_class(config.validation_per_class, sizes)
        validation, orders = take(orders, counts, classes, "validation_per_class")
    else:
        validation = check_given(meta_validation, len(pool), test, source.name)
        if lost := [index for index in validation.tolist() if index in bad]:
            raise InputError("the bundle's meta-validation split", f"has a corrupt image: {bad[lost[0]]}", "restore it")
        orders = without(orders, set(validation.tolist()))
    # At least one, also where all that are left are asked for.
    counts = per_class(config.train_per_class, sizes) if config.train_per_class else [max(1, len(o)) for o in orders]
    train, _ = take(orders, counts, classes, "train_per_class")
    if len(train) < config.batch_size:
        why = f"has {len(train)} training images, fewer than batch_size = {config.batch_size}"
        raise InputError(source.where, why, "lower batch_size or raise train_per_class")

    random_crop = config.base_augmentation == "random_resized_crop"
    share = EVALUATION_SHARE if random_crop else 1.0
    channels = 1 if _all_gray(pool, eligible) else 3
    framing = ResizedCrop(channels, config.image_size, share, random_crop, config.seed, stage)
    loader = SplitLoader(framing, device, config.workers, config.memory_limit_gib)
    train_split, validation_split = loader.load(pool, [train, validation])
    mean, std = _statistics(train_split, channels)
    used = torch.cat([train, validation]).sort().values
    fingerprint = _fingerprint(classes, pool, used)
    if check is not None:
        check(source.name, classes, len(pool), fingerprint)
    return DataSplits(
        name=source.name,
        classes=classes,
        channels=channels,
        image_size=config.image_size,
        pool_size=len(pool),
        counts=tuple(torch.bincount(pool.labels[used], minlength=len(classes)).tolist()),
        train=train_split,
        meta_validation=validation_split,
        mean=mean,
        std=std,
        fingerprint=fingerprint,
        corrupt=tuple(bad.values()),
        resident=isinstance(train_split, ResidentSplit),
        _open_test=lambda: _open_test(source, test, loader, config.skip_corrupt),
    )


def _open_test(source: Source, drawn: Tensor, loader: SplitLoader, skip_corrupt: bool) -> tuple[Split, tuple[str, ...]]:
    if source.open_test is None and len(drawn) == 0:
        raise _no_test_split(source)
    images = source.open_test() if source.open_test else source.pool
    indices = torch.arange(len(images)) if source.open_test else drawn
    bad = _corrupt(images, indices) if skip_corrupt else {}
    indices = indices[[index not in bad for index in indices.tolist()]]
    if len(indices) == 0:
        raise InputError(source.where, "its test split has no images", "add some")
    (split,) = loader.load(images, [indices])
    return split, tuple(bad.values())


def _no_test_split(source: Source) -> UsageError:
    return UsageError(
        "test_per_class", f"is 0, and {source.name} has no test split of its own", "give a count or a fraction"
    )


def _corrupt(images: ImageSet, indices: Tensor) -> dict[int, str]:
    """What is wrong with the images that cannot be decoded, by index."""

    def fault(index: int) -> str:
        try:
            images.read(index)
        except CorruptImageError as problem:
            return f"{printable(images.name(index))}: {problem.why}"
        return ""

    order = indices.tolist()
    with bombs_as_errors():
        return {index: why for index, why in zip(order, threaded_map(order, fault), strict=True) if why}


def _all_gray(images: ImageSet, orders: Sequence[Tensor]) -> bool:
    """Whether images have one channel, judged by the first few of each class, `INSPECTED_IMAGES` or so altogether."""
    few = math.ceil(INSPECTED_IMAGES / len(orders))
    inspected = torch.cat([order.sort().values[:few] for order in orders]).tolist()
    with bombs_as_errors():
        return all(threaded_map(inspected, images.gray))


def _statistics(split: Split, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel: exact where images are resident, otherwise ImageNet's."""
    if not isinstance(split, ResidentSplit):
        from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

        if channels == 3:
            return tuple(IMAGENET_DEFAULT_MEAN), tuple(IMAGENET_DEFAULT_STD)
        return (sum(IMAGENET_DEFAULT_MEAN) / 3,), (sum(IMAGENET_DEFAULT_STD) / 3,)
    # Sums of whole numbers are exact, so they are the same on every device.
    total = torch.zeros(channels, dtype=torch.int64)
    squares = torch.zeros(channels, dtype=torch.int64)
    for start in range(0, len(split), 1024):
        rows = split.rows[start : start + 1024].to(split.images.device)
        levels = split.images[rows].to(torch.int32)
        total += levels.sum((0, 2, 3), dtype=torch.int64).cpu()
        squares += levels.square().sum((0, 2, 3), dtype=torch.int64).cpu()
    count = len(split) * split.images.shape[2] * split.images.shape[3]
    mean = tuple(first / (255 * count) for first in total.tolist())
    variances = [count * second - first * first for first, second in zip(total.tolist(), squares.tolist(), strict=True)]
    return mean, tuple(math.sqrt(variance) / (255 * count) if variance else 1.0 for variance in variances)


def _fingerprint(classes: Collection[str], images: ImageSet, indices: Tensor) -> str:
    """SHA-256 of class names, indices, labels and contents, as `DataSplits.fingerprint` says."""
    order = indices.tolist()
    whole = len(order) <= FINGERPRINT_IMAGES

    def evidence(index: int) -> bytes:
        if whole:
            return hashlib.sha256(images.content(index)).digest()
        return hashlib.sha256(json.dumps([images.name(index), images.size(index)]).encode()).digest()

    digest = hashlib.sha256(json.dumps(["contents" if whole else "names", *classes]).encode())
    digest.update(torch.stack([indices, images.labels[indices]]).numpy().astype("<i8").tobytes())
    with bombs_as_errors():  # some image sets decode to get at the content
        for each in threaded_map(order, evidence):
            digest.update(each)
    return digest.hexdigest()
