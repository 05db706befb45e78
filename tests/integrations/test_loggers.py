"""Loggers: what they write is read back with their own readers."""

import csv
import io
import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mapolicy import search_policy, train_network
from mapolicy.errors import UsageError
from mapolicy.integrations.loggers import make_logger
from mapolicy.training.callbacks import Reporter, Reporters
from mapolicy.training.policy_view import PolicyView
from mapolicy.transforms.space import SPACES


def logged(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def scalars():
    """TensorBoard's scalars of a folder: (step, value) by name, with its own reader."""
    pytest.importorskip("tensorboard", reason="an extra")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
        events = EventAccumulator(str(folder), {"scalars": 0})
        events.Reload()
        return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}

    return read


def test_tensorboard_has_the_log_and_takes_back_what_a_resumed_run_does_again(
    scalars, make_search_config, tmp_path: Path, interrupted_after
) -> None:
    config = make_search_config()
    with interrupted_after(7):
        search_policy(config, make_logger("tensorboard"), tmp_path)
    search_policy(config, make_logger("tensorboard"), tmp_path, resume=True)
    found, records = scalars(tmp_path / "tensorboard"), logged(tmp_path)
    for name in ("loss", "alpha", "entropy", "weight_spread"):
        expected = [(record["iteration"], record[name]) for record in records if "loss" in record]
        assert [step for step, _ in found[f"training/{name}"]] == [step for step, _ in expected]
        for (_, value), (_, wanted) in zip(found[f"training/{name}"], expected, strict=True):
            assert math.isclose(value, wanted, rel_tol=1e-6)
    assert [step for step, _ in found["epoch/validation_top1"]] == [5, 10]
    result = json.loads((tmp_path / "result.json").read_text())
    assert found["result/validation_top1"][0][1] == pytest.approx(result["validation_top1"])
    assert not any("digest" in tag for tag in found)


@pytest.fixture
def pictures():
    """TensorBoard's pictures and histograms of a folder, with its own reader: (step, value) by name."""
    pytest.importorskip("tensorboard", reason="an extra")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def read(folder: Path) -> tuple[dict[str, list], dict[str, list]]:
        events = EventAccumulator(str(folder), {"images": 0, "histograms": 0})
        events.Reload()
        found = {
            tag: [(event.step, Image.open(io.BytesIO(event.encoded_image_string))) for event in events.Images(tag)]
            for tag in events.Tags()["images"]
        }
        counted = {
            tag: [(event.step, event.histogram_value) for event in events.Histograms(tag)]
            for tag in events.Tags()["histograms"]
        }
        return found, counted

    return read


def test_tensorboard_shows_images_weights_and_draws_and_changes_nothing(
    pictures, make_search_config, tmp_path: Path, interrupted_after
) -> None:
    config = make_search_config(epochs=3)
    with interrupted_after(7):
        search_policy(config, make_logger("tensorboard"), tmp_path)
    bundle = search_policy(config, make_logger("tensorboard"), tmp_path, resume=True)
    assert bundle.digest == search_policy(config).digest
    images, histograms = pictures(tmp_path / "tensorboard")
    assert {tag: [step for step, _ in found] for tag, found in images.items()} == {
        "policy/augmented": [5, 10, 15],
        "policy/probabilities": [5, 10, 15],
    }
    (_, grid), *_ = images["policy/augmented"]
    assert grid.size == (8 * (64 + 2) + 2, 4 * (64 + 2) + 2)
    tiles = np.asarray(grid)[2:, 2:].reshape(4, 66, 8, 66, 3).swapaxes(1, 2)[:, :, :64:8, :64:8].reshape(32, 8, 8, 3)
    assert len(np.unique(tiles.reshape(32, -1), axis=0)) == 32
    assert (tiles[..., 0] == tiles[..., 2]).all()
    steps = [step for step, _ in histograms["policy/weights"]]
    assert steps == [5, 10, 15]
    for _, weights in histograms["policy/weights"]:
        assert weights.num == config.batch_size * config.copies
        assert weights.sum / weights.num == pytest.approx(1, abs=1e-5)


