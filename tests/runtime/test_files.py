"""Files are whole or absent, whatever fails on the way; what is read is a regular file of a sane size."""

import errno
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from mapolicy.errors import EnvironmentFault, InputError
from mapolicy.runtime import files
from mapolicy.runtime.files import ReadAt, check_writable, plain_absolute, read_regular_file, write_atomically

OLD, NEW = b"old content", b"new content, longer"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "bundle.safetensors"
    path.write_bytes(OLD)
    return path


def failing(code: int):
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


def listing(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


# ---- writing


def test_writes_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    for content in (OLD, NEW, b"", b"\x00" * 3_000_000):
        write_atomically(path, content)
        assert path.read_bytes() == content
    assert listing(path.parent) == ["file"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600), (0o000, 0o666)])
def test_mode_follows_the_umask(umask: int, mode: int, target: Path) -> None:
    target.chmod(0o604)
    before = os.umask(umask)
    try:
        write_atomically(target, NEW)
    finally:
        os.umask(before)
    assert stat.S_IMODE(target.stat().st_mode) == mode


def test_synced_before_it_is_renamed_and_the_folder_after(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = []
    fsync, replace = os.fsync, os.replace

    def recorded_fsync(descriptor: int) -> None:
        facts = os.fstat(descriptor)
        events.append("folder" if stat.S_ISDIR(facts.st_mode) else f"file of {facts.st_size}")
        fsync(descriptor)

    def recorded_replace(source: Path, destination: Path) -> None:
        assert Path(source).parent == target.parent, "a rename between file systems is none"
        events.append("rename")
        replace(source, destination)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    write_atomically(target, NEW)
    assert events == [f"file of {len(NEW)}", "rename", "folder"]


@pytest.mark.parametrize("function", ["fsync", "replace", "open"])
@pytest.mark.parametrize("code", [errno.EIO, errno.EROFS, errno.EACCES])
def test_old_content_stands_when_the_write_fails(
    function: str, code: int, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, function, failing(code))
    with pytest.raises(EnvironmentFault) as fault:
        write_atomically(target, NEW)
    monkeypatch.undo()
    assert str(fault.value) == (f"{target}: {os.strerror(code)}; name an output in a folder that can be written")
    assert target.read_bytes() == OLD
    assert listing(target.parent) == [target.name]


def test_interrupted_write_leaves_the_old_content(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(target, NEW)
    assert target.read_bytes() == OLD
    assert listing(target.parent) == [target.name]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_says_what_is_needed_and_free(code: int, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", failing(code))
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: SimpleNamespace(free=12))
    with pytest.raises(EnvironmentFault) as fault:
        write_atomically(target, NEW)
    assert fault.value.why == f"{os.strerror(code)} ({len(NEW)} bytes needed, 12 free)"
    assert fault.value.remedy == "make room or name another output"
    assert target.read_bytes() == OLD
    assert listing(target.parent) == [target.name]


def test_a_real_write_that_stops_half_way(target: Path) -> None:
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from mapolicy.runtime.files import write_atomically\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "write_atomically(Path(sys.argv[1]), b'x' * 5000)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(target)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "EnvironmentFault" in done.stderr.splitlines()[-1]
    assert "File too large (5000 bytes needed, " in done.stderr.splitlines()[-1]
    assert target.read_bytes() == OLD
    assert listing(target.parent) == [target.name]


def make_odd(path: Path, kind: str) -> None:
    path.unlink()
    if kind == "link":
        path.symlink_to("elsewhere")
        (path.parent / "elsewhere").write_bytes(OLD)
    elif kind == "dangling":
        path.symlink_to("nowhere")
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()


ODD = pytest.mark.parametrize("kind", ["link", "dangling", "fifo", "folder"])


@ODD
def test_only_regular_files_are_replaced(kind: str, target: Path) -> None:
    make_odd(target, kind)
    before = target.lstat(), listing(target.parent)
    with pytest.raises(EnvironmentFault, match=r"is a link or not a regular file; name another output$"):
        write_atomically(target, NEW)
    after = target.lstat(), listing(target.parent)
    assert (after[0].st_ino, after[0].st_mode, after[1]) == (before[0].st_ino, before[0].st_mode, before[1])
    if kind == "link":
        assert (target.parent / "elsewhere").read_bytes() == OLD


@pytest.mark.parametrize("function", [lambda path: write_atomically(path, NEW), check_writable], ids=["write", "check"])
def test_a_file_is_no_folder(function, target: Path) -> None:
    for path in (target / "x", target / "deeper" / "x"):
        with pytest.raises(EnvironmentFault, match="name an output in a folder that can be written") as fault:
            function(path)
        assert fault.value.exit_code == 5
    assert target.read_bytes() == OLD
    assert listing(target.parent) == [target.name]


def test_an_absolute_path_keeps_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "link").symlink_to("photos")
    monkeypatch.chdir(tmp_path)
    assert plain_absolute(Path("photos/../link/.")) == tmp_path / "link"


def test_a_name_too_long_for_the_file_system(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="File name too long"):
        write_atomically(tmp_path / ("a" * 300), NEW)


# ---- finding out beforehand


def test_checking_leaves_nothing(target: Path) -> None:
    check_writable(target)
    check_writable(target.parent / "new")
    check_writable(target.parent / "folder" / "not" / "there" / "yet")
    assert listing(target.parent) == [target.name]
    assert target.read_bytes() == OLD


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_checking_finds_what_writing_would(code: int, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "open", failing(code))
    with pytest.raises(EnvironmentFault, match=os.strerror(code)):
        check_writable(target)
    monkeypatch.undo()
    assert listing(target.parent) == [target.name]


@ODD
def test_checking_refuses_what_writing_refuses(kind: str, target: Path) -> None:
    make_odd(target, kind)
    with pytest.raises(EnvironmentFault, match="is a link or not a regular file"):
        check_writable(target)


@pytest.mark.parametrize(
    "function",
    [
        check_writable,
        lambda path: write_atomically(path, NEW),
    ],
    ids=["check", "write"],
)
def test_the_working_folder_itself(function, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EnvironmentFault, match="is a link or not a regular file"):
        function(Path())
    assert listing(tmp_path) == []


# ---- reading


@contextmanager
def within_seconds(seconds: int) -> Iterator[None]:
    def give_up(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def lowest_free_descriptor() -> int:
    descriptor = os.dup(1)
    os.close(descriptor)
    return descriptor


def test_reads_up_to_the_limit(target: Path) -> None:
    assert read_regular_file(target, len(OLD)) == OLD
    with pytest.raises(InputError, match=f"has {len(OLD)} bytes, more than the {len(OLD) - 1} allowed"):
        read_regular_file(target, len(OLD) - 1)
    link = target.with_name("link")
    link.symlink_to(target)
    assert read_regular_file(link, 100) == OLD


def test_a_sparse_giant_is_refused_unread(target: Path) -> None:
    os.truncate(target, 200 * 10**9)
    with pytest.raises(InputError, match="has 200000000000 bytes"):
        read_regular_file(target, 10**9)


def test_a_file_may_be_refused_before_it_is_read_whole(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def look(read_at: ReadAt, size: int) -> None:
        seen.append((read_at(4, 3), read_at(0, 1), read_at(size - 2, 9), size))

    assert read_regular_file(target, 100, precheck=look) == OLD
    assert seen == [(OLD[4:7], OLD[:1], OLD[-2:], len(OLD))]

    def refuse(read_at: ReadAt, size: int) -> None:
        raise InputError("x", "is none")

    monkeypatch.setattr(files.os, "fdopen", failing(errno.EIO))
    before = lowest_free_descriptor()
    with pytest.raises(InputError, match="is none"):
        read_regular_file(target, 100, precheck=refuse)
    assert lowest_free_descriptor() == before, "a descriptor was left open"


def test_a_file_larger_than_the_memory(target: Path) -> None:
    os.truncate(target, 2**31)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    allowed = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**28, allowed[1]))
    try:
        with pytest.raises(
            EnvironmentFault, match=rf"has {2**31} bytes; \d+ bytes of memory are free, and the process"
        ):
            read_regular_file(target, 2**32)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, allowed)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("missing", "No such file or directory"),
        ("dangling", "No such file or directory"),
        ("folder", "is a folder"),
        ("fifo", "is not a regular file"),
        ("socket", "No such device or address"),
        ("under-a-file", "Not a directory"),
    ],
)
def test_what_is_no_regular_file_is_refused_at_once(kind: str, why: str, target: Path) -> None:
    if kind == "missing":
        target.unlink()
    elif kind == "socket":
        target.unlink()
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(target))
    elif kind == "under-a-file":
        target = target / "x"
    else:
        make_odd(target, kind)
    before = lowest_free_descriptor()
    with pytest.raises(InputError) as refusal, within_seconds(5):
        read_regular_file(target, 100)
    assert (refusal.value.what, refusal.value.why, refusal.value.exit_code) == (str(target), why, 3)
    assert lowest_free_descriptor() == before, "a descriptor was left open"


def test_a_file_that_grows_while_it_is_read(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fstat = os.fstat

    def earlier(descriptor: int) -> SimpleNamespace:
        return SimpleNamespace(st_mode=fstat(descriptor).st_mode, st_size=0)

    monkeypatch.setattr(files.os, "fstat", earlier)
    with pytest.raises(InputError, match="changed while it was read"):
        read_regular_file(target, 4)


def test_a_line_that_does_not_fit_leaves_nothing_of_itself(tmp_path: Path) -> None:
    path = tmp_path / "log"
    files.append_line(path, "whole")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        with pytest.raises(EnvironmentFault, match="bytes needed"):
            files.append_line(path, "does not fit")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_text() == "whole\n"
