"""The forecast: figures that follow from the clock, and a run that does not notice that it was measured."""

import itertools

import pytest
import torch

from mapolicy import PolicyBundle, search_policy
from mapolicy.errors import TrainingError
from mapolicy.search import PreparedSearch, forecast_search
from mapolicy.train import forecast_training
from mapolicy.training.callbacks import Reporter
from mapolicy.training.checkpoint import RunState
from mapolicy.training.dry_run import Forecast, forecast, forecast_before

CPU = torch.device("cpu")


def prepared(config) -> PreparedSearch:
    return PreparedSearch.prepared(config, Reporter(), 1, CPU)


def test_what_moved_is_put_back(make_search_config) -> None:
    search = prepared(make_search_config(meta_every=2, momentum=0.9))
    before, rates = search.run.state.tensors(), [group["lr"] for group in search.setup.optimizer.param_groups]
    forecast(search.run.iteration, search.run.state)
    after = search.run.state.tensors()
    assert before.keys() == after.keys(), "the optimisers have no state yet"
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [group["lr"] for group in search.setup.optimizer.param_groups] == rates
    assert all(parameter.grad is None for parameter in search.setup.network.parameters())


def test_a_measured_run_gives_the_same_bytes(make_search_config, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_search_config(epochs=3, batch_size=32, meta_every=3)
    measured = []

    class Listening(Reporter):
        def on_start(self, what, iterations, facts, seconds) -> None:
            measured.append("time" in facts and "memory" in facts and seconds is not None)

    with_forecast = search_policy(config, Listening())
    monkeypatch.setattr("mapolicy.search.forecast_before", lambda *_: None)
    without = search_policy(config, Listening())
    assert measured == [True, False]
    assert with_forecast.to_bytes() == without.to_bytes()


def test_time_is_that_of_the_iterations(make_search_config, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that ticks by itself: the first takes 100, an iteration that learns 7, the two others of a period 2, a
    batch of an evaluation 3.
    """
    clock = itertools.accumulate([0, 100, 0, 7, 0, 2, 0, 7, 0, 2, 0, 3])
    monkeypatch.setattr("mapolicy.training.step_time.time.perf_counter", lambda: float(next(clock)))
    search = prepared(make_search_config(meta_every=3))
    expected = forecast(search.run.iteration, search.run.state)
    assert expected.seconds_per_iteration == pytest.approx((7 + 2 + 2) / 3)
    assert expected.iterations == search.setup.iterations
    config, images = search.setup.config, len(search.setup.splits.meta_validation)
    evaluations = 3 * config.epochs * images / min(images, config.batch_size)
    assert expected.evaluation_seconds == pytest.approx(evaluations)
    assert expected.seconds == pytest.approx(expected.iterations * 11 / 3 + evaluations)
    assert expected.parameters == sum(parameter.numel() for parameter in search.setup.network.parameters())
    assert 2**26 < expected.memory_bytes < 2**40
    assert expected.device == "cpu"


def test_each_stage_has_one(bundle: PolicyBundle, make_search_config, make_train_config) -> None:
    search = forecast_search(make_search_config())
    trained = [
        forecast_training(make_train_config(**changes), bundle if "mode" in changes else None)
        for changes in ({"mode": "frozen"}, {"mode": "finetune"}, {"policy": "none"})
    ]
    assert search.parameters != trained[0].parameters
    assert len({expected.parameters for expected in trained}) == 1
    assert all(expected.seconds > 0 for expected in (search, *trained))


def test_a_short_run_and_one_that_goes_on_are_not_measured(make_search_config, monkeypatch: pytest.MonkeyPatch) -> None:
    search = prepared(make_search_config())
    calls: list[RunState] = []
    example = Forecast(1, 100, 0.5, 50.0, 2**30, "cpu")
    monkeypatch.setattr(
        "mapolicy.training.dry_run.forecast", lambda iteration, state, *_: calls.append(state) or example
    )
    assert forecast_before(search.run.iteration, search.run.state, resume=False) is None, "10 iterations"
    monkeypatch.setattr("mapolicy.training.dry_run.WORTH_MEASURING", search.setup.iterations)
    assert forecast_before(search.run.iteration, search.run.state, resume=True) is None
    assert calls == []
    assert forecast_before(search.run.iteration, search.run.state, resume=False) is example


def test_a_long_iteration_is_announced(make_search_config, monkeypatch: pytest.MonkeyPatch) -> None:
    search, notes = prepared(make_search_config()), list[str]()
    forecast(search.run.iteration, search.run.state, notes.append)
    assert notes == []
    monkeypatch.setattr("mapolicy.training.dry_run.LONG", 0.0)
    forecast(search.run.iteration, search.run.state, notes.append)
    assert [note.partition(";")[0] for note in notes] == ["measuring 2 more iterations"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (50.0, "about 50 seconds (0.5 s an iteration)"),
        (600.0, "about 10.0 minutes (6 s an iteration)"),
        (9000.0, "about 2.5 hours (90 s an iteration)"),
        (864_000.0, "about 10.0 days (8.64e+03 s an iteration)"),
    ],
)
def test_time_in_words(seconds: float, text: str) -> None:
    facts = Forecast(1, 100, seconds / 100, seconds, 3 * 2**29, "cuda").facts()
    assert facts == {"memory": "1.50 GiB of the GPU after the first iterations", "time": text}


def test_no_memory_is_an_error_of_ours(make_search_config, monkeypatch: pytest.MonkeyPatch) -> None:
    search = prepared(make_search_config())

    def exhausted(*_: object, **__: object) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 byte")

    monkeypatch.setattr(search.run.iteration, "bilevel", exhausted)
    with pytest.raises(TrainingError, match="out of memory at batch_size 64") as caught:
        forecast(search.run.iteration, search.run.state)
    assert caught.value.exit_code == 4
