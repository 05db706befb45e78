"""What both stages train: data, pipeline, task network, its optimiser and schedule, built from a configuration."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from .config import RunConfig
from .data import Check, DataSplits, Split, load_splits
from .evaluate import Accuracy, evaluate
from .features import feature_width
from .networks import build_network, check_arch
from .optimisation import RateSchedule, make_optimizer, make_schedule
from .pipeline import Pipeline
from .runtime import seed_for


@dataclass(frozen=True)
class Task:
    """A task network about to be trained.

    Attributes:
        config: of the run.
        splits: the data set.
        training: the split to train on.
        pipeline: from uint8 images to the network's input.
        network: with fresh weights, on the device.
        feature_width: of the network's deep feature.
        optimizer, schedule: of the network.
    """

    config: RunConfig
    splits: DataSplits
    training: Split
    pipeline: Pipeline
    network: nn.Module
    feature_width: int
    optimizer: torch.optim.Optimizer
    schedule: RateSchedule

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
        splits = load_splits(config, device, config.stage, meta_validation, check)
        return cls.over(config, splits, device)

    @classmethod
    def over(cls, config: RunConfig, splits: DataSplits, device: torch.device) -> Self:
        """The same over a data set that has been split already.

        Raises:
            UsageError: the network cannot be had or does not fit the data.
        """
        seed = seed_for(config.seed, config.stage, "network", 0)
        network = build_network(config.network, config.model_args, len(splits.classes), splits.channels, seed, device)
        training = splits.train_with_validation() if config.trains_on_validation else splits.train
        optimizer = make_optimizer(config, network)
        return cls(
            config=config,
            splits=splits,
            training=training,
            pipeline=Pipeline(config, splits.mean, splits.std, device),
            network=network,
            feature_width=feature_width(network, config.image_size, splits.channels),
            optimizer=optimizer,
            schedule=make_schedule(config, optimizer, len(training) // config.batch_size),
        )

    @property
    def iterations_per_epoch(self) -> int:
        """Whole batches in the split to train on."""
        return len(self.training) // self.config.batch_size

    @property
    def iterations(self) -> int:
        """Of the whole run."""
        return self.config.epochs * self.iterations_per_epoch

    def validation_accuracy(self) -> Accuracy:
        """Accuracy of the network on the meta-validation split."""
        return evaluate(self.network, self.splits.meta_validation, self.pipeline, self.config.batch_size)

    def facts(self) -> dict[str, str]:
        """What a user wants to know when the run starts."""
        parameters = sum(parameter.numel() for parameter in self.network.parameters())
        splits = self.splits
        return {
            "images": f"{len(self.training)} training, {len(splits.meta_validation)} meta-validation",
            "classes": str(len(splits.classes)),
            "network": f"{parameters / 1e6:.2f} million parameters",
            "device": str(self.pipeline.device),
        }
