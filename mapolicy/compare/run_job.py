"""Run one job of a comparison, in this process or in another: train the network, or test the proxy."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from ..bundle.manifest_base import PolicyFile
from ..data.splits import load_splits
from ..policy.compatibility import DatasetComparison
from ..policy.pipeline import Pipeline
from ..policy.policy_bundle import PolicyBundle
from ..policy.protocol import searched_bundle
from ..runtime.device import reproducible, resolve_device
from ..runtime.files import CONFIG_FILE, RESULT_FILE, write_atomically
from ..train import train_network
from ..training.callbacks import Reporter
from ..training.evaluate import evaluate
from ..training.run_folder import RunFolder
from .job import Job
from .policies import short_digest
from .record import write_json
from .stats import PROXY


class JobRunner:
    """Runs jobs. Pickled to another process, it reads the bundles from the comparison's folder again.

    Args:
        folder: folder of the comparison; the bundles are copied there.
        bundles: by digest.
    """

    def __init__(self, folder: Path, bundles: Mapping[str, PolicyFile]) -> None:
        self._bundles = dict(bundles)
        self._copies = {}
        for digest, bundle in bundles.items():
            path = folder / f"{short_digest(bundle)}.safetensors"
            self._copies[digest] = (type(bundle), path, bundle.needed_limits(), bundle.origin)
            bundle.save(path)

    def __getstate__(self) -> dict[str, Any]:
        return {"_bundles": {}, "_copies": self._copies}

    def __call__(self, job: Job, on_note: Callable[[str], None]) -> None:
        """Train from the start or from the job's checkpoint; the result goes into the job's folder.

        Args:
            job: what to run.
            on_note: called with each message for the user.
        """
        bundle = None if job.digest is None else self._bundle(job.digest)
        split_of = None if job.split_of is None else searched_bundle(self._bundle(job.split_of))
        if job.proxy:
            assert split_of is not None
            _test_proxy(job, split_of)
            return
        resume = RunFolder(job.folder).checkpoint() is not None
        reporter = _Notes(f"{job}: ", on_note)
        train_network(job.config, bundle, reporter, job.folder, resume, overwrite=not resume, split_of=split_of)

    def _bundle(self, digest: str) -> PolicyFile:
        if digest not in self._bundles:
            kind, path, limits, origin = self._copies[digest]
            self._bundles[digest] = replace(cast(Any, kind.load(path, digest, limits)), origin=origin)
        return self._bundles[digest]


class _Notes(Reporter):
    """Passes on a run's messages, each with the job's name in front."""

    def __init__(self, prefix: str, on_note: Callable[[str], None]) -> None:
        self._prefix, self._on_note = prefix, on_note

    def on_note(self, text: str) -> None:
        self._on_note(self._prefix + text)


def _test_proxy(job: Job, bundle: PolicyBundle) -> None:
    """Measure the bundle's network on the test split, as the search left it."""
    config, device = job.config, resolve_device(job.config.device)
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
    write_atomically(job.folder / CONFIG_FILE, config.to_toml().encode())
    write_json(job.folder / RESULT_FILE, result)
