"""The optimisers of task network and policy, and their rates.

Source of the constant rates: MetaAugment (Zhou et al., AAAI 2021), Theorem 1, for T iterations.
"""

import math
from collections.abc import Iterable
from typing import Any

import timm
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler, StepLRScheduler, create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from ..bilevel.inner_rate import InnerRate
from ..config import RunConfig, TrainConfig
from ..errors import UsageError


def make_optimizer(config: RunConfig, network: nn.Module) -> Optimizer:
    """The optimiser of the task network's parameters.

    timm's `sgd` is Nesterov, its `momentum` plain; timm leaves biases and normalisation out of weight decay by
    default, the paper's recipes do not: `decay_all` decides. With `layer_decay` the groups are timm's
    `param_groups_layer_decay`; frozen parameters are in none.

    Raises:
        UsageError: timm does not know the optimiser.
    """
    try:
        optimizer: Optimizer = create_optimizer_v2(
            network,
            opt=config.optimizer,
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            filter_bias_and_bn=not config.decay_all,
            layer_decay=config.layer_decay if config.layer_decay < 1 else None,
        )
    except (ValueError, AssertionError, TypeError) as problem:
        why = f"{config.optimizer!r} cannot be had: {str(problem).splitlines()[0]}"
        raise UsageError(
            "optimizer", why, "name one of timm's that fits momentum and weight_decay, such as sgd"
        ) from None
    return optimizer


class RateSchedule:
    """The task network's learning rates, a function of the step and of `scale` alone.

    Args:
        scheduler: timm's.
        optimizer: of the task network.

    Attributes:
        scale: what all rates are multiplied by.
    """

    def __init__(self, scheduler: Scheduler, optimizer: Optimizer) -> None:
        self._scheduler, self._optimizer = scheduler, optimizer
        self.scale = 1.0

    def step_update(self, step: int) -> None:
        """Set the rates of iteration `step`, from 0."""
        self._scheduler.step_update(step)
        for group in self._optimizer.param_groups:
            group["lr"] *= self.scale


def make_schedule(config: RunConfig, optimizer: Optimizer, iterations_per_epoch: int) -> RateSchedule:
    """From `learning_rate` to 0 over all iterations, after a linear warm-up; or Theorem 1's constant rate.

    Cosine, or another of timm's schedules (`timm.scheduler.create_scheduler_v2`), a function of the iteration.

    Raises:
        UsageError: timm does not accept the schedule's settings.
    """
    iterations = config.epochs * iterations_per_epoch
    if config.constant_rates:
        for group in optimizer.param_groups:
            group["lr"] = theorem1_rate(config.learning_rate, iterations)
        return RateSchedule(StepLRScheduler(optimizer, decay_t=iterations + 1, t_in_epochs=False), optimizer)
    if isinstance(config, TrainConfig) and config.schedule != "cosine":
        return RateSchedule(_timm_schedule(config, optimizer, iterations_per_epoch), optimizer)
    warmup = config.warmup_epochs * iterations_per_epoch
    cosine = CosineLRScheduler(
        optimizer,
        t_initial=max(2, iterations - warmup),  # timm warns of a single step
        warmup_t=warmup,
        warmup_prefix=True,
        t_in_epochs=False,
    )
    return RateSchedule(cosine, optimizer)


def _timm_schedule(config: TrainConfig, optimizer: Optimizer, iterations_per_epoch: int) -> Scheduler:
    epochs = config.epochs - config.warmup_epochs
    schedule: Scheduler | None
    # An argument of this schedule alone, which timm has had since 1.0.31.
    own: dict[str, Any] = {"stable_timescale": config.warmup_epochs or 1} if config.schedule == "rsqrt" else {}
    try:
        schedule, _ = create_scheduler_v2(
            optimizer,
            sched=config.schedule,
            num_epochs=epochs,
            decay_epochs=config.decay_epochs * (epochs if config.decay_epochs < 1 else 1),
            decay_rate=config.decay_rate,
            warmup_epochs=config.warmup_epochs,
            warmup_lr=0.0,
            warmup_prefix=True,
            step_on_epochs=False,
            updates_per_epoch=iterations_per_epoch,
            **own,
        )
    except ValueError as problem:
        raise UsageError(f"schedule {config.schedule}", str(problem).splitlines()[0], "set decay_epochs") from None
    except TypeError:
        schedule = None
    if schedule is None:
        why = f"timm {timm.__version__} does not have it"
        raise UsageError(f"schedule {config.schedule}", why, "install timm 1.0.31 or later, or use cosine")
    return schedule


def make_policy_optimizer(
    config: RunConfig, theta: Iterable[nn.Parameter], rate: InnerRate, iterations: int
) -> Optimizer:
    """AdamW for theta and log alpha, each with its own fixed rate (beta of Eq. 3); under Theorem 1 plain steps.

    Theta's weight decay is what `policy_memory` comes to at its rate; theta = 0 weighs all samples equally. alpha does
    not decay.

    Args:
        config: of the run.
        theta: the policy's parameters.
        rate: alpha.
        iterations: of the whole run.
    """
    parameters, log_alpha = list(theta), list(rate.parameters())
    if config.constant_rates:
        beta = theorem1_policy_rate(config.policy_learning_rate, iterations)
        return SGD([{"params": parameters, "lr": beta}, {"params": log_alpha, "lr": 0.0}])
    beta = config.policy_learning_rate
    fading = beta * config.policy_memory * iterations
    groups = [
        {"params": parameters, "lr": beta, "weight_decay": 1 / fading if fading else 0.0},
        {"params": log_alpha, "lr": config.alpha_learning_rate, "weight_decay": 0.0},
    ]
    return AdamW(groups)


def theorem1_rate(constant: float, iterations: int) -> float:
    """c log T / T: Theorem 1's rate of the virtual step (alpha) and of the weighted step (gamma)."""
    return constant * math.log(iterations) / iterations


def theorem1_policy_rate(constant: float, iterations: int) -> float:
    """sqrt(c log log T / T): Theorem 1's rate of theta (beta); 0 for fewer than 3 iterations."""
    return math.sqrt(constant * max(0.0, math.log(max(1.0, math.log(iterations)))) / iterations)
