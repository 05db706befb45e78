"""What several tests share: small configurations, and one searched bundle."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch

from mapolicy import PolicyBundle, SearchConfig, TrainConfig, recipes, search_policy
from mapolicy.run import Run

# The order of float32 sums depends on it; and on small tensors more threads only wait for each other.
torch.set_num_threads(1)


def search_config(**changes) -> SearchConfig:
    """The recipe for digits, shortened."""
    _, values = recipes.load("search-digits")
    return SearchConfig.from_mapping(values | {"epochs": 2, "batch_size": 256, "threads": 1} | changes)


def train_config(**changes) -> TrainConfig:
    """The recipe for digits, shortened, for a network that is not the proxy."""
    _, values = recipes.load("train-digits")
    short = {"arch": "test_resnet", "epochs": 2, "batch_size": 256, "threads": 1}
    return TrainConfig.from_mapping(values | short | changes)


@pytest.fixture(scope="session")
def make_search_config() -> Callable[..., SearchConfig]:
    return search_config


@pytest.fixture(scope="session")
def make_train_config() -> Callable[..., TrainConfig]:
    return train_config


@pytest.fixture
def interrupted_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], AbstractContextManager[None]]:
    """Within it, a run writes a checkpoint after that iteration and is interrupted."""

    @contextmanager
    def interrupted(iteration: int) -> Iterator[None]:
        original = Run._iterated

        def stopping(self: Run, *arguments) -> None:
            original(self, *arguments)
            if self.iteration == iteration:
                self.checkpoint()
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Run, "_iterated", stopping)
            with pytest.raises(KeyboardInterrupt):
                yield

    return interrupted


@pytest.fixture(scope="session")
def bundle() -> PolicyBundle:
    """Searched on digits, for as long as a test can wait."""
    return search_policy(search_config())


@pytest.fixture(scope="session")
def bundle_file(bundle: PolicyBundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "digits.safetensors"
    bundle.save(path)
    return path
