"""Does it help? A bundle's policy against others under one budget, for several networks and seeds, run by run.

    comparison = compare_policies([bundle], [config], Path("runs/compare"), against=("none", "uniform"), seeds=5)

Every run is one `train_network` in a folder of its own below the comparison's. Runs of one seed differ in the policy
alone: the order of batches and the initial weights follow from the seed, the split from the bundle.
"""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch

from ..bundle.dataset_level import DatasetPolicy
from ..config import MACHINE_FIELDS, POLICIES, TrainConfig
from ..data.splits import load_splits
from ..errors import InputError, MapolicyError, UsageError
from ..models.factory import check_arch
from ..policy.compatibility import FREE_DATA_SETTINGS, DatasetComparison, check_settings
from ..policy.policy_bundle import PolicyBundle
from ..runtime.device import reproducible, resolve_device
from ..runtime.files import RUN_FILES, has_files, write_atomically
from ..runtime.lock import folder_lock
from ..runtime.machine import hardware, versions
from ..training.callbacks import Reporter
from ..training.setup import Task
from .equal_time import Pace, check_epochs, epochs_of_equal_time
from .job import Combination, Trainer, finished_row, of_another, read_record, read_row
from .policies import SHOWN_DIGITS, Contender, contenders, short_digest, split_name, under_split
from .process_pool import Failure, side_by_side
from .stats import PROXY, Row, Summary, summarise

COMPARISON_FILE = "comparison.json"
SUMMARY_FILE = "summary.json"
RIVALS = tuple(name for name in POLICIES if name != "learned")
USUAL_RIVALS = ("none", "uniform", "trivialaugment", "randaugment")
BUDGETS = ("equal-epochs", "equal-time")


@dataclass(frozen=True)
class Comparison:
    """What a comparison came to.

    Attributes:
        rows: the finished runs.
        summary: of the rows.
        failed: the other runs, and why.
        bundles: digest and origin of each bundle; proxy, epochs and settings of a search; source of a dataset-level
            policy.
        settings: of the runs, by network, but for policy, mode and seed.
        budget: its `kind`; of `equal-time` also the `pace`: by network and policy, the seconds that an iteration took
            and the epochs that followed.
        notes: what a reader of the table must know.
        hardware, versions: of this machine.
    """

    rows: Sequence[Row]
    summary: Sequence[Summary]
    failed: Mapping[Combination, Failure]
    bundles: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Mapping[str, Any]]
    budget: Mapping[str, Any]
    notes: Sequence[str]
    hardware: Mapping[str, Any]
    versions: Mapping[str, str]

    def document(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "rows": [asdict(row) for row in self.rows],
            "summary": [summary.document() for summary in self.summary],
            "failed": [{"run": str(run), **asdict(failure)} for run, failure in self.failed.items()],
            **{name: getattr(self, name) for name in ("bundles", "settings", "budget", "hardware", "versions")},
            "notes": list(self.notes),
        }


