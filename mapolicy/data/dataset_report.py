"""A data set looked at before a run: classes, splits, kinds of images, what is left out, duplicates, likely trouble."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..config import RunConfig
from ..errors import InputError, UsageError
from ..runtime.sanitize import printable
from ..runtime.words import plural
from .batch_sampler import NOTABLE_SHARE, batches_per_epoch, fitting_batch, left_out
from .copies import Copies, find_copies, some, trouble_of_copies
from .damaged import find_corrupt, note, without
from .dataset_factory import open_dataset
from .folders import LeftOut
from .image_dataset import ImageSet, Source
from .reading import ImageReading
from .splits import META_VALIDATION, TESTING, TRAINING
from .stratify import draw_splits
from .survey import Survey, choose_reading, notes, spread, survey

UNUSED = "unused"
DECODED_PIXELS = 10**9  # about ten seconds on two cores
LOOKED_AT = 256  # images, to estimate how many these are


@dataclass(frozen=True)
class DatasetReport:
    """What a data set is, as a run with a configuration would use it.

    Attributes:
        name, where: the data set's name, and its folder or name.
        images: number of images of each split by its name; `unused` are those that the settings leave over.
        classes: for each class by name the same.
        pool: headers of the images that are not test images.
        test: headers of the test images; None where there are none.
        reading: how images are read.
        notes: sentences that a run says at its start.
        trouble: sentences on what is likely to go wrong.
        left_out: files and folders that are not used.
        unreadable: images that cannot be read, as `name: why`; with `skip_corrupt` they are in no split.
        copies: groups of images with the same content.
    """

    name: str
    where: str
    images: Mapping[str, int]
    classes: Mapping[str, Mapping[str, int]]
    pool: Survey
    test: Survey | None
    reading: ImageReading
    notes: tuple[str, ...]
    trouble: tuple[str, ...]
    left_out: tuple[LeftOut, ...]
    unreadable: tuple[str, ...]
    copies: tuple[Copies, ...]

    def document(self) -> dict[str, Any]:
        """All of it as plain values, for JSON."""
        return {
            "dataset": self.name,
            "where": self.where,
            "images": dict(self.images),
            "classes": {name: dict(counts) for name, counts in self.classes.items()},
            "headers": {"pool": self.pool.figures(), "test": None if self.test is None else self.test.figures()},
            "reading": self.reading.to_dict(),
            "notes": list(self.notes),
            "trouble": list(self.trouble),
            "left_out": [vars(each) for each in self.left_out],
            "unreadable": list(self.unreadable),
            "copies": [{name: list(values) for name, values in vars(each).items()} for each in self.copies],
        }


def report_dataset(config: RunConfig) -> DatasetReport:
    """Look at a data set as a run with this configuration would use it: headers, contents, and whether images decode.

    Of a set with more than `DECODED_PIXELS`, as many images as fit are decoded, evenly spaced; all with `skip_corrupt`.

    Raises:
        UsageError, InputError, EnvironmentFault: the data set cannot be opened, as in a run.
    """
    source = open_dataset(config)
    trouble: list[str] = []
    images, everything = source.pool, torch.arange(len(source.pool))
    bad, seen = _undecodable(images, config.skip_corrupt)
    parts = _parts(source, config, trouble, bad)
    drawn_test = parts.pop(TESTING, torch.empty(0, dtype=torch.int64))
    counted = {name: (images, at) for name, at in parts.items() if len(at)}
    test, bad_tests = None, dict[int, str]()
    if len(drawn_test):
        counted[TESTING] = (images, drawn_test)
        test = survey(images, drawn_test)
        bad = {**test.unreadable, **bad}
    elif source.open_test is not None:
        tests = source.open_test()
        bad_tests, seen_tests = _undecodable(tests, config.skip_corrupt)
        own_test = without(torch.arange(len(tests)), bad_tests if config.skip_corrupt else {})
        counted[TESTING], test, seen = (tests, own_test), survey(tests, own_test), seen + seen_tests
        bad_tests = {**test.unreadable, **bad_tests}
    if UNUSED in counted:
        counted[UNUSED] = counted.pop(UNUSED)  # last
    pool = survey(images, torch.cat(list(parts.values())).sort().values)
    bad = {**pool.unreadable, **bad}
    unreadable = _named(images, bad) + (_named(counted[TESTING][0], bad_tests) if bad_tests else [])
    training = parts.get(TRAINING, everything)
    reading = choose_reading(config, pool, images, without(training, bad))
    copies = find_copies(source.classes, counted)
    by_class = {
        name: {part: int((of.labels[at] == label).sum()) for part, (of, at) in counted.items()}
        for label, name in enumerate(source.classes)
    }
    learned_from = [name for name in counted if name in (TRAINING, META_VALIDATION)] or list(counted)
    sizes = [sum(counts[name] for name in learned_from) for counts in by_class.values()]
    lines = [*source.notes, *notes(pool, reading, sizes, config.balance)]
    total = len(everything) + (0 if source.open_test is None else len(counted[TESTING][0]))
    if seen < total:
        lines.append(f"{seen} of {total} images were decoded to look for damaged ones; --skip-corrupt decodes all")
    if unreadable and config.skip_corrupt:
        lines.append(note(unreadable))
    return DatasetReport(
        name=source.name,
        where=source.where,
        images={name: len(at) for name, (_, at) in counted.items()},
        classes=by_class,
        pool=pool,
        test=test,
        reading=reading,
        notes=tuple(lines),
        trouble=(*trouble, *_trouble([] if config.skip_corrupt else unreadable, copies, counted)),
        left_out=tuple(source.left_out),
        unreadable=tuple(unreadable),
        copies=copies,
    )


def _undecodable(images: ImageSet, every: bool) -> tuple[dict[int, str], int]:
    """By position, why images cannot be decoded; and how many were tried."""
    everything = torch.arange(len(images))
    some = survey(images, torch.tensor(spread(everything, LOOKED_AT)))
    order = spread(everything, len(images) if every else max(1, DECODED_PIXELS // max(1, some.width * some.height)))
    return find_corrupt(images, torch.tensor(order, dtype=torch.int64)), len(order)


def _named(images: ImageSet, bad: Mapping[int, str]) -> list[str]:
    return [f"{printable(images.place(index))}: {why}" for index, why in sorted(bad.items())]


def _parts(source: Source, config: RunConfig, trouble: list[str], bad: Mapping[int, str]) -> dict[str, Tensor]:
    """Positions in the pool for each split; all are unused where the settings cannot split it, which is trouble.

    Images that cannot be decoded are left out where the configuration says so.
    """
    skipped = bad if config.skip_corrupt else {}
    everything = without(torch.arange(len(source.pool)), skipped)
    try:
        drawn = draw_splits(source, config, None, lambda _: skipped)
    except (InputError, UsageError) as problem:
        trouble.append(str(problem))
        return {UNUSED: everything}
    images, lost = len(drawn.train), left_out(config, len(drawn.train))
    if images < 2 * config.accumulate:
        trouble.append(f"{images} training images are too few for accumulate={config.accumulate}: lower it")
    elif batches_per_epoch(config, images) == 0:
        use = f"use --batch-size {fitting_batch(images, config.accumulate)}"
        trouble.append(f"{images} training images are fewer than batch_size = {config.batch_size}: {use}")
    elif lost >= NOTABLE_SHARE * images:
        fits = images // -(-images // config.batch_size)
        trouble.append(
            f"{images} training images make {batches_per_epoch(config, images)} batches of {config.batch_size} an "
            f"epoch, which leave out {lost} of them: set batch_size={fits}"
        )
    test = without(drawn.test, skipped)
    used = {TRAINING: drawn.train, META_VALIDATION: drawn.meta_validation, TESTING: test}
    return used | {UNUSED: everything[~torch.isin(everything, torch.cat(list(used.values())))]}


def _trouble(
    unreadable: Sequence[str], copies: Sequence[Copies], counted: Mapping[str, tuple[ImageSet, Tensor]]
) -> list[str]:
    lines, images = [], sum(len(at) for _, at in counted.values())
    if unreadable:
        them = "it" if len(unreadable) == 1 else "them"
        what = f"{plural(len(unreadable), 'image')} cannot be read ({some(unreadable)})"
        lines.append(f"{what}: mend {them}, or use --skip-corrupt")
    if len(copies) == 1 and len(copies[0].names) == images:
        return [*lines, f"all {images} images are equal, so there is nothing to learn: look at the files"]
    return [*lines, *trouble_of_copies(copies)]
