"""The average and the best epoch are what is measured and saved, and a resumed run has the same bytes."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from timm.utils import ModelEmaV3
from torch import nn

from mapolicy import PolicyBundle, train_network
from mapolicy.models.factory import build_network
from mapolicy.training.callbacks import Reporter
from mapolicy.training.evaluate import evaluate
from mapolicy.training.selection import Selection
from mapolicy.training.setup import TrainingSetup
from mapolicy.training.trainer import Trainer

CPU = torch.device("cpu")


class Notes(Reporter):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.facts: dict[str, str] = {}

    def on_note(self, text: str) -> None:
        self.notes.append(text)

    def on_start(self, what: str, iterations: int, facts: Any, seconds: float | None) -> None:
        self.facts = dict(facts)


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(other.state_dict()[name], value) for name, value in one.state_dict().items())


def test_the_average_is_timms_and_it_is_the_result(make_train_config, monkeypatch, tmp_path: Path) -> None:
    config = make_train_config(policy="none", ema_decay=0.9)
    twin: list[ModelEmaV3] = []
    original = Trainer.after_iteration

    def averaging(self: Trainer, *arguments: Any) -> None:
        if not twin:
            start = TrainingSetup.build(config, CPU).network
            twin.append(ModelEmaV3(start, decay=0.9, use_warmup=True))
        original(self, *arguments)
        twin[0].update(self.setup.network, step=self.iteration)

    monkeypatch.setattr(Trainer, "after_iteration", averaging)
    reporter = Notes()
    result = train_network(config, reporter=reporter, run_dir=tmp_path / "run")
    assert same(twin[0].module, result.network)
    saved = load_file(tmp_path / "run" / "network.safetensors")
    assert all(torch.equal(saved[name], value) for name, value in twin[0].module.state_dict().items())
    assert reporter.facts["measured and saved"] == "moving average of the weights (decay 0.9)"
    setup = TrainingSetup.build(config, CPU)
    again = evaluate(twin[0].module, setup.splits.test(), setup.pipeline, 256)
    assert again.top1 == result.test_top1
    plain = train_network(make_train_config(policy="none")).network
    assert not same(plain, result.network)


def test_the_epoch_with_the_highest_accuracy_is_kept() -> None:
    network = build_network("wrn10_1", {}, 2, 1, 0, CPU)
    selection = Selection(best=copy.deepcopy(network), patience=2)
    kept = None
    for epoch, top1 in enumerate((50.0, 70.0, 70.0, 60.0), start=1):
        nn.init.constant_(network.fc.bias, epoch)
        selection.after_epoch(network, epoch, top1)
        kept = selection.best_epoch
        assert selection.ends(epoch) == (epoch == 4)
    assert kept == 2
    selection.finish(network)
    assert network.fc.bias.tolist() == [2.0, 2.0]


def test_training_ends_early_with_the_best_epochs_network(
    make_train_config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    accuracies = iter([50.0, 80.0, 70.0, 75.0, 10.0, 10.0])
    states: list[dict[str, torch.Tensor]] = []
    original = Selection.after_epoch

    def scripted(self: Selection, network: nn.Module, epoch: int, top1: float) -> None:
        states.append({name: value.clone() for name, value in network.state_dict().items()})
        original(self, network, epoch, next(accuracies))

    monkeypatch.setattr(Selection, "after_epoch", scripted)
    reporter = Notes()
    config = make_train_config(policy="none", epochs=6, early_stopping=2)
    result = train_network(config, reporter=reporter, run_dir=tmp_path / "run")
    assert (result.epochs, result.best_epoch) == (4, 2)
    assert all(torch.equal(states[1][name], value) for name, value in result.network.state_dict().items())
    assert "training ends after epoch 4: epoch 2 was the best for 2 epochs" in reporter.notes
    recorded = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (recorded["epochs"], recorded["best_epoch"]) == (4, 2)


EVERYTHING = {
    "ema_decay": 0.9,
    "mixup": 0.2,
    "cutmix": 1.0,
    "label_smoothing": 0.1,
    "balance": "sampler",
    "early_stopping": 2,
    "last_batch": "keep",
    "schedule": "step",
    "optimizer": "adamw",
    "learning_rate": 0.003,
    "epochs": 4,
}


@pytest.mark.parametrize("iteration", [3, 13])
def test_a_run_with_everything_resumes_to_the_same_bytes(
    iteration: int, make_train_config, interrupted_after, tmp_path: Path
) -> None:
    config = make_train_config(policy="trivialaugment", **EVERYTHING)
    straight = train_network(config, run_dir=tmp_path / "straight")
    with interrupted_after(iteration):
        train_network(config, run_dir=tmp_path / "stopped")
    resumed = train_network(config, run_dir=tmp_path / "stopped", resume=True)
    assert resumed.best_epoch == straight.best_epoch is not None
    first, second = (tmp_path / name / "network.safetensors" for name in ("straight", "stopped"))
    assert first.read_bytes() == second.read_bytes()
    # A run that is finished resumes to its result too.
    done = train_network(config, run_dir=tmp_path / "straight", resume=True)
    assert same(done.network, straight.network)
    assert (tmp_path / "straight" / "network.safetensors").read_bytes() == second.read_bytes()


def test_a_run_that_ended_early_resumes_to_its_end(make_train_config, interrupted_after, tmp_path: Path) -> None:
    """Without a learning rate every epoch is as good as the first: it ends after three of six."""
    config = make_train_config(policy="none", arch="test_vit", image_size=16, model_args={"img_size": 16})
    config = config.with_changes(learning_rate=0.0, batch_size=128, epochs=6, early_stopping=2)
    with interrupted_after(5):
        train_network(config, run_dir=tmp_path / "run")
    for _ in range(2):  # to its end, and once more when it has ended
        result = train_network(config, run_dir=tmp_path / "run", resume=True)
        assert (result.epochs, result.best_epoch) == (3, 1)


def test_a_finetuned_policy_beside_an_average(
    make_train_config, bundle: PolicyBundle, interrupted_after, tmp_path
) -> None:
    """The average and the best epoch leave the policy's learning as it is."""
    config = make_train_config(mode="finetune", ema_decay=0.9, keep_best=True)
    straight = train_network(config, bundle, run_dir=tmp_path / "straight")
    plain = train_network(make_train_config(mode="finetune"), bundle)
    assert straight.refined is not None
    assert plain.refined is not None
    assert straight.refined.to_bytes() == plain.refined.to_bytes()
    with interrupted_after(7):
        train_network(config, bundle, run_dir=tmp_path / "stopped")
    resumed = train_network(config, bundle, run_dir=tmp_path / "stopped", resume=True)
    assert same(resumed.network, straight.network)


def test_a_rollback_takes_the_selection_back(make_train_config) -> None:
    network = build_network("wrn10_1", {}, 2, 1, 0, CPU)
    selection = Selection(best=copy.deepcopy(network))
    selection.after_epoch(network, 1, 60.0)
    before = selection.state()
    selection.after_epoch(network, 2, 70.0)
    selection.restore(before)
    assert (selection.best_epoch, selection.state()) == (1, before)
