"""One iteration of the search on random data, after its augmentation: ours against a plain step and double backward.

Every candidate has its own copies of the same networks and optimisers, and sees the same batch each time.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..bilevel.bilevel_step import BilevelStep, StepRecord
from ..bilevel.build_step import other_algorithm
from ..bilevel.compiled_step import CompiledStep
from ..bilevel.inner_rate import InnerRate
from ..bilevel.options import StepOptions
from ..bilevel.weighted_step import weighted_step
from ..config import FAST, SearchConfig
from ..errors import EnvironmentFault, UsageError
from ..models.factory import build_network
from ..models.features import feature_width
from ..policy.network import PolicyNetwork
from ..policy.sampler import TransformationSampler
from ..runtime.device import reproducible, resolve_device
from ..runtime.random import generator, seed_for
from ..training.optim import make_optimizer, make_policy_optimizer
from .double_backward import DoubleBackwardStep
from .interleaved import Candidate, Clock, Progress, measure, silent
from .memory import peak_bytes, peak_of_process
from .report import Report

PLAIN, DOUBLE_BACKWARD = "plain", "double_backward"
COMPILED, PLAIN_COMPILED = "compiled", "plain_compiled"
AS_SET = "as_set"
# What makes an iteration another one than the paper's: the named rows set all of it, whatever the configuration says.
PAPERS: Mapping[str, Any] = {
    "meta_every": 1,
    "meta_fraction": 1.0,
    "simultaneous": False,
    "low_memory": False,
    "accumulate": 1,
}
# Rows of the search's own step: what each changes in the configuration.
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "exact": PAPERS,
    "fast": {**PAPERS, **FAST},
    "low_memory": {**PAPERS, "low_memory": True},
}
# What belongs to a run and not to one step on a given batch, with what to do instead.
NOT_MEASURED: Mapping[str, tuple[Any, str]] = {
    "extractor": ("shared", "a search with an extractor of its own tells its cost ratio itself"),
    "schedule": ("cosine", "a search with it tells its cost ratio itself"),
    "copies": (1, "raise --batch-size"),
}
CLASSES, CHANNELS = 100, 3


def measure_step(
    config: SearchConfig,
    rounds: int,
    variants: Mapping[str, Mapping[str, Any]] = VARIANTS,
    compiled: bool = False,
    memory: bool = True,
    progress: Progress = silent,
) -> Report:
    """Time and peak memory of one iteration.

    Args:
        config: proxy, image_size, batch_size, validation_batch_size, optimiser, threads and device are used; the data
            set is not.
        rounds: measurements of each candidate.
        variants: rows of our own step by name, and what each changes in `config`; where the configuration's iteration
            is not the paper's, it gets a row of its own, `AS_SET`.
        compiled: also compile the search's step and the plain step.
        memory: also measure each candidate's peak, in a process of its own.
        progress: told of each round.

    Raises:
        UsageError: the network cannot be built or does not take the images; a setting that is not measured here, or
            that the compiled step does not have.
        EnvironmentFault: compilation is not possible here.
    """
    for name, (measured, instead) in NOT_MEASURED.items():
        if (value := getattr(config, name)) != measured:
            raise UsageError(f"--set {name}={value}", "not a part of the step that is measured here", instead)
    if any(getattr(config, name) != value for name, value in PAPERS.items()):
        variants = {**variants, AS_SET: {}}
    if compiled and (obstacle := other_algorithm(config.with_changes(**PAPERS))):
        raise UsageError("--compile", obstacle, "leave one of them out")
    device = resolve_device(config.device)
    clock = Clock.of(device)
    names = [PLAIN, *variants, DOUBLE_BACKWARD, *([COMPILED, PLAIN_COMPILED] if compiled else [])]
    with reproducible(config.threads, device) as threads:
        case = StepCase.build(config, device)
        candidates = [candidate(case, name, variants) for name in names]
        rows = measure(candidates, PLAIN, rounds, clock, progress, f"{config.proxy} step")
    if memory:
        peaks = {}
        for name in names:
            progress(f"{config.proxy} step: peak memory of {name}")
            peaks[name] = peak_of_process(step_peak, config, name, variants)
        rows = [replace(row, facts={**row.facts, **_memory(peaks[row.what], peaks[PLAIN])}) for row in rows]
    return Report(
        rows=rows,
        time=clock.meaning,
        settings={
            "arch": config.proxy,
            "parameters": sum(parameter.numel() for parameter in case.network.parameters()),
            "image_size": config.image_size,
            "batch_size": config.batch_size,
            "validation_batch_size": config.validation_batch_size,
            "configuration": config.portable(),
            "variants": {name: dict(changes) for name, changes in variants.items()},
            "rounds": rounds,
        },
        threads=threads,
        device=device,
    )


def _memory(peak: int | None, plain: int | None) -> dict[str, float | None]:
    return {
        "peak_mib": None if peak is None else peak / 2**20,
        "peak_ratio": peak / plain if peak is not None and plain else None,
    }


@dataclass(frozen=True)
class StepCase:
    """What all candidates start from: networks, and one random batch in the form that the step takes.

    Attributes:
        config: of the search.
        network, policy: fresh; candidates take copies.
        images, labels, embedding, validation_images, validation_labels: as `BilevelStep` takes them.
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
        """Networks as a search starts with them, images of standard normal noise."""
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
        """The same with the first few images of both batches."""
        names = ("images", "labels", "embedding", "validation_images", "validation_labels")
        return replace(self, **{name: getattr(self, name)[:images] for name in names})

    def learner(self, config: SearchConfig) -> dict[str, Any]:
        """What a bilevel step is made of, in copies of its own."""
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
        """Of a bilevel step in that iteration."""
        noise_seed = seed_for(self.config.seed, self.config.stage, "noise", call)
        validation = (self.validation_images, self.validation_labels)
        return self.images, self.labels, self.embedding, validation, noise_seed


