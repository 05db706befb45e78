"""Decide whether a run's bilevel step is compiled, and build it."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..config import RunConfig, SearchConfig
from ..config.choices import LOSS
from ..distributed import communicator
from ..errors import EnvironmentFault, UsageError
from ..models.features import feature_maps, head
from .bilevel_step import BilevelStep
from .compiled_step import CompiledStep
from .options import StepOptions

WORTH_COMPILING = 10_000  # hypergradients of a run; compiling takes minutes, and each then saves a fraction of a step

Notes = Callable[[str], None]


@dataclass(frozen=True)
class Choice:
    """Whether a run compiles its iteration, and why."""

    compiled: bool
    reason: str

    def __str__(self) -> str:
        return f"{'compiled' if self.compiled else 'not compiled'} ({self.reason})"


def choose(config: RunConfig, network: nn.Module, channels: int, iterations: int, device: torch.device) -> Choice:
    """Whether to compile the bilevel step of a run: a function of its configuration, its network and this machine.

    Args:
        config: `compile` is "auto", "never" or "always".
        network: the task network; not changed.
        channels: of the images.
        iterations: of the whole run.
        device: of the run.

    Raises:
        UsageError: "always" where the compiled step could not be exact.
        EnvironmentFault: "always" and there is no C++ compiler.
    """
    if config.compile == "never":
        return Choice(False, "as asked for")
    always, hypergradients = config.compile == "always", -(-iterations // config.meta_every)
    if not always and hypergradients < WORTH_COMPILING:
        return Choice(False, f"{hypergradients} steps of the policy are too few to repay it, {WORTH_COMPILING} would")
    if not always and device.type != "cpu":
        return Choice(False, "chosen on a CPU alone")
    several = "the batch is shared by several processes" if communicator().size > 1 else None
    frozen = "part of the network is frozen" if config.freeze else None
    obstacle = several or frozen or other_algorithm(config) or find_obstacle(network, config.image_size, channels)
    if obstacle is not None:
        if always:
            raise UsageError("compile", f"'always' is not possible: {obstacle}", "use --set compile=auto")
        return Choice(False, obstacle)
    if not has_compiler():
        if always:
            raise EnvironmentFault("compile", "there is no C++ compiler", "install one, or use --set compile=auto")
        return Choice(False, "there is no C++ compiler")
    return Choice(True, "as asked for" if always else f"{hypergradients} steps of the policy repay it")


def other_algorithm(config: RunConfig) -> str | None:
    """Why this configuration's iteration cannot be compiled; None if it can."""
    if isinstance(config, SearchConfig) and config.policy_input == LOSS:
        return "the policy sees the training loss"
    if config.sampler == "adversarial":
        return "the sampler learns from the training losses"
    if config.precision != "float32":
        return f"it computes in {config.precision}"
    if StepOptions.of(config) != StepOptions(clip_norm=config.clip_norm):
        return "the iteration is not the paper's"
    if config.constant_rates:
        return "the policy's optimiser is not AdamW"
    if isinstance(config, SearchConfig) and config.extractor != "shared":
        return "the policy has an extractor of its own"
    return None


def has_compiler() -> bool:
    """Whether there is a C++ compiler, which `torch.compile` needs on a CPU."""
    return any(shutil.which(name) for name in (os.environ.get("CXX") or "g++", "clang++"))


class _AttentionSeen(TorchFunctionMode):
    """Notes whether attention was called."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = False

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function in (F.scaled_dot_product_attention, F.multi_head_attention_forward):
            self.seen = True
        return function(*args, **(kwargs or {}))


def find_obstacle(network: nn.Module, image_size: int, channels: int) -> str | None:
    """Why the compiled step is not exact for this network, found by a forward of two images; None if it is exact."""
    device = next(network.parameters()).device
    cuda = device.type == "cuda"
    images = torch.linspace(-1, 1, 2 * channels * image_size**2, device=device)
    images = images.reshape(2, channels, image_size, image_size)
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    training = network.training

    def noise() -> Tensor:
        return torch.cuda.get_rng_state(device) if cuda else torch.get_rng_state()

    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[device] if cuda else []), _AttentionSeen() as attention:
            network.train()
            drawn = noise()
            maps = feature_maps(network, images)
            head(network, maps)
            moved = {name: buffer.clone() for name, buffer in network.named_buffers()}
            head(network, maps, pre_logits=True)
            draws = not torch.equal(drawn, noise())
            unsteady = any(not torch.equal(moved[name], buffer) for name, buffer in network.named_buffers())
    finally:
        with torch.no_grad():
            for name, buffer in network.named_buffers():
                buffer.copy_(before[name])
        network.train(training)
    changed = [name for name in moved if not torch.equal(moved[name], before[name])]
    owners = (network.get_submodule(name.rpartition(".")[0]) for name in changed)
    if draws:
        return "the network draws noise (dropout, stochastic depth)"
    if attention.seen:
        return "the network has attention"
    if unsteady or not all(getattr(owner, "track_running_stats", False) for owner in owners):
        return "the network changes more than running statistics in one forward"
    return None


def make_step(choice: Choice, on_note: Notes, strict: bool, **parts: Any) -> BilevelStep:
    """Build the chosen bilevel step.

    Args:
        choice: see `choose`.
        on_note: told if compiling fails, after which iterations are eager, and of a network that has no true gradient.
        strict: a failure to compile is an error.
        parts: of a `BilevelStep`.
    """
    if choice.compiled and parts["policy"].sees_loss:  # of a bundle that is fine-tuned: the configuration does not say
        choice = Choice(False, "the policy sees the training loss")
    step = CompiledStep(**parts, on_note=on_note, strict=strict) if choice.compiled else BilevelStep(**parts)
    step.how = str(choice)
    if step.noise_at_mean:
        step.how += ", hypergradient with the noise at its mean"
        on_note(
            "the network's noise differs between forward and backward, so it has no true gradient: the hypergradient "
            "is that of the network with this noise at its mean, the weighted step is the network's own"
        )
    return step
