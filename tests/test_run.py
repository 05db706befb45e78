"""A run's order of batches and its bookkeeping. Search and train test it from end to end."""

import json

import pytest
import torch

from mapolicy import train_network
from mapolicy.errors import EnvironmentFault, TrainingError
from mapolicy.run import Run, training_plan, validation_plan


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
    original = Run.checkpoint

    def note(self) -> None:
        written.append(self.iteration)
        original(self)

    monkeypatch.setattr(Run, "checkpoint", note)
    train_network(make_train_config(policy="none", epochs=1, checkpoint_minutes=0.0), run_dir=tmp_path / "often")
    assert written == [1, 2, 3, 4, 5, 5]
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

    monkeypatch.setattr("mapolicy.iteration.weighted_step", fail)
    with pytest.raises(TrainingError, match="out of memory at batch_size 256; lower batch_size"):
        train_network(make_train_config(policy="none"), run_dir=tmp_path / "run")
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 4)


def test_a_bug_stays_a_bug(make_train_config, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_) -> None:
        raise RuntimeError("not about memory")

    monkeypatch.setattr("mapolicy.iteration.weighted_step", fail)
    with pytest.raises(RuntimeError, match="not about memory"):
        train_network(make_train_config(policy="none"), run_dir=tmp_path / "run")
    assert json.loads((tmp_path / "run" / "status.json").read_text())["exit_code"] == 1


def test_a_run_folder_that_cannot_be_is_the_environments_fault(make_train_config, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentFault):
        train_network(make_train_config(policy="none"), run_dir=tmp_path / "file" / "run")
