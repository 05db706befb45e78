"""A run's order of batches and its bookkeeping. Search and train test it from end to end."""

import json
import math
import os
import resource
import signal
from pathlib import Path

import pytest
import torch

from mapolicy import search_policy, train_network
from mapolicy.data.batch_sampler import batches_per_epoch, left_out, training_plan, validation_plan
from mapolicy.data.splits import ResidentSplit
from mapolicy.errors import DivergenceError, EnvironmentFault, TrainingError, UsageError
from mapolicy.policy.augmentations import NoAugmentation
from mapolicy.training.callbacks import Reporter
from mapolicy.training.checkpoint import load_checkpoint
from mapolicy.training.iteration import BilevelIteration, WeightedIteration
from mapolicy.training.setup import TrainingSetup
from mapolicy.training.trainer import MOST_ROLLBACKS, Trainer


def test_an_epoch_sees_every_image_at_most_once_in_whole_batches(make_train_config) -> None:
    config = make_train_config(batch_size=7)
    plan = training_plan(config, 100, epoch=3)
    assert [step for step, _ in plan] == list(range(3 * 14, 4 * 14))
    positions = torch.cat([batch for _, batch in plan])
    assert len(positions) == 98
    assert len(positions.unique()) == 98
    assert 0 <= int(positions.min()) < int(positions.max()) < 100


def test_order_depends_on_seed_epoch_and_stage_alone(make_train_config, make_search_config) -> None:
    def order(config, epoch: int) -> list[int]:
        return torch.cat([batch for _, batch in training_plan(config, 512, epoch)]).tolist()

    torch.manual_seed(0)
    first = order(make_train_config(), 0)
    torch.manual_seed(1)
    assert order(make_train_config(policy="none"), 0) == first
    others = [
        order(make_train_config(), 1),
        order(make_train_config(seed=1), 0),
        order(make_search_config(), 0),
    ]
    assert all(other != first for other in others)


def test_a_started_epoch_goes_on_where_it_stopped(make_train_config) -> None:
    config = make_train_config(batch_size=10)
    whole, rest = training_plan(config, 100, 2), training_plan(config, 100, 2, start=4)
    assert len(rest) == 6
    for (step, batch), (expected_step, expected) in zip(rest, whole[4:], strict=True):
        assert step == expected_step
        assert torch.equal(batch, expected)


def test_the_last_images_may_be_a_batch_of_their_own(make_train_config) -> None:
    config = make_train_config(batch_size=32, last_batch="keep")
    plan = training_plan(config, 100, epoch=1)
    assert [len(batch) for _, batch in plan] == [32, 32, 32, 4]
    assert [step for step, _ in plan] == [4, 5, 6, 7]
    assert sorted(torch.cat([batch for _, batch in plan]).tolist()) == list(range(100))
    assert (batches_per_epoch(config, 100), left_out(config, 100)) == (4, 0)
    dropping = config.with_changes(last_batch="drop")
    assert (batches_per_epoch(dropping, 100), left_out(dropping, 100)) == (3, 4)
    whole = torch.cat([batch for _, batch in training_plan(dropping, 100, 1)])
    assert torch.equal(torch.cat([batch for _, batch in plan])[:96], whole), "the other batches are the same"
    # Each of four parts has two images or the batch is left out.
    assert left_out(config.with_changes(accumulate=4), 100) == 4
    assert left_out(config.with_changes(accumulate=4), 107) == 3
    assert [len(batch) for _, batch in training_plan(config.with_changes(batch_size=128), 100, 0)] == [100]


def test_classes_of_unequal_size_are_drawn_equally_often(make_train_config) -> None:
    labels = torch.tensor([0] * 900 + [1] * 90 + [2] * 10)
    config = make_train_config(batch_size=100, balance="sampler")
    plan = training_plan(config, 1000, epoch=0, labels=labels)
    drawn = labels[torch.cat([batch for _, batch in plan])].bincount()
    assert len(plan) == 10
    assert drawn.tolist() == pytest.approx([333, 333, 333], abs=60)
    again = training_plan(config, 1000, 0, 4, labels)
    assert all(torch.equal(one, other) for (_, one), (_, other) in zip(plan[4:], again, strict=True))
    other = training_plan(config, 1000, 1, labels=labels)
    assert not torch.equal(plan[0][1], other[0][1])


