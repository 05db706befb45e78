"""What a run will take: parameters, memory, iterations, time. Found by a few iterations that are undone."""

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from ..data.kept_loader import without_files
from ..data.splits import worker_faults
from .checkpoint import RunState
from .iteration import Iteration
from .memory import out_of_memory
from .setup import TrainingSetup
from .step_time import StepTimer, timed

WARM_UP = 1
SAMPLES = 2  # of each kind of iteration
WORTH_MEASURING = 20  # iterations of a run
LONG = 5.0  # seconds of an iteration, after which a user wants to know what is being done

OnNote = Callable[[str], None]


@dataclass(frozen=True)
class Forecast:
    """What a run will take.

    Attributes:
        parameters: of the network that is trained.
        iterations: of the whole run.
        seconds_per_iteration: median of a few, batches and their augmentation included; where only some iterations
            learn the policy, the mean over a period.
        seconds: of all iterations, evaluations and the check.
        memory_bytes: the most that was in use up to now, on a GPU by torch's allocator, on a CPU by the process.
        device: kind of device.
        evaluation_seconds: of the meta-validation images after each epoch and of a training's test images, where their
            number is known; part of `seconds`.
        check_seconds: of the trainings that check a policy after its search; part of `seconds`.
        warnings: what a user may want to change before the run, by name.
    """

    parameters: int
    iterations: int
    seconds_per_iteration: float
    seconds: float
    memory_bytes: int
    device: str
    evaluation_seconds: float = 0.0
    check_seconds: float = 0.0
    warnings: Mapping[str, str] = field(default_factory=dict)

    def figures(self) -> dict[str, Any]:
        """All of it, by name."""
        return asdict(self)

    def facts(self) -> dict[str, str]:
        """What a user is told when the run starts, beside parameters and iterations."""
        where = "of the GPU" if self.device == "cuda" else "in this process"
        check = f"; {time_in_words(self.check_seconds)} of it check the policy" if self.check_seconds else ""
        return {
            "memory": f"{self.memory_bytes / 2**30:.2f} GiB {where} after the first iterations",
            "time": f"about {time_in_words(self.seconds)} ({self.seconds_per_iteration:.3g} s an iteration{check})",
        }

    def with_check(self, seconds: float) -> "Forecast":
        """The same run with a check of its policy that takes so long."""
        return replace(self, seconds=self.seconds + seconds, check_seconds=seconds)


@contextmanager
def leaving_nothing() -> Iterator[None]:
    """Inside the block a run that is prepared for a forecast writes no file."""
    with without_files():
        yield


def forecast(iteration: Iteration, state: RunState, on_note: OnNote = lambda text: None) -> Forecast:
    """Measure the first iterations of a run that has not begun; what moves in them is put back.

    Args:
        iteration: of the run.
        state: all that moves.
        on_note: called with what is being done, where that takes long.

    Raises:
        TrainingError: memory has run out.
    """
    setup, device = iteration.setup, iteration.setup.pipeline.device
    each = time_iterations(iteration, state, on_note=on_note).seconds
    assert each is not None
    memory, evaluations = _memory(device), evaluation_seconds(setup)
    return Forecast(
        parameters=sum(parameter.numel() for parameter in setup.network.parameters()),
        iterations=setup.iterations,
        seconds_per_iteration=each,
        seconds=each * setup.iterations + evaluations,
        memory_bytes=memory,
        device=device.type,
        evaluation_seconds=evaluations,
        warnings=setup.warnings(),
    )


def evaluation_seconds(setup: TrainingSetup) -> float:
    """How long all evaluations of a run take, by one batch of meta-validation images."""
    config, splits = setup.config, setup.splits
    images = 0 if config.trains_on_validation else len(splits.meta_validation) * config.epochs
    images += splits.test_images if config.stage == "train" else 0
    batch = min(config.batch_size, len(splits.meta_validation))
    if not images or not batch:
        return 0.0
    some = [(0, torch.arange(batch))]
    setup.network.eval()
    try:
        with torch.inference_mode(), worker_faults():
            _, seconds = timed(
                lambda: [
                    setup.network(setup.pipeline.normalise(each)) for each, _ in splits.meta_validation.batches(some)
                ],
                setup.pipeline.device,
            )
    finally:
        setup.network.train()
    return seconds * images / batch / setup.communicator.size


def time_iterations(
    iteration: Iteration,
    state: RunState,
    samples: int = SAMPLES,
    at_most: float = math.inf,
    on_note: OnNote = lambda text: None,
) -> StepTimer:
    """Time a few iterations of a run that has not begun; what moves in them is put back.

    Args:
        iteration: of the run.
        state: all that moves.
        samples: of each kind of iteration: one that learns the policy, and one that does not where there are such.
        at_most: seconds after which no more samples are taken, once there is one of each kind.
        on_note: called with what is being done, after an iteration that took long.

    Raises:
        TrainingError: memory has run out.
    """
    setup = iteration.setup
    # The first batch again and again: a real iteration that learns, and one that does not where there are such.
    kinds = [0] if iteration.period == 1 or not iteration.learns_policy(0) else [0, 1]
    steps = [0] * WARM_UP + kinds * samples
    _, positions = setup.plan(0)[0]
    batches = setup.iteration_batches([(step, positions) for step in steps], iteration.learns_policy)
    timer = StepTimer(setup.pipeline.device, [1, iteration.period - 1][: len(kinds)], WARM_UP)
    before, start = state.tensors(), time.monotonic()
    end = start + at_most
    try:
        with worker_faults():
            for number, step in enumerate(steps):  # loading a batch is part of an iteration
                timer(lambda: iteration(*next(batches)), step)
                if number == 0 and (took := time.monotonic() - start) > LONG:
                    on_note(f"measuring {len(steps) - 1} more iterations; the first took {time_in_words(took)}")
                if time.monotonic() > end and timer.seconds is not None:
                    break
    except (RuntimeError, MemoryError) as problem:
        translated = out_of_memory(problem, setup.config, 0)
        raise problem if translated is None else translated from problem
    state.restore(before, 0)
    setup.schedule.step_update(0)
    for module in state.modules.values():
        module.zero_grad()
    return timer


def forecast_before(
    iteration: Iteration, state: RunState, resume: bool, on_note: OnNote = lambda text: None
) -> Forecast | None:
    """What to tell of memory and time when a run starts: nothing of one that is short, or that goes on."""
    if resume or iteration.setup.iterations < WORTH_MEASURING:
        return None
    return forecast(iteration, state, on_note)


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # not on every system

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def time_in_words(seconds: float) -> str:
    """A time for a sentence: "50 seconds", "2.5 hours"."""
    for unit, length in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} second{'s' * (round(seconds) != 1)}"
