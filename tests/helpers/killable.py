"""Runs for processes that are killed: each goes on from what is there, and the last one leaves its product."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import torch

from mapolicy import PolicyBundle, SearchConfig, TrainConfig, recipes, search_policy, train_network
from mapolicy.compare.comparison import compare_policies
from mapolicy.runtime.files import write_atomically
from mapolicy.training.run_folder import RunFolder
from tests.helpers.settings import FEW, PAPER

SHORT = FEW | {"epochs": 2, "checkpoint_minutes": 0.0}


def search(folder: Path, bundle: Path) -> None:
    _, values = recipes.load("search-digits")
    config = SearchConfig.from_mapping(values | PAPER | SHORT)
    resume = RunFolder(folder / "run").checkpoint() is not None
    search_policy(config, run_dir=folder / "run", resume=resume, overwrite=not resume).save(folder / "product")


def train_config(mode: str) -> TrainConfig:
    _, values = recipes.load("train-digits")
    return TrainConfig.from_mapping(values | SHORT | {"arch": "test_resnet", "mode": mode})


def frozen(folder: Path, bundle: Path) -> None:
    resume = RunFolder(folder / "run").checkpoint() is not None
    train_network(
        train_config("frozen"), PolicyBundle.load(bundle), run_dir=folder / "run", resume=resume, overwrite=not resume
    )
    write_atomically(folder / "product", (folder / "run" / "network.safetensors").read_bytes())


def finetune(folder: Path, bundle: Path) -> None:
    resume = RunFolder(folder / "run").checkpoint() is not None
    result = train_network(
        train_config("finetune"), PolicyBundle.load(bundle), run_dir=folder / "run", resume=resume, overwrite=not resume
    )
    assert result.refined is not None
    result.refined.save(folder / "product")


def compare(folder: Path, bundle: Path) -> None:
    config, resume = train_config("frozen").with_changes(epochs=1), (folder / "run" / "comparison.json").exists()
    comparison = compare_policies(
        [PolicyBundle.load(bundle)], [config], folder / "run", ["uniform"], resume=resume, overwrite=not resume
    )
    networks = sorted((folder / "run").rglob("network.safetensors"))
    figures = [(row.policy, row.seed, row.test_top1) for row in comparison.rows]
    write_atomically(
        folder / "product", repr(figures).encode() + b"".join(network.read_bytes() for network in networks)
    )


TARGETS: dict[str, Callable[[Path, Path], None]] = {
    "search": search,
    "frozen": frozen,
    "finetune": finetune,
    "compare": compare,
}


def run(what: str, folder: Path, bundle: Path, dies_before_rename: int | None = None) -> None:
    """Do it, or as much of it as there are renames before the one that never happens."""
    torch.set_num_threads(1)
    rename, left = os.replace, [dies_before_rename]

    def counted(*arguments: object) -> None:
        if left[0] is not None:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        rename(*arguments)

    os.replace = counted  # type: ignore[assignment]
    TARGETS[what](folder, bundle)
