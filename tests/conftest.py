"""What several tests share: small configurations, and one searched bundle."""

import atexit
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.helpers.hub_server import HubServer, serving

# Under nohup a hangup is ignored, by what tests start as well; some of them hang up on it.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# huggingface_hub reads these when it is imported, which timm does: no test reaches the real hub or the user's cache.
HUB = HubServer()
HUB_HOME = tempfile.TemporaryDirectory()
atexit.register(HUB.server_close)
atexit.register(HUB_HOME.cleanup)
os.environ |= {
    "HF_ENDPOINT": HUB.address,
    "HF_HOME": HUB_HOME.name,
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_TOKEN": "hf_of_the_tests",
    "NO_PROXY": "127.0.0.1",
}
os.environ.pop("HF_HUB_OFFLINE", None)

from mapolicy import PolicyBundle, SearchConfig, TrainConfig, recipes, search_policy  # noqa: E402
from mapolicy.bench.synthetic import synthetic_images  # noqa: E402
from mapolicy.training.trainer import Trainer  # noqa: E402
from tests.helpers.settings import FEW, PAPER  # noqa: E402

# The order of float32 sums depends on it; and on small tensors more threads only wait for each other.
torch.set_num_threads(1)


def search_config(**changes) -> SearchConfig:
    """The recipe for digits, shortened; all images of another data set."""
    _, values = recipes.load("search-digits")
    few = {"threads": 1} if "dataset" in changes else FEW
    return SearchConfig.from_mapping(values | PAPER | few | {"epochs": 2} | changes)


def train_config(**changes) -> TrainConfig:
    """The recipe for digits, shortened, for a network that is not the proxy; all images of another data set."""
    _, values = recipes.load("train-digits")
    few = {"threads": 1} if "dataset" in changes else FEW
    return TrainConfig.from_mapping(values | few | {"arch": "test_resnet", "epochs": 2} | changes)


@pytest.fixture(scope="session")
def _running_hub() -> Iterator[None]:
    with serving(HUB):
        yield


@pytest.fixture
def hub_server(
    _running_hub: None, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> HubServer:
    """An empty hub on loopback, and an empty cache."""
    HUB.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path_factory.mktemp("cache")))
    return HUB


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    """Sets torch's number of threads until the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


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
        original = Trainer.after_iteration

        def stopping(self: Trainer, *arguments) -> None:
            original(self, *arguments)
            if self.iteration == iteration:
                self.checkpoint()
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "after_iteration", stopping)
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


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of six colour images."""
    folder = tmp_path_factory.mktemp("data")
    images = synthetic_images(12, 32)
    for number, image in enumerate(images):
        (folder / "tiny" / str(number % 2)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / "tiny" / str(number % 2) / f"{number}.png")
    return folder
