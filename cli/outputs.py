"""Where a command writes: names of files, and checks before any work that they can be written."""

from pathlib import Path

from ..bundle.source import BUNDLE_FILE, redacted
from ..errors import UsageError
from ..runtime.files import (
    CONFIG_FILE,
    check_writable,
    foreign_to_comparison,
    foreign_to_run,
    has_files,
    remove_litter,
)
from ..runtime.lock import check_free
from ..runtime.sanitize import printable


def ensure_writable(path: Path, flag: str, *, force: bool, resume: bool = False) -> None:
    """Check that a file can be written, and that it is not there unless it may be overwritten.

    Raises:
        UsageError: it exists, and neither --force nor --resume was given.
        EnvironmentFault: it cannot be written.
    """
    if path.exists() and path.is_file() and not (force or resume):
        raise UsageError(str(path), "exists", f"use --force or another {flag}")
    check_writable(path)
    remove_litter(path.parent, path.name)


def ensure_folder_writable(folder: Path, flag: str, *, force: bool) -> None:
    """Check that files can be written to a folder, and that it is empty unless it may be mixed.

    Raises:
        UsageError: the folder holds something, and --force was not given.
        EnvironmentFault: it cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not force)):
        raise UsageError(str(folder), "exists and is no empty folder", f"use --force or another {flag}")
    check_writable(folder / "probe")


def ensure_run_folder(folder: Path, *, force: bool, resume: bool = False, comparison: bool = False) -> None:
    """Check that a run can be written to a folder, and that no other run is in it.

    Args:
        folder: of the run.
        force, resume: the options.
        comparison: whether it is a comparison's, with runs in folders below it.

    Raises:
        FolderInUseError: another run is in it.
        UsageError: the folder holds a run, and neither --force nor --resume was given; or something that mapolicy did
            not write, which --force does not replace either.
        EnvironmentFault: it cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(str(folder), "is no folder", "use another --run-dir")
    check_free(folder)
    what, odd = ("comparison", foreign_to_comparison(folder)) if comparison else ("run", foreign_to_run(folder))
    if odd:
        raise UsageError(str(folder), f"holds {printable(odd)}, which is no {what}'s", "use another --run-dir")
    if has_files(folder) and not (force or resume):
        raise UsageError(str(folder), f"holds a {what}", "use --resume, --force or another --run-dir")
    check_writable(folder / CONFIG_FILE)


def slug(text: str) -> str:
    """A data set's name as a part of a file name: `folder:data/birds` becomes `birds`."""
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in text.rstrip("/").split("/")[-1].split(":")[-1])


def file_name(reference: str) -> str:
    """A bundle's file name: `hf://ns/name@v1` and `https://host/name.safetensors?a=b` become name.safetensors."""
    plain = redacted(reference)
    if plain.startswith("hf://"):
        parts = plain.removeprefix("hf://").partition("@")[0].split("/")
        plain = parts[-1] if len(parts) > 2 else f"{parts[-1]}.safetensors"
    return slug(plain) or BUNDLE_FILE