def test_validation_batches_are_drawn_anew_for_each_step(make_search_config) -> None:
    config = make_search_config(validation_batch_size=16)
    plan = validation_plan(config, 50, [5, 6])
    assert [step for step, _ in plan] == [5, 6]
    for _, positions in plan:
        assert len(positions.unique()) == 16
    assert set(plan[0][1].tolist()) != set(plan[1][1].tolist())
    assert torch.equal(validation_plan(config, 50, [6])[0][1], plan[1][1]), "a step's batch is its own"
    assert len(validation_plan(config, 10, [0])[0][1]) == 10, "a smaller split is taken whole"
    assert plan[0][1].untyped_storage().nbytes() == 16 * 8, "the rest of the permutation is let go"


def test_checkpoints_are_written_by_the_clock(make_train_config, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    original = Trainer.checkpoint

    def note(self) -> None:
        written.append(self.iteration)
        original(self)

    monkeypatch.setattr(Trainer, "checkpoint", note)
    train_network(make_train_config(policy="none", epochs=1, checkpoint_minutes=0.0), run_dir=tmp_path / "often")
    assert written == [1, 2, 3, 4, 5, 5]
    assert (tmp_path / "often" / "checkpoint-previous.safetensors").exists()
    written.clear()
    train_network(make_train_config(policy="none", epochs=1), run_dir=tmp_path / "seldom")
    assert written == [5]


@pytest.mark.parametrize(
    "problem",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory: 1 bytes")],
)
def test_out_of_memory_names_what_to_lower(make_train_config, tmp_path, monkeypatch, problem: Exception) -> None:
    def fail(*_) -> None:
        raise problem

    monkeypatch.setattr("mapolicy.training.iteration.weighted_step", fail)
    with pytest.raises(TrainingError, match="out of memory at batch_size 64; raise accumulate, set low_memory"):
        train_network(make_train_config(policy="none"), run_dir=tmp_path / "run")
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 4)


@pytest.mark.parametrize(("problem", "code"), [(RuntimeError("not about memory"), 1), (OSError("no source"), 5)])
def test_what_is_not_about_memory_stays_what_it_is(
    make_train_config, tmp_path, monkeypatch: pytest.MonkeyPatch, problem: Exception, code: int
) -> None:
    def fail(*_) -> None:
        raise problem

    monkeypatch.setattr("mapolicy.training.iteration.weighted_step", fail)
    with pytest.raises(type(problem), match=str(problem)):
        train_network(make_train_config(policy="none"), run_dir=tmp_path / "run")
    assert json.loads((tmp_path / "run" / "status.json").read_text())["exit_code"] == code


def test_a_run_folder_that_cannot_be_is_the_environments_fault(make_train_config, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentFault):
        train_network(make_train_config(policy="none"), run_dir=tmp_path / "file" / "run")


class Notes(Reporter):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.result: dict = {}

    def on_note(self, text: str) -> None:
        self.notes.append(text)

    def on_complete(self, result) -> None:
        self.result = dict(result)


@pytest.fixture
def breaking(monkeypatch: pytest.MonkeyPatch):
    """Iterations whose loss is not finite, by step, so many times each."""

    def broken(steps: dict[int, int]) -> list[tuple[int, float]]:
        rates: list[tuple[int, float]] = []
        original = WeightedIteration.__call__

        def call(self, step, batch, held_out):
            loss, measures = original(self, step, batch, held_out)
            if isinstance(self.augmentation, NoAugmentation):  # the twin that the cost is measured with
                return loss, measures
            rates.append((step, self.setup.optimizer.param_groups[0]["lr"]))
            if steps.get(step, 0):
                steps[step] -= 1
                next(self.setup.network.parameters()).data.fill_(math.nan)
                return loss * math.nan, measures
            return loss, measures

        monkeypatch.setattr(WeightedIteration, "__call__", call)
        return rates

    return broken