def compare_policies(
    bundles: Sequence[PolicyBundle | DatasetPolicy],
    configs: Sequence[TrainConfig],
    run_dir: Path,
    against: Sequence[str] = USUAL_RIVALS,
    modes: Sequence[str] = ("frozen",),
    seeds: int = 1,
    budget: str = "equal-epochs",
    jobs: int = 1,
    reporter: Reporter | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> Comparison:
    """Train every combination of bundle, network, policy and seed, and summarise.

    Args:
        bundles: searched on one data set, and dataset-level policies. Of several searched ones, each has its own split
            and counts as one unit; a dataset-level policy is trained under each of these splits, or under the one that
            the settings draw where no bundle was searched.
        configs: a training for each network, complete, with what the first searched bundle says of the data; policy and
            mode are set here, split_seed is each searched bundle's, and seed is the first one.
        run_dir: the runs' folders are made below it.
        against: policies besides the learned one, of `RIVALS`.
        modes: of the learned policy.
        seeds: so many, counted from the configuration's.
        budget: every run has the configuration's epochs, or the cheaper ones more of them, so that all take the
            time of the dearest.
        jobs: runs side by side, each in a process of its own: one thread each unless the configuration says
            otherwise, on CUDA the GPUs in turn. 1 runs them here, one after another.
        reporter: hears of the progress; None for silence.
        resume: keep the runs in `run_dir` that are finished, go on with the others; more networks, policies, seeds and
            bundles may be asked for than at first (under equal-time more seeds and bundles).
        overwrite: start anew in a folder that holds a comparison.

    Returns:
        The comparison, also where single runs failed: the others have been finished.

    Raises:
        UsageError, InputError: something cannot be meant or used; found out before any training.
        EnvironmentFault: the folder cannot be written.
        FolderInUseError: another comparison is in the folder.
        KeyboardInterrupt, SystemExit: it was stopped; `resume` goes on.
    """
    searched = [bundle for bundle in bundles if isinstance(bundle, PolicyBundle)]
    listed = [bundle for bundle in bundles if isinstance(bundle, DatasetPolicy)]
    _check(bundles, configs, against, modes, seeds, budget, jobs)
    policies = contenders(searched, listed, modes, against)
    _check_fit(searched, configs)
    for policy, config in product(policies, configs):
        policy.of(config)  # settings that a mode does not go with, before there is a folder
    with folder_lock(run_dir):
        return _compared(
            bundles, configs, run_dir, policies, seeds, budget, jobs, reporter or Reporter(), resume, overwrite
        )


def _compared(
    bundles: Sequence[PolicyBundle | DatasetPolicy],
    configs: Sequence[TrainConfig],
    run_dir: Path,
    policies: Sequence[Contender],
    seeds: int,
    budget: str,
    jobs: int,
    reporter: Reporter,
    resume: bool,
    overwrite: bool,
) -> Comparison:
    searched = [bundle for bundle in bundles if isinstance(bundle, PolicyBundle)]
    units: list[PolicyBundle | None] = [*searched] or [None]
    device = resolve_device(configs[0].device)
    if jobs > 1 and device.type == "cpu":
        configs = [config.with_changes(threads=config.threads or 1) for config in configs]
    by_digest = {bundle.digest: bundle for bundle in bundles}
    notes = _what_to_know(searched, configs)
    record = _record(run_dir, by_digest, budget, resume, overwrite)
    if budget == "equal-time":
        check_epochs(record.setdefault("epochs", {}), configs, run_dir)
        record["pace"] = epochs_of_equal_time(units[0], configs, policies, record.get("pace"), run_dir, reporter.noted)
    combinations = _plan(units, configs, run_dir, policies, seeds, record.get("pace", {}))
    rows = {run: row for run in combinations if (row := finished_row(run)) is not None} if resume else {}
    left = [combination for combination in combinations if combination not in rows]
    if left:
        _check_data(units, configs)
    if not resume:
        for combination in combinations:
            for name in RUN_FILES:
                (combination.folder / name).unlink(missing_ok=True)
    write_atomically(run_dir / COMPARISON_FILE, (json.dumps(record, indent=2) + "\n").encode())
    for text in notes:
        reporter.noted(text)
    if rows:
        reporter.noted(f"{len(rows)} of {len(combinations)} runs were finished before")
    failed: dict[Combination, Failure] = {}
    start = time.monotonic()

    def finished(position: int, failure: Failure | None) -> None:
        combination = left[position]
        if failure is None:
            row = rows[combination] = read_row(combination)
            came_to = f"{row.test_top1:.2f} % test top-1"
        else:
            failed[combination] = failure
            came_to = f"failed: {failure.what}: {failure.why}"
        done, so_far = len(rows) + len(failed), time.monotonic() - start
        seconds_left = so_far * (len(combinations) - done) / (done - len(combinations) + len(left))
        reporter.compared(done, len(combinations), f"{combination}: {came_to}", seconds_left)

    trainer = Trainer(run_dir, by_digest)
    if jobs == 1:
        _one_by_one(trainer, left, finished, reporter.noted)
    else:
        side_by_side(trainer, left, jobs, finished, reporter.noted, environments(device))
    in_order = [rows[combination] for combination in combinations if combination in rows]
    comparison = Comparison(
        rows=in_order,
        summary=summarise(in_order),
        failed=failed,
        bundles=[_about(bundle) for bundle in bundles],
        settings={config.arch: _settings(config) for config in configs},
        budget={"kind": budget} | ({"pace": record["pace"]} if "pace" in record else {}),
        notes=notes,
        hardware=hardware(device) | {"threads": configs[0].threads or torch.get_num_threads(), "jobs": jobs},
        versions=versions(),
    )
    write_atomically(run_dir / SUMMARY_FILE, (json.dumps(comparison.document(), indent=2) + "\n").encode())
    return comparison


def _check(
    bundles: Sequence[PolicyBundle | DatasetPolicy],
    configs: Sequence[TrainConfig],
    against: Sequence[str],
    modes: Sequence[str],
    seeds: int,
    budget: str,
    jobs: int,
) -> None:
    """What can be known before anything is opened."""
    archs = [config.arch for config in configs]
    for what, names, known in (
        ("against", against, RIVALS),
        ("mode", modes, ("frozen", "finetune")),
        ("budget", [budget], BUDGETS),
        ("arch", archs, archs),
        ("bundle", [bundle.digest for bundle in bundles], [bundle.digest for bundle in bundles]),
    ):
        if not names and what != "against":
            raise UsageError(what, "nothing was named", "name at least one")
        for position, name in enumerate(names):
            if name not in known:
                raise UsageError(what, f"{name!r} is not one of {', '.join(known)}")
            if name in names[:position]:
                raise UsageError(what, f"{name[:40]} was named twice", "name it once")
    for what, number in (("seeds", seeds), ("jobs", jobs)):
        if number < 1:
            raise UsageError(what, f"{number} is not at least 1")
    for arch in archs:
        check_arch(arch)


def _check_fit(searched: Sequence[PolicyBundle], configs: Sequence[TrainConfig]) -> None:
    """The searches were of one data set, which the trainings split as they did."""
    for bundle in searched:
        first = searched[0]
        here, there = bundle.manifest.dataset, first.manifest.dataset
        if (here.name, here.classes, here.counts.images) != (there.name, there.classes, there.counts.images):
            why = f"was searched on another data set than {short_digest(first)}"
            raise InputError(f"bundle {short_digest(bundle)}", why, "compare bundles of one data set")
        for config in configs:
            if bundle is first:
                check_settings(config, first, FREE_DATA_SETTINGS)
            check_settings(under_split(config, bundle), bundle, FREE_DATA_SETTINGS)


def _what_to_know(bundles: Sequence[PolicyBundle], configs: Sequence[TrainConfig]) -> list[str]:
    """What else the table must say."""
    notes = []
    for position, bundle in enumerate(bundles):
        twin = next((b for b in bundles[:position] if torch.equal(b.meta_validation, bundle.meta_validation)), None)
        if twin is not None:
            notes.append(
                f"bundles {short_digest(twin)} and {short_digest(bundle)} have the same split: their baselines are the "
                "same runs, and the intervals are too narrow"
            )
        for config in configs:
            epochs = bundle.manifest.run.epochs
            if _is_proxy(config, bundle) and epochs != config.epochs:
                text = f"{PROXY}: {config.arch} was searched for {epochs} epochs, the others train for {config.epochs}"
                notes += [text] if text not in notes else []
    return notes


def _is_proxy(config: TrainConfig, bundle: PolicyBundle) -> bool:
    """Whether the bundle holds this network, classifier included, as the search trained it."""
    manifest = bundle.manifest
    return (
        (manifest.extractor.arch, manifest.extractor.model_args) == (config.arch, config.model_args)
        and manifest.input.size == config.image_size
        # An extractor of its own is trained with theta and is not the task network.
        and manifest.search.settings.get("extractor", "shared") == "shared"
        and bundle.has_classifier
    )


def _plan(
    units: Sequence[PolicyBundle | None],
    configs: Sequence[TrainConfig],
    run_dir: Path,
    policies: Sequence[Contender],
    seeds: int,
    pace: Pace,
) -> list[Combination]:
    """All runs, seed by seed, so that what is there after an interruption can be compared."""
    found = []
    for number, bundle, config in product(range(seeds), units, configs):
        own = under_split(config, bundle).with_changes(seed=config.seed + number)
        split, split_of = split_name(bundle, config), None if bundle is None else bundle.digest
        for policy in policies:
            epochs = pace[config.arch][policy.label]["epochs"] if pace else config.epochs
            folder = run_dir / config.arch / policy.label / f"{split}-seed{own.seed}"
            used = policy.bundle(bundle)
            changed = policy.of(own).with_changes(epochs=epochs)
            found.append(Combination(changed, split, None if used is None else used.digest, split_of, folder))
        if number == 0 and bundle is not None and _is_proxy(config, bundle):
            searched = bundle.manifest.search.settings["seed"]
            folder = run_dir / config.arch / PROXY / f"{split}-seed{searched}"
            changes = {"seed": searched, "epochs": bundle.manifest.run.epochs, "warmup_epochs": 0}
            tested = own.with_changes(policy="none", mode="frozen", **changes)
            found.append(Combination(tested, split, bundle.digest, bundle.digest, folder, proxy=True))
    return found


def _record(
    run_dir: Path, bundles: Mapping[str, PolicyBundle | DatasetPolicy], budget: str, resume: bool, overwrite: bool
) -> dict[str, Any]:
    """What the folder's record shall say, unless it is for something else.

    Raises:
        UsageError: it holds something, and neither `resume` nor `overwrite` was asked for.
        InputError: it holds another comparison.
    """
    path = run_dir / COMPARISON_FILE
    record: dict[str, Any] = {"budget": budget, "bundles": list(bundles)}
    if has_files(run_dir) and not (resume or overwrite):
        raise UsageError(str(run_dir), "holds a run", "use --resume, --force or another --run-dir")
    if resume:
        if not path.exists():
            raise InputError(str(run_dir), "holds no comparison to go on with", "leave --resume out")
        old = read_record(path)
        known = old.get("bundles", [])
        if old.get("budget") != budget:
            raise of_another(run_dir, [f"budget {old.get('budget')} -> {budget}"])
        if not set(known) & set(bundles):
            raise of_another(run_dir, [f"bundle {known[0][:SHOWN_DIGITS]} -> {next(iter(bundles))[:SHOWN_DIGITS]}"])
        record = old | {"bundles": list(dict.fromkeys([*known, *bundles]))}
    return record


def _check_data(units: Sequence[PolicyBundle | None], configs: Sequence[TrainConfig]) -> None:
    """Open the data set under each split and build each network once: nothing is found out halfway."""
    cpu = torch.device("cpu")
    with reproducible(configs[0].threads, cpu):
        for bundle in units:
            own = under_split(configs[0], bundle)
            held_out = None if bundle is None else bundle.meta_validation
            check = None if bundle is None else DatasetComparison(bundle, False)
            splits = load_splits(own, cpu, own.stage, held_out, check)
            for config in configs if bundle is units[0] else ():
                Task.over(config, splits, cpu)


def _one_by_one(
    trainer: Trainer,
    combinations: Sequence[Combination],
    finished: Callable[[int, Failure | None], None],
    noted: Callable[[str], None],
) -> None:
    for position, combination in enumerate(combinations):
        try:
            trainer(combination, noted)
        except MapolicyError as problem:
            finished(position, Failure.of(problem))
        else:
            finished(position, None)


def environments(device: torch.device) -> list[dict[str, str]]:
    """A visible GPU for each process in turn."""
    if device.type != "cuda":
        return [{}]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    return [{"CUDA_VISIBLE_DEVICES": name} for name in visible.split(",")]


def _about(bundle: PolicyBundle | DatasetPolicy) -> dict[str, Any]:
    about = {"bundle": short_digest(bundle), "digest": bundle.digest, "origin": bundle.origin}
    if isinstance(bundle, DatasetPolicy):
        return about | {"source": bundle.manifest.source}
    manifest = bundle.manifest
    return about | {
        "proxy": manifest.extractor.arch,
        "epochs": manifest.run.epochs,
        "search": dict(manifest.search.settings),
    }


def _settings(config: TrainConfig) -> dict[str, Any]:
    """What all runs of a network have in common."""
    varied = MACHINE_FIELDS | {"policy", "mode", "seed", "split_seed"}
    return {name: value for name, value in config.to_mapping().items() if name not in varied}
