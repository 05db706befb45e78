"""The bilevel iteration of a run and all that moves in it: what `search` and fine-tuning have in common."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from ..bilevel.bilevel_step import BilevelStep
from ..bilevel.build_step import choose, make_step
from ..bilevel.diagnostics import PolicyMonitor
from ..bilevel.inner_rate import InnerRate
from ..bilevel.options import StepOptions
from ..bilevel.sample_loss import find_loss
from ..config import RunConfig
from ..policy.network import PolicyNetwork
from ..policy.sampler import Sampler
from ..transforms.space import SPACES
from .checkpoint import RunState
from .iteration import BilevelIteration, Features
from .optim import make_policy_optimizer
from .sample_context import ProxyContext, SampleContext
from .setup import TrainingSetup


@dataclass(frozen=True)
class BilevelRun:
    """What a run with a learned policy is made of.

    Attributes:
        iteration: what is repeated; with its step, sampler and monitor.
        state: all that moves.
        rate: the inner rate.
    """

    iteration: BilevelIteration
    state: RunState
    rate: InnerRate

    @property
    def step(self) -> BilevelStep:
        """The bilevel step, with the policy network."""
        return self.iteration.bilevel

    @property
    def sampler(self) -> Sampler:
        """What draws the transformations."""
        return self.iteration.sampler

    @property
    def monitor(self) -> PolicyMonitor:
        """What watched the policy learn."""
        return self.iteration.monitor

    def figures(self) -> dict[str, float]:
        """What a bundle records of how the policy was learned."""
        return self.monitor.figures(self.sampler)

    def warnings(self) -> list[str]:
        """What a user should know before trusting the policy."""
        return self.monitor.warnings(self.sampler, weighs=self.step.options.weighs_by_policy)


def build_bilevel_run(
    config: RunConfig,
    setup: TrainingSetup,
    device: torch.device,
    *,
    policy: PolicyNetwork,
    rate: InnerRate,
    sampler: Sampler,
    on_note: Callable[[str], None],
    extractor: nn.Module | None = None,
    features: Features | None = None,
    context: SampleContext | None = None,
) -> BilevelRun:
    """Put the parts of a run with a learned policy together.

    Args:
        config: of either stage.
        setup: what is trained.
        device: where the policy and the rate are.
        policy: theta.
        rate: alpha.
        sampler: draws the transformations, and learns.
        on_note: told of what a user should know about the step.
        extractor: a network that is trained with theta (ablation), or None.
        features: of a frozen extractor; None takes the task network's own.
        context: what the sampler sees of the images; None for one that sees nothing.

    Raises:
        UsageError: the step cannot be done like this.
    """
    theta = [*policy.parameters(), *([] if extractor is None else extractor.parameters())]
    policy_optimizer = make_policy_optimizer(config, theta, rate, setup.iterations)
    step = make_step(
        choose(config, setup.network, setup.splits.channels, setup.iterations, device),
        on_note,
        strict=config.compile == "always",
        network=setup.network,
        policy=policy,
        rate=rate,
        optimizer=setup.optimizer,
        policy_optimizer=policy_optimizer,
        options=StepOptions.of(config),
        extractor=extractor,
        communicator=setup.communicator,
        training_loss=setup.training_loss,
        validation_loss=find_loss(config.validation_loss),
    )
    monitor = PolicyMonitor.of(
        policy, setup.iterations_per_epoch, len(setup.splits.classes), SPACES[config.operation_space].size
    )
    modules: dict[str, nn.Module] = {"network": setup.network, "policy": policy, "rate": rate, "monitor": monitor}
    modules |= {} if extractor is None else {"extractor": extractor}
    modules |= {"context": context} if isinstance(context, ProxyContext) else {}  # others never move
    state = RunState(
        modules=modules | setup.selection.modules,
        optimizers={"network": setup.optimizer, "policy": policy_optimizer},
        sampler=sampler,
    )
    return BilevelRun(BilevelIteration(setup, sampler, step, monitor, features, context), state, rate)
