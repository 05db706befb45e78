"""What both stages train: data, pipeline, task network, its optimiser and schedule, built from a configuration."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor, nn

from ..bilevel.sample_loss import SampleLoss, training_loss
from ..config import RunConfig, TrainConfig
from ..data.batch_sampler import (
    ENOUGH_BATCHES,
    NOTABLE_SHARE,
    Plan,
    batches_per_epoch,
    check_parts,
    fitting_batch,
    left_out,
    training_plan,
    validation_plan,
)
from ..data.splits import Check, DataSplits, Split, load_splits
from ..distributed import ALONE, Communicator, communicator
from ..errors import UsageError
from ..inference.measures import Evaluation
from ..models.factory import build_network, check_arch
from ..models.features import feature_width, last_map
from ..models.pretrained import StartWeights, freeze_body, load_weights, network_input, start_weights
from ..policy.pipeline import Pipeline
from ..runtime.random import seed_for
from .evaluate import Accuracy, evaluate, evaluate_fully
from .optim import RateSchedule, make_optimizer, make_schedule
from .selection import Selection

LabelledImages = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class TrainingSetup:
    """A task network about to be trained.

    Attributes:
        config: of the run.
        splits: the data set.
        training: the split to train on.
        pipeline: from uint8 images to the network's input.
        network: with fresh weights, on the device.
        feature_width: of the network's deep feature.
        optimizer, schedule: of the network.
        communicator: to the processes that train the same network on other parts of a batch.
        selection: which of the weights that a run has had are measured and saved.
        weights: what the network starts from; None for random weights.
        left_out: what of these weights was not loaded, in sentences.
    """

    config: RunConfig
    splits: DataSplits
    training: Split
    pipeline: Pipeline
    network: nn.Module
    feature_width: int
    optimizer: torch.optim.Optimizer
    schedule: RateSchedule
    communicator: Communicator = ALONE
    selection: Selection = field(default_factory=Selection)
    weights: StartWeights | None = None
    left_out: tuple[str, ...] = ()

    @classmethod
    def build(
        cls,
        config: RunConfig,
        device: torch.device,
        meta_validation: Tensor | None = None,
        check: Check | None = None,
    ) -> Self:
        """Everything that a configuration names.

        Args:
            config: of either stage.
            device: where data and network shall live.
            meta_validation: int64, the bundle's meta-validation images; None draws them.
            check: looks at the data set, before its images are read and before the network is built.

        Raises:
            UsageError, InputError: the data or the network cannot be had or do not fit each other.
        """
        check_arch(config.network)
        with communicator().local_main_process_first():
            weights = start_weights(config)  # fails before the images are read
        splits = load_splits(config, device, config.stage, meta_validation, check)
        return cls.over(config, splits, device, weights)

    @classmethod
    def over(
        cls, config: RunConfig, splits: DataSplits, device: torch.device, weights: StartWeights | None = None
    ) -> Self:
        """The same over a data set that has been split already; None reads the weights that the configuration names.

        Raises:
            UsageError: the network cannot be had or does not fit the data.
        """
        weights = weights or start_weights(config)
        network, left_out = start_network(config, splits, device, "network", weights)
        training = splits.train_with_validation() if config.trains_on_validation else splits.train
        group = communicator()
        _check_division(config, group.size, len(training), len(splits.meta_validation))
        _check_lone_image(config, network, splits.channels, group.size, len(splits.meta_validation))
        optimizer = make_optimizer(config, network)
        return cls(
            config=config,
            splits=splits,
            training=training,
            pipeline=Pipeline(config, splits.mean, splits.std, device, group),
            network=network,
            feature_width=feature_width(network, config.image_size, splits.channels),
            optimizer=optimizer,
            schedule=make_schedule(config, optimizer, batches_per_epoch(config, len(training))),
            communicator=group,
            selection=Selection.of(config, network),
            weights=None if weights is None else replace(weights, tensors={}),  # they are the network's now
            left_out=left_out,
        )

    @property
    def iterations_per_epoch(self) -> int:
        """Batches of one pass over the split to train on."""
        return batches_per_epoch(self.config, len(self.training))

    @property
    def iterations(self) -> int:
        """Of the whole run."""
        return self.config.epochs * self.iterations_per_epoch

    def validation_accuracy(self) -> Accuracy:
        """Accuracy of the network on the meta-validation split."""
        return self.accuracy(self.splits.meta_validation)

    def accuracy(self, split: Split) -> Accuracy:
        """Accuracy on a split of the network, or of the average of its weights where `ema_decay` asks for one."""
        return evaluate(
            self.selection.measured(self.network), split, self.pipeline, self.config.batch_size, self.communicator
        )

    def plan(self, epoch: int, start: int = 0) -> Plan:
        """The batches of one epoch of the split to train on, from its batch `start` on."""
        return training_plan(self.config, len(self.training), epoch, start, self.training.labels)

    @property
    def training_loss(self) -> SampleLoss:
        """The loss of a training sample, with the settings `label_smoothing` and `balance`."""
        return training_loss(self.config, self.training.labels, len(self.splits.classes), self.pipeline.device)

    def evaluation(self, split: Split) -> Evaluation:
        """Accuracy of the network on a split, with figures for each class and the calibration."""
        size, classes = self.config.batch_size, self.splits.classes
        return evaluate_fully(self.network, split, self.pipeline, size, classes, self.communicator)

    def batches(self, split: Split, plan: Plan, augment: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's part of every batch of a plan; arguments as of `Split.batches`."""
        own = [(step, self.communicator.shard(len(positions)).of(positions)) for step, positions in plan]
        return split.batches(own, augment)

    def iteration_batches(
        self, plan: Plan, learns: Callable[[int], bool]
    ) -> Iterator[tuple[int, LabelledImages, LabelledImages | None]]:
        """What each iteration of a training plan is called with; images are uint8 [B, C, H, W].

        Args:
            plan: of the training split.
            learns: whether an iteration needs a meta-validation batch.

        Yields:
            The iteration's number, this process's part of its training batch, and of its meta-validation batch or None.
        """
        validation = self.splits.meta_validation
        learning = [step for step, _ in plan if learns(step)]
        batches = self.batches(self.training, plan, augment=True)
        held_out = iter(self.batches(validation, validation_plan(self.config, len(validation), learning)))
        for (step, _), batch in zip(plan, batches, strict=True):
            yield step, batch, next(held_out) if learns(step) else None

    def facts(self) -> dict[str, str]:
        """What a user wants to know when the run starts."""
        parameters = sum(parameter.numel() for parameter in self.network.parameters())
        splits, processes = self.splits, self.communicator.size
        return {
            "images": f"{len(self.training)} training, {len(splits.meta_validation)} meta-validation",
            "classes": str(len(splits.classes)),
            **({} if splits.survey is None else {"image size": splits.survey.fact(splits.reading)}),
            "network": f"{parameters / 1e6:.2f} million parameters{self._trained()}",
            **self.selection.facts(),
            **self.warnings(),
            "device": str(self.pipeline.device),
            **({"processes": f"{processes}, batch normalisation {self.config.batch_norm}"} if processes > 1 else {}),
        }

    def _trained(self) -> str:
        trained = sum(parameter.numel() for parameter in self.network.parameters() if parameter.requires_grad)
        return f", {trained} of them are trained" if self.config.freeze else ""

    def warnings(self) -> dict[str, str]:
        """What a user may want to change before the first iteration: start weights, images left out, a lost map."""
        config, images, found = self.config, len(self.training), self._start()
        lost = left_out(config, images)
        if lost >= NOTABLE_SHARE * images:
            parts = config.accumulate * self.communicator.size
            fits = images // -(-images // config.batch_size) // parts * parts
            keep = "last_batch=keep or " if isinstance(config, TrainConfig) and config.mode == "frozen" else ""
            found["left out"] = f"{lost} of {images} images, others in each epoch; set {keep}batch_size={fits}"
        each = self.iterations_per_epoch
        better = fitting_batch(images, config.accumulate * self.communicator.size)
        if each < ENOUGH_BATCHES and better < config.batch_size:
            found["few iterations"] = f"{each} an epoch, {self.iterations} in all; --batch-size {better} makes more"
        size = config.image_size
        if last_map(self.network, size, self.splits.channels) == (1, 1):
            remedy = (
                f"use --image-size {2 * size} or {4 * size}, or a first layer with a smaller stride (docs/networks.md)"
            )
            found["feature map"] = f"1 x 1 at {size} pixels, so it is lost where in the image something is; {remedy}"
        return found

    def _start(self) -> dict[str, str]:
        """What the network starts from."""
        if self.weights is None:
            tag = self.config.network.partition(".")[2]
            return {"weights": f"random; --pretrained loads those of {tag}"} if tag else {}
        found = {"weights": "; ".join((self.weights.origin, *self.left_out))}
        size, own = self.config.image_size, network_input(self.config)
        if own is not None and own.size == size:
            found["input"] = (
                f"{size} x {size} pixels, {own.interpolation}, as the weights were trained on (--image-size)"
            )
        elif own is not None:
            found["input"] = f"{size} x {size} pixels; the weights were trained on {own.size} x {own.size}"
        survey, values = self.splits.survey, self.splits.reading.value_range
        if survey is not None and survey.wide and values != self.weights.value_range:
            learned = "8-bit images" if (of := self.weights.value_range) is None else f"values {of[0]:g} to {of[1]:g}"
            here = "0 to 65535" if values is None else f"{values[0]:g} to {values[1]:g}"
            found["values"] = (
                f"the weights were trained on {learned}; here {here} become black to white, so brightness and contrast "
                "may be others; value_range=LOW:HIGH sets them"
            )
        return found