def _noise(batch: int, size: int, draws: torch.Generator) -> Tensor:
    """Images as the pipeline gives them, channels-last."""
    return torch.randn(batch, CHANNELS, size, size, generator=draws).to(memory_format=torch.channels_last)


def candidate(case: StepCase, name: str, variants: Mapping[str, Mapping[str, Any]] = VARIANTS) -> Candidate:
    """One row's work, by the row's name."""
    if name in variants:
        return _search_step(case, name, case.config.with_changes(**variants[name]))
    if name == COMPILED:
        compiled = CompiledStep(**case.learner(case.config.with_changes(**PAPERS)), strict=True)
        return Candidate(name, lambda call: compiled(*case.arguments(call)))
    if name == DOUBLE_BACKWARD:
        step = DoubleBackwardStep(**case.learner(case.config.with_changes(**PAPERS)))
        return Candidate(name, lambda call: step(*case.arguments(call)))
    return _plain_step(case, name, compiled=name == PLAIN_COMPILED)


def _search_step(case: StepCase, name: str, config: SearchConfig) -> Candidate:
    """The step as `search` makes it of a configuration. Where iterations take turns, `calls` is the turn's length."""
    step = BilevelStep(**case.learner(config))

    def work(call: int) -> StepRecord:
        images, labels, embedding, validation, noise_seed = case.arguments(call)
        return step(images, labels, embedding, None if call % config.meta_every else validation, noise_seed)

    return Candidate(name, work, calls=config.meta_every)


def _plain_step(case: StepCase, name: str, compiled: bool) -> Candidate:
    """Forward, backward, clipped update with equal weights: the training that everybody does."""
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


def step_peak(config: SearchConfig, name: str, variants: Mapping[str, Mapping[str, Any]]) -> int | None:
    """Peak memory of a candidate in bytes, above imports, networks and lazily loaded code; for a process of its own."""
    device = resolve_device(config.device)
    with reproducible(config.threads, device):
        case = StepCase.build(config, device)
        small = candidate(case.cut(2), name, variants)
        small.work(0)
        del small
        whole = candidate(case, name, variants)

        def work() -> None:
            for call in range(whole.calls):
                whole.work(call)

        return peak_bytes(work, device)
