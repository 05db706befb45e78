"""Locks: one holder, who is named, and whose death frees the folder."""

import json
import multiprocessing
import os
import signal
import socket
import threading
from pathlib import Path

import pytest

from mapolicy.errors import EnvironmentFault, FolderInUseError
from mapolicy.runtime import lock
from mapolicy.runtime.lock import LOCK_FILE, check_free, folder_lock, try_lock

FORK = multiprocessing.get_context("fork")


def hold(folder: Path, held, forks: bool) -> None:
    with folder_lock(folder):
        child = os.fork() if forks else None
        if child == 0:
            signal.pause()
        held.send((os.getpid(), child))
        signal.pause()


def test_a_second_run_is_refused_and_told_of_the_first(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with folder_lock(folder):
        for attempt in (check_free, lambda path: folder_lock(path).__enter__()):
            with pytest.raises(FolderInUseError) as caught:
                attempt(folder)
            assert f"process {os.getpid()} on {socket.gethostname()[:64]} runs in it" in str(caught.value)
            assert caught.value.exit_code == 6
    check_free(folder)
    with folder_lock(folder):
        pass


def test_nothing_is_left(tmp_path: Path) -> None:
    check_free(tmp_path / "run")
    with folder_lock(tmp_path / "run"):
        pass
    assert list(tmp_path.iterdir()) == []
    with folder_lock(tmp_path):
        (tmp_path / "file").write_text("")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("forks", [False, True], ids=["alone", "with a child that lives on"])
def test_the_lock_dies_with_its_holder(tmp_path: Path, forks: bool) -> None:
    ours, theirs = FORK.Pipe()
    process = FORK.Process(target=hold, args=(tmp_path, theirs, forks))
    process.start()
    holder, child = ours.recv()
    try:
        with pytest.raises(FolderInUseError, match=f"process {holder} on"):
            check_free(tmp_path)
        os.kill(holder, signal.SIGKILL)
        process.join()
        assert (tmp_path / LOCK_FILE).exists(), "the file stays, the lock does not"
        with folder_lock(tmp_path):
            assert json.loads((tmp_path / LOCK_FILE).read_text())["process"] == os.getpid()
        assert not (tmp_path / LOCK_FILE).exists()
    finally:
        if child is not None:
            os.kill(child, signal.SIGKILL)


def test_a_child_that_ends_frees_nothing(tmp_path: Path) -> None:
    with folder_lock(tmp_path):
        child = FORK.Process(target=int)
        child.start()
        child.join()
        with pytest.raises(FolderInUseError):
            check_free(tmp_path)
        assert (tmp_path / LOCK_FILE).exists()


def test_many_who_want_it_have_it_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is removed by each holder, and no two hold it through different files."""
    monkeypatch.setattr(lock, "ATTEMPTS", 100_000)
    monkeypatch.setattr(lock, "PAUSE", 0.0005)
    inside: list[int] = []
    worst: list[int] = []

    def often() -> None:
        for _ in range(20):
            with folder_lock(tmp_path / "run"):
                inside.append(1)
                worst.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=often) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(worst) == 80
    assert max(worst) == 1


def test_who_locks_a_file_that_has_been_replaced_begins_again(tmp_path: Path, monkeypatch) -> None:
    """Its holder removed it after we had opened it, and somebody else made another: ours would lock nobody out."""
    path, original, calls = tmp_path / LOCK_FILE, lock.try_lock, []

    def late(descriptor: int) -> bool:
        calls.append(descriptor)
        if len(calls) == 1:
            path.unlink()
            path.touch()
        return original(descriptor)

    monkeypatch.setattr(lock, "try_lock", late)
    with folder_lock(tmp_path):
        assert len(calls) == 2
        with pytest.raises(FolderInUseError):
            check_free(tmp_path)


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentFault), folder_lock(tmp_path / "file" / "run"):
        pass
    check_free(tmp_path / "file" / "run")


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b'{"process": "x", "host": 1}'])
def test_a_holder_that_does_not_say_its_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / LOCK_FILE
    path.write_bytes(content)
    with path.open("rb") as file:
        assert try_lock(file.fileno())
        with pytest.raises(FolderInUseError, match="another process runs in it"):
            check_free(tmp_path)


def test_a_file_system_without_locks_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)
    with folder_lock(tmp_path):
        check_free(tmp_path)
