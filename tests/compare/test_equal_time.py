"""Seconds of an iteration: measured in turn, without the first round, over whole periods."""

from collections.abc import Callable

import torch

from mapolicy import PolicyBundle
from mapolicy.compare.equal_time import SAMPLES, WARM_UP, seconds_per_iteration
from mapolicy.compare.policies import ComparedPolicy
from mapolicy.training.iteration import BilevelIteration


def test_medians_of_iterations_in_turn(bundle: PolicyBundle, make_train_config, monkeypatch) -> None:
    """With made-up seconds, so that the speed of the machine does not matter."""
    rounds: list[list[float]] = [
        [100.0 * (number < WARM_UP) + number, 9.0, 50.0] for number in range(WARM_UP + SAMPLES)
    ]
    answers = [seconds for turn in rounds for seconds in turn]
    has_validation_batch: list[int] = []
    original = BilevelIteration.__call__

    def noting(self, step, batch, held_out):
        has_validation_batch.append(held_out is not None)
        return original(self, step, batch, held_out)

    def timed(work: Callable[[], None], device: torch.device) -> tuple[None, float]:
        return work(), answers.pop(0)

    monkeypatch.setattr(BilevelIteration, "__call__", noting)
    monkeypatch.setattr("mapolicy.training.step_time.timed", timed)
    config = make_train_config(arch="wrn10_1", batch_size=64, meta_every=2)
    policies = [ComparedPolicy("learned"), ComparedPolicy("uniform"), ComparedPolicy("learned", "finetune")]
    kept = sorted(turn[0] for turn in rounds[WARM_UP:])
    assert seconds_per_iteration(config, policies, bundle) == [kept[SAMPLES // 2], 9.0, 25.0]
    assert answers == []
    assert has_validation_batch == [True, False] * (WARM_UP + SAMPLES)
