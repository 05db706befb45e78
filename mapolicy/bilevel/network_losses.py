"""The task network's losses, at its own parameters and as functions of other parameters."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..distributed import ALONE, Communicator
from ..models.features import features_and_logits
from ..models.sync_batch_norm import batch_statistics
from ..runtime.precision import at_least_float32, autocast
from .forward_mode import Losses, Parameters, recorded
from .microbatch import Batch, Forward
from .options import StepOptions
from .sample_loss import SampleLoss, cross_entropy


@dataclass
class NetworkLosses:
    """Per-sample losses of a network, with the noise that a batch's seed fixes.

    Attributes:
        network: the task network.
        options: its `precision`, `synchronised` and `accumulate` are used.
        communicator: to the processes that have the other shards of a batch.
        training: loss of a training sample.
        validation: loss of a meta-validation sample, whose mean is the outer objective.
    """

    network: nn.Module
    options: StepOptions
    communicator: Communicator = ALONE
    training: SampleLoss = cross_entropy
    validation: SampleLoss = cross_entropy

    def forward(self, batch: Batch, records: bool = False) -> Forward:
        """Losses and features at w, with their graph; `records` keeps what the forward-mode pass can reuse."""
        torch.manual_seed(batch.noise_seed)
        with recorded() if records else nullcontext() as recording:
            with self.computing(batch.images):
                own, logits = features_and_logits(self.network, batch.images)
            losses = self.training(at_least_float32(logits), batch.labels)
        return Forward(losses, at_least_float32(own) if batch.features is None else batch.features, recording)

    def of_training(self, batch: Batch) -> Losses:
        """The losses of `forward`, float [n], as a function of the parameters, with the same noise."""

        def losses(at: Parameters) -> Tensor:
            torch.manual_seed(batch.noise_seed)
            with self.computing(batch.images):
                logits = functional_call(self.network, dict(at), (batch.images,))
            return self.training(at_least_float32(logits), batch.labels)

        return losses

    def of_validation(self, noise_seed: int, images: Tensor, labels: Tensor) -> Losses:
        """This micro-batch's share of the mean meta-validation loss, float [], as a function of the parameters."""
        share = 1 / (self.communicator.size * self.options.accumulate)

        def loss(at: Parameters) -> Tensor:
            torch.manual_seed(noise_seed + 1)
            with self.computing(images):
                logits = functional_call(self.network, dict(at), (images,))
            return self.validation(at_least_float32(logits), labels).mean() * share

        return loss

    @contextmanager
    def computing(self, images: Tensor) -> Iterator[None]:
        """The context of every call of a network: its precision and its batch statistics."""
        options = self.options
        with autocast(options.precision, images.device), batch_statistics(options.synchronised, self.communicator):
            yield

    def parameters(self) -> dict[str, Tensor]:
        """The network's trainable parameters, by name."""
        return {name: tensor for name, tensor in self.network.named_parameters() if tensor.requires_grad}
