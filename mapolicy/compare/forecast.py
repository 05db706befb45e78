"""What a comparison will take: how many trainings, and how long, from a few measured iterations of each kind."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from typing import Any

import torch

from ..config import TrainConfig
from ..data.batch_sampler import batches_per_epoch
from ..data.splits import load_splits
from ..policy.policy_bundle import PolicyBundle
from ..runtime.device import reproducible
from ..train import plan
from ..training.dry_run import WORTH_MEASURING, forecast, time_in_words
from ..training.setup import TrainingSetup
from .checks import CheckedData
from .equal_time import EqualTimeBudget
from .job import Job
from .policies import ComparedPolicy


@dataclass(frozen=True)
class TrainingsForecast:
    """The trainings of one network with one policy that are left to do.

    Attributes:
        arch, policy: names of the network, and of the policy in folders.
        trainings: their number.
        iterations: of each.
        seconds_per_iteration: None where too few iterations are left to measure one.
        evaluation_seconds: of one training, where they were measured.
    """

    arch: str
    policy: str
    trainings: int
    iterations: int
    seconds_per_iteration: float | None
    evaluation_seconds: float = 0.0


@dataclass(frozen=True)
class ComparisonForecast:
    """What a comparison will take.

    Attributes:
        networks, policies, splits, seeds: what is combined.
        finished: number of trainings that were finished before.
        rows: the trainings that are left, by network and policy.
        tests: number of searches' own networks that are tested, without a training.
        at_a_time: number of trainings at a time.
        loading_seconds: to read the data set, which each training does.
        warnings: what a user may want to change, by network.
    """

    networks: int
    policies: int
    splits: int
    seeds: int
    finished: int
    tests: int
    rows: Sequence[TrainingsForecast]
    at_a_time: int
    loading_seconds: float
    warnings: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def trainings(self) -> int:
        """Number of trainings that are left."""
        return sum(row.trainings for row in self.rows)

    def seconds_of(self, row: TrainingsForecast) -> float | None:
        """Time of one training of a row; None where it was not measured."""
        each = row.seconds_per_iteration
        return None if each is None else self.loading_seconds + row.iterations * each + row.evaluation_seconds

    @property
    def seconds(self) -> float | None:
        """Time of all trainings that are left; None where it was not measured."""
        found = [(row.trainings, self.seconds_of(row)) for row in self.rows]
        if any(each is None for _, each in found):
            return None
        return sum(count * each for count, each in found if each is not None) / max(1, self.at_a_time)

    def trainings_in_words(self) -> str:
        """How many trainings are left, and what they combine."""
        parts = {"network": self.networks, "policy": self.policies, "split": self.splits, "seed": self.seeds}
        texts = [
            f"{count} {name if count == 1 else 'policies' if name == 'policy' else f'{name}s'}"
            for name, count in parts.items()
            if count > 1 or name != "split"
        ]
        done = f", {self.finished} of them finished before" if self.finished else ""
        proxies = (
            "; the proxy is tested as one more run" if self.tests == 1 else f"; {self.tests} proxies are tested as well"
        )
        return f"{self.trainings}: {' x '.join(texts)}{done}{proxies if self.tests else ''}"

    def time_in_words(self) -> str:
        """How long they take; empty where it was not measured."""
        if self.seconds is None:
            return ""
        at_a_time = f", {self.at_a_time} at a time" if self.at_a_time > 1 else ""
        return f"about {time_in_words(self.seconds)} in all{at_a_time}"

    def row_in_words(self, row: TrainingsForecast) -> str:
        """One training of a row."""
        seconds = self.seconds_of(row)
        took = "" if seconds is None else f", about {time_in_words(seconds)} each"
        return f"{row.trainings} x {row.iterations} iterations{took}"

    def warnings_by_name(self) -> list[tuple[str, str, str]]:
        """The warnings as rows of a network, a name and a text."""
        return [(arch, name, text) for arch, found in self.warnings.items() for name, text in found.items()]

    def document(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "trainings": self.trainings, "seconds": self.seconds}


def forecast_jobs(
    planned: Sequence[Job],
    left: Sequence[Job],
    configs: Sequence[TrainConfig],
    policies: Sequence[ComparedPolicy],
    split_owners: Sequence[PolicyBundle | None],
    data: CheckedData,
    device: torch.device,
    budget: EqualTimeBudget,
    processes: int,
    measure: bool,
) -> ComparisonForecast:
    """Measure a few iterations of each network with each policy, on the first split.

    Args:
        planned: all jobs.
        left: those that are not finished.
        configs: one for each network.
        policies: of the comparison.
        split_owners: the searched bundles; `[None]` if there are none.
        data: the data set under the first split.
        device: of the trainings.
        budget: epochs under equal time, with what was measured for them; else empty.
        processes: jobs at a time.
        measure: also measure where there are few iterations.

    Raises:
        UsageError, InputError, TrainingError: as `train_network`.
    """
    counts = Counter((job.config.arch, job.label) for job in left if not job.proxy)
    rows: list[TrainingsForecast] = []
    warnings: dict[str, Mapping[str, str]] = {}
    first = split_owners[0]
    with reproducible(configs[0].threads, device):
        splits = data.splits
        if device.type != "cpu" and counts:
            held_out = None if first is None else first.meta_validation
            splits = load_splits(configs[0], device, configs[0].stage, held_out)
        images = len(splits.train) + len(splits.meta_validation) * configs[0].trains_on_validation
        own = [(policy, _of_policy(config, policy, budget)) for config, policy in product(configs, policies)]
        chosen = [(policy, config) for policy, config in own if counts[config.arch, policy.label]]
        iterations = [config.epochs * batches_per_epoch(config, images) for _, config in chosen]
        total = sum(
            each * counts[config.arch, policy.label] for (policy, config), each in zip(chosen, iterations, strict=True)
        )
        measure = measure or total >= WORTH_MEASURING * len(chosen)
        for (policy, config), each in zip(chosen, iterations, strict=True):
            seconds = budget[config.arch][policy.label]["seconds_per_iteration"] if budget else None
            evaluations = 0.0
            if config.arch not in warnings or (measure and seconds is None):
                setup = TrainingSetup.over(config, splits, device)
                warnings.setdefault(config.arch, setup.warnings())
                if measure and seconds is None:
                    iteration, state = plan(config, policy.bundle(first), setup, device)
                    found = forecast(iteration, state)
                    seconds, evaluations = found.seconds_per_iteration, found.evaluation_seconds
            count = counts[config.arch, policy.label]
            rows.append(TrainingsForecast(config.arch, policy.label, count, each, seconds, evaluations))
    if device.type == "cuda":
        torch.cuda.empty_cache()  # the trainings may be other processes
    at_once = torch.cuda.device_count() if device.type == "cuda" else len(os.sched_getaffinity(0))
    return ComparisonForecast(
        networks=len(configs),
        policies=len(policies),
        splits=len(split_owners),
        seeds=len({job.config.seed for job in planned if not job.proxy}),
        finished=len([job for job in planned if not job.proxy]) - sum(counts.values()),
        tests=sum(job.proxy for job in left),
        rows=rows,
        at_a_time=max(1, min(processes, at_once, sum(counts.values()))),
        loading_seconds=data.seconds,
        warnings={arch: told for arch, told in warnings.items() if told},
    )


def _of_policy(config: TrainConfig, policy: ComparedPolicy, budget: EqualTimeBudget) -> TrainConfig:
    own = policy.configure(config)
    return own.with_changes(epochs=budget[config.arch][policy.label]["epochs"]) if budget else own
