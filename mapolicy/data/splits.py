"""A data set as training needs it: splits, channel statistics and a fingerprint. `loader.py` makes the batches."""

import hashlib
import json
import math
import shlex
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..config import RunConfig, SearchConfig
from ..distributed import communicator
from ..errors import InputError, UsageError
from ..models.pretrained import normalisation_of
from ..runtime.sanitize import printable
from . import damaged
from .batch_sampler import batches_per_epoch, check_parts, fitting_batch
from .copies import find_copies, trouble_of_copies
from .dataset_factory import open_dataset
from .decode import bombs_as_errors
from .folders import LeftOut
from .image_dataset import FileImages, ImageSet, Source
from .kept_loader import read_groups
from .loader import ResidentSplit, Split, SplitLoader, StreamedSplit, threaded_map, worker_faults
from .reading import Cropper, ImageReading
from .stratify import check_sizes, draw_splits, set_aside
from .survey import Survey, choose_reading, notes, spread, survey

__all__ = ["DataSplits", "ResidentSplit", "Split", "StreamedSplit", "load_splits", "worker_faults"]

# Called with name, classes, number of images and fingerprint (None: not known yet) of a data set; may raise.
Check = Callable[[str, tuple[str, ...], int, str | None], None]

TRAINING, META_VALIDATION, TESTING, ASIDE = "training", "meta-validation", "testing", "set aside for the check"
FINGERPRINT_IMAGES = 100_000  # of a larger data set the fingerprint covers names and sizes instead of contents
SKETCHED_IMAGES = 2048  # digests in a sketch; of more images it has the smallest ones, which are a random sample
SKETCH_DIGITS = 12  # hexadecimal, of each digest in a sketch
TRIED_TESTS = 20_000  # test images that are decoded before a training, evenly spaced
COMPARED_CONTENTS = 100_000  # images of a run that are searched for the same image in several splits
COMPARED_IMAGES = 256  # of a streamed split, to find out whether all images are equal