def test_what_tensorboard_shows_depends_on_what_there_is(
    pictures, bundle, make_search_config, make_train_config, tmp_path: Path
) -> None:
    search_policy(
        make_search_config(epochs=1, sampler="alignment", weighting="equal", verify=False),
        make_logger("tensorboard"),
        tmp_path / "levels",
    )
    images, histograms = pictures(tmp_path / "levels" / "tensorboard")
    assert set(images) == {"policy/augmented", "policy/levels"}
    assert not histograms
    train_network(make_train_config(epochs=1), bundle, make_logger("tensorboard"), tmp_path / "frozen")
    images, histograms = pictures(tmp_path / "frozen" / "tensorboard")
    assert set(images) == {"policy/augmented"}
    assert set(histograms) == {"policy/weights"}


@pytest.mark.parametrize(
    ("epochs", "due"), [(1, [1]), (3, [1, 2, 3]), (20, [1, *range(2, 21, 2)]), (25, [1, *range(3, 25, 3), 25])]
)
def test_pictures_are_some_ten_a_run(pictures, tmp_path: Path, epochs: int, due: list[int]) -> None:
    asked: list[int] = []
    black, logger = torch.zeros(4, 1, 8, 8, dtype=torch.uint8), make_logger("tensorboard")
    logger.on_open({"epochs": epochs}, tmp_path, 0)
    for epoch in range(1, epochs + 1):
        logger.on_evaluate({"iteration": epoch, "epoch": epoch})
        looked = partial(asked.append, epoch)
        logger.on_view(PolicyView(epoch, lambda look=looked: (look(), black)[1], lambda: None, None, SPACES["wide"]))
    logger.on_finish()
    assert asked == due


def test_weights_and_biases_offline(make_train_config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="an extra")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    told: list[dict] = []
    original = wandb.sdk.wandb_run.Run.log
    monkeypatch.setattr(wandb.sdk.wandb_run.Run, "log", lambda run, data: (told.append(data), original(run, data))[1])
    config = make_train_config(policy="none", epochs=1)
    train_network(config, reporter=make_logger("wandb"), run_dir=tmp_path / "run")
    (theirs,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    (database,) = theirs.glob("run-*.wandb")
    content = database.read_bytes()
    for part in (b"mapolicy", b"weight_decay", b"images_per_second", b"test_top1"):
        assert part in content, part
    assert told == logged(tmp_path / "run")


def test_a_logger_that_fails_ends_nothing(make_train_config, tmp_path: Path) -> None:
    class Failing(Reporter):
        heard = 0

        def on_log(self, record) -> None:
            self.heard += 1
            raise OSError("no room")

    class Heard(Reporter):
        def __init__(self) -> None:
            self.calls: list[str] = []

        def on_note(self, text: str) -> None:
            self.calls.append(text)

        def on_log(self, record) -> None:
            self.calls.append("on_log")

    first, failing, second = Heard(), Failing(), Heard()
    train_network(make_train_config(policy="none", epochs=1), reporter=Reporters(first, [failing, second]))
    assert failing.heard == 1
    assert [text for text in first.calls if text != "on_log"] == [
        "warning: Failing has failed and hears no more (no room)"
    ]
    assert first.calls.count("on_log") == second.calls.count("on_log") == 5


def test_the_display_does_not_fail_unheard() -> None:
    class Failing(Reporter):
        def on_finish(self) -> None:
            raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        Reporters(Failing(), []).on_finish()


def test_reporters_pass_everything_on() -> None:
    names = [name for name in vars(Reporter) if not name.startswith("_")]
    assert len(names) > 6
    assert set(names) <= set(vars(Reporters))


def test_refusals(make_train_config, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="'tensorbord' is not one of tensorboard, wandb"):
        make_logger("tensorbord")
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(UsageError, match=r"its package is not installed; pip install 'mapolicy\[wandb\]'"):
        make_logger("wandb")


def test_tensorboard_needs_a_folder(scalars, make_train_config) -> None:
    with pytest.raises(UsageError, match="no run folder"):
        train_network(make_train_config(policy="none", epochs=1), reporter=make_logger("tensorboard"))


def test_the_log_is_a_table_too(make_train_config, tmp_path: Path) -> None:
    train_network(make_train_config(policy="none", epochs=1), run_dir=tmp_path)
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [{key: float(value) for key, value in row.items() if value} for row in rows] == logged(tmp_path)
