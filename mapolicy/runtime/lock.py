"""Locks that die with their holder, killed or not: on a run folder, and on a file that is being written."""

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
LONGEST_NAME = 1024  # bytes that are read of a holder
PROBES, PAUSE = 5, 0.02  # somebody who only looks holds the lock for an instant; seconds

_held: set[int] = set()


def _let_go() -> None:
    """A child would hold the lock beyond its parent's death."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)


def try_lock(descriptor: int) -> bool:
    """Lock an open file unless somebody else has it.

    Returns:
        Whether it is ours now; also true on file systems that know no locks.
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
    """Within it nobody else runs in the folder, which is made if need be.

    Raises:
        FolderInUseError: somebody does; the error names the process.
        EnvironmentFault: the folder cannot be written.
    """
    path, made = folder / LOCK_FILE, not folder.exists()
    descriptor = _acquire(path)
    _held.add(descriptor)
    try:
        os.truncate(descriptor, 0)
        os.write(descriptor, json.dumps({"process": os.getpid(), "host": socket.gethostname()}).encode())
        yield
    finally:
        if descriptor in _held:  # not in a child
            path.unlink(missing_ok=True)
            _held.discard(descriptor)
            os.close(descriptor)
            if made:  # and left empty, by a run that was refused
                with suppress(OSError):
                    folder.rmdir()


def check_free(folder: Path) -> None:
    """Find out early whether somebody runs in the folder; `folder_lock` is what counts.

    Raises:
        FolderInUseError: somebody does.
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
    probes = lost = 0
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError as problem:
            if isinstance(problem, FileNotFoundError) and lost < PROBES:
                lost += 1  # a run that was refused has removed the folder that it had made
                continue
            why = problem.strerror or "cannot be written"
            raise EnvironmentFault(str(path.parent), why, "use another --run-dir") from None
        if not try_lock(descriptor):
            probes += 1
            problem_found = _in_use(path.parent, descriptor) if probes == PROBES else None
            os.close(descriptor)
            if problem_found is not None:
                raise problem_found
            time.sleep(PAUSE)
        elif _is(descriptor, path):
            return descriptor
        else:  # its holder has removed the file since we opened it
            os.close(descriptor)


def _is(descriptor: int, path: Path) -> bool:
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
