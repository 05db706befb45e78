"""`mapolicy doctor`: whether this machine has what the commands need, and what is missing for which of them."""

import importlib
import os
import platform
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import EnvironmentFault
from ..runtime.files import check_writable
from ..runtime.plugins import loaded_plugins
from ..runtime.sanitize import printable
from . import display, options
from .grouped import grouped

OK, MISSING, BROKEN = "ok", "missing", "broken"

# Packages that something asks for and nothing else needs: modules, what asks, how to install them.
OPTIONAL = (
    (("onnx", "onnxscript", "onnxruntime"), "mapolicy export-network --to onnx", "pip install 'mapolicy[onnx]'"),
    (("starlette", "uvicorn"), "mapolicy explore", "pip install 'mapolicy[explore]'"),
    (("tensorboard",), "--logger tensorboard", "pip install 'mapolicy[tensorboard]'"),
    (("wandb",), "--logger wandb", "pip install 'mapolicy[wandb]'"),
    (("datasets",), "data sets called hfds/NAME and hfids/NAME", "pip install datasets"),
    (("tensorflow_datasets",), "data sets called tfds/NAME", "pip install tensorflow-datasets"),
    (("webdataset",), "data sets called wds/NAME", "pip install webdataset"),
    (("albumentations", "kornia"), "their rows of mapolicy bench operations", "pip install 'mapolicy[benchmarks]'"),
)
LEAST_FREE, LITTLE_FREE = 0.1, 5.0  # GiB of disk: less than the first stops a run, less than the second may
CGROUP_CPU = Path("/sys/fs/cgroup/cpu.max")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: a package, or a part of the machine.
        state: ok; missing where only some commands or options need it; broken where search and train need it.
        text: what was found.
        remedy: what to do; empty where nothing is to be done.
    """

    what: str
    state: str
    text: str
    remedy: str = ""


@grouped
def doctor(*, output: options.Output) -> None:
    """Check this machine, and say what is missing for which command.

    Looks at packages, cores, GPU, disk and caches. Nothing is downloaded or changed. The exit code is 5 where something
    is broken that every search and training needs.

    Example: mapolicy doctor
    """
    found = list(examine())
    broken = [each for each in found if each.state == BROKEN]
    missing = [each.what for each in found if each.state == MISSING]
    if output.as_json:
        display.print_json({"ok": not broken, "findings": [asdict(each) for each in found]})
    else:
        if not broken:
            rest = f" Only some commands or options need the rest: {', '.join(missing)}." if missing else ""
            print(f"Search, train and compare have what they need.{rest}\n")
        width = max(len(each.what) for each in found)
        for each in found:
            remedy = f"; {each.remedy}" if each.remedy else ""
            print(printable(f"{each.state:<8} {each.what:<{width}}  {each.text}{remedy}"))
    if broken:
        others = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
        raise EnvironmentFault(f"{broken[0].what}{others}", broken[0].text, broken[0].remedy)


def examine() -> Iterator[Finding]:
    """Everything that was looked at, the most important first."""
    yield Finding("mapolicy", OK, f"{version('mapolicy')}, Python {platform.python_version()}, {platform.system()}")
    yield from required_packages()
    yield from _torch()
    yield _cores()
    yield _numba_cache()
    yield from _disks()
    yield _hub()
    yield _compiler()
    yield from _optional_packages()
    if plugins := loaded_plugins():
        yield Finding("plugins", OK, ", ".join(plugins))


def required_packages() -> Iterator[Finding]:
    """The packages that mapolicy depends on: one line where all are there, else one for each that is not."""
    lines, present = [line for line in requires("mapolicy") or () if "extra ==" not in line], []
    for line in lines:
        name, least = re.findall(r"[\w.-]+", line)[0], re.findall(r">=\s*([\d.]+)", line)
        try:
            there = version(name)
        except PackageNotFoundError:
            yield Finding(name, BROKEN, "is not installed", f"pip install '{line}'")
            continue
        if least and _numbers(there) < _numbers(least[0]):
            yield Finding(name, BROKEN, f"{there} is older than {least[0]}", f"pip install '{line}'")
        else:
            present.append(f"{name} {there}")
    yield Finding("packages", OK, ", ".join(present))


def _numbers(text: str) -> tuple[int, ...]:
    """A version as numbers, without what follows the release: 2.15.0+cu130 is (2, 15, 0)."""
    release = re.match(r"[\d.]*", text)
    return tuple(int(part) for part in (release[0] if release else "").split(".") if part)


def _torch() -> Iterator[Finding]:
    for name in ("torch", "torchvision", "timm"):
        try:
            importlib.import_module(name)
        except Exception as problem:  # a broken installation raises errors of many kinds
            yield Finding(name, BROKEN, f"cannot be imported: {problem}", f"install {name} again")
            return
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
        text = ", ".join(f"{each.name}, {each.total_memory / 2**30:.0f} GiB" for each in names)
        yield Finding("GPU", OK, text)
    elif shutil.which("nvidia-smi"):
        text = f"there is a driver, but torch {torch.__version__} finds no device; runs use the CPU"
        yield Finding("GPU", MISSING, text, "install a torch with CUDA for this driver")
    else:
        yield Finding("GPU", MISSING, "none; runs use the CPU")


def _cores() -> Finding:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    text = f"{usable} of {os.cpu_count()} cores"
    try:
        quota, period = CGROUP_CPU.read_text(encoding="utf-8").split()
        if quota != "max" and (allowed := int(quota) / int(period)) < (usable or 1):
            return Finding("CPU", OK, f"{text}, of which this container may use {allowed:g}", "--set threads=N says so")
    except (OSError, ValueError):  # no container, or none that says so
        pass
    return Finding("CPU", OK, text)


def _numba_cache() -> Finding:
    try:
        from ..transforms.cpu_kernels import transform
    except Exception as problem:  # numba and its compiler library raise errors of many kinds
        return Finding("numba", BROKEN, f"cannot be imported: {problem}", "install numba again")
    compiled: Any = transform  # numba's decorator hides its type
    folder = compiled.stats.cache_path
    if folder is None:
        text = "no folder is writable: each process compiles the operations anew, which takes some seconds"
        return Finding("numba cache", MISSING, text, "set NUMBA_CACHE_DIR to a folder")
    filled = any(Path(folder).glob("cpu_kernels.transform*.nbi"))
    return Finding("numba cache", OK, f"{folder}, {'filled' if filled else 'empty: the first run compiles'}")


def _disks() -> Iterator[Finding]:
    here = Path.cwd()
    free = shutil.disk_usage(here).free / 2**30
    text = f"{free:.1f} GiB free in {here}"
    if free < LEAST_FREE:
        yield Finding("disk", BROKEN, text, "free some")
    else:
        yield Finding("disk", OK if free >= LITTLE_FREE else MISSING, text)
    try:
        check_writable(here / "runs" / "probe")
    except EnvironmentFault as problem:
        text = f"{here} is not writable ({problem.why}); runs/ and artifacts/ are made there"
        yield Finding("this folder", MISSING, text, "go to another folder, or use --run-dir and --out")


def _hub() -> Finding:
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE)
    facts = f"{folder}{', offline' if constants.HF_HUB_OFFLINE else ''}"
    try:
        check_writable(folder / "probe")
    except EnvironmentFault as problem:
        text = f"{facts} is not writable ({problem.why}); hf:// bundles and pretrained networks go there"
        return Finding("huggingface cache", MISSING, text, "set HF_HOME to another folder")
    return Finding("huggingface cache", OK, facts)


def _compiler() -> Finding:
    if any(shutil.which(name) for name in (os.environ.get("CXX") or "g++", "clang++")):
        return Finding("C++ compiler", OK, "there: long runs on a CPU may be compiled")
    text = "none: runs on a CPU are not compiled (compile=always needs one)"
    return Finding("C++ compiler", MISSING, text, "install g++")


def _optional_packages() -> Iterator[Finding]:
    for modules, asked_by, remedy in OPTIONAL:
        absent = [name for name in modules if find_spec(name) is None]
        if absent:
            yield Finding(" and ".join(absent), MISSING, f"not installed; needed by {asked_by}", remedy)
        else:
            yield Finding(" and ".join(modules), OK, f"there, for {asked_by}")
