"""A run that is killed, at any moment and any number of times, ends in the same bytes as one that is not."""

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import killable
from tests.helpers.forked import FORKS


def start(what: str, folder: Path, bundle: Path, dies_before_rename: int | None = None):
    process = FORKS.Process(target=killable.run, args=(what, folder, bundle, dies_before_rename))
    process.start()
    return process


def logged(folder: Path) -> list[tuple]:
    """What the logs say of each run, without what depends on the clock."""
    timed = {"images_per_second", "seconds_left"}
    return [
        (str(path.relative_to(folder)), {key: value for key, value in json.loads(line).items() if key not in timed})
        for path in sorted(folder.rglob("metrics.jsonl"))
        for line in path.read_text().splitlines()
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, bundle_file: Path):
    """Runs that nobody disturbed: folder and seconds by name."""
    done: dict[str, tuple[Path, float]] = {}

    def undisturbed(what: str) -> tuple[Path, float]:
        if what not in done:
            first = FORKS.Process(target=int)  # the server loads torch before its first child, which is not timed
            first.start()
            first.join()
            folder = tmp_path_factory.mktemp(what)
            begun = time.monotonic()
            process = start(what, folder, bundle_file)
            process.join()
            assert process.exitcode == 0
            done[what] = folder, time.monotonic() - begun
        return done[what]

    return undisturbed


def ends_alike(what: str, folder: Path, expected: Path, bundle: Path) -> None:
    """Let it end, and compare."""
    process = start(what, folder, bundle)
    process.join()
    assert process.exitcode == 0
    assert (folder / "product").read_bytes() == (expected / "product").read_bytes()
    assert logged(folder) == logged(expected), "no line twice, none missing"
    assert not [path for path in folder.rglob("*") if path.name.endswith(".tmp") or path.name == "lock"]


def killed_at_random(what: str, folder: Path, bundle: Path, seconds: float, draws: Iterator[float]) -> int:
    """Start it and kill it until it has ended once; the number of kills that hit."""
    hits = 0
    for share in draws:
        process = start(what, folder, bundle)
        process.join(share * seconds)
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            hits += 1
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
    return hits


def killed_after(what: str, folder: Path, bundle: Path, lines: int) -> bool:
    """Start it and kill it once its log has so many lines; whether the kill hit."""
    process, log = start(what, folder, bundle), folder / "run" / "metrics.jsonl"
    while process.is_alive() and (not log.exists() or log.read_bytes().count(b"\n") < lines):
        time.sleep(0.002)
    if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


@pytest.mark.parametrize("what", ["search"])
def test_three_kills(what: str, whole, bundle_file: Path, tmp_path: Path) -> None:
    expected, _ = whole(what)
    assert [killed_after(what, tmp_path, bundle_file, lines) for lines in (1, 3, 6)].count(True) >= 2
    ends_alike(what, tmp_path, expected, bundle_file)


@pytest.mark.parametrize("renames", [5, 6])
def test_killed_between_two_renames(whole, bundle_file: Path, tmp_path: Path, renames: int) -> None:
    """With the old checkpoint set aside and the new one not yet in its place, and a moment before."""
    expected, _ = whole("finetune")
    process = start("finetune", tmp_path, bundle_file, renames)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert list((tmp_path / "run").glob(".*.tmp"))
    ends_alike("finetune", tmp_path, expected, bundle_file)


@pytest.mark.slow
@pytest.mark.parametrize("what", list(killable.TARGETS))
def test_twenty_kills(what: str, whole, bundle_file: Path, tmp_path: Path) -> None:
    expected, seconds = whole(what)
    generator = random.Random(what)
    hits, rounds = 0, 0
    while hits < 20:
        folder = tmp_path / str(rounds)
        shares = (generator.uniform(0.05, 0.9) for _ in range(4))
        hits += killed_at_random(what, folder, bundle_file, seconds, shares)
        ends_alike(what, folder, expected, bundle_file)
        rounds += 1
