"""A run: order of batches, folder, log, checkpoints. Search and train differ only in what an iteration does."""

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors.torch import load, save
from torch import Tensor

from .checkpoint import RunState, load_checkpoint, save_checkpoint
from .config import MACHINE_FIELDS, RunConfig
from .cost import CostMeter
from .data import worker_faults
from .errors import EnvironmentFault, InputError, MapolicyError, TrainingError, UsageError
from .files import CHECKPOINT_FILE, CONFIG_FILE, METRICS_FILE, RESULT_FILE, RUN_FILES, STATUS_FILE, write_atomically
from .iteration import Iteration
from .reporting import Reporter
from .runtime import generator
from .task import Task

LOGGED_PER_EPOCH = 20
LISTED_CORRUPT = 10
LONGEST_SHOWN = 16

Plan = list[tuple[int, Tensor]]


def training_plan(config: RunConfig, images: int, epoch: int, start: int = 0) -> Plan:
    """The batches of one epoch: (step, int64 [batch_size] positions), every image at most once, the rest left out.

    Args:
        config: its seed and batch_size are used.
        images: size of the split.
        epoch: counted from 0.
        start: batches to leave out at the front.
    """
    per_epoch = images // config.batch_size
    order = torch.randperm(images, generator=generator(config.seed, config.stage, "order", epoch))
    batches = order[: per_epoch * config.batch_size].split(config.batch_size)
    return [(epoch * per_epoch + number, batch) for number, batch in enumerate(batches)][start:]


def validation_plan(config: RunConfig, images: int, steps: list[int]) -> Plan:
    """For each step a random part of the meta-validation split, int64 [validation_batch_size] or all of it."""
    return [
        (
            step,
            torch.randperm(images, generator=generator(config.seed, config.stage, "validation", step))[
                : config.validation_batch_size
            ].clone(),  # a part of a permutation would keep all of it
        )
        for step in steps
    ]