@dataclass
class DataSplits:
    """The splits of a data set and what was found out about its images.

    Attributes:
        name: the data set's name, without a path.
        classes: names, by label.
        channels: 1 or 3.
        image_size: side of the images in pixels.
        pool_size: number of images in the pool, which the indices of both splits refer to.
        counts: images of each class in the training and meta-validation splits together.
        train: training split.
        meta_validation: meta-validation split.
        mean: of the training split at the network's input size, for each channel, in [0, 1]; by the setting
            `normalisation` that of the network's pretrained weights.
        std: likewise; 1 for a constant channel.
        fingerprint: SHA-256, hexadecimal, of class names and the training and meta-validation images: their indices,
            labels and contents (of more than `FINGERPRINT_IMAGES` images: names and file sizes). It does not depend
            on the data set's folder, on the image size, or on how images are loaded.
        corrupt: images left out, each as `name: reason`; the first call of `test` adds those of the test split.
        resident: whether the images are in memory.
        reading: how these and later images become the network's input.
        survey: what the headers say of the images of both splits, and of those that no split uses.
        notes: sentences for the user on how the data set was understood and its images are read.
        left_out: files and folders of the data set that are not used; the first call of `test` adds those of its split.
        own_validation: whether the meta-validation split is the data set's own.
        sketch: digests of the images that the fingerprint covers, as `sketch` writes them; empty where the fingerprint
            does not cover contents.
        aside: training images that a search keeps from training, for its check (`verify_per_class`); None without any.
            Later trainings use them.
        test_images: number of images of the test split; 0 where counting them would need to read it.
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
    reading: ImageReading
    _open_test: Callable[[], tuple[Split, tuple[str, ...]]] = field(repr=False)
    _try_test: Callable[[], None] = field(default=lambda: None, repr=False)
    survey: Survey | None = None
    notes: tuple[str, ...] = ()
    left_out: list[LeftOut] = field(default_factory=list)
    own_validation: bool = False
    sketch: str = ""
    aside: Split | None = None
    test_images: int = 0
    _test: Split | None = field(default=None, init=False, repr=False)

    def test(self) -> Split:
        """The test split, read at the first call.

        Raises:
            InputError: it cannot be read.
            UsageError: the data set has no test split of its own, and `test_per_class` is 0.
        """
        if self._test is None:
            self._test, corrupt = self._open_test()
            self.corrupt += corrupt
        return self._test

    def try_test(self) -> None:
        """Find out before a training whether its test images, which it reads at the end, can be decoded.

        Of a large test split some are tried; none with `skip_corrupt`, and none that have no files.

        Raises:
            CorruptImageError: one cannot.
        """
        self._try_test()

    def tell(self, on_note: Callable[[str], None]) -> None:
        """Say what the user should know of the data set before the run."""
        for note in self.notes:
            on_note(note)

    def document(self) -> dict[str, Any]:
        """What is known of the data set as plain values, for JSON; opens no split."""
        return {
            "dataset": self.name,
            "fingerprint": self.fingerprint,
            "splits": {"train": len(self.train), "meta_validation": len(self.meta_validation)},
            "classes": dict(zip(self.classes, self.counts, strict=True)),
            "reading": self.reading.to_dict(),
            "images": None if self.survey is None else self.survey.figures(),
            "notes": list(self.notes),
            "left_out": [vars(each) for each in self.left_out],
            "corrupt": list(self.corrupt),
        }

    def train_with_validation(self) -> Split:
        """One split with the training and meta-validation images."""
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
        device: device of the batches.
        stage: `search` or `train`; it is part of every seed except those of the splits.
        meta_validation: int64 indices that a bundle records; None draws them by `validation_per_class`.
        check: called before any image is read, and again with the fingerprint; may raise.

    Raises:
        UsageError: there is no such data set, or a split's size is not valid.
        InputError: the data set or the bundle's indices cannot be used.
        EnvironmentFault: the images do not fit on the device.
    """
    source = open_dataset(config)
    _check_settings(config, drawn=meta_validation is None and source.meta_validation is None)
    pool, classes = source.pool, source.classes
    if check is not None:
        check(source.name, classes, len(pool), None)
    _check_test_split(source, config, stage)
    indices = draw_splits(source, config, meta_validation, partial(damaged.left_out, pool, config.skip_corrupt))
    kept, aside = indices.train, torch.empty(0, dtype=torch.int64)
    if isinstance(config, SearchConfig) and config.verify_per_class:
        kept, aside = set_aside(indices.train, pool.labels, classes, config.verify_per_class, config.split_seed)
    _check_for_a_batch(config, source, len(kept))

    found = survey(pool, torch.cat(indices.usable).sort().values)
    reading = choose_reading(config, found, pool, indices.train)
    random = config.base_augmentation == "random_resized_crop"
    cropper = Cropper(reading, random, config.seed, stage)
    loader = SplitLoader(cropper, device, config.workers, config.memory_limit_gib)
    used = torch.cat([indices.train, indices.meta_validation]).sort().values
    groups = [kept, indices.meta_validation, *([aside] if len(aside) else [])]
    contents, digest = _contents_and_fingerprint(classes, pool, used)
    state = partial(_state, digest, bool(contents), pool, used)
    (train, validation, *rest), where = read_groups(config, source, loader, found, groups, state)
    _check_not_all_equal(train, source)
    mean, std = normalisation_of(config, reading.channels) or channel_statistics(train, reading.channels)
    counts = tuple(torch.bincount(pool.labels[used], minlength=len(classes)).tolist())
    if check is not None:
        check(source.name, classes, len(pool), digest)
    return DataSplits(
        name=source.name,
        classes=classes,
        channels=reading.channels,
        image_size=config.image_size,
        pool_size=len(pool),
        counts=counts,
        train=train,
        meta_validation=validation,
        mean=mean,
        std=std,
        fingerprint=digest,
        corrupt=tuple(indices.corrupt.values()),
        resident=isinstance(train, ResidentSplit),
        reading=reading,
        survey=found,
        notes=(
            *source.notes,
            *_left_out_note(source),
            *([damaged.note(list(indices.corrupt.values()))] if indices.corrupt else []),
            *notes(found, reading, counts, config.balance),
            *_copies_notes(source, config, groups, indices.test),
            *where,
        ),
        left_out=source.left_out,
        own_validation=meta_validation is None and source.meta_validation is not None,
        sketch=sketch(contents),
        aside=rest[0] if rest else None,
        test_images=_count_test(source, indices.test),
        _open_test=lambda: _open_test(source, indices.test, loader, config.skip_corrupt),
        _try_test=lambda: None if config.skip_corrupt else _try_test(source, indices.test),
    )


