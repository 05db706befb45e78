"""Atomic writes (temporary name, fsync, rename), reads with a size limit, and checks before a run starts."""

import errno
import glob
import os
import resource
import secrets
import shutil
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from ..errors import EnvironmentFault, InputError
from .lock import LOCK_FILE, try_lock

TOKEN_DIGITS = 8  # hexadecimal, in a temporary file's name

ReadAt = Callable[[int, int], bytes]  # (position, count) to that many bytes of a file, fewer at its end
Precheck = Callable[[ReadAt, int], None]  # raises to reject an open file of that many bytes before it is read whole

# Files of a run folder.
CONFIG_FILE = "config.toml"
METRICS_FILE = "metrics.jsonl"
TABLE_FILE = "metrics.csv"
STATUS_FILE = "status.json"
CHECKPOINT_FILE = "checkpoint.safetensors"
PREVIOUS_CHECKPOINT_FILE = "checkpoint-previous.safetensors"
RESULT_FILE = "result.json"
DATA_FILE = "data.json"
VERIFICATION_FILE = "verification.json"
REFINED_FILE = "refined.safetensors"
LOGGER_FOLDERS = ("tensorboard", "wandb")
COMPARISON_FILE = "comparison.json"  # of a comparison's folder
PICKLES = frozenset({".pth", ".pt", ".bin", ".ckpt", ".tar", ".pkl", ".pickle"})  # endings
NETWORK_FILE = "network.safetensors"
RUN_FILES = (
    *(CONFIG_FILE, METRICS_FILE, TABLE_FILE, STATUS_FILE, RESULT_FILE, NETWORK_FILE, VERIFICATION_FILE, DATA_FILE),
    *(CHECKPOINT_FILE, PREVIOUS_CHECKPOINT_FILE, REFINED_FILE),
)


def write_atomically(path: Path, content: bytes | bytearray, previous: Path | None = None) -> None:
    """Write a regular file atomically: a reader sees the old content or the new, never a part of it.

    The mode follows the umask, as for any new file.

    Args:
        path: the file; its folder is created where it is missing.
        content: the whole content.
        previous: a path to rename the old file to, once the new one is complete; None overwrites it.

    Raises:
        EnvironmentFault: the folder cannot be written, the disk is full, or `path` is a link or not a regular file.
    """
    try:
        _check_output(path)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(TOKEN_DIGITS // 2)}.tmp")
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            with os.fdopen(descriptor, "wb") as file:
                try_lock(descriptor)  # tells `remove_litter` that the writer is alive
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                if previous is not None and path.exists():
                    path.replace(previous)
                os.replace(temporary, path)  # noqa: PTH105 - Path.replace hides which of the two names failed
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync(path.parent)
    except OSError as problem:
        raise _write_fault(path, len(content), problem) from None


def plain_absolute(path: Path) -> Path:
    """The path from the root, without `.` and `..`; links in it stay, which `Path.resolve` would follow."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - pathlib has no such function


def remove_litter(folder: Path, name: str | None = None) -> None:
    """Remove temporary files that killed processes have left behind.

    Args:
        folder: where to look.
        name: of the file that they were writing; None stands for every file of the folder.
    """
    pattern = f".{'*' if name is None else glob.escape(name)}.{'[0-9a-f]' * TOKEN_DIGITS}.tmp"
    for path in folder.glob(pattern):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            continue
        try:
            if try_lock(descriptor):  # its writer is dead
                path.unlink(missing_ok=True)
        finally:
            os.close(descriptor)


def foreign_to_run(folder: Path) -> str:
    """The name of something visible that no run writes, in a folder without a checkpoint; empty where there is none.

    Such a folder is somebody's own, and no run may write its files there. A run writes its log first.
    """
    names = _visible(folder, (CHECKPOINT_FILE, PREVIOUS_CHECKPOINT_FILE))
    return min(names - {*RUN_FILES, *LOGGER_FOLDERS} if METRICS_FILE in names else names, default="")


def foreign_to_comparison(folder: Path) -> str:
    """The same for a folder of a comparison, which writes its record first."""
    return min(_visible(folder, (COMPARISON_FILE,)), default="")


def _visible(folder: Path, marks: Sequence[str]) -> set[str]:
    """Names in a folder without hidden ones and without the lock; none where one of the marks is there."""
    if not folder.is_dir() or any((folder / name).exists() for name in marks):
        return set()
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")} - {LOCK_FILE}


def has_files(folder: Path) -> bool:
    """Whether a folder exists and holds anything besides its lock.

    Raises:
        EnvironmentFault: the folder cannot be read.
    """
    try:
        return folder.exists() and any(path.name != LOCK_FILE for path in folder.iterdir())
    except OSError as problem:
        raise EnvironmentFault(str(folder), problem.strerror or "cannot be used", "use another --run-dir") from None


def append_line(path: Path, line: str) -> None:
    """Append a line to a text file; where that fails, no part of the line stays.

    Raises:
        EnvironmentFault: the disk is full, or the file cannot be written.
    """
    before = path.stat().st_size if path.exists() else 0
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")
    except OSError as problem:
        with suppress(OSError):
            os.truncate(path, before)
        raise _write_fault(path, len(line) + 1, problem) from None


def sync(path: Path) -> None:
    """Wait until an existing file or folder has reached the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_writable(path: Path) -> None:
    """Check before the work starts that `path` can be written.

    Raises:
        EnvironmentFault: `write_atomically` would fail.
    """
    # Missing folders are not created: a run that is rejected later should leave nothing behind.
    try:
        _check_output(path)
        folder = next(folder for folder in path.absolute().parents if folder.exists())
        probe = folder / f".{secrets.token_hex(TOKEN_DIGITS // 2)}.tmp"
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        probe.unlink()
    except OSError as problem:
        raise _write_fault(path, 0, problem) from None


def read_regular_file(
    path: Path,
    largest: int,
    too_large: Callable[[int], str] = lambda size: "check the file",
    precheck: Precheck = lambda read_at, size: None,
) -> bytes:
    """The content of a regular file, read once.

    Args:
        path: the file; a link to a regular file is followed.
        largest: bytes; a larger file is rejected before it is read.
        too_large: from the size of a file that is too large to the remedy in the error message.
        precheck: called with a function that reads from the open file, and its size in bytes; raises to reject the file
            before it is read whole. The content must still be checked: the file may change in between.

    Raises:
        InputError: the file is missing, not regular (a FIFO does not hang), or larger than `largest`.
        EnvironmentFault: there is not enough memory.
    """
    if "\0" in str(path):
        raise InputError(ascii(str(path)), "no file can have this name", "check the path")
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0))
    except OSError as problem:
        raise InputError(str(path), problem.strerror or "cannot be opened", "check the path") from None
    try:
        facts = os.fstat(descriptor)
        _check_regular(path, facts)
        if facts.st_size > largest:
            why = f"has {facts.st_size} bytes, more than the {largest} allowed"
            raise InputError(str(path), why, too_large(facts.st_size))
        precheck(lambda position, count: os.pread(descriptor, count, position), facts.st_size)
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            # Not `largest`: `read` allocates a buffer of the size that it is asked for.
            content = file.read(facts.st_size + 1)
        if len(content) != facts.st_size:
            raise InputError(str(path), "changed while it was read", "try again when nothing writes to it")
        return content
    except MemoryError:
        why = f"has {facts.st_size} bytes; {free_memory()}"
        raise EnvironmentFault(str(path), why, "free some, or use another machine") from None
    except OSError as problem:
        raise InputError(str(path), problem.strerror or "cannot be read", "check the path") from None
    finally:
        os.close(descriptor)


