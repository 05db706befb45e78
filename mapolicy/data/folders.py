"""A folder of images on disk: which subfolders are splits and classes, which files are images, what is left out."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath

from ..errors import InputError
from ..runtime.sanitize import printable
from .decode import EXTENSIONS

LAYOUT = "put the images of each class into a folder of its own"
NESTED = "--nested-classes"

# What other programs leave in folders. Names that begin with a dot are left out too.
LEFTOVER_NAMES = frozenset(
    {"__pycache__", "__macosx", "@eadir", "lost+found", "$recycle.bin", "system volume information"}
    | {"thumbs.db", "desktop.ini", "ehthumbs.db"}
)
TRAIN, VALIDATION, TEST = "train", "validation", "test"
_ROLES = {
    TRAIN: "train(ing)?",
    VALIDATION: "val|valid|validation|validate|dev|eval|evaluation",
    TEST: "test(ing)?",
}
_PLAIN = {TRAIN: "train", VALIDATION: "val", TEST: "test"}
_SHOWN = 3  # names in a message


@dataclass(frozen=True)
class LeftOut:
    """A file or folder that is not used.

    Attributes:
        path: relative to the data set's folder; a folder's ends in `/`.
        why: the reason, which many of them share.
    """

    path: str
    why: str


@dataclass(frozen=True)
class Listing:
    """The class folders of one folder.

    Attributes:
        classes: names, sorted.
        files: images, relative to the folder, class by class, sorted.
        labels: class of each image.
        left_out: what is not used, relative to the folder.
    """

    classes: tuple[str, ...]
    files: list[str]
    labels: list[int]
    left_out: list[LeftOut]


@dataclass(frozen=True)
class SplitFolders:
    """Which subfolders of a data set are its splits.

    Attributes:
        train, validation, test: names of subfolders; None where there is none. Without any, the folder itself holds
            the classes.
        left_out: what lies beside them.
    """

    train: str | None = None
    validation: str | None = None
    test: str | None = None
    left_out: list[LeftOut] = field(default_factory=list)


def split_role(name: str) -> str | None:
    """The split that a folder's name stands for: `train`, `validation`, `test` or None. `Training_Set` is `train`."""
    plain = re.sub("[^a-z0-9]", "", name.lower())
    for role, pattern in _ROLES.items():
        if re.fullmatch(f"({pattern})(set|data|images|split)?", plain):
            return role
    return None


def find_splits(folder: Path) -> SplitFolders:
    """The subfolders that are splits: one for training, and one for validation or testing or both.

    A folder for testing without class folders has no labels and is left out.

    Raises:
        InputError: the folder cannot be read, or two subfolders could be the same split.
    """
    with _readable(folder):
        entries = sorted((entry.name, entry.is_dir()) for entry in os.scandir(folder))
    folders = [name for name, is_folder in entries if is_folder and not is_leftover(name)]
    found = {role: [name for name in folders if split_role(name) == role] for role in _ROLES}
    if not found[TRAIN] or not (found[VALIDATION] or found[TEST]):
        return SplitFolders()
    chosen: dict[str, str | None] = {role: _one(folder, names, role) for role, names in found.items()}
    left = []
    for role in (VALIDATION, TEST):
        name = chosen[role]
        if name is not None and not _has_folders(folder / name):
            left.append(LeftOut(f"{name}/", "has no class folders, so its images have no labels"))
            chosen[role] = None
    for name, is_folder in entries:
        if is_folder and name not in chosen.values() and f"{name}/" not in [each.path for each in left]:
            left.append(LeftOut(f"{name}/", _leftover_reason(name) or "lies beside the splits"))
        elif not is_folder:
            left.append(LeftOut(name, _leftover_reason(name) or "lies beside the splits"))
    return SplitFolders(chosen[TRAIN], chosen[VALIDATION], chosen[TEST], left)


def list_folder(folder: Path, nested_classes: bool = True) -> Listing:
    """Class names and images of a folder of class folders, both in the order of their names.

    Folders within a class folder belong to the class. Links to folders are followed, each folder once in a class.

    Args:
        folder: the folder.
        nested_classes: accept class folders whose images all lie in folders of their own.

    Raises:
        InputError: the folder is missing, is none, is empty, has no class folders, cannot be read, or seems to be one
            level too high; a link leads back to a folder that it lies in.
    """
    with _readable(folder):
        entries = sorted((entry.name, entry.is_dir()) for entry in os.scandir(folder))
        if not entries:
            raise InputError(printable(folder), "is empty", LAYOUT)
        classes = tuple(name for name, is_folder in entries if is_folder and not is_leftover(name))
        if not classes:
            raise InputError(printable(folder), f"has {len(entries)} files and no class folders", LAYOUT)
        left = [
            LeftOut(f"{name}/" if is_folder else name, _leftover_reason(name) or "lies beside the class folders")
            for name, is_folder in entries
            if name not in classes
        ]
        found = [(file, label) for label, name in enumerate(classes) for file in _ClassFolder(folder, left).files(name)]
    listing = Listing(classes, [file for file, _ in found], [label for _, label in found], left)
    if not nested_classes:
        check_level(folder, listing)
    return listing


def is_leftover(name: str) -> bool:
    """Whether other programs leave files or folders of this name, or it is hidden."""
    return name.startswith(".") or name.lower() in LEFTOVER_NAMES