def count_training_images(config: RunConfig) -> int:
    """How many images a configuration trains on, without those of the meta-validation split.

    No image is read, except with `skip_corrupt`, which leaves out those that cannot be decoded.

    Raises:
        UsageError, InputError, EnvironmentFault: the data set cannot be opened or split.
    """
    source = open_dataset(config)
    train = draw_splits(source, config, None, partial(damaged.left_out, source.pool, config.skip_corrupt)).train
    if isinstance(config, SearchConfig) and config.verify_per_class:
        train, _ = set_aside(train, source.pool.labels, source.classes, config.verify_per_class, config.split_seed)
    return len(train)


def _check_for_a_batch(config: RunConfig, source: Source, images: int) -> None:
    if batches_per_epoch(config, images) == 0:
        parts = config.accumulate * communicator().size
        check_parts(images, parts)
        why = f"has {images} training images, fewer than batch_size = {config.batch_size}"
        raise InputError(source.where, why, f"use --batch-size {fitting_batch(images, parts)}, or add images")


def _contents_and_fingerprint(classes: Collection[str], pool: ImageSet, used: Tensor) -> tuple[list[bytes], str]:
    contents = content_digests(pool, used) if len(used) <= FINGERPRINT_IMAGES else []
    return contents, fingerprint(classes, pool, used, contents)


def _state(digest: str, of_contents: bool, pool: ImageSet, used: Tensor) -> str:
    """A text that changes with any image: a fingerprint that does not cover contents, with the times of the files."""
    if of_contents:
        return digest
    states = hashlib.sha256(digest.encode())
    for index in used.tolist():
        states.update(repr(pool.state(index)).encode())
    return states.hexdigest()


def _left_out_note(source: Source) -> list[str]:
    if not source.left_out:
        return []
    reasons = Counter(each.why for each in source.left_out).most_common()
    shown = ", ".join(f"{count} {printable(why)}" for why, count in reasons[:3])
    more = f" and {len(reasons) - 3} more reasons" if len(reasons) > 3 else ""
    return [f"{len(source.left_out)} files and folders are not used: {shown}{more}"]


def _copies_notes(source: Source, config: RunConfig, groups: Sequence[Tensor], drawn_test: Tensor) -> list[str]:
    """Sentences on images of a run that are in several splits or classes; a large data set is not searched for them.

    A data set's own test split is looked at where its images are files. Another one is not opened before it is needed.
    """
    names = (TRAINING, META_VALIDATION, ASIDE)
    parts = {name: (source.pool, at) for name, at in zip(names, groups, strict=False)}
    if len(drawn_test):
        parts[TESTING] = (source.pool, drawn_test)
    elif source.open_test is not None and source.check_test is not None:
        tests = source.open_test()
        parts[TESTING] = (tests, torch.arange(len(tests)))
    total = sum(len(at) for _, at in parts.values())
    if total > COMPARED_CONTENTS:
        command = shlex.join(["mapolicy", "data", config.dataset])
        return [f"{total} images are too many to look for the same image in several splits; `{command}` does"]
    return trouble_of_copies(find_copies(source.classes, parts))


def _check_not_all_equal(train: Split, source: Source) -> None:
    """Check that the network can learn something: not all training images are the same.

    Raises:
        InputError: they are.
    """
    if len(train) < 2:
        return
    if isinstance(train, ResidentSplit):
        equal = all(
            bool((train.images[rows.to(train.images.device)] == train.images[train.rows[0]]).all())
            for rows in train.rows.split(1024)
        )
    elif isinstance(train, StreamedSplit):
        some = train.indices[torch.linspace(0, len(train) - 1, min(len(train), COMPARED_IMAGES)).long()].tolist()
        pixels = (train.crop.central(train.images.read(index), train.images.name(index)) for index in some)
        with bombs_as_errors():
            first = next(pixels)
            equal = all(bool((each == first).all()) for each in pixels)
    else:
        equal = False
    if equal:
        why = f"all {len(train)} training images are the same at the network's input, so there is nothing to learn"
        raise InputError(source.where, why, "look at the files, or set value_range or alpha_background")


def _check_settings(config: RunConfig, drawn: bool) -> None:
    check_sizes(
        train_per_class=config.train_per_class,
        validation_per_class=config.validation_per_class,
        test_per_class=config.test_per_class,
        **({"verify_per_class": config.verify_per_class} if isinstance(config, SearchConfig) else {}),
    )
    if drawn and config.validation_per_class == 0:
        raise UsageError("validation_per_class", "0 leaves no images to learn from", "give a count or a fraction")


