"""Files that are whole or absent: written under a temporary name, synced, renamed; read once, with a size cap."""

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

from .errors import EnvironmentFault, InputError

# A run folder's files.
CONFIG_FILE = "config.toml"
METRICS_FILE = "metrics.jsonl"
STATUS_FILE = "status.json"
CHECKPOINT_FILE = "checkpoint.safetensors"
RESULT_FILE = "result.json"
NETWORK_FILE = "network.safetensors"
RUN_FILES = (CONFIG_FILE, METRICS_FILE, STATUS_FILE, CHECKPOINT_FILE, RESULT_FILE, NETWORK_FILE)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a regular file so that a reader sees the old content or the new one, never a part.

    The mode follows the umask, as for any new file. A link at `path` is refused, not followed or replaced.

    Raises:
        EnvironmentFault: the folder cannot be written, the disk is full, or `path` is no regular file.
    """
    try:
        _refuse_odd(path)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)  # noqa: PTH105 - Path.replace hides which of the two names failed
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    except OSError as problem:
        raise _write_fault(path, len(content), problem) from None


def check_writable(path: Path) -> None:
    """Find out before the work starts whether `path` can be written.

    Raises:
        EnvironmentFault: as `write_atomically` would.
    """
    # Folders that are not there yet are not made: a run that is refused later leaves nothing behind.
    try:
        _refuse_odd(path)
        folder = next(folder for folder in path.absolute().parents if folder.exists())
        probe = folder / f".{secrets.token_hex(4)}.tmp"
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        probe.unlink()
    except OSError as problem:
        raise _write_fault(path, 0, problem) from None


def read_regular_file(
    path: Path, largest: int, too_large: Callable[[int], str] = lambda size: "check the file"
) -> bytes:
    """The content of a regular file, read once.

    Args:
        path: the file; a link to a regular file is followed.
        largest: bytes; a larger file is refused before it is read.
        too_large: what to do about a file of that many bytes.

    Raises:
        InputError: missing, no regular file (a FIFO does not hang), larger than `largest`.
    """
    if "\0" in str(path):
        raise InputError(ascii(str(path)), "no file can have this name", "check the path")
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0))
    except OSError as problem:
        raise InputError(str(path), problem.strerror or "cannot be opened", "check the path") from None
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            kind = "a folder" if stat.S_ISDIR(facts.st_mode) else "no regular file"
            raise InputError(str(path), f"is {kind}", "name a file")
        if facts.st_size > largest:
            why = f"has {facts.st_size} bytes, more than the {largest} allowed"
            raise InputError(str(path), why, too_large(facts.st_size))
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            # Not `largest`: reading takes a buffer of the size that is asked for.
            content = file.read(facts.st_size + 1)
        if len(content) != facts.st_size:
            raise InputError(str(path), "changed while it was read", "try again when nothing writes to it")
        return content
    except OSError as problem:
        raise InputError(str(path), problem.strerror or "cannot be read", "check the path") from None
    finally:
        os.close(descriptor)


def _refuse_odd(path: Path) -> None:
    if "\0" in str(path):
        raise EnvironmentFault(ascii(str(path)), "no file can have this name", "name another output")
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise EnvironmentFault(str(path), "is a link or no regular file", "name another output")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_fault(path: Path, needed: int, problem: OSError) -> EnvironmentFault:
    why = problem.strerror or "cannot be written"
    if problem.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        existing = next(folder for folder in path.absolute().parents if folder.exists())
        why = f"{why} ({needed} bytes needed, {shutil.disk_usage(existing).free} free)"
        return EnvironmentFault(str(path), why, "make room or name another output")
    return EnvironmentFault(str(path), why, "name an output in a folder that can be written")
