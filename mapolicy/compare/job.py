"""One run of a comparison: its folder, what it came to, and how it is done, here or in another process."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..bundle.dataset_level import DatasetPolicy
from ..bundle.limits import Limits
from ..config import MACHINE_FIELDS, TrainConfig, read_toml
from ..data.splits import load_splits
from ..errors import InputError
from ..policy.compatibility import DatasetComparison
from ..policy.pipeline import Pipeline
from ..policy.policy_bundle import PolicyBundle
from ..runtime.device import reproducible, resolve_device
from ..runtime.files import CONFIG_FILE, RESULT_FILE, read_regular_file, write_atomically
from ..train import train_network
from ..training.callbacks import Reporter
from ..training.evaluate import evaluate
from ..training.run_folder import RunFolder
from .policies import SHOWN_DIGITS, listed_name, short_digest
from .stats import PROXY, Row

LARGEST_RECORD = 2**24  # bytes


@dataclass(frozen=True, eq=False)
class Combination:
    """One run of a comparison.

    Attributes:
        config: of the run, its seed included.
        split: whose it is, as in `Row.bundle`.
        digest: of the bundle that it has its policy of; None where there is none.
        split_of: digest of the searched bundle that it has its split of; None for one that the settings draw.
        folder: of the run.
        proxy: the bundle's own network is tested as the search left it, and nothing is trained.
    """

    config: TrainConfig
    split: str
    digest: str | None
    split_of: str | None
    folder: Path
    proxy: bool = False

    @property
    def policy(self) -> str:
        """As in `Row`."""
        if self.digest is not None and self.digest != self.split_of:
            return listed_name(self.digest)
        return PROXY if self.proxy else self.config.policy

    @property
    def mode(self) -> str | None:
        """As in `Row`."""
        return self.config.mode if self.policy == "learned" else None

    def __str__(self) -> str:
        mode = f" ({self.mode})" if self.mode == "finetune" else ""
        return f"{self.config.arch}, {self.policy}{mode}, {self.folder.name}"


def finished_row(combination: Combination) -> Row | None:
    """The run's row if it was finished before; None if it is still to do, or to go on with.

    Raises:
        InputError: the folder's run is another one.
    """
    path = combination.folder / CONFIG_FILE
    if not path.exists():
        return None
    old, new = combination.config.defaults() | read_toml(path), combination.config.to_mapping()
    # The data set's name may be typed in several ways; a bundle's fingerprint says which it is.
    free = MACHINE_FIELDS | (set() if combination.split_of is None else {"dataset"})
    differences = [
        f"{name} {old.get(name)!r} -> {new[name]!r}" for name in new if name not in free and old.get(name) != new[name]
    ]
    if differences:
        raise of_another(combination.folder, differences)
    return read_row(combination) if (combination.folder / RESULT_FILE).exists() else None


def read_row(combination: Combination) -> Row:
    """What the finished run says."""
    path = combination.folder / RESULT_FILE
    result = read_record(path)
    try:
        if result["digest"] != combination.digest:
            raise of_another(combination.folder, [f"bundle {str(result['digest'])[:SHOWN_DIGITS]}"])
        return Row(
            arch=combination.config.arch,
            policy=combination.policy,
            mode=combination.mode,
            seed=combination.config.seed,
            bundle=combination.split,
            epochs=combination.config.epochs,
            **{name: result[name] for name in ("test_top1", "test_top5", "test_images", "seconds", "cost_ratio")},
        )
    except KeyError as problem:
        raise InputError(str(path), f"has no {problem}", "start again with --force") from None


class Trainer:
    """Does one run of a comparison; can be sent to another process, which then reads the bundles from the folder.

    Args:
        folder: of the comparison; the bundles are copied there.
        bundles: by digest.
    """

    def __init__(self, folder: Path, bundles: Mapping[str, PolicyBundle | DatasetPolicy]) -> None:
        self._bundles = dict(bundles)
        self._kept = {
            digest: (type(bundle), folder / f"{short_digest(bundle)}.safetensors", _limits(bundle), bundle.origin)
            for digest, bundle in bundles.items()
        }
        for digest, (_, path, _, _) in self._kept.items():
            bundles[digest].save(path)

    def __getstate__(self) -> dict[str, Any]:
        return {"_bundles": {}, "_kept": self._kept}

    def _bundle(self, digest: str) -> PolicyBundle | DatasetPolicy:
        if digest not in self._bundles:
            kind, path, limits, origin = self._kept[digest]
            self._bundles[digest] = replace(kind.load(path, digest, limits), origin=origin)
        return self._bundles[digest]

    def __call__(self, combination: Combination, noted: Callable[[str], None]) -> None:
        """Train, or go on from the run's checkpoint, and leave the result in its folder."""
        bundle = None if combination.digest is None else self._bundle(combination.digest)
        split_of = None if combination.split_of is None else self._bundle(combination.split_of)
        assert not isinstance(split_of, DatasetPolicy)
        if combination.proxy:
            assert split_of is not None
            _test_proxy(combination, split_of)
            return
        resume = RunFolder(combination.folder).checkpoint() is not None
        reporter = _Notes(f"{combination}: ", noted)
        train_network(
            combination.config, bundle, reporter, combination.folder, resume, overwrite=not resume, split_of=split_of
        )


def _limits(bundle: PolicyBundle | DatasetPolicy) -> Limits:
    """Under which what was loaded can be read again."""
    return bundle.limits if isinstance(bundle, PolicyBundle) else Limits(header_bytes=len(bundle.to_bytes()))


class _Notes(Reporter):
    """Passes on what the user must know, and whose run it is about."""

    def __init__(self, prefix: str, noted: Callable[[str], None]) -> None:
        self._prefix, self._noted = prefix, noted

    def noted(self, text: str) -> None:
        self._noted(self._prefix + text)


def _test_proxy(combination: Combination, bundle: PolicyBundle) -> None:
    """The bundle's network on the test split, as the search left it."""
    config, device = combination.config, resolve_device(combination.config.device)
    with reproducible(config.threads, device):
        check = DatasetComparison(bundle, False)
        splits = load_splits(config, device, config.stage, bundle.meta_validation, check)
        pipeline = Pipeline(config, bundle.manifest.input.mean, bundle.manifest.input.std, device)
        test = splits.test()
        accuracy = evaluate(bundle.build_extractor(device), test, pipeline, config.batch_size)
    result = {
        "arch": config.arch,
        "policy": PROXY,
        "bundle": bundle.origin,
        "digest": bundle.digest,
        "test_images": len(test),
        **{f"test_{name}": value for name, value in vars(accuracy).items()},
        "seconds": None,
        "cost_ratio": None,
    }
    write_atomically(combination.folder / CONFIG_FILE, config.to_toml().encode())
    write_atomically(combination.folder / RESULT_FILE, (json.dumps(result, indent=2) + "\n").encode())


def of_another(folder: Path, differences: Sequence[str]) -> InputError:
    """What tells a folder's comparison from the one that was asked for."""
    remedy = "undo the changes, or use another --run-dir"
    return InputError(str(folder), f"is of another comparison: {', '.join(differences)}", remedy)


def read_record(path: Path) -> dict[str, Any]:
    """A JSON object that a comparison or a run has written.

    Raises:
        InputError: it is none.
    """
    try:
        found = json.loads(read_regular_file(path, LARGEST_RECORD))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InputError(str(path), "is no record of ours", "start again with --force")
    return found
