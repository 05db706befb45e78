"""Loggers: what they write is read back with their own readers."""

import csv
import json
import math
from pathlib import Path

import pytest

from mapolicy import search_policy, train_network
from mapolicy.errors import UsageError
from mapolicy.training.callbacks import Reporter, Reporters
from mapolicy.training.loggers import make_logger


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
    config = make_search_config(batch_size=256)
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
    with pytest.raises(UsageError, match=r"its package is not here; pip install 'mapolicy\[wandb\]'"):
        make_logger("wandb")


def test_tensorboard_needs_a_folder(scalars, make_train_config) -> None:
    with pytest.raises(UsageError, match="no run folder"):
        train_network(make_train_config(policy="none", epochs=1), reporter=make_logger("tensorboard"))


def test_the_log_is_a_table_too(make_train_config, tmp_path: Path) -> None:
    train_network(make_train_config(policy="none", epochs=1), run_dir=tmp_path)
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [{key: float(value) for key, value in row.items() if value} for row in rows] == logged(tmp_path)
