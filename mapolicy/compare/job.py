"""One job of a comparison: a network trained with one policy, split and seed; the list of all; the result of each."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from ..config import TrainConfig
from ..config.choices import result_settings, untagged
from ..errors import InputError
from ..policy.policy_bundle import PolicyBundle
from ..runtime.files import CONFIG_FILE, RESULT_FILE
from ..runtime.toml_file import read_toml
from .equal_time import EqualTimeBudget
from .policies import DIGEST_DIGITS, ComparedPolicy, dataset_level_name, split_name, with_split_of
from .record import other_comparison, read_json_object
from .stats import PROXY, Row


@dataclass(frozen=True, eq=False)
class Job:
    """One training of a comparison.

    Attributes:
        config: the complete settings, seed included.
        split: name of the data split, as in `Row.bundle`.
        digest: digest of the bundle that provides the policy; None for a baseline without a bundle.
        split_of: digest of the searched bundle that provides the split; None if the settings draw it.
        folder: run folder.
        proxy: test the bundle's own network as the search left it, and train nothing.
    """

    config: TrainConfig
    split: str
    digest: str | None
    split_of: str | None
    folder: Path
    proxy: bool = False

    @property
    def policy(self) -> str:
        """Name of the policy, as in `Row.policy`."""
        if self.digest is not None and self.digest != self.split_of:
            return dataset_level_name(self.digest)
        return PROXY if self.proxy else self.config.policy

    @property
    def label(self) -> str:
        """The policy's name in folders."""
        return self.folder.parent.name

    @property
    def mode(self) -> str | None:
        """`frozen` or `finetune` for a learned policy, else None."""
        return self.config.mode if self.policy == "learned" else None

    def __str__(self) -> str:
        mode = f" ({self.mode})" if self.mode == "finetune" else ""
        return f"{self.config.arch}, {self.policy}{mode}, {self.folder.name}"


def plan_jobs(
    split_owners: Sequence[PolicyBundle | None],
    configs: Sequence[TrainConfig],
    run_dir: Path,
    policies: Sequence[ComparedPolicy],
    seeds: int,
    budget: EqualTimeBudget,
) -> list[Job]:
    """All jobs, seed by seed, so that an interrupted comparison has complete seeds to compare.

    Args:
        split_owners: the searched bundles; `[None]` if there are none.
        configs: one for each network.
        run_dir: folder of the comparison.
        policies: to train each network with.
        seeds: number of seeds, counted from the configuration's.
        budget: epochs under equal time; empty for the configuration's epochs.
    """
    jobs = []
    for number, owner, config in product(range(seeds), split_owners, configs):
        own = with_split_of(config, owner).with_changes(seed=config.seed + number)
        split, split_of = split_name(owner, config), None if owner is None else owner.digest
        for policy in policies:
            epochs = budget[config.arch][policy.label]["epochs"] if budget else config.epochs
            folder = run_dir / config.arch / policy.label / f"{split}-seed{own.seed}"
            bundle = policy.bundle(owner)
            changed = policy.configure(own).with_changes(epochs=epochs)
            jobs.append(Job(changed, split, None if bundle is None else bundle.digest, split_of, folder))
        if number == 0 and owner is not None and is_proxy(config, owner):
            search_seed = owner.manifest.search.settings["seed"]
            changes = {"seed": search_seed, "epochs": owner.manifest.run.epochs, "warmup_epochs": 0}
            searched = own.with_changes(policy="none", mode="frozen", **changes)
            folder = run_dir / config.arch / PROXY / f"{split}-seed{search_seed}"
            jobs.append(Job(searched, split, owner.digest, owner.digest, folder, proxy=True))
    return jobs


def is_proxy(config: TrainConfig, bundle: PolicyBundle) -> bool:
    """Whether the bundle holds this very network with its classifier, as the search trained it."""
    manifest = bundle.manifest
    return (
        (manifest.extractor.arch, manifest.extractor.model_args) == (untagged(config.arch), config.model_args)
        and manifest.input.size == config.image_size
        # An extractor of its own is trained with theta and is not the task network.
        and manifest.search.settings.get("extractor", "shared") == "shared"
        and bundle.has_classifier
    )


def finished_row(job: Job) -> Row | None:
    """The row of a job that finished earlier; None if it has not started or is not finished.

    Raises:
        InputError: the folder holds a run with other settings.
    """
    path = job.folder / CONFIG_FILE
    if not path.exists():
        return None
    old, new = map(result_settings, (job.config.defaults() | read_toml(path), job.config.to_mapping()))
    # One data set can be named in several ways; the bundle's fingerprint identifies it.
    free = () if job.split_of is None else ("dataset",)
    differences = [
        f"{name} {old.get(name)!r} -> {new[name]!r}" for name in new if name not in free and old.get(name) != new[name]
    ]
    if differences:
        raise other_comparison(job.folder, differences)
    return read_row(job) if (job.folder / RESULT_FILE).exists() else None


def read_row(job: Job) -> Row:
    """The row of a finished job, from its `result.json`.

    Raises:
        InputError: the file is damaged, or belongs to another bundle.
    """
    path = job.folder / RESULT_FILE
    result = read_json_object(path)
    try:
        if result["digest"] != job.digest:
            raise other_comparison(job.folder, [f"bundle {str(result['digest'])[:DIGEST_DIGITS]}"])
        return Row(
            arch=job.config.arch,
            policy=job.policy,
            mode=job.mode,
            seed=job.config.seed,
            bundle=job.split,
            epochs=job.config.epochs,
            **{name: result[name] for name in ("test_top1", "test_top5", "test_images", "seconds", "cost_ratio")},
        )
    except KeyError as problem:
        raise InputError(str(path), f"has no {problem}", "start again with --force") from None