def _check_test_split(source: Source, config: RunConfig, stage: str) -> None:
    """Find out before a run what would otherwise fail after it: a search's trainings have the classes of the search."""
    if stage == "train" and source.open_test is None and config.test_per_class == 0:
        raise _no_test_split(source)
    if source.check_test is not None:
        source.check_test()


def _count_test(source: Source, drawn: Tensor) -> int:
    """Images of the test split; 0 where counting them would need to read it."""
    if source.open_test is None:
        return len(drawn)
    return len(source.open_test()) if source.check_test is not None else 0


def _open_test(source: Source, drawn: Tensor, loader: SplitLoader, skip_corrupt: bool) -> tuple[Split, tuple[str, ...]]:
    if source.open_test is None and len(drawn) == 0:
        raise _no_test_split(source)
    images = source.open_test() if source.open_test else source.pool
    indices = torch.arange(len(images)) if source.open_test else drawn
    corrupt = damaged.left_out(images, skip_corrupt, indices)
    indices = damaged.without(indices, corrupt)
    if len(indices) == 0:
        raise InputError(source.where, "its test split has no images", "add some")
    (split,) = loader.load(images, [indices])
    return split, tuple(corrupt.values())


def _try_test(source: Source, drawn: Tensor) -> None:
    images, indices = source.pool, drawn
    if source.open_test is not None and source.check_test is not None:
        images = source.open_test()
        indices = torch.arange(len(images))
    if isinstance(images, FileImages):
        for index in damaged.find_corrupt(images, torch.tensor(spread(indices, TRIED_TESTS), dtype=torch.int64)):
            images.read(index)  # raises


def _no_test_split(source: Source) -> UsageError:
    return UsageError(
        "test_per_class", f"is 0, and {source.name} has no test split of its own", "give a count or a fraction"
    )


def channel_statistics(split: Split, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation for each channel, pixels in [0, 1]: exact for resident images, else ImageNet's."""
    if not isinstance(split, ResidentSplit):
        from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

        if channels == 3:
            return tuple(IMAGENET_DEFAULT_MEAN), tuple(IMAGENET_DEFAULT_STD)
        return (sum(IMAGENET_DEFAULT_MEAN) / 3,), (sum(IMAGENET_DEFAULT_STD) / 3,)
    # Integer sums are exact, so they are the same on every device.
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


def content_digest(images: ImageSet, index: int) -> bytes:
    """SHA-256 of an image's content: its file, or its pixels.

    Raises:
        CorruptImageError: the file cannot be read.
    """
    return hashlib.sha256(images.content(index)).digest()


def content_digests(images: ImageSet, indices: Tensor) -> list[bytes]:
    """The `content_digest` of each image, in the order of the indices."""
    with bombs_as_errors():  # some image sets decode their images for `content`
        return threaded_map(indices.tolist(), lambda index: content_digest(images, index))


def sketch(contents: Collection[bytes]) -> str:
    """A set of digests in little space: the smallest `SKETCHED_IMAGES`, sorted, `SKETCH_DIGITS` of each."""
    return "".join(sorted({each.hex()[:SKETCH_DIGITS] for each in contents})[:SKETCHED_IMAGES])


def fingerprint(
    classes: Collection[str], images: ImageSet, indices: Tensor, contents: Sequence[bytes] | None = None
) -> str:
    """SHA-256 of class names, indices, labels and contents, as `DataSplits.fingerprint` describes.

    Args:
        classes: names, by label.
        images: the pool.
        indices: int64, ascending: the images that it covers.
        contents: their `content_digests`; None computes them, an empty list takes names and file sizes instead.
    """
    contents = content_digests(images, indices) if contents is None else contents

    def name_and_size(index: int) -> bytes:
        return hashlib.sha256(json.dumps([images.name(index), images.size(index)]).encode()).digest()

    digest = hashlib.sha256(json.dumps(["contents" if contents else "names", *classes]).encode())
    digest.update(torch.stack([indices, images.labels[indices]]).numpy().astype("<i8").tobytes())
    for each in contents or threaded_map(indices.tolist(), name_and_size):
        digest.update(each)
    return digest.hexdigest()
