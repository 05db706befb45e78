"""Data sets by name: what can be read, and what is said when it cannot."""

import errno
import io
import os
import unicodedata
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..config import RunConfig
from ..distributed import communicator
from ..errors import EnvironmentFault, InputError, UsageError
from ..registries import DATASETS, dataset_entry
from ..runtime.files import plain_absolute
from ..runtime.sanitize import printable
from .folders import LAYOUT, LeftOut, Listing, SplitFolders, find_splits, list_folder
from .image_dataset import ArrayImages, DatasetRequest, FileImages, ImageSet, Source, check_same_classes

ALLOW = "name DATASET yourself if that is what you want, or set download=true"


def open_source(
    name: str, data_dir: Path, memory_limit_gib: float = 4.0, download: bool = True, nested_classes: bool = False
) -> Source:
    """A data set's classes and training pool, and the way to its test split.

    Args:
        name: one that `mapolicy datasets` lists (`registries.DATASETS`), a registered one included.
        data_dir: folder that data sets are read from and downloaded to.
        memory_limit_gib: GiB that a data set may take which can only be read from beginning to end.
        download: whether a data set that is not there may be fetched. Without, nothing reaches for the network: timm's
            names are refused, because only its readers know whether they would.
        nested_classes: whether class folders may hold nothing but folders of images.

    Raises:
        UsageError: no such name, or one of timm's without `download`.
        InputError: the data set is missing, cannot or may not be downloaded, or is not laid out as it must be.
        EnvironmentFault: the download cannot be written.
    """
    entry = dataset_entry(name)
    if entry is None:
        is_folder = Path(name).expanduser().is_dir()
        remedy = f"did you mean folder:{printable(name)}?" if is_folder else DATASETS.suggestion(name)
        raise UsageError("data set", f"there is none called {printable(name)!r}", remedy)
    source = DATASETS.find(entry)(DatasetRequest(name, data_dir, memory_limit_gib, download, nested_classes))
    if not isinstance(source, Source):
        why = f"the function that opens it returned a {type(source).__name__}, expected a Source"
        raise EnvironmentFault(f"data set {printable(name)}", why, "mend the function that registers it")
    return _checked(source)


def _checked(source: Source) -> Source:
    labels, classes = source.pool.labels, source.classes
    if len(classes) < 2:
        raise InputError(source.where, f"has {len(classes)} class, and a network needs at least two", LAYOUT)
    if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= len(classes)):
        raise InputError(source.where, f"has a label outside its {len(classes)} classes", "check the data set")
    sizes = torch.bincount(labels, minlength=len(classes)).tolist()
    if 0 in sizes:
        raise InputError(
            source.where, f"class {printable(classes[sizes.index(0)])!r} has no images", "add some or remove the class"
        )
    return source


# ---- digits


def open_digits(request: DatasetRequest) -> Source:
    """scikit-learn's digits."""
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    arrays = np.rint(bunch.images * (255 / 16)).astype(np.uint8)  # levels 0 to 16
    classes = tuple(str(digit) for digit in range(10))
    return Source(request.name, request.name, classes, ArrayImages(arrays, bunch.target))


# ---- folders


def open_dataset(config: RunConfig) -> Source:
    """The data set that a configuration names; of several processes on a machine one downloads it for all.

    Raises:
        UsageError, InputError, EnvironmentFault: as `open_source`.
    """
    with communicator().local_main_process_first():
        return open_source(
            config.dataset, Path(config.data_dir), config.memory_limit_gib, config.download, config.nested_classes
        )


def open_folder(request: DatasetRequest) -> Source:
    """Class folders: `folder:PATH`, or `folder:NAME` of a folder in data_dir."""
    text = request.name.partition(":")[2]
    if not text or "\0" in text:
        raise UsageError("data set", "folder: needs a path behind it", "write folder:PATH")
    path = Path(text).expanduser()
    if not path.exists() and Path(text).name == text:
        path = request.data_dir / text  # a bundle names the folder without its path
        if not path.exists():
            why = f"there is no folder {printable(text)} here and none in {request.data_dir}"
            raise InputError(
                f"folder:{printable(text)}", why, "name folder:PATH, or the folder above it with --data-dir"
            )
    path = plain_absolute(path)  # behind a link the name would be another
    return folder_source(f"folder:{printable(path.name)}", path, request.nested_classes)


