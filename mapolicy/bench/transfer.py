"""Time of a training iteration with and without a policy, from uint8 images to the updated network.

The iterations are those of `train_network`, with base augmentation and Cutout. Only the images and the numbers in the
bundle are random.
"""

from collections.abc import Mapping, Sequence
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
from ..policy.samplers import SamplerPlan, build_sampler, learned_draws
from ..runtime.device import reproducible, resolve_device
from ..train import plan
from ..training.draft_bundle import describe
from ..training.evaluate import Accuracy
from ..training.setup import TrainingSetup
from .interleaved import Candidate, Clock, Progress, Row, measure, silent
from .report import Report
from .synthetic import synthetic_images

PLAIN, OUTSIDE = "plain", "outside_networks"
# What each row sets; `learned` is the bundle's policy.
POLICIES: Mapping[str, Mapping[str, str]] = {
    PLAIN: {"policy": "none"},
    "frozen": {"policy": "learned"},
    "finetune": {"policy": "learned", "mode": "finetune"},
    "uniform": {"policy": "uniform"},
}
CLASSES, CHANNELS = 100, 3
BATCHES = 3  # of training images in the random data set
HELD_OUT = 2  # meta-validation images of each class


def measure_transfer(
    search: SearchConfig, targets: Sequence[TrainConfig], rounds: int, progress: Progress = silent
) -> Report:
    """Time of one training iteration of each target under a policy, frozen or fine-tuned, uniform draws, and plain.

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
                    _training(config.with_changes(**changes), bundle, splits, device, what)
                    for what, changes in POLICIES.items()
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
    classes = min(CLASSES, config.batch_size)
    held = HELD_OUT * classes  # as in the settings of `random_bundle`
    count = BATCHES * config.batch_size + held
    images = synthetic_images(count, config.image_size).to(device)
    labels = torch.arange(count) % classes
    rows = torch.arange(count)
    train, held_out = (ResidentSplit(images, own, labels[own], own) for own in (rows[:-held], rows[-held:]))
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
    config = config.with_changes(train_per_class=0.0, validation_per_class=float(HELD_OUT))
    setup = TrainingSetup.over(config, random_splits(config, device), device)
    draws = learned_draws(build_sampler(SamplerPlan(config, setup.iterations_per_epoch)), config.operation_space)
    return PolicyBundle.assemble(
        describe(config, setup, threads, device, Accuracy(0.0, 0.0), levels=draws.levels),
        policy=PolicyNetwork(setup.feature_width, policy_input=config.policy_input).state_dict(),
        alpha=torch.tensor(config.alpha_initial),
        probabilities=draws.probabilities,
        means=draws.means,
        log_levels=draws.log_levels,
        extractor=setup.network.state_dict(),
        meta_validation=setup.splits.meta_validation.indices,
    )


def _training(
    config: TrainConfig, bundle: PolicyBundle, splits: DataSplits, device: torch.device, what: str
) -> Candidate:
    """The iterations of a training run, batch loading included."""
    setup = TrainingSetup.over(config, splits, device)
    iteration, _ = plan(config, bundle, setup, device)

    def work(call: int) -> None:
        (batch,) = setup.iteration_batches([(call, _positions(config, call))], iteration.learns_policy)
        iteration(*batch)

    return Candidate(what, work)


def _outside(config: TrainConfig, splits: DataSplits, device: torch.device) -> Candidate:
    """Batch loading and augmentation of a plain iteration, without the network."""
    setup = TrainingSetup.over(config, splits, device)

    def work(call: int) -> None:
        (batch,) = setup.training.batches([(call, _positions(config, call))])
        setup.pipeline.augment(*batch, NoAugmentation(), call)

    return Candidate(OUTSIDE, work)


def _positions(config: TrainConfig, call: int) -> torch.Tensor:
    first = call % BATCHES * config.batch_size
    return torch.arange(first, first + config.batch_size)
