"""A network that was trained once."""

from pathlib import Path

import pytest
from torch import nn

from mapolicy import PolicyBundle, TrainResult, train_network


@pytest.fixture(scope="session")
def trained_result(
    bundle: PolicyBundle, make_train_config, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrainResult, Path]:
    folder = tmp_path_factory.mktemp("trained") / "run"
    return train_network(make_train_config(epochs=1), bundle, run_dir=folder), folder


@pytest.fixture(scope="session")
def trained(trained_result: tuple[TrainResult, Path]) -> nn.Module:
    return trained_result[0].network


@pytest.fixture(scope="session")
def trained_run(trained_result: tuple[TrainResult, Path]) -> Path:
    return trained_result[1]
