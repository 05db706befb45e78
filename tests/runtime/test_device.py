"""Seeds that never move, a device that is there, and a process that is as it was after a run."""

import hashlib
import platform
from importlib.metadata import version

import pytest
import torch

from mapolicy.errors import UsageError
from mapolicy.runtime.device import reproducible, resolve_device
from mapolicy.runtime.machine import versions
from mapolicy.runtime.random import generator, seed_for

CPU = torch.device("cpu")
BASE = (7, "search", "base", 3)


@pytest.mark.parametrize(
    ("draw", "text"),
    [
        (BASE, b"7/search/base/3"),
        ((0, "train", "transformation", 0), b"0/train/transformation/0"),
        ((2**31, "split", "caf\u00e9", 10**9), b"2147483648/split/caf\xc3\xa9/1000000000"),
    ],
)
def test_seed_is_sha256_of_what_it_is_for(draw: tuple[int, str, str, int], text: bytes) -> None:
    reversed_bytes = bytes(reversed(hashlib.sha256(text).digest()[:8]))
    assert seed_for(*draw) == int(reversed_bytes.hex(), 16) // 2


def test_seed_is_pinned() -> None:
    # sha256sum says 067f4fb83cc5229b... of `7/search/base/3`. With another value no bundle can be made again.
    assert seed_for(*BASE) == 5_589_357_044_833_959_811


def test_each_input_changes_the_seed() -> None:
    others = [(8, *BASE[1:]), (7, "train", *BASE[2:]), (7, "search", "cutout", 3), (*BASE[:3], 4)]
    seeds = {seed_for(*draw) for draw in [BASE, *others]}
    assert len(seeds) == 5
    many = {seed_for(0, "search", "base", step) for step in range(2000)}
    assert len(many) == 2000
    assert 0 <= min(many) < 2**61
    assert 2**62 < max(many) < 2**63


def test_generator_repeats_and_is_its_own() -> None:
    state = torch.get_rng_state()
    first, second, other = (
        torch.rand(5, generator=g) for g in (generator(*BASE), generator(*BASE), generator(0, *BASE[1:]))
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(first, torch.rand(5, generator=torch.Generator().manual_seed(seed_for(*BASE))))
    assert torch.equal(torch.get_rng_state(), state)
    assert generator(*BASE).device == CPU


@pytest.mark.parametrize("there", [True, False])
def test_device(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert resolve_device("auto") == torch.device("cuda" if there else "cpu")
    assert resolve_device("cpu") == CPU
    if there:
        assert resolve_device("cuda") == torch.device("cuda")
        return
    with pytest.raises(UsageError) as refusal:
        resolve_device("cuda")
    assert str(refusal.value) == "--device cuda: torch finds no CUDA device; use --device cpu"


@pytest.mark.parametrize("name", ["", "CPU", "cuda:0", "mps", "meta"])
def test_unknown_device(name: str) -> None:
    with pytest.raises(UsageError, match=f"^--device: '{name}' is not one of auto, cpu, cuda$"):
        resolve_device(name)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("deterministic", [False, True])
def test_reproducible_leaves_the_process_as_it_was(deterministic: bool, fails: bool) -> None:
    threads, flag = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(deterministic)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    try:
        with reproducible(threads + 1, CPU) as in_force:
            assert in_force == torch.get_num_threads() == threads + 1
            assert torch.are_deterministic_algorithms_enabled()
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
            torch.manual_seed(99)
            torch.rand(3)
            if fails:
                raise ZeroDivisionError
    except ZeroDivisionError:
        assert fails
    try:
        assert torch.get_num_threads() == threads
        assert torch.are_deterministic_algorithms_enabled() == deterministic
        assert torch.equal(torch.get_rng_state(), state)
    finally:
        torch.use_deterministic_algorithms(flag)
        torch.set_num_threads(threads)


def test_no_number_of_threads_keeps_the_present_one() -> None:
    with reproducible(0, CPU) as in_force:
        assert in_force == torch.get_num_threads() > 0


def test_warn_only_comes_back() -> None:
    flag = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with reproducible(0, CPU):
            pass
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(flag)


def test_versions() -> None:
    packages = ("mapolicy", "torch", "torchvision", "timm", "safetensors")
    assert versions() == {"python": platform.python_version()} | {name: version(name) for name in packages}
    assert versions()["torch"].split("+")[0] == torch.__version__.split("+")[0]
