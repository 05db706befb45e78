"""The equal-time budget: more epochs for cheaper policies, so that all policies train equally long.

The seconds of an iteration are measured for each policy in turn, on the same batches.
"""

from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from ..config import TrainConfig
from ..data.splits import load_splits
from ..policy.policy_bundle import PolicyBundle
from ..runtime.device import reproducible, resolve_device
from ..train import plan
from ..training.iteration import Iteration
from ..training.setup import TrainingSetup
from ..training.step_time import StepTimer
from .policies import ComparedPolicy
from .record import other_comparison

WARM_UP, SAMPLES = 1, 7  # rounds

# By network and policy label: seconds_per_iteration and epochs.
EqualTimeBudget = dict[str, dict[str, dict[str, Any]]]


def equal_time_budget(
    split_of: PolicyBundle | None,
    configs: Sequence[TrainConfig],
    policies: Sequence[ComparedPolicy],
    measured: EqualTimeBudget | None,
    run_dir: Path,
    on_note: Callable[[str], None],
) -> EqualTimeBudget:
    """Epochs for each policy, so that all train as long as the slowest does in `config.epochs`.

    Args:
        split_of: the searched bundle that provides policy and split, the first of several; None if there is none.
        configs: one for each network.
        policies: of the comparison.
        measured: the budget measured when the comparison started; it is returned unchanged.
        run_dir: folder of the comparison, for errors.
        on_note: called with the result in words.

    Raises:
        InputError: `measured` lacks one of the networks or policies.
    """
    labels = [policy.label for policy in policies]
    if measured is not None:
        for config, label in product(configs, labels):
            if label not in measured.get(config.arch, {}):
                raise other_comparison(run_dir, [f"{config.arch} with {label} was not measured at its start"])
        return measured
    budget: EqualTimeBudget = {}
    for config in configs:
        seconds = dict(zip(labels, seconds_per_iteration(config, policies, split_of), strict=True))
        total = config.epochs * max(seconds.values())
        budget[config.arch] = {
            label: {"seconds_per_iteration": own, "epochs": round(total / own)} for label, own in seconds.items()
        }
        epochs = {label: facts["epochs"] for label, facts in budget[config.arch].items()}
        texts = [f"{label} {number}{_deviation(number * seconds[label] / total)}" for label, number in epochs.items()]
        on_note(f"{config.arch}: epochs that take the same time: {', '.join(texts)}")
    return budget


def _deviation(share: float) -> str:
    """How far rounding to whole epochs misses equal time, if by 2 % or more."""
    return f" ({share - 1:+.0%} of time)" if abs(share - 1) >= 0.02 else ""


def check_epochs(known: dict[str, int], configs: Sequence[TrainConfig], run_dir: Path) -> None:
    """Check that each network's epochs are those of the comparison's start; a new network is added to `known`.

    Raises:
        InputError: the epochs changed.
    """
    changed = [
        f"{config.arch}: epochs {before} -> {config.epochs}"
        for config in configs
        if (before := known.setdefault(config.arch, config.epochs)) != config.epochs
    ]
    if changed:
        raise other_comparison(run_dir, changed)


def seconds_per_iteration(
    config: TrainConfig, policies: Sequence[ComparedPolicy], split_of: PolicyBundle | None
) -> list[float]:
    """Median wall-clock seconds of a training iteration under each policy, without loading the batch.

    Args:
        config: the settings but for policy and mode.
        policies: to measure.
        split_of: the searched bundle that provides policy and split; None if the settings draw the split.

    Raises:
        UsageError, InputError: as `train_network`.
    """
    device = resolve_device(config.device)
    held_out = None if split_of is None else split_of.meta_validation
    measured: list[tuple[Iteration, StepTimer]] = []
    with reproducible(config.threads, device):
        splits = load_splits(config, device, config.stage, held_out)
        for policy in policies:
            own = policy.configure(config)
            iteration, _ = plan(own, policy.bundle(split_of), TrainingSetup.over(own, splits, device), device)
            measured.append((iteration, StepTimer(device, warm_up=WARM_UP)))
        for number in range(WARM_UP + SAMPLES):
            for iteration, timer in measured:
                timer(_period(iteration, number))
    return [timer.seconds / iteration.period for iteration, timer in measured if timer.seconds is not None]


def _period(iteration: Iteration, number: int) -> Callable[[], None]:
    """One period of the iteration's work, on the first batch of epoch `number`, which is loaded now."""
    setup, period = iteration.setup, iteration.period
    ((_, order), *_) = setup.plan(number)
    ((_, batch, validation_batch),) = setup.iteration_batches([(number, order)], lambda step: True)

    def work() -> None:
        for step in range(number * period, (number + 1) * period):
            iteration(step, batch, validation_batch if iteration.learns_policy(step) else None)

    return work
