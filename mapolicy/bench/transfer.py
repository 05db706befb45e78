"""Time of a training iteration with and without a frozen policy, from uint8 images to the updated network.

The iterations are those of `train_network`, with base augmentation and Cutout. Only the images and the numbers in the
bundle are random.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from ..config import RunConfig, SearchConfig, TrainConfig
from ..data.reading import ImageReading
from ..data.splits import DataSplits, ResidentSplit
from ..errors import UsageError
from ..models.factory import check_arch
from ..policy.augmentations import NoAugmentation
from ..policy.network import PolicyNetwork
from ..policy.policy_bundle import PolicyBundle
from ..policy.sampler import TransformationSampler
from ..runtime.device import reproducible, resolve_device
from ..train import plan
from ..training.draft_bundle import describe
from ..training.evaluate import Accuracy
from ..training.setup import TrainingSetup
from .interleaved import Candidate, Clock, Progress, Row, measure, silent
from .report import Report
from .synthetic import synthetic_images

PLAIN, OUTSIDE = "plain", "outside_networks"
# The policy setting of each row; `learned` is the bundle's policy in frozen mode.
POLICIES = {PLAIN: "none", "frozen": "learned", "uniform": "uniform"}
CLASSES, CHANNELS = 100, 3
BATCHES = 4  # in the random data set


def measure_transfer(
    search: SearchConfig, targets: Sequence[TrainConfig], rounds: int, progress: Progress = silent
) -> Report:
    """Time of one training iteration of each target under a frozen policy, under equal weights, and plain.

    Args:
        search: settings of the bundle: its proxy is the extractor, its image_size the bundle's.
        targets: settings of the trainings, one for each network, with the search's threads and device.
        rounds: timings of each candidate.
        progress: called at the start of each round.

    Raises:
        UsageError: a network cannot be built or does not accept the images, or copies is not 1.
    """
    for config in (search, *targets):
        if config.copies != 1:
            raise UsageError(f"--set copies={config.copies}", "a plain iteration has one", "raise --batch-size")
    device = resolve_device(search.device)
    clock = Clock.of(device)
    rows: list[Row] = []
    for config in (search, *targets):
        check_arch(config.network)
    with reproducible(search.threads, device) as threads:
        bundle = random_bundle(search, threads, device)
        for config in targets:
            splits = random_splits(config, device)
            candidates = [
                *(
                    _training(config.with_changes(policy=policy), bundle, splits, device, what)
                    for what, policy in POLICIES.items()
                ),
                _outside(config, splits, device),
            ]
            measured = measure(candidates, PLAIN, rounds, clock, progress, f"{search.proxy} to {config.arch}")
            rows += [replace(row, facts={"arch": config.arch}) for row in measured]
    return Report(
        rows=rows,
        time=clock.meaning,
        settings={
            "proxy": search.proxy,
            "archs": [config.arch for config in targets],
            "image_size": search.image_size,
            "batch_sizes": [config.batch_size for config in targets],
            "configuration": {"search": search.portable(), **{config.arch: config.portable() for config in targets}},
            "rounds": rounds,
        },
        threads=threads,
        device=device,
    )


def random_splits(config: RunConfig, device: torch.device) -> DataSplits:
    """A data set of synthetic images in memory, with arbitrary labels."""
    count = BATCHES * config.batch_size
    images = synthetic_images(count, config.image_size).to(device)
    classes = min(CLASSES, config.batch_size)
    labels = torch.arange(count) % classes
    rows = torch.arange(count)
    # One image of each class is held out, as in the settings of `random_bundle`.
    train, held_out = (ResidentSplit(images, own, labels[own], own) for own in (rows[:-classes], rows[-classes:]))
    scaled = images.float() / 255
    return DataSplits(
        name="synthetic",
        classes=tuple(str(number) for number in range(classes)),
        channels=CHANNELS,
        image_size=config.image_size,
        pool_size=count,
        counts=tuple(torch.bincount(labels, minlength=classes).tolist()),
        train=train,
        meta_validation=held_out,
        mean=tuple(scaled.mean((0, 2, 3)).tolist()),
        std=tuple(scaled.std((0, 2, 3)).tolist()),
        fingerprint="0" * 64,
        corrupt=(),
        resident=True,
        reading=ImageReading(CHANNELS, config.image_size),
        _open_test=lambda: (held_out, ()),
    )


def random_bundle(config: SearchConfig, threads: int, device: torch.device) -> PolicyBundle:
    """The bundle that a search with these settings would write before its first iteration."""
    config = config.with_changes(train_per_class=0.0, validation_per_class=1.0)
    setup = TrainingSetup.over(config, random_splits(config, device), device)
    sampler = TransformationSampler()
    return PolicyBundle.assemble(
        describe(config, setup, threads, device, Accuracy(0.0, 0.0)),
        policy=PolicyNetwork(setup.feature_width, policy_input=config.policy_input).state_dict(),
        alpha=torch.tensor(config.alpha_initial),
        probabilities=sampler.probabilities,
        means=sampler.means,
        extractor=setup.network.state_dict(),
        meta_validation=setup.splits.meta_validation.indices,
    )


def _training(
    config: TrainConfig, bundle: PolicyBundle, splits: DataSplits, device: torch.device, what: str
) -> Candidate:
    """The iterations of a training run, batch loading included."""
    setup = TrainingSetup.over(config, splits, device)
    iteration, _ = plan(config, bundle, setup, device)
    return Candidate(what, lambda call: iteration(call, _batch(setup, call), None))


def _outside(config: TrainConfig, splits: DataSplits, device: torch.device) -> Candidate:
    """Batch loading and augmentation of a plain iteration, without the network."""
    setup = TrainingSetup.over(config, splits, device)
    return Candidate(OUTSIDE, lambda call: setup.pipeline.augment(*_batch(setup, call), NoAugmentation(), call))


def _batch(setup: TrainingSetup, call: int) -> tuple[torch.Tensor, torch.Tensor]:
    size = setup.config.batch_size
    first = call % (BATCHES - 1) * size
    (batch,) = setup.training.batches([(call, torch.arange(first, first + size))])
    return batch