def lasting(make_train_config, **changes):
    return make_train_config(policy="uniform", checkpoint_minutes=0.0, on_divergence="rollback", epochs=1, **changes)


def test_a_run_that_diverges_goes_back_and_on_at_half_the_rates(make_train_config, tmp_path, breaking) -> None:
    rates = breaking({0: 1, 3: 2})
    heard = Notes()
    result = train_network(lasting(make_train_config), reporter=heard, run_dir=tmp_path / "run")
    assert [step for step, _ in rates] == [0, 0, 1, 2, 3, 3, 3, 4]
    (_, full), (_, half), *_, (_, third), (_, quarter), (_, eighth), _ = rates
    assert half == pytest.approx(full / 2)
    assert third == pytest.approx(2 * quarter) == pytest.approx(4 * eighth)
    assert heard.result["rollbacks"] == 3
    assert [note.partition(":")[0] for note in heard.notes] == ["iteration 1", "iteration 4", "iteration 4"]
    assert "back to iteration 3, and on at 0.125 of the learning rates" in heard.notes[-1]
    assert all(bool(tensor.isfinite().all()) for tensor in result.network.state_dict().values())
    lines = [json.loads(line)["iteration"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines == [1, 2, 3, 4, 5, 5]


def test_the_halved_rates_outlive_the_process(make_train_config, tmp_path, breaking, interrupted_after) -> None:
    breaking({2: 1})
    whole = train_network(lasting(make_train_config), run_dir=tmp_path / "whole")
    breaking({2: 1})
    with interrupted_after(4):
        train_network(lasting(make_train_config), run_dir=tmp_path / "run")
    heard = Notes()
    resumed = train_network(lasting(make_train_config), reporter=heard, run_dir=tmp_path / "run", resume=True)
    assert heard.result["rollbacks"] == 1
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(resumed.network.state_dict()[name], tensor), name


def test_the_policys_rates_are_halved_too(make_search_config, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, rates, broken = BilevelIteration.__call__, [], [1]

    def call(self, step, batch, held_out):
        loss, measures = original(self, step, batch, held_out)
        rates.append([group["lr"] for group in self.bilevel.policy_optimizer.param_groups])
        if step == 1 and broken:
            broken.pop()
            return loss * math.nan, measures
        return loss, measures

    monkeypatch.setattr(BilevelIteration, "__call__", call)
    config = make_search_config(checkpoint_minutes=0.0, on_divergence="rollback", epochs=1, batch_size=128)
    search_policy(config, run_dir=tmp_path / "run")
    assert len(rates) == 3
    assert rates[1] == rates[0]
    assert rates[2] == [rate / 2 for rate in rates[0]]


def test_what_goes_on_diverging_is_given_up(make_train_config, tmp_path, breaking) -> None:
    rates = breaking({2: 100})
    with pytest.raises(DivergenceError, match="iteration 3: the loss is nan; the last good state is"):
        train_network(lasting(make_train_config), run_dir=tmp_path / "run")
    assert len([step for step, _ in rates if step == 2]) == 1 + MOST_ROLLBACKS
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["state"], status["exit_code"], status["step"]) == ("failed", 4, 2)


def test_a_run_that_stopped_can_roll_back_when_it_goes_on(make_train_config, tmp_path, breaking) -> None:
    breaking({3: 2})
    config = lasting(make_train_config).with_changes(on_divergence="stop")
    with pytest.raises(DivergenceError, match="--on-divergence rollback"):
        train_network(config, run_dir=tmp_path / "run")
    train_network(lasting(make_train_config), run_dir=tmp_path / "run", resume=True)


def test_a_divergence_says_what_has_been_tried(make_train_config, tmp_path, breaking) -> None:
    breaking({2: 100})
    with pytest.raises(DivergenceError, match=f"it went back {MOST_ROLLBACKS} times; lower") as caught:
        train_network(lasting(make_train_config), run_dir=tmp_path / "run")
    assert "--on-divergence" not in str(caught.value)


def test_a_run_is_done_when_its_bundle_stands(make_search_config, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    config = make_search_config(epochs=1, batch_size=128)
    with pytest.raises(EnvironmentFault):
        search_policy(config, run_dir=tmp_path / "run", out=tmp_path / "file" / "bundle.safetensors")
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 5)
    found = search_policy(config, run_dir=tmp_path / "run", resume=True, out=tmp_path / "bundle.safetensors")
    assert (tmp_path / "bundle.safetensors").read_bytes() == found.to_bytes()
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "done"


def test_a_signal_is_the_reason(make_train_config, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = WeightedIteration.__call__

    def call(self, *arguments):
        os.kill(os.getpid(), signal.SIGUSR1)
        return original(self, *arguments)

    monkeypatch.setattr(WeightedIteration, "__call__", call)
    with pytest.raises(SystemExit):
        train_network(make_train_config(policy="none", epochs=1), run_dir=tmp_path / "run")
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["reason"], status["exit_code"]) == ("SIGUSR1", 143)


def test_a_fault_after_a_signal_is_the_reason_itself(make_train_config, tmp_path, monkeypatch) -> None:
    original = WeightedIteration.__call__

    def call(self, *arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *arguments)

    def full(*_) -> None:
        raise EnvironmentFault("checkpoint", "No space left on device")

    monkeypatch.setattr(WeightedIteration, "__call__", call)
    monkeypatch.setattr("mapolicy.training.run_folder.save_checkpoint", full)
    with pytest.raises(EnvironmentFault):
        train_network(make_train_config(policy="none", epochs=1), run_dir=tmp_path / "run")
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["exit_code"], status["reason"]) == (5, "checkpoint: No space left on device")


def test_without_a_folder_there_is_nothing_to_go_back_to(make_train_config) -> None:
    with pytest.raises(UsageError, match="nothing to roll back to"):
        train_network(lasting(make_train_config))


def test_a_signal_during_the_evaluation_does_not_wait_for_it(make_train_config, tmp_path, monkeypatch) -> None:
    def slow(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("it went on")

    monkeypatch.setattr(TrainingSetup, "validation_accuracy", slow)
    with pytest.raises(SystemExit) as caught:
        train_network(make_train_config(policy="none", epochs=1), run_dir=tmp_path / "run")
    assert caught.value.code == 143
    monkeypatch.undo()
    train_network(make_train_config(policy="none", epochs=1), run_dir=tmp_path / "run", resume=True)
    lines = [json.loads(line)["iteration"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines == [1, 2, 3, 4, 5, 5]


def test_a_clock_that_goes_back_changes_nothing(make_train_config, tmp_path, monkeypatch) -> None:
    """Nothing reads the wall clock."""
    now = iter(range(10**9, 0, -3600))
    monkeypatch.setattr("time.time", lambda: next(now))
    train_network(make_train_config(policy="none"), run_dir=tmp_path / "run")
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["iteration"] for record in records] == sorted(record["iteration"] for record in records)
    assert all(record["seconds_left"] >= 0 for record in records if "loss" in record)


@pytest.mark.parametrize("largest", [400, 20_000], ids=["log", "checkpoint"])
def test_a_disk_that_fills_up_exits_5_and_leaves_the_last_checkpoint(make_train_config, tmp_path, largest) -> None:
    config = make_train_config(policy="none", epochs=1, checkpoint_minutes=0.0)
    train_network(config.with_changes(seed=1), run_dir=tmp_path / "run")

    def kept() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*checkpoint*")}

    before = kept()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, hard))
    try:
        with pytest.raises(EnvironmentFault, match=r"bytes needed, \d+ free|File too large") as caught:
            train_network(config.with_changes(seed=1, epochs=1), run_dir=tmp_path / "run", resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.exit_code == 5
    assert {
        path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if "checkpoint" in path.name
    } == before
    assert not list((tmp_path / "run").glob(".*.tmp"))
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    began = largest > 400  # otherwise the log cannot even be cut back
    assert (status["state"], status["exit_code"]) == (("failed", 5) if began else ("done", 0))
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        json.loads(line)


def test_what_was_trained_before_images_could_not_be_had_is_saved(make_train_config, tmp_path, monkeypatch) -> None:
    original = ResidentSplit.batches

    def failing(self, schedule, augment=False):
        for number, batch in enumerate(original(self, schedule, augment)):
            if augment and number == 3:
                raise EnvironmentFault("loader", "a process was killed")
            yield batch

    config = make_train_config(policy="none", epochs=1)
    whole = train_network(config)
    with monkeypatch.context() as patch:
        patch.setattr(ResidentSplit, "batches", failing)
        with pytest.raises(EnvironmentFault, match="was killed"):
            train_network(config, run_dir=tmp_path / "run")
    assert load_checkpoint(tmp_path / "run" / "checkpoint.safetensors")[1]["iteration"] == 3
    resumed = train_network(config, run_dir=tmp_path / "run", resume=True)
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(resumed.network.state_dict()[name], tensor), name


class Memory(Reporter):
    """Resident bytes of this process, by iteration."""

    def __init__(self) -> None:
        self.bytes: dict[int, int] = {}

    def on_log(self, record) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.bytes[int(record["iteration"])] = pages * resource.getpagesize()


@pytest.mark.slow
def test_memory_is_flat_over_ten_thousand_iterations(make_search_config, tiny: Path, tmp_path) -> None:
    config = make_search_config(
        dataset="folder:tiny", data_dir=str(tiny), image_size=8, batch_size=4, validation_batch_size=2, cutout=0,
        train_per_class=4, validation_per_class=1, test_per_class=1, epochs=5000,
        checkpoint_minutes=0.02, sampler_history=2000.0,
    )  # fmt: skip
    heard = Memory()
    search_policy(config, heard, tmp_path / "run")
    assert max(heard.bytes) == 10_000
    warm = max(used for iteration, used in heard.bytes.items() if 4000 <= iteration <= 5000)
    late = max(used for iteration, used in heard.bytes.items() if iteration >= 9000)
    assert late < warm + 2 * 2**20, {key: heard.bytes[key] for key in range(500, 10_001, 500)}


class Interrupting(Reporter):
    """Raises KeyboardInterrupt from one of its methods, as a notebook's stop button does."""

    def __init__(self, method: str, iteration: int) -> None:
        self.method, self.iteration, self.seen = method, iteration, 0

    def on_step(self, iteration, seconds_left) -> None:
        self.seen = iteration
        self.interrupt("on_step")

    def on_log(self, record) -> None:
        self.interrupt("on_log")

    def on_evaluate(self, record) -> None:
        self.interrupt("on_evaluate")

    def interrupt(self, method: str) -> None:
        if method == self.method and self.seen >= self.iteration:
            raise KeyboardInterrupt


@pytest.mark.parametrize(("method", "after"), [("on_step", 4), ("on_log", 4), ("on_evaluate", 5)])
def test_an_interrupt_in_a_callback_leaves_a_checkpoint(
    make_train_config, tmp_path: Path, method: str, after: int
) -> None:
    config = make_train_config(policy="none", epochs=2)  # five iterations an epoch
    with pytest.raises(KeyboardInterrupt):
        train_network(config, reporter=Interrupting(method, 4), run_dir=tmp_path / "run")
    _, facts = load_checkpoint(tmp_path / "run" / "checkpoint.safetensors")
    assert facts["iteration"] == after
    assert facts["evaluated_epochs"] == (method == "on_evaluate")
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "interrupted"
    whole = train_network(config)
    again = train_network(config, run_dir=tmp_path / "run", resume=True)
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(tensor, again.network.state_dict()[name]), name