class Run:
    """Counts iterations, writes the run folder, stops when training diverges. A context manager.

    Args:
        config: saved as `config.toml`.
        state: what a checkpoint holds.
        task: what is trained.
        reporter: hears of the progress.
        folder: the run folder, or None to write nothing.
        resume: go on from the folder's checkpoint.
        overwrite: remove the files of an earlier run from the folder.
        digest: of the bundle that the run uses, or None.
        facts: told at the start, beside the task's.

    Raises:
        UsageError: the folder holds a run and `resume` was not asked for.
        InputError: there is nothing to resume, or it is another configuration's.
        EnvironmentFault: the folder cannot be written.
    """

    def __init__(
        self,
        config: RunConfig,
        state: RunState,
        task: Task,
        reporter: Reporter,
        folder: Path | None,
        resume: bool = False,
        overwrite: bool = False,
        digest: str | None = None,
        facts: Mapping[str, str] | None = None,
    ) -> None:
        self.config, self.state, self.task, self.reporter, self.folder = config, state, task, reporter, folder
        self.per_epoch = task.iterations_per_epoch
        self.iterations = config.epochs * self.per_epoch
        self.iteration = 0
        self.last_record: Mapping[str, float] = {}
        self._log_every = max(1, self.per_epoch // LOGGED_PER_EPOCH)
        self._last_good: Path | None = None
        self._digest, self._facts = digest, facts or {}
        self._seconds_before = 0.0
        self._cost_ratio: float | None = None
        self._signal: int | None = None
        if folder is not None:
            self._open(folder, resume, overwrite)
        task.communicator.check_equal("its configuration or data set", json.dumps(self._identity(), sort_keys=True))
        if resume:
            self._follow()
        self._started = self._logged = time.monotonic()
        self._logged_iteration = self.iteration
        self._next_checkpoint = self._started + 60 * config.checkpoint_minutes

    def __enter__(self) -> Self:
        self.reporter.started(
            f"{self.config.stage} {self.config.network}", self.iterations, {**self.task.facts(), **self._facts}
        )
        if self.task.splits.corrupt:
            self.note_corrupt(self.task.splits.corrupt)
        self._write_status("running", None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.reporter.finished()
        if problem is None:
            self._write_status("done", 0)
            return
        translated = out_of_memory(problem, self.config, self.iteration)
        failure = translated or problem
        interrupted = isinstance(failure, KeyboardInterrupt | SystemExit)
        if isinstance(failure, MapolicyError):
            code = failure.exit_code
        else:
            code = 128 + (self._signal or signal.SIGINT) if interrupted else 1
        self._write_status("interrupted" if interrupted else "failed", code, str(failure))
        if translated is not None:
            raise translated from problem

    def loop(self, iteration: Iteration) -> float | None:
        """All iterations that are left, with the meta-validation accuracy after each epoch.

        Returns:
            The cost ratio: time of an iteration over that of a plain step, if there were enough to tell.
        """
        meter = CostMeter(self.task, iteration.period)
        with worker_faults(), self._signals_wait():
            self._iterate(iteration, meter)
        self.checkpoint()
        return self._cost_ratio

    def _iterate(self, iteration: Iteration, meter: CostMeter) -> None:
        training, validation = self.task.training, self.task.splits.meta_validation
        for epoch in range(self.iteration // self.per_epoch, self.config.epochs):
            plan = training_plan(self.config, len(training), epoch, self.iteration - epoch * self.per_epoch)
            lessons = [step for step, _ in plan if iteration.learns_policy(step)]
            held_out = iter(self.task.batches(validation, validation_plan(self.config, len(validation), lessons)))
            for (step, _), batch in zip(plan, self.task.batches(training, plan, augment=True), strict=True):
                guide = next(held_out) if iteration.learns_policy(step) else None
                outcome = meter(batch, partial(iteration, step, batch, guide))
                self._cost_ratio = meter.ratio or self._cost_ratio
                self._iterated(*outcome)
            measures = {} if self.config.trains_on_validation else vars(self.task.validation_accuracy())
            self._evaluated(epoch, {f"validation_{name}": value for name, value in measures.items()})
            self._logged = time.monotonic()

    def _iterated(self, loss: Tensor, measures: Callable[[], Mapping[str, float]]) -> None:
        """One iteration is done: stop if it diverged, log it if it is due, save the state if it is time."""
        if not math.isfinite(value := float(loss)):
            raise self._diverged(f"the loss is {value}")
        self.iteration += 1
        now = time.monotonic()
        if self.iteration % self._log_every == 0 or self.iteration == self.iterations:
            seconds = (now - self._logged) / (self.iteration - self._logged_iteration)
            self._logged, self._logged_iteration = now, self.iteration
            record = {
                "iteration": self.iteration,
                "epoch": self.iteration / self.per_epoch,
                "loss": value,
                **measures(),
                "images_per_second": self.config.batch_size / seconds,
                "seconds_left": seconds * (self.iterations - self.iteration),
            }
            self.last_record = record
            self._append(record)
            self.reporter.iterated(record)
        due = int(now >= self._next_checkpoint)
        # All processes save and stop together, whichever of them it was that heard a signal.
        due, self._signal = self.task.communicator.largest(due, self._signal or 0)
        if due:
            self.checkpoint()
            self._next_checkpoint = time.monotonic() + 60 * self.config.checkpoint_minutes
        if self._signal:
            self.checkpoint()
            if self._signal == signal.SIGINT:
                raise KeyboardInterrupt
            self.reporter.noted(f"stopped after iteration {self.iteration}; --resume goes on from here")
            raise SystemExit(128 + self._signal)

    @contextmanager
    def _signals_wait(self) -> Iterator[None]:
        """SIGINT and SIGTERM wait for the iteration's end, where the state is whole. A second one does not."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(number: int, frame: object) -> None:
            if self._signal:
                raise KeyboardInterrupt
            self._signal = number

        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _evaluated(self, epoch: int, measures: Mapping[str, float]) -> None:
        record = {"iteration": self.iteration, "epoch": epoch + 1, **measures}
        self._append(record)
        self.reporter.evaluated(record)

    def checkpoint(self) -> None:
        """Save the state after the last whole iteration.

        Raises:
            TrainingError: the last update has made a number that is not finite; nothing is saved.
        """
        tensors = self.state.tensors()
        if not all(bool(tensor.isfinite().all()) for tensor in tensors.values() if tensor.is_floating_point()):
            raise self._diverged("the update is not finite")
        if self.folder is None:
            return
        path = self.folder / CHECKPOINT_FILE
        facts = {
            "iteration": self.iteration,
            "identity": self._identity(),
            "seconds": self._seconds,
            "cost_ratio": self._cost_ratio,
        }
        save_checkpoint(path, tensors, facts)
        self._last_good = path

    @property
    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._started

    def _identity(self) -> dict[str, Any]:
        """What a run must have in common with the one it goes on with."""
        settings = {key: value for key, value in self.config.to_mapping().items() if key not in MACHINE_FIELDS}
        splits = self.task.splits
        return settings | {"dataset": splits.name, "images": splits.fingerprint, "bundle": self._digest}

    def note_corrupt(self, corrupt: tuple[str, ...]) -> None:
        """Say which images were left out."""
        listed = "; ".join(corrupt[:LISTED_CORRUPT]) + ("; ..." if len(corrupt) > LISTED_CORRUPT else "")
        self.reporter.noted(f"left out {len(corrupt)} images that cannot be decoded: {listed}")

    def finish(self, result: Mapping[str, Any]) -> None:
        """Tell the result, and write it as JSON beside the log."""
        result = {**result, "seconds": self._seconds, "corrupt": list(self.task.splits.corrupt)}
        self.reporter.completed(result)
        if self.folder is not None:
            write_atomically(self.folder / RESULT_FILE, (json.dumps(result, indent=2) + "\n").encode())

    def _open(self, folder: Path, resume: bool, overwrite: bool) -> None:
        checkpoint, metrics = folder / CHECKPOINT_FILE, folder / METRICS_FILE
        if overwrite and not resume:
            for name in RUN_FILES:
                (folder / name).unlink(missing_ok=True)
        if not resume and not overwrite and folder.exists() and any(folder.iterdir()):
            raise UsageError(str(folder), "holds a run", "use --resume, --force or another --run-dir")
        if resume:
            self._resume(checkpoint)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            kept = _lines_up_to(metrics, self.iteration)
        except OSError as problem:
            raise EnvironmentFault(str(folder), problem.strerror or "cannot be used", "use another --run-dir") from None
        records = [json.loads(line) for line in kept.splitlines()]
        self.last_record = next((record for record in reversed(records) if "loss" in record), {})
        write_atomically(metrics, kept.encode())
        write_atomically(folder / CONFIG_FILE, self.config.to_toml().encode())

    def _resume(self, path: Path) -> None:
        if not path.exists():
            raise InputError(str(path.parent), "has no checkpoint yet, so there is nothing to resume", "use --force")
        tensors, facts = load_checkpoint(path)
        old, new = facts["identity"], self._identity()
        differences = [f"{key} {_short(old.get(key))} -> {_short(new[key])}" for key in new if old.get(key) != new[key]]
        if differences:
            raise InputError(str(path), f"is of another run: {', '.join(differences)}", "undo the changes")
        self.state.restore(tensors, facts["iteration"])
        self.iteration = facts["iteration"]
        self._seconds_before, self._cost_ratio = facts["seconds"], facts["cost_ratio"]
        self._last_good = path
        self.reporter.noted(f"goes on after iteration {self.iteration}")

    def _follow(self) -> None:
        """Where there are several processes, the others take on the state that rank 0 has read."""
        group = self.task.communicator
        state = group.broadcast(save(self.state.tensors()) if group.rank == 0 else b"")
        (self.iteration,) = group.largest(self.iteration)
        if group.rank:
            self.state.restore(load(state), self.iteration)

    def _append(self, record: Mapping[str, float]) -> None:
        if self.folder is not None:
            with (self.folder / METRICS_FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")

    def _write_status(self, state: str, exit_code: int | None, reason: str = "") -> None:
        if self.folder is None:
            return
        status = {"state": state, "exit_code": exit_code, "reason": reason, "iteration": self.iteration}
        status |= {} if self._digest is None else {"digest": self._digest}
        write_atomically(self.folder / STATUS_FILE, (json.dumps(status) + "\n").encode())

    def _diverged(self, what: str) -> TrainingError:
        last = f"the last good state is {self._last_good}" if self._last_good else "no checkpoint was written yet"
        return TrainingError(
            f"iteration {self.iteration + 1}", f"{what}; {last}", "lower learning_rate or alpha_initial"
        )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def _lines_up_to(path: Path, iteration: int) -> str:
    """The log's lines up to an iteration; what a killed run wrote after its checkpoint goes."""
    if not iteration or not path.exists():
        return ""
    lines = path.read_text(encoding="utf-8").splitlines()
    whole = [line for line in lines if line.endswith("}") and json.loads(line)["iteration"] <= iteration]
    return "".join(line + "\n" for line in whole)


def out_of_memory(problem: BaseException, config: RunConfig, iteration: int) -> TrainingError | None:
    """Torch's two ways of saying that memory has run out, as one of ours; None for another problem."""
    cuda = isinstance(problem, torch.OutOfMemoryError)
    if not cuda and not (isinstance(problem, RuntimeError) and "can't allocate memory" in str(problem)):
        return None
    where = "the GPU" if cuda else "the machine"
    flags = "lower batch_size, validation_batch_size or copies"
    return TrainingError(
        f"iteration {iteration + 1}", f"{where} is out of memory at batch_size {config.batch_size}", flags
    )
