"""Time and peak memory of one iteration of the search, without its augmentation, on random data."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..bilevel.build_step import other_algorithm
from ..config import SearchConfig
from ..errors import UsageError
from ..runtime.device import reproducible, resolve_device
from .interleaved import Clock, Progress, Row, measure, silent
from .memory import peak_bytes, peak_of_process
from .report import Report
from .step_case import (
    COMPILED,
    DOUBLE_BACKWARD,
    PAPER_SETTINGS,
    PLAIN,
    PLAIN_COMPILED,
    VARIANTS,
    StepCase,
    candidate,
)

AS_SET = "as_set"
# Settings of a run that are not part of a step on a given batch: the value that is measured, and what to do instead.
NOT_MEASURED: Mapping[str, tuple[Any, str]] = {
    "extractor": ("shared", "a search with its own extractor reports its cost ratio"),
    "schedule": ("cosine", "a search with this schedule reports its cost ratio"),
    "copies": (1, "raise --batch-size"),
}


def measure_step(
    config: SearchConfig,
    rounds: int,
    variants: Mapping[str, Mapping[str, Any]] = VARIANTS,
    compiled: bool = False,
    memory: bool = True,
    progress: Progress = silent,
) -> Report:
    """Measure the search's step against a plain training step and double backward.

    Args:
        config: proxy, image_size, batch_size, validation_batch_size, optimiser, threads and device; the data set is not
            used.
        rounds: timings of each candidate.
        variants: variants of the search's step by name, and what each changes in `config`. If the configuration's
            iteration is not the paper's, it is added as `AS_SET`.
        compiled: also measure the compiled step and the compiled plain step.
        memory: also measure the peak memory of each candidate, each in a process of its own.
        progress: called at the start of each measurement.

    Raises:
        UsageError: the network cannot be built or does not accept the images; a setting that is not part of the step,
            or that the compiled step does not support.
        EnvironmentFault: torch cannot compile here.
    """
    for name, (measured, instead) in NOT_MEASURED.items():
        if (value := getattr(config, name)) != measured:
            raise UsageError(f"--set {name}={value}", "not a part of the step that is measured here", instead)
    if any(getattr(config, name) != value for name, value in PAPER_SETTINGS.items()):
        variants = {**variants, AS_SET: {}}
    if compiled and (obstacle := other_algorithm(config.with_changes(**PAPER_SETTINGS))):
        raise UsageError("--compile", obstacle, "leave one of them out")
    device = resolve_device(config.device)
    clock = Clock.of(device)
    names = [PLAIN, *variants, DOUBLE_BACKWARD, *([COMPILED, PLAIN_COMPILED] if compiled else [])]
    with reproducible(config.threads, device) as threads:
        case = StepCase.build(config, device)
        candidates = [candidate(case, name, variants) for name in names]
        rows = measure(candidates, PLAIN, rounds, clock, progress, f"{config.proxy} step")
    if memory:
        rows = _with_memory(rows, config, variants, progress)
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


def _with_memory(
    rows: list[Row], config: SearchConfig, variants: Mapping[str, Mapping[str, Any]], progress: Progress
) -> list[Row]:
    """The rows with `peak_mib`, and `peak_ratio` to the plain step."""
    peaks = {}
    for row in rows:
        progress(f"{config.proxy} step: peak memory of {row.what}")
        peaks[row.what] = peak_of_process(step_peak, config, row.what, variants)
    plain = peaks[PLAIN]

    def facts(peak: int | None) -> dict[str, float | None]:
        return {
            "peak_mib": None if peak is None else peak / 2**20,
            "peak_ratio": peak / plain if peak is not None and plain else None,
        }

    return [replace(row, facts={**row.facts, **facts(peaks[row.what])}) for row in rows]


def step_peak(config: SearchConfig, name: str, variants: Mapping[str, Mapping[str, Any]]) -> int | None:
    """Peak memory of a candidate in bytes, above imports, networks and lazily loaded code. Needs its own process."""
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