def start_network(
    config: RunConfig, splits: DataSplits, device: torch.device, stream: str, weights: StartWeights | None
) -> tuple[nn.Module, tuple[str, ...]]:
    """A network of the configuration as it starts.

    Args:
        config: of the run.
        splits: its data set.
        device: of the network.
        stream: name of the seed that random weights come from.
        weights: what is loaded; None leaves all weights random.

    Returns:
        The network, and what of the weights was not loaded.

    Raises:
        UsageError: the network cannot be built.
        InputError: the weights are another network's.
    """
    seed, classes = seed_for(config.seed, config.stage, stream, 0), len(splits.classes)
    network = build_network(config.network, config.model_args, classes, splits.channels, seed, device)
    left_out: tuple[str, ...] = ()
    if weights is not None:
        left_out = load_weights(network, weights, config.network, classes, splits.channels, splits.classes)
    if config.freeze:
        freeze_body(network)
    return network, left_out


def _check_lone_image(config: RunConfig, network: nn.Module, channels: int, processes: int, held_out: int) -> None:
    """A batch that weights are learned over has two samples, one that is normalised over has two values.

    Raises:
        UsageError: it has one.
    """
    if config.stage == "search" and config.batch_size * config.copies == 1:
        raise UsageError("batch_size", "the weight of a lone sample is always 1", "set it to 2 or more")
    parts = config.accumulate * processes
    sizes = {"batch_size": config.batch_size * config.copies // parts}
    if config.stage == "search":
        sizes["validation_batch_size"] = min(config.validation_batch_size, held_out) // parts
    for name in [name for name, size in sizes.items() if size == 1]:
        image = torch.zeros(1, channels, config.image_size, config.image_size, device=next(network.parameters()).device)
        try:
            with torch.no_grad():
                copy.deepcopy(network).train()(image)
        except ValueError as problem:  # torch's normalisation layers'
            raise UsageError(
                name, f"{config.network} cannot train on one image at a time: {problem}", "raise it"
            ) from None


def _check_division(config: RunConfig, processes: int, images: int, held_out: int) -> None:
    """Every process has as many images of a batch as every other, and in as many parts of equal size.

    Raises:
        UsageError: a batch cannot be divided so.
    """
    parts = processes * config.accumulate
    if config.batch_size % parts:
        check_parts(images, parts)
    sizes = {"batch_size": config.batch_size}
    if config.learns_policy:
        sizes["validation_batch_size"] = min(config.validation_batch_size, held_out)
    for name, count in sizes.items():
        if count % parts:
            why = f"{count} images are not divided by {processes} processes x accumulate {config.accumulate}"
            raise UsageError(name, why, f"set it to a multiple of {parts}")