def free_memory() -> str:
    """A sentence on how much memory is left for this process, for an error message."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    allowed = resource.getrlimit(resource.RLIMIT_AS)[0]
    limit = "" if allowed == resource.RLIM_INFINITY else f", and the process may have {allowed} in all"
    return f"{free} bytes of memory are free{limit}"


def check_readable(path: Path) -> None:
    """Check before the work starts that a file exists and is not empty.

    Raises:
        InputError: the file is missing, not regular, or empty.
    """
    try:
        facts = path.stat()
    except (OSError, ValueError) as problem:
        why = getattr(problem, "strerror", None) or "no file can have this name"
        raise InputError(str(path), why, "check the path") from None
    _check_regular(path, facts)
    if not facts.st_size:
        raise InputError(str(path), "is empty", "name another file")


def _check_regular(path: Path, facts: os.stat_result) -> None:
    if not stat.S_ISREG(facts.st_mode):
        kind = "a folder" if stat.S_ISDIR(facts.st_mode) else "not a regular file"
        raise InputError(str(path), f"is {kind}", "name a file")


def _check_output(path: Path) -> None:
    """A link is rejected, neither followed nor replaced."""
    if "\0" in str(path):
        raise EnvironmentFault(ascii(str(path)), "no file can have this name", "name another output")
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise EnvironmentFault(str(path), "is a link or not a regular file", "name another output")


def _write_fault(path: Path, needed: int, problem: OSError) -> EnvironmentFault:
    why = problem.strerror or "cannot be written"
    if problem.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        existing = next(folder for folder in path.absolute().parents if folder.exists())
        why = f"{why} ({needed} bytes needed, {shutil.disk_usage(existing).free} free)"
        return EnvironmentFault(str(path), why, "make room or name another output")
    return EnvironmentFault(str(path), why, "name an output in a folder that can be written")
