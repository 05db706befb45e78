"""The candidates of `mapolicy bench step`: the search's step, a plain step and double backward, on one random batch.

Every candidate has its own copies of the same networks and optimisers, and gets the same batch in every call.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..bilevel.bilevel_step import BilevelStep, StepRecord
from ..bilevel.compiled_step import CompiledStep
from ..bilevel.inner_rate import InnerRate
from ..bilevel.options import StepOptions
from ..bilevel.weighted_step import weighted_step
from ..config import SearchConfig
from ..config.choices import FAST
from ..errors import EnvironmentFault
from ..models.factory import build_network
from ..models.features import feature_width
from ..policy.network import PolicyNetwork
from ..policy.sampler import TransformationSampler
from ..runtime.random import generator, seed_for
from ..training.optim import make_optimizer, make_policy_optimizer
from .double_backward import DoubleBackwardStep
from .interleaved import Candidate

PLAIN, DOUBLE_BACKWARD = "plain", "double_backward"
COMPILED, PLAIN_COMPILED = "compiled", "plain_compiled"
# Settings of the paper's iteration. The named variants start from them, whatever the configuration says.
PAPER_SETTINGS: Mapping[str, Any] = {
    "meta_every": 1,
    "meta_fraction": 1.0,
    "simultaneous": False,
    "low_memory": False,
    "accumulate": 1,
    "sampler": "mean-weight",
    "weighting": "policy",
}
# Variants of the search's step, and what each changes in the configuration.
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "exact": PAPER_SETTINGS,
    "fast": {**PAPER_SETTINGS, **FAST},
    "low_memory": {**PAPER_SETTINGS, "low_memory": True},
    "alignment": {**PAPER_SETTINGS, "sampler": "alignment", "weighting": "equal"},
    "alignment_third": {**PAPER_SETTINGS, "sampler": "alignment", "weighting": "equal", "meta_every": 3},
}
CLASSES, CHANNELS = 100, 3


@dataclass(frozen=True)
class StepCase:
    """The networks and the random batch that all candidates start from.

    Attributes:
        config: settings of the search.
        network, policy: untrained; candidates copy them.
        images, labels, embedding, validation_images, validation_labels: the arguments of `BilevelStep`.
    """

    config: SearchConfig
    network: nn.Module
    policy: PolicyNetwork
    images: Tensor
    labels: Tensor
    embedding: Tensor
    validation_images: Tensor
    validation_labels: Tensor

    @classmethod
    def build(cls, config: SearchConfig, device: torch.device) -> "StepCase":
        """Build untrained networks as a search does, and images of standard normal noise."""
        size, seed = config.image_size, config.seed
        network = build_network(
            config.proxy, config.model_args, CLASSES, CHANNELS, seed_for(seed, "bench", "network", 0), device
        )
        width = feature_width(network, size, CHANNELS)
        torch.manual_seed(seed_for(seed, "bench", "policy", 0))
        policy = PolicyNetwork(width, policy_input=config.policy_input).to(device)
        draws = generator(seed, "bench", "batch", 0)
        batch, held_out = config.batch_size, config.validation_batch_size
        transformation = TransformationSampler().sample(batch, draws)
        return cls(
            config=config,
            network=network,
            policy=policy,
            images=_noise(batch, size, draws).to(device),
            labels=torch.randint(CLASSES, (batch,), generator=draws).to(device),
            embedding=transformation.embed().to(device),
            validation_images=_noise(held_out, size, draws).to(device),
            validation_labels=torch.randint(CLASSES, (held_out,), generator=draws).to(device),
        )

    def cut(self, images: int) -> "StepCase":
        """The same case with the first `images` images of both batches."""
        names = ("images", "labels", "embedding", "validation_images", "validation_labels")
        return replace(self, **{name: getattr(self, name)[:images] for name in names})

    def learner(self, config: SearchConfig) -> dict[str, Any]:
        """The arguments that build a bilevel step, with copies of the networks."""
        network, policy = copy.deepcopy(self.network), copy.deepcopy(self.policy)
        tensors = len(list(network.parameters())) if config.alpha == "per-layer" else None
        rate = InnerRate(config.alpha_initial, tensors).to(self.images.device)
        return {
            "network": network,
            "policy": policy,
            "rate": rate,
            "optimizer": make_optimizer(config, network),
            "policy_optimizer": make_policy_optimizer(config, policy.parameters(), rate, iterations=1),
            "options": StepOptions.of(config),
        }

    def arguments(self, call: int) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor], int]:
        """The arguments that a bilevel step is called with in iteration `call`."""
        noise_seed = seed_for(self.config.seed, self.config.stage, "noise", call)
        validation = (self.validation_images, self.validation_labels)
        return self.images, self.labels, self.embedding, validation, noise_seed


def _noise(batch: int, size: int, draws: torch.Generator) -> Tensor:
    """Standard normal images, channels-last as those of the pipeline."""
    return torch.randn(batch, CHANNELS, size, size, generator=draws).to(memory_format=torch.channels_last)


def candidate(case: StepCase, name: str, variants: Mapping[str, Mapping[str, Any]] = VARIANTS) -> Candidate:
    """The candidate with this name, a key of `variants` or one of the four constants above."""
    if name in variants:
        return _search_step(case, name, case.config.with_changes(**variants[name]))
    if name == COMPILED:
        compiled = CompiledStep(**case.learner(case.config.with_changes(**PAPER_SETTINGS)), strict=True)
        return Candidate(name, lambda call: compiled(*case.arguments(call)))
    if name == DOUBLE_BACKWARD:
        step = DoubleBackwardStep(**case.learner(case.config.with_changes(**PAPER_SETTINGS)))
        return Candidate(name, lambda call: step(*case.arguments(call)))
    return _plain_step(case, name, compiled=name == PLAIN_COMPILED)


def _search_step(case: StepCase, name: str, config: SearchConfig) -> Candidate:
    """The step of a search with this configuration, over a whole period of `meta_every` iterations."""
    step = BilevelStep(**case.learner(config))

    def work(call: int) -> StepRecord:
        images, labels, embedding, validation, noise_seed = case.arguments(call)
        return step(images, labels, embedding, None if call % config.meta_every else validation, noise_seed)

    return Candidate(name, work, calls=config.meta_every)


def _plain_step(case: StepCase, name: str, compiled: bool) -> Candidate:
    """Plain training: forward, backward, and a clipped update with equal weights."""
    config, network = case.config, copy.deepcopy(case.network).train()
    optimizer = make_optimizer(config, network)
    weights = torch.full_like(case.labels, 1 / len(case.labels), dtype=torch.float32)
    forward: Callable[[Tensor], Tensor] = torch.compile(network) if compiled else network

    def work(call: int) -> Tensor:
        torch.manual_seed(case.arguments(call)[-1])
        try:
            losses = F.cross_entropy(forward(case.images), case.labels, reduction="none")
        except torch._dynamo.exc.BackendCompilerFailed as problem:
            reason = (str(problem.inner_exception).strip() or "no reason given").splitlines()[0]
            raise EnvironmentFault("--compile", f"torch cannot compile here ({reason})", "leave it out") from None
        return weighted_step([losses], [weights], network, optimizer, config.clip_norm)

    return Candidate(name, work)