def open_imagenet(request: DatasetRequest) -> Source:
    """ImageNet's class folders."""
    folder = request.data_dir / "imagenet"
    for part in ("train", "val"):
        if not (folder / part).is_dir():
            remedy = "ImageNet cannot be downloaded: put its class folders into train/ and val/ there"
            raise InputError(printable(folder), f"there is no folder {part} in it", remedy)
    return _splits_source(request.name, folder, SplitFolders(train="train", test="val"), nested_classes=True)


def folder_source(name: str, folder: Path, nested_classes: bool = False) -> Source:
    """The data set of a folder of class folders, or of a folder of splits.

    Args:
        name: the data set's name.
        folder: its folder.
        nested_classes: accept class folders whose images all lie in folders of their own.

    Raises:
        InputError: it is not laid out as it must be (`folders.list_folder`, `folders.find_splits`).
    """
    splits = find_splits(folder)
    if splits.train is not None:
        return _splits_source(name, folder, splits, nested_classes)
    listing = list_folder(folder, nested_classes)
    images = FileImages(folder, listing.files, listing.labels)
    return Source(name, printable(folder), listing.classes, images, left_out=listing.left_out)


def _splits_source(name: str, folder: Path, splits: SplitFolders, nested_classes: bool) -> Source:
    """Without a folder for testing, the one for validation is the test split, as in ImageNet."""
    assert splits.train is not None
    test_name = splits.test or splits.validation
    held_out = splits.validation if splits.test else None
    left, train = list(splits.left_out), folder / splits.train
    listing = list_folder(train, nested_classes)
    left += [LeftOut(f"{splits.train}/{each.path}", each.why) for each in listing.left_out]
    pool, meta_validation = FileImages(train, listing.files, listing.labels, splits.train), None
    if held_out is not None:
        also = list_folder(folder / held_out, nested_classes)
        held_out_labels = _labels(folder / held_out, also, listing.classes)
        left += [LeftOut(f"{held_out}/{each.path}", each.why) for each in also.left_out]
        files = [f"{splits.train}/{file}" for file in listing.files] + [f"{held_out}/{file}" for file in also.files]
        pool = FileImages(folder, files, listing.labels + held_out_labels)
        meta_validation = torch.arange(len(listing.files), len(files))
    open_test = None if test_name is None else cache(lambda: _test_images(folder, test_name, listing.classes, left))
    roles = {splits.train: "training", held_out: "meta-validation", test_name: "testing"}
    used = ", ".join(f"{printable(part)}/ for {role}" for part, role in roles.items() if part is not None)
    return Source(
        name=name,
        where=printable(train),
        classes=listing.classes,
        pool=pool,
        open_test=open_test,
        check_test=open_test,
        meta_validation=meta_validation,
        notes=(used if held_out else f"{used}; meta-validation images are drawn from {printable(splits.train)}/",),
        left_out=left,
    )


def _test_images(folder: Path, name: str, classes: tuple[str, ...], left_out: list[LeftOut]) -> ImageSet:
    listing = list_folder(folder / name)
    labels = _labels(folder / name, listing, classes)
    left_out += [LeftOut(f"{name}/{each.path}", each.why) for each in listing.left_out]
    return FileImages(folder / name, listing.files, labels, name)


def _labels(folder: Path, listing: Listing, classes: tuple[str, ...]) -> list[int]:
    """Labels of a split's images by the training split's classes.

    A name may be composed differently: file systems and archives write an accent with its letter or behind it.

    Raises:
        InputError: the split has other classes.
    """
    composed = {unicodedata.normalize("NFC", name): name for name in classes}
    found = [
        name if name in classes else composed.get(unicodedata.normalize("NFC", name), name) for name in listing.classes
    ]
    check_same_classes(printable(folder), classes, tuple(sorted(set(found))))
    label = {name: number for number, name in enumerate(classes)}
    return [label[found[each]] for each in listing.labels]


# ---- downloads


