"""Compare a bundle's policy with others under one budget, over several networks and seeds.

    comparison = compare_policies([bundle], [config], Path("runs/compare"), against=("none", "uniform"), seeds=5)

Every job is one `train_network` in a folder below the comparison's. Jobs with the same seed differ in the policy alone:
the seed sets the order of the batches and the initial weights, and the bundle sets the split.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from ..bundle.manifest_base import PolicyFile
from ..config import TrainConfig
from ..config.choices import MACHINE_FIELDS
from ..errors import MapolicyError
from ..policy.policy_bundle import PolicyBundle
from ..policy.protocol import searched_bundle
from ..runtime.device import resolve_device
from ..runtime.files import RUN_FILES
from ..runtime.lock import folder_lock
from ..runtime.machine import hardware, versions
from ..training.callbacks import Reporter
from ..training.dry_run import leaving_nothing
from .checks import caveats, check_arguments, check_bundles, check_data
from .equal_time import EqualTimeBudget, check_epochs, equal_time_budget
from .forecast import ComparisonForecast, forecast_jobs
from .job import Job, finished_row, plan_jobs, read_row
from .policies import ComparedPolicy, compared_policies, short_digest, titles
from .process_pool import Failure, gpu_environments, run_in_processes
from .record import open_record, save_record, write_json
from .run_job import JobRunner
from .stats import Row, Summary, summarise

SUMMARY_FILE = "summary.json"
DEFAULT_BASELINES = ("none", "uniform", "trivialaugment", "randaugment")


@dataclass(frozen=True)
class Comparison:
    """The result of `compare_policies`.

    Attributes:
        rows: one for each finished job.
        summary: one for each network, policy and mode.
        failed: the other jobs and the reasons.
        bundles: digest and origin of each bundle; proxy, epochs and settings of a search; source of a dataset-level
            policy.
        settings: by network, without policy, mode and seed.
        budget: its `kind`; under `equal-time` also `pace`: by network and policy, the seconds of an iteration and the
            resulting epochs.
        notes: caveats for a reader of the table.
        hardware, versions: of this machine.
    """

    rows: Sequence[Row]
    summary: Sequence[Summary]
    failed: Mapping[Job, Failure]
    bundles: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Mapping[str, Any]]
    budget: Mapping[str, Any]
    notes: Sequence[str]
    hardware: Mapping[str, Any]
    versions: Mapping[str, str]

    def titled_summary(self) -> list[Summary]:
        """The summary for people: a dataset-level policy has the name that it was asked for by."""
        named = titles(self.bundles)
        return [replace(entry, policy=named.get(entry.policy, entry.policy)) for entry in self.summary]

    def document(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "rows": [asdict(row) for row in self.rows],
            "summary": [summary.document() for summary in self.summary],
            "failed": [{"run": str(job), **asdict(failure)} for job, failure in self.failed.items()],
            **{name: getattr(self, name) for name in ("bundles", "settings", "budget", "hardware", "versions")},
            "notes": list(self.notes),
        }


def compare_policies(
    bundles: Sequence[PolicyFile],
    configs: Sequence[TrainConfig],
    run_dir: Path,
    against: Sequence[str] = DEFAULT_BASELINES,
    modes: Sequence[str] = ("frozen",),
    seeds: int = 1,
    budget: str = "equal-epochs",
    jobs: int = 1,
    reporter: Reporter | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> Comparison:
    """Train each network with each policy, split and seed, and summarise the test accuracies.

    Args:
        bundles: searched bundles of one data set, and dataset-level policies. Each searched bundle brings its own split
            and, where there are several, counts as one unit. A dataset-level policy is trained on each of these splits,
            or, without a searched bundle, on the split that the settings draw.
        configs: complete settings for each network, with the first searched bundle's data settings. `policy`, `mode`
            and `split_seed` are replaced for each job; `seed` is the first seed.
        run_dir: the run folders are made below it.
        against: names of the baselines.
        modes: modes of the searched policies, `frozen` or `finetune`.
        seeds: number of seeds, counted from the configuration's.
        budget: `equal-epochs`: every job trains for the configuration's epochs. `equal-time`: cheaper policies train
            for more epochs, so that all take as long as the slowest.
        jobs: jobs at a time. 1 runs them in this process. More run in processes of their own, with one thread each
            unless the configuration sets `threads`, on the visible GPUs in turn.
        reporter: receives the progress; None reports nothing.
        resume: keep the finished jobs in `run_dir` and continue the others. Networks, policies, seeds and bundles may
            be added (under equal-time only seeds and bundles).
        overwrite: start again in a folder that holds a comparison.

    Returns:
        The comparison. A failed job does not stop the others; see `Comparison.failed`.

    Raises:
        UsageError, InputError: a wrong argument, or bundles and settings that do not match; before any training.
        EnvironmentFault: the folder cannot be written.
        FolderInUseError: another process compares in this folder.
        KeyboardInterrupt, SystemExit: interrupted by a signal; `resume` continues.
    """
    # More than 60 lines: half of them say what each argument is.
    reporter = reporter or Reporter()
    check_arguments(bundles, configs, against, modes, seeds, budget, jobs)
    about = _Entrants.of(bundles, configs, against, modes)
    with folder_lock(run_dir):
        device = resolve_device(configs[0].device)
        configs = _with_threads(configs, jobs, device)
        record = open_record(run_dir, about.by_digest, budget, resume, overwrite)
        planned, rows = _planned(about, configs, run_dir, seeds, budget, record, resume, reporter)
        notes = caveats(about.searched, configs)
        told = _checked(about, configs, planned, rows, device, record.get("pace", {}), jobs, reporter)
        if not resume:
            _remove_old_runs(planned)
        save_record(run_dir, record)
        for text in notes:
            reporter.on_note(text)
        runner = JobRunner(run_dir, about.by_digest)
        failed = _run(planned, rows, runner, jobs, gpu_environments(device), reporter, told)
        in_order = [rows[job] for job in planned if job in rows]
        comparison = Comparison(
            rows=in_order,
            summary=summarise(in_order),
            failed=failed,
            bundles=[_about(bundle) for bundle in bundles],
            settings={config.arch: _shared_settings(config) for config in configs},
            budget={"kind": budget} | ({"pace": record["pace"]} if "pace" in record else {}),
            notes=notes,
            hardware=hardware(device) | {"threads": configs[0].threads or torch.get_num_threads(), "jobs": jobs},
            versions=versions(),
        )
        write_json(run_dir / SUMMARY_FILE, comparison.document())
        return comparison


def forecast_comparison(
    bundles: Sequence[PolicyFile],
    configs: Sequence[TrainConfig],
    run_dir: Path,
    against: Sequence[str] = DEFAULT_BASELINES,
    modes: Sequence[str] = ("frozen",),
    seeds: int = 1,
    budget: str = "equal-epochs",
    jobs: int = 1,
    reporter: Reporter | None = None,
    resume: bool = False,
) -> ComparisonForecast:
    """What `compare_policies` would take: it does a few iterations with each policy and writes nothing.

    Args:
        bundles, configs, run_dir, against, modes, seeds, budget, jobs, reporter: as of `compare_policies`.
        resume: do not count the trainings that are finished in `run_dir`.

    Raises:
        UsageError, InputError, TrainingError: as `compare_policies`.
    """
    reporter = reporter or Reporter()
    check_arguments(bundles, configs, against, modes, seeds, budget, jobs)
    about = _Entrants.of(bundles, configs, against, modes)
    device = resolve_device(configs[0].device)
    configs = _with_threads(configs, jobs, device)
    record = open_record(run_dir, about.by_digest, budget, resume, overwrite=True) if resume else {}
    planned, rows = _planned(about, configs, run_dir, seeds, budget, record, resume, reporter)
    with leaving_nothing():
        data = check_data(about.split_owners, configs)
        for text in (*data.splits.notes, *caveats(about.searched, configs)):
            reporter.on_note(text)
        left = [job for job in planned if job not in rows]
        pace = record.get("pace", {})
        return forecast_jobs(planned, left, configs, about.policies, about.split_owners, data, device, pace, jobs, True)


@dataclass(frozen=True)
class _Entrants:
    """Who is compared.

    Attributes:
        policies: in training order.
        searched: the searched bundles.
        split_owners: the same, or `[None]` where there is none.
        by_digest: all bundles.
    """

    policies: Sequence[ComparedPolicy]
    searched: Sequence[PolicyBundle]
    split_owners: Sequence[PolicyBundle | None]
    by_digest: Mapping[str, PolicyFile]

    @classmethod
    def of(
        cls,
        bundles: Sequence[PolicyFile],
        configs: Sequence[TrainConfig],
        against: Sequence[str],
        modes: Sequence[str],
    ) -> "_Entrants":
        """Those of a comparison.

        Raises:
            UsageError, InputError: bundles, policies and settings do not match.
        """
        searched = [found for bundle in bundles if (found := searched_bundle(bundle)) is not None]
        dataset_level = [bundle for bundle in bundles if not bundle.has_network]
        policies = compared_policies(searched, dataset_level, modes, against)
        check_bundles(searched, configs)
        for policy, config in product(policies, configs):
            policy.configure(config)  # raises here, before there is a folder, where policy and settings contradict
        return cls(policies, searched, [*searched] or [None], {bundle.digest: bundle for bundle in bundles})


def _with_threads(configs: Sequence[TrainConfig], jobs: int, device: torch.device) -> Sequence[TrainConfig]:
    """The configurations with one thread for each of several jobs on a CPU."""
    if jobs > 1 and device.type == "cpu":
        return [config.with_changes(threads=config.threads or 1) for config in configs]
    return configs


def _planned(
    about: _Entrants,
    configs: Sequence[TrainConfig],
    run_dir: Path,
    seeds: int,
    budget: str,
    record: dict[str, Any],
    resume: bool,
    reporter: Reporter,
) -> tuple[list[Job], dict[Job, Row]]:
    """All jobs, and the rows of those that are finished; the equal-time budget is measured and put into the record."""
    owners, policies = about.split_owners, about.policies
    if budget == "equal-time":
        check_epochs(record.setdefault("epochs", {}), configs, run_dir)
        measured = record.get("pace")
        record["pace"] = equal_time_budget(owners[0], configs, policies, measured, run_dir, reporter.on_note)
    planned = plan_jobs(owners, configs, run_dir, policies, seeds, record.get("pace", {}))
    rows = {job: row for job in planned if (row := finished_row(job)) is not None} if resume else {}
    return planned, rows


def _checked(
    about: _Entrants,
    configs: Sequence[TrainConfig],
    planned: Sequence[Job],
    rows: Mapping[Job, Row],
    device: torch.device,
    pace: EqualTimeBudget,
    jobs: int,
    reporter: Reporter,
) -> Sequence[str]:
    """Check the data set and say what the comparison will take; returns what was said of the data set.

    The data set that was opened for it is dropped.
    """
    left = [job for job in planned if job not in rows]
    if rows:
        reporter.on_note(f"{len(rows)} of {len(planned)} runs were finished before")
    if not left:
        return ()
    data = check_data(about.split_owners, configs)
    for text in data.splits.notes:
        reporter.on_note(text)
    owners = about.split_owners
    expected = forecast_jobs(planned, left, configs, about.policies, owners, data, device, pace, jobs, measure=False)
    reporter.on_note("; ".join(filter(None, [f"trainings {expected.trainings_in_words()}", expected.time_in_words()])))
    for arch, name, text in expected.warnings_by_name():
        reporter.on_note(f"{arch}: {name}: {text}")
    return data.splits.notes


def _remove_old_runs(jobs: Sequence[Job]) -> None:
    for job in jobs:
        for name in RUN_FILES:
            (job.folder / name).unlink(missing_ok=True)


def _run(
    planned: Sequence[Job],
    rows: dict[Job, Row],
    runner: JobRunner,
    processes: int,
    environments: Sequence[Mapping[str, str]],
    reporter: Reporter,
    told: Sequence[str],
) -> dict[Job, Failure]:
    """Run the jobs that have no row yet, add their rows, and return the failures; what was told is not told again."""

    left = [job for job in planned if job not in rows]
    failed: dict[Job, Failure] = {}
    said = {*told}
    start = time.monotonic()

    def note(text: str) -> None:
        """Tell what a run says, once: many runs say the same of their images."""
        message = text.partition(": ")[2]
        if message not in said:
            said.add(message)
            reporter.on_note(text)

    def finished(position: int, failure: Failure | None) -> None:
        job = left[position]
        if failure is None:
            row = rows[job] = read_row(job)
            outcome = f"{row.test_top1:.2f} % test top-1"
        else:
            failed[job] = failure
            outcome = f"failed: {failure.what}: {failure.why}"
        done = len(rows) + len(failed)
        remaining = len(planned) - done
        seconds_left = (time.monotonic() - start) / (len(left) - remaining) * remaining
        reporter.on_compare(done, len(planned), f"{job}: {outcome}", seconds_left)

    if processes > 1:
        run_in_processes(runner, left, processes, finished, note, environments)
        return failed
    for position, job in enumerate(left):
        try:
            runner(job, note)
        except MapolicyError as problem:
            finished(position, Failure.of(problem))
        else:
            finished(position, None)
    return failed


def _about(bundle: PolicyFile) -> dict[str, Any]:
    return {"bundle": short_digest(bundle), "digest": bundle.digest, "origin": bundle.origin, **bundle.about()}


def _shared_settings(config: TrainConfig) -> dict[str, Any]:
    """The settings that all jobs of a network share."""
    varied = MACHINE_FIELDS | {"policy", "mode", "seed", "split_seed"}
    return {name: value for name, value in config.to_mapping().items() if name not in varied}
