"""A run: order of batches, folder, log, checkpoints. Search and train differ only in what an iteration does."""

import json
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from safetensors.torch import load, save
from torch import Tensor

from ..config import RunConfig
from ..config.choices import result_settings
from ..data import damaged
from ..data.splits import Split, worker_faults
from ..errors import DivergenceError, EnvironmentFault, InputError, MapolicyError, UsageError
from ..runtime.faults import exit_code_of
from ..runtime.lock import folder_lock
from ..runtime.signals import StopRequest
from .callbacks import Reporter
from .checkpoint import RunState
from .iteration import Iteration
from .memory import out_of_memory
from .run_folder import RunFolder
from .setup import TrainingSetup
from .step_time import CostMeter

LOGGED_PER_EPOCH = 20
LONGEST_SHOWN = 16
SHOWN_TRANSFORMATIONS = 5
MOST_ROLLBACKS = 5  # after which the learning rates are a thirty-second of what they were


class Expected(Protocol):
    """A `dry_run.Forecast`."""

    @property
    def seconds(self) -> float:
        """Of all iterations, and of what follows them."""
        ...

    @property
    def seconds_per_iteration(self) -> float:
        """Of one of them."""
        ...

    def facts(self) -> dict[str, str]:
        """For the user."""
        ...


class Trainer:
    """Counts iterations, writes the run folder, stops when training diverges. A context manager.

    Args:
        config: saved as `config.toml`.
        state: what a checkpoint holds.
        setup: what is trained.
        reporter: hears of the progress.
        folder: the run folder, or None to write nothing.
        resume: go on from the folder's newest whole checkpoint; without one, start from the beginning.
        overwrite: remove the files of an earlier run from the folder.
        digest: of the bundle that the run uses, or None.
        facts: passed to `on_start` with the setup's own.
        expected: what the run will take, where that was measured.
        afterwards: seconds of what follows the iterations, by the same measurement; part of the time left.

    Attributes:
        iteration: iterations that are done.
        last_record: of the log's lines about an iteration, the newest.
        rollbacks: so many times the run went back to a checkpoint because it had diverged.

    Raises:
        UsageError: the folder holds a run and `resume` was not asked for; or there is no folder to roll back to.
        InputError: what is to be resumed is another configuration's, or is damaged.
        EnvironmentFault: the folder cannot be written.
        FolderInUseError: another run is in the folder.
    """

    def __init__(
        self,
        config: RunConfig,
        state: RunState,
        setup: TrainingSetup,
        reporter: Reporter,
        folder: Path | None,
        resume: bool = False,
        overwrite: bool = False,
        digest: str | None = None,
        facts: Mapping[str, str] | None = None,
        expected: Expected | None = None,
        afterwards: float = 0.0,
    ) -> None:
        self.config, self.state, self.setup, self.reporter = config, state, setup, reporter
        self.per_epoch = setup.iterations_per_epoch
        self.iterations = config.epochs * self.per_epoch
        self.iteration = 0
        self.last_record: Mapping[str, float] = {}
        self.rollbacks = 0
        self._folder, self._resume, self._overwrite = RunFolder(folder), resume, overwrite
        self._log_every = max(1, self.per_epoch // LOGGED_PER_EPOCH)
        self._evaluated_epochs = 0
        self._digest, self._facts, self._expected, self._afterwards = digest, facts or {}, expected, afterwards
        self._seconds_before = 0.0
        self._cost_ratio: float | None = None
        self._stop = StopRequest()
        self._open = ExitStack()
        self._group = setup.communicator
        if config.on_divergence == "rollback" and folder is None and self._group.rank == 0:
            raise UsageError("on_divergence", "without a run folder there is nothing to roll back to", "name one")

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            opened.enter_context(self._stop.listening())
            self._folder.check(self._resume, self._overwrite)
            if self._folder.path is not None:
                opened.enter_context(folder_lock(self._folder.path))
            self._started = self._logged = time.monotonic()
            identity = json.dumps(self._identity(), sort_keys=True)
            self._group.check_equal("its configuration or data set", identity)
            goes_on = self._resume and self._folder.checkpoint() is not None
            if any(self._group.largest(goes_on)):  # rank 0 alone has a folder
                facts = self._go_on()
                self._seconds_before, self._cost_ratio = facts["seconds"], facts["cost_ratio"]
                self.reporter.on_note(f"goes on after iteration {self.iteration}")
            else:
                if self._resume and self._folder.path is not None:
                    self.reporter.on_note(f"{self._folder.path} has no checkpoint yet: starts from the beginning")
                self._folder.begin(self.config)
            self._folder.write_data(self.setup.splits.document())
            self.reporter.on_open(self.config.to_mapping(), self._folder.path, self.iteration)
            self._logged_iteration = self._began_at = self.iteration
            self._next_checkpoint = self._started + 60 * self.config.checkpoint_minutes
            expected = self._expected
            self.reporter.on_start(
                f"{self.config.stage} {self.config.network}",
                self.iterations,
                {**self.setup.facts(), **self._facts, **({} if expected is None else expected.facts())},
                None if expected is None else expected.seconds,
            )
            self._write_status("running", None)
            self._open = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._open:
            self.reporter.on_finish()
            if problem is None:
                self._folder.write_table()
                self._write_status("done", 0)
                return
            translated = out_of_memory(problem, self.config, self.iteration)
            failure = translated or problem
            interrupted = isinstance(failure, KeyboardInterrupt | SystemExit)
            code = self._stop.exit_code if interrupted else exit_code_of(failure)
            number = self._stop.number if interrupted else None
            reason = str(failure) if number is None else signal.Signals(number).name
            with suppress(EnvironmentFault):  # a full disk has been told of already
                self._write_status("interrupted" if interrupted else "failed", code, reason)
                self._folder.write_table()
            if translated is not None:
                raise translated from problem

    def loop(self, iteration: Iteration) -> float | None:
        """All iterations that are left, with the meta-validation accuracy after each epoch.

        Returns:
            The cost ratio: time of an iteration over that of a plain step, if there were enough to tell.
        """
        meter = CostMeter(self.setup, iteration.period)
        rolls_back = self.config.on_divergence == "rollback"
        if rolls_back and self.iteration == 0:
            self.checkpoint()
        with worker_faults(), self._stop.deferred():
            while True:
                try:
                    self._to_the_end(iteration, meter)
                    break
                except DivergenceError as problem:
                    if not rolls_back or self.rollbacks == MOST_ROLLBACKS:
                        raise
                    self._roll_back(problem)
            self._agree()
        self._stop.raise_if_stopped()
        self.setup.selection.finish(self.setup.network)
        return self._cost_ratio

    def _to_the_end(self, iteration: Iteration, meter: CostMeter) -> None:
        selection = self.setup.selection
        while self._evaluated_epochs < self.config.epochs and not selection.ends(self._evaluated_epochs):
            self._epoch(iteration, meter)
        if self._evaluated_epochs < self.config.epochs:
            best = f"epoch {selection.best_epoch} was the best for {self.config.early_stopping} epochs"
            self.reporter.on_note(f"training ends after epoch {self._evaluated_epochs}: {best}")
        self.checkpoint()

    def _epoch(self, iteration: Iteration, meter: CostMeter) -> None:
        """What is left of an epoch: its iterations, then its line in the log."""
        epoch = self._evaluated_epochs
        plan = self.setup.plan(epoch, self.iteration - epoch * self.per_epoch)
        batches = self.setup.iteration_batches(plan, iteration.learns_policy)
        step, batch = 0, None
        for _ in plan:
            try:
                step, batch, held_out = next(batches)
            except MapolicyError:  # an image, a loader's process; what has been trained is whole
                self.checkpoint()
                raise
            outcome = meter(batch, partial(iteration, step, batch, held_out))
            self._cost_ratio = meter.ratio or self._cost_ratio
            self.after_iteration(*outcome)
        try:
            # It may take long, and changes nothing; but several processes stop at an iteration's end alone.
            with self._stop.immediate() if self._group.size == 1 else nullcontext():
                measures = {} if self.config.trains_on_validation else vars(self.setup.validation_accuracy())
        except (KeyboardInterrupt, SystemExit):
            self.checkpoint()
            raise
        self.setup.selection.after_epoch(self.setup.network, epoch + 1, measures.get("top1", 0.0))
        record = {"iteration": self.iteration, "epoch": epoch + 1}
        record |= {f"validation_{name}": value for name, value in measures.items()}
        self._folder.log(record)
        self._evaluated_epochs += 1
        with self._saved_if_interrupted():
            self.reporter.on_evaluate(record)
            self.reporter.on_policy(iteration.likeliest(SHOWN_TRANSFORMATIONS))
            if batch is not None:  # a run that goes on at an epoch's end has none
                self.reporter.on_view(iteration.view(step, batch[0]))
        self._logged = time.monotonic()

    def after_iteration(self, loss: Tensor, measures: Callable[[], Mapping[str, float]]) -> None:
        """One iteration is done: stop if it diverged, log it if it is due, save the state if it is time."""
        if not math.isfinite(value := float(loss)):
            raise self._diverged(f"the loss is {value}")
        self.iteration += 1
        self.setup.selection.after_iteration(self.setup.network, self.iteration)
        now = time.monotonic()
        each = (now - self._started) / max(1, self.iteration - self._began_at)
        with self._saved_if_interrupted():
            self.reporter.on_step(self.iteration, self._left(each))
        if self.iteration % self._log_every == 0 or self.iteration == self.iterations:
            seconds = (now - self._logged) / (self.iteration - self._logged_iteration)
            self._logged, self._logged_iteration = now, self.iteration
            record = {
                "iteration": self.iteration,
                "epoch": self.iteration / self.per_epoch,
                "loss": value,
                **measures(),
                "images_per_second": self.config.batch_size / seconds,
                "seconds_left": self._left(each),
            }
            self.last_record = record
            self._folder.log(record)
            with self._saved_if_interrupted():
                self.reporter.on_log(record)
        if self._agree(now >= self._next_checkpoint) or self._stop.number is not None:
            self.checkpoint()
            self._next_checkpoint = time.monotonic() + 60 * self.config.checkpoint_minutes
        self._stop.raise_if_stopped()

    def _left(self, each: float) -> float:
        """Seconds left where an iteration takes `each`; what follows them takes longer where they do."""
        slower = 1.0 if self._expected is None else each / self._expected.seconds_per_iteration
        return each * (self.iterations - self.iteration) + slower * self._afterwards

    @contextmanager
    def _saved_if_interrupted(self) -> Iterator[None]:
        """Save the state where a callback raises the exception that ends a run, unless a second signal hurries it."""
        try:
            yield
        except (KeyboardInterrupt, SystemExit):
            if self._stop.number is None:
                self.checkpoint()
            raise

    def _agree(self, due: bool = False) -> bool:
        """Whether it is time to save, for any process; all stop where one has heard a signal."""
        due_anywhere, number = self._group.largest(due, self._stop.number or 0)
        if number:
            self._stop.number = number
        return bool(due_anywhere)

    def checkpoint(self) -> None:
        """Save the state after the last whole iteration.

        Raises:
            DivergenceError: the last update has made a number that is not finite; nothing is saved.
            EnvironmentFault: it cannot be written; the checkpoint before stands.
        """
        tensors = self.state.tensors()
        if not all(bool(tensor.isfinite().all()) for tensor in tensors.values() if tensor.is_floating_point()):
            raise self._diverged("the update is not finite")
        facts = {
            "iteration": self.iteration,
            "evaluated_epochs": self._evaluated_epochs,
            "identity": self._identity(),
            "seconds": self._seconds,
            "cost_ratio": self._cost_ratio,
            "rollbacks": self.rollbacks,
            "selection": self.setup.selection.state(),
        }
        self._folder.save(tensors, facts)

    @property
    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._started

    def _identity(self) -> dict[str, Any]:
        """What a run must have in common with the one it goes on with."""
        settings = result_settings(self.config.to_mapping())
        splits, weights = self.setup.splits, self.setup.weights
        facts = {"dataset": splits.name, "images": splits.fingerprint, "bundle": self._digest}
        return settings | facts | {"weights": "" if weights is None else weights.digest}

    @property
    def epochs(self) -> int:
        """Epochs that are done."""
        return self._evaluated_epochs

    def open_test_split(self) -> Split:
        """The test split; its images that cannot be decoded are reported."""
        splits = self.setup.splits
        known = len(splits.corrupt)
        test = splits.test()
        if len(splits.corrupt) > known:
            self.reporter.on_note(damaged.note(splits.corrupt[known:]))
        return test

    def finish(self, result: Mapping[str, Any]) -> None:
        """Tell the result, and write it as JSON beside the log."""
        corrupt = list(self.setup.splits.corrupt)
        result = {**result, "seconds": self._seconds, "rollbacks": self.rollbacks, "corrupt": corrupt}
        self.reporter.on_complete(result)
        self._folder.write_result(result)

    def _go_on(self) -> Mapping[str, Any]:
        """Take over the folder's newest whole checkpoint, which rank 0 reads for all; its facts."""
        if self._group.rank:
            return self._take_over(*self._shared({}, {}))
        tensors, facts, told = self._folder.load()
        if told:
            self.reporter.on_note(told)
        old, new = self.config.defaults() | facts["identity"], self._identity()
        old |= result_settings(old)
        differences = [f"{key} {_short(old.get(key))} -> {_short(new[key])}" for key in new if old.get(key) != new[key]]
        if differences:
            where = str(self._folder.checkpoint())
            raise InputError(where, f"is of another run: {', '.join(differences)}", "undo the changes")
        return self._take_over(*self._shared(tensors, facts))

    def _shared(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Rank 0's, in every process."""
        group = self._group
        if group.size == 1:
            return tensors, facts
        told = group.broadcast(json.dumps(facts).encode())
        return load(group.broadcast(save(tensors) if group.rank == 0 else b"")), json.loads(told)

    def _take_over(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> Mapping[str, Any]:
        self.state.restore(tensors, facts["iteration"])
        if "selection" in facts:  # a checkpoint of an earlier version has none, and needs none
            self.setup.selection.restore(facts["selection"])
        self.iteration, self._evaluated_epochs = facts["iteration"], facts["evaluated_epochs"]
        self._slow_down(facts["rollbacks"] - self.rollbacks)
        records = self._folder.go_on(self.config, facts["lines"])
        if self._folder.path is not None and len(records) < facts["lines"]:
            missing = facts["lines"] - len(records)
            self.reporter.on_note(f"warning: {missing} lines of the log are gone; the run itself is whole")
        self.last_record = next((record for record in reversed(records) if "loss" in record), {})
        return facts

    def _roll_back(self, problem: DivergenceError) -> None:
        """Back to the last checkpoint, and on from there at half the learning rates."""
        rollbacks = self.rollbacks + 1
        self._go_on()
        self._slow_down(rollbacks - self.rollbacks)
        self._logged, self._logged_iteration = time.monotonic(), self.iteration
        self.reporter.on_note(
            f"{problem.what}: {problem.why.partition(';')[0]}; back to iteration {self.iteration}, and on at "
            f"{self.setup.schedule.scale:.4g} of the learning rates"
        )

    def _slow_down(self, times: int) -> None:
        """Halve the learning rates of task network and policy so many times."""
        self.rollbacks += times
        self.setup.schedule.scale *= 0.5**times
        for name, optimizer in self.state.optimizers.items():
            if name != "network":  # whose rates the schedule sets
                for group in optimizer.param_groups:
                    group["lr"] *= 0.5**times

    def _write_status(self, state: str, exit_code: int | None, reason: str = "") -> None:
        status = {"state": state, "exit_code": exit_code, "reason": reason, "step": self.iteration}
        self._folder.write_status(status | ({} if self._digest is None else {"digest": self._digest}))

    def _diverged(self, what: str) -> DivergenceError:
        path = self._folder.checkpoint()
        last = f"the last good state is {path}" if path else "no checkpoint was written yet"
        rolls_back = self.config.on_divergence == "rollback"
        return DivergenceError(
            f"iteration {self.iteration + 1}",
            what if self._group.rank else f"{what}; {last}",
            f"it went back {self.rollbacks} times; lower learning_rate or alpha_initial"
            if rolls_back
            else "lower learning_rate or alpha_initial, or use --on-divergence rollback",
        )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."