def open_cifar(request: DatasetRequest) -> Source:
    """CIFAR-10 or CIFAR-100, by torchvision."""
    from torchvision import datasets

    name, data_dir, download = request.name, request.data_dir, request.download
    kind: Any = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]

    def part(train: bool) -> tuple[tuple[str, ...], ImageSet]:
        archives = {kind.filename: kind.tgz_md5}
        with _fetching(name, data_dir, archives, download):
            # Where the archive is whole, torchvision unpacks it and fetches nothing.
            found = kind(str(data_dir), train=train, download=download or _are_whole(data_dir, archives))
            return tuple(found.classes), ArrayImages(found.data, found.targets)

    classes, pool = part(train=True)
    return Source(name, name, classes, pool, lambda: part(train=False)[1])


def open_omniglot(request: DatasetRequest) -> Source:
    """Omniglot's two parts as one data set, by torchvision."""
    from torchvision.datasets import Omniglot
    from torchvision.datasets.utils import download_url

    name, download = request.name, request.download
    folder = request.data_dir / Omniglot.folder
    files: list[str] = []
    archives = {f"{part}.zip": md5 for part, md5 in Omniglot.zips_md5.items()}
    with _fetching(name, folder, archives, download):
        if not download and not _are_whole(folder, archives):
            raise FileNotFoundError(folder)
        # Not the class itself: it lists folders in the file system's order, and it takes an archive whose unpacking
        # was interrupted for a whole one.
        for part, md5 in Omniglot.zips_md5.items():
            download_url(f"{Omniglot.download_url_prefix}/{part}.zip", str(folder), f"{part}.zip", md5)
            with zipfile.ZipFile(folder / f"{part}.zip") as archive:
                wanted = sorted(file for file in archive.namelist() if file.endswith(".png"))
                if not all((folder / file).is_file() for file in wanted):
                    archive.extractall(folder)
            files += wanted
    # images_background/<alphabet>/<character>/<image>.png
    characters = [str(Path(*Path(file).parts[1:-1]).as_posix()) for file in files]
    classes = tuple(dict.fromkeys(characters))
    label = {character: number for number, character in enumerate(classes)}
    return Source(name, name, classes, FileImages(folder, files, [label[each] for each in characters]), None)


@contextmanager
def _fetching(name: str, folder: Path, archives: dict[str, str], download: bool) -> Iterator[None]:
    """Around a download of torchvision's, which checks an archive's MD5 before it opens it."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        with redirect_stdout(io.StringIO()):
            yield
    except (
        Exception
    ) as problem:  # torchvision's downloads raise RuntimeError, OSError, EOFError, zipfile's own and more
        for each in missing:  # what was made only to hold the download
            with suppress(OSError):
                each.rmdir()
        if isinstance(problem, OSError) and problem.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            why = os.strerror(problem.errno)
            raise EnvironmentFault(printable(folder), why, "name a data_dir that can be written") from problem
        why = f"can be neither found there nor downloaded ({problem})"
        wanted = " and ".join(archives)
        remedy = f"connect to the network, or put {wanted} there yourself"
        if not download:
            why = "is not there, and download is false"
            remedy = f"{ALLOW}, or put {wanted} there"
        if bad := [each for each, md5 in archives.items() if _wrong_checksum(folder / each, md5)]:
            why = f"{bad[0]} is not the published file (wrong MD5) and was not opened ({problem})"
        raise InputError(f"{name} in {printable(folder)}", printable(why)[:150], remedy) from problem


def _are_whole(folder: Path, archives: dict[str, str]) -> bool:
    return all((folder / each).exists() and not _wrong_checksum(folder / each, md5) for each, md5 in archives.items())


def _wrong_checksum(path: Path, md5: str) -> bool:
    from torchvision.datasets.utils import check_integrity

    return path.exists() and not check_integrity(str(path), md5)


# ---- timm


def open_with_timm(request: DatasetRequest) -> Source:
    """A data set of `timm.data.create_dataset`.

    Raises:
        UsageError: nothing may be downloaded, and only timm's reader knows whether it would.
    """
    if not request.download:
        why = f"{printable(request.name)!r} is read through timm, maybe from the network, and download is false"
        raise UsageError("data set", why, ALLOW)
    from .timm_datasets import open_timm

    return open_timm(request.name, request.data_dir, request.memory_limit_gib)
