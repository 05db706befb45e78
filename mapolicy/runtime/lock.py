"""Locks on a run folder and on a file being written; the system frees them when their process ends, however it ends.

Not `filelock`: its lock on Unix stays behind as a file and does not name its holder, which our error message does. Nor
can it lock a file that is already open, as `files.write_atomically` does with its temporary file.
"""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import EnvironmentFault, FolderInUseError

LOCK_FILE = "lock"
LONGEST_NAME = 1024  # bytes to read of the holder's name
ATTEMPTS, PAUSE = 5, 0.02  # `check_free` takes the lock for an instant; the pause is in seconds

_locked: set[int] = set()  # descriptors of this process's folder locks


def _close_in_child() -> None:
    """Otherwise a forked child would keep the lock after its parent has died."""
    for descriptor in _locked:
        os.close(descriptor)
    _locked.clear()


os.register_at_fork(after_in_child=_close_in_child)


def try_lock(descriptor: int) -> bool:
    """Lock an open file without waiting.

    Returns:
        False if another process has locked it, else true; also true on file systems without locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Inside the block no other run can lock the folder, which is created if it is missing.

    Raises:
        FolderInUseError: another run has locked it; the message names the process.
        EnvironmentFault: the folder cannot be written.
    """
    path, created = folder / LOCK_FILE, not folder.exists()
    descriptor = _acquire(path)
    _locked.add(descriptor)
    try:
        os.truncate(descriptor, 0)
        os.write(descriptor, json.dumps({"process": os.getpid(), "host": socket.gethostname()}).encode())
        yield
    finally:
        if descriptor in _locked:  # not in a forked child
            path.unlink(missing_ok=True)
            _locked.discard(descriptor)
            os.close(descriptor)
            if created:  # and left empty by a run that was rejected
                with suppress(OSError):
                    folder.rmdir()


def check_free(folder: Path) -> None:
    """Check early whether another run has locked the folder; only `folder_lock` guarantees that none has.

    Raises:
        FolderInUseError: another run has.
    """
    try:
        descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        if not try_lock(descriptor):
            raise _in_use(folder, descriptor)
    finally:
        os.close(descriptor)


def _acquire(path: Path) -> int:
    attempts = lost = 0
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError as problem:
            # A run that was rejected may remove the folder that it had created, even inside `mkdir`, which then raises
            # FileExistsError.
            if isinstance(problem, FileNotFoundError | FileExistsError) and lost < ATTEMPTS:
                lost += 1
                continue
            why = problem.strerror or "cannot be written"
            raise EnvironmentFault(str(path.parent), why, "use another --run-dir") from None
        if not try_lock(descriptor):
            attempts += 1
            in_use = _in_use(path.parent, descriptor) if attempts == ATTEMPTS else None
            os.close(descriptor)
            if in_use is not None:
                raise in_use
            time.sleep(PAUSE)
        elif _is_same_file(descriptor, path):
            return descriptor
        else:  # the previous holder has removed the file since it was opened here
            os.close(descriptor)


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def _in_use(folder: Path, descriptor: int) -> FolderInUseError:
    try:
        holder = json.loads(os.pread(descriptor, LONGEST_NAME, 0))
        named = f"process {int(holder['process'])} on {str(holder['host'])[:64]}"
    except (ValueError, KeyError, TypeError):
        named = "another process"
    return FolderInUseError(str(folder), f"{named} runs in it", "wait for it to end, or use another --run-dir")