def check_level(folder: Path, listing: Listing) -> None:
    """Check that the class folders hold images, and are not the parents of the class folders.

    Raises:
        InputError: they seem to be; the message names the folder that was probably meant.
    """
    direct: Counter[str] = Counter()
    below: dict[str, Counter[str]] = defaultdict(Counter)
    linked = cache(Path.is_symlink)
    for file in listing.files:
        name, *inner = file.split("/")
        if len(inner) == 1 or linked(folder / name / inner[0]):  # a link brings images to a class from elsewhere
            direct[name] += 1
        else:
            below[name][inner[0]] += 1
    nested = [name for name in listing.classes if below[name] and not direct[name]]
    of_folders = [name for name in nested if len(below[name]) > 1]
    names = Counter(inner.lower() for counts in below.values() for inner in counts)
    repeated = [name for name, count in names.items() if count > 1]
    in_repeated = sum(counts[inner] for counts in below.values() for inner in counts if inner.lower() in repeated)
    all_nested = set(nested) == {*direct, *nested}
    if not of_folders and not (nested and all_nested) and 2 * in_repeated < max(1, len(listing.files)):
        return
    shown = _listed(of_folders or nested or [name for name in listing.classes if below[name]])
    where, as_they_are = printable(folder), f"add {NESTED} if {_listed(listing.classes)} are your classes"
    if repeated and all(split_role(name) for name in repeated):
        why = f"class folders hold the splits {_listed(repeated)}"
        raise InputError(where, why, f"use {repeated[0]}/CLASS/IMAGE instead of CLASS/{repeated[0]}/IMAGE, or {NESTED}")
    why = f"{shown} hold{'s' * (' and ' not in shown)} folders of images, so it may be one level too high"
    meant = _probably_meant(folder, listing)
    if meant is None:
        raise InputError(where, why, as_they_are)
    shorter = min(str(meant), os.path.relpath(meant), key=len)
    raise InputError(where, why, f"use folder:{printable(shorter)}, or {as_they_are}")


def _probably_meant(folder: Path, listing: Listing) -> Path | None:
    """The folder below with the most images that holds two class folders or more; the one above if it is a split."""
    children: dict[PurePosixPath, set[str]] = defaultdict(set)
    images: Counter[PurePosixPath] = Counter()
    for file in listing.files:
        parent = PurePosixPath(file).parent
        children[parent.parent].add(parent.name)
        images[parent.parent] += 1
    able = [parent for parent, names in children.items() if len(names) > 1 and parent.name]
    if not able:
        return None
    best = min(able, key=lambda parent: (-images[parent], parent.as_posix()))
    if (
        split_role(best.name)
        and best.parent.name
        and any(other != best and other.parent == best.parent for other in able)
    ):
        return folder / best.parent
    return folder / best


class _ClassFolder:
    """The walk through one class folder."""

    def __init__(self, root: Path, left_out: list[LeftOut]) -> None:
        self._root, self._left_out = root, left_out
        self._visited: set[tuple[int, int]] = set()
        self._links: list[tuple[str, frozenset[tuple[int, int]]]] = []

    def files(self, name: str) -> list[str]:
        """Image files below a class folder, relative to the root, sorted."""
        above = frozenset({self._key(""), self._key(name)})
        self._visited |= above
        found = list(self._walk(name, above))
        while self._links:  # links after real folders, which keep their names
            link, above = self._links.pop(0)
            key = self._key(link)
            if key in above:
                why = "is a link to a folder that it lies in"
                raise InputError(printable(self._root / link), why, "remove the link")
            if key in self._visited:
                self._left_out.append(LeftOut(f"{link}/", "links to a folder that the class has already"))
                continue
            self._visited.add(key)
            found += self._walk(link, above | {key})
        return sorted(found)

    def _walk(self, relative: str, above: frozenset[tuple[int, int]]) -> Iterator[str]:
        with os.scandir(self._root / relative) as entries:
            for entry in sorted(entries, key=lambda each: each.name):
                name, is_folder = f"{relative}/{entry.name}", entry.is_dir()
                if why := _leftover_reason(entry.name):
                    self._left_out.append(LeftOut(f"{name}/" if is_folder else name, why))
                elif is_folder and entry.is_symlink():
                    self._links.append((name, above))
                elif is_folder:
                    self._visited.add(key := self._key(name))
                    yield from self._walk(name, above | {key})
                elif (ending := PurePosixPath(entry.name).suffix.lower()) in EXTENSIONS:
                    yield name
                else:
                    why = f"{ending} is not the ending of an image format" if ending else "has no image format's ending"
                    self._left_out.append(LeftOut(name, why))

    def _key(self, relative: str) -> tuple[int, int]:
        facts = (self._root / relative).stat()
        return facts.st_dev, facts.st_ino


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """Inside the block an OSError becomes an `InputError` about the data set's folder."""
    try:
        yield
    except OSError as problem:
        why = problem.strerror or "cannot be read"
        remedy = "name folder:PATH, or the folder above it with --data-dir"
        raise InputError(printable(problem.filename or folder), why, remedy) from None


def _one(folder: Path, names: list[str], role: str) -> str | None:
    if len(names) > 1 and _PLAIN[role] in names:
        return _PLAIN[role]
    if len(names) > 1:
        why = f"both {printable(names[0])!r} and {printable(names[1])!r} look like its {role} split"
        raise InputError(printable(folder), why, f"rename the right one to {_PLAIN[role]}")
    return names[0] if names else None


def _has_folders(folder: Path) -> bool:
    with _readable(folder), os.scandir(folder) as entries:
        return any(entry.is_dir() and not is_leftover(entry.name) for entry in entries)


def _leftover_reason(name: str) -> str:
    return "hidden" if name.startswith(".") else "left by another program" if is_leftover(name) else ""


def _listed(names: Collection[str]) -> str:
    first = [printable(name)[:20] for name in list(names)[:_SHOWN]]
    if len(names) > _SHOWN:
        return f"{', '.join(first)}, ..."
    return " and ".join(filter(None, [", ".join(first[:-1]), first[-1]]))
