"""The task network's optimiser and its learning rate, from timm's factories."""

from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import nn
from torch.optim import Adam, Optimizer

from .bilevel import InnerRate
from .config import RunConfig
from .errors import UsageError
from .policy import PolicyNetwork


def make_optimizer(config: RunConfig, network: nn.Module) -> Optimizer:
    """The optimiser of the task network's parameters.

    timm's `sgd` is Nesterov, its `momentum` plain; timm leaves biases and normalisation out of weight decay by
    default, the paper's recipes do not: `decay_all` decides.

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
        )
    except (ValueError, AssertionError, TypeError) as problem:
        why = f"{config.optimizer!r} cannot be had: {str(problem).splitlines()[0]}"
        raise UsageError(
            "optimizer", why, "name one of timm's that fits momentum and weight_decay, such as sgd"
        ) from None
    return optimizer


def make_schedule(config: RunConfig, optimizer: Optimizer, iterations_per_epoch: int) -> CosineLRScheduler:
    """Cosine from `learning_rate` to 0 over all iterations, after a linear warm-up. It is a function of the step alone.

    `schedule.step_update(step)` sets the rates of iteration `step`, counted from 0.
    """
    warmup = config.warmup_epochs * iterations_per_epoch
    return CosineLRScheduler(
        optimizer,
        t_initial=max(2, config.epochs * iterations_per_epoch - warmup),  # timm warns of a single step
        warmup_t=warmup,
        warmup_prefix=True,
        t_in_epochs=False,
    )


def make_policy_optimizer(config: RunConfig, policy: PolicyNetwork, rate: InnerRate) -> Adam:
    """Adam for theta and log alpha, each with its own fixed rate (beta of Eq. 3)."""
    groups = [
        {"params": list(policy.parameters()), "lr": config.policy_learning_rate},
        {"params": list(rate.parameters()), "lr": config.alpha_learning_rate},
    ]
    return Adam(groups)
