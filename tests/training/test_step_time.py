"""The cost meter: it measures, and the run does not notice."""

import itertools

import pytest
import torch

from mapolicy import train_network
from mapolicy.training.setup import TrainingSetup
from mapolicy.training.step_time import SAMPLES, WARM_UP, CostMeter


@pytest.fixture
def setup(make_train_config) -> TrainingSetup:
    return TrainingSetup.build(make_train_config(policy="none"), torch.device("cpu"))


def batches(setup: TrainingSetup):
    plan = [(step, torch.arange(256)) for step in range(20)]
    return setup.training.batches(plan)


def test_ratio_is_the_median_iteration_over_the_median_plain_step(setup: TrainingSetup, monkeypatch) -> None:
    """A clock that ticks by itself: plain steps take 2, iterations 7, one of each is an outlier."""
    clock = itertools.accumulate(itertools.chain([0], itertools.cycle([2, 1, 7, 1])))
    monkeypatch.setattr("mapolicy.training.step_time.time.perf_counter", lambda: float(next(clock)))
    meter = CostMeter(setup)
    assert meter.ratio is None
    calls = []
    for number, batch in enumerate(batches(setup)):
        assert meter(batch, lambda number=number: calls.append(number)) is None
    assert calls == list(range(20)), "every iteration runs once"
    assert meter.ratio == pytest.approx(3.5)


def test_iterations_of_different_kinds_count_by_their_share(setup: TrainingSetup, monkeypatch) -> None:
    """Plain steps take 2; of three iterations one takes 11 and two take 2: 15 for three, on average 2.5 plain steps."""
    ticks = itertools.cycle([2, 1, 11, 1, 2, 1, 2, 1, 2, 1, 2, 1])
    clock = itertools.accumulate(itertools.chain([0], ticks))
    monkeypatch.setattr("mapolicy.training.step_time.time.perf_counter", lambda: float(next(clock)))
    meter = CostMeter(setup, period=3)
    for batch in itertools.islice(batches(setup), WARM_UP + 2):
        meter(batch, lambda: None)
    assert meter.ratio is None, "not every kind has been seen"
    for batch in batches(setup):
        meter(batch, lambda: None)
    assert meter.ratio == pytest.approx(2.5)


def test_few_iterations_are_not_measured(setup: TrainingSetup) -> None:
    meter = CostMeter(setup)
    for batch in itertools.islice(batches(setup), WARM_UP):
        meter(batch, lambda: None)
    assert meter.ratio is None


def test_the_runs_network_and_optimiser_are_left_alone(setup: TrainingSetup) -> None:
    before = {name: tensor.clone() for name, tensor in setup.network.state_dict().items()}
    meter = CostMeter(setup)
    for batch in itertools.islice(batches(setup), WARM_UP + SAMPLES + 2):
        meter(batch, lambda: None)
    assert meter.ratio is not None
    assert all(torch.equal(before[name], tensor) for name, tensor in setup.network.state_dict().items())
    assert not setup.optimizer.state


def test_measuring_does_not_change_the_result(make_train_config, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_train_config(policy="uniform", epochs=1, model_args={"drop_rate": 0.5}, batch_size=32)
    measured = train_network(config)
    monkeypatch.setattr("mapolicy.training.step_time.SAMPLES", 0)
    unmeasured = train_network(config)
    assert measured.cost_ratio is not None
    assert unmeasured.cost_ratio is None
    state = measured.network.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in unmeasured.network.state_dict().items())


def test_no_room_for_a_second_network_only_costs_the_measurement(
    setup: TrainingSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(setup: TrainingSetup) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("mapolicy.training.step_time.plain_twin", full)
    meter, calls = CostMeter(setup), []
    for number, batch in enumerate(batches(setup)):
        meter(batch, lambda number=number: calls.append(number))
    assert calls == list(range(20))
    assert meter.ratio is None
