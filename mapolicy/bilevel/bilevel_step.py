"""The bilevel step: virtual step (Eq. 2), hypergradient (Eq. 3), weighted step (Eq. 4) of MetaAugment.

The forward of Eq. 2 and of Eq. 4 is the same batch at the same w, so its graph is kept: the weighted step needs no
forward of its own, and the forward-mode pass of the hypergradient takes its values from there.

A batch may come in parts: one for each process, and each process's again in `accumulate` parts, one after the other.
What Eq. 2 and 3 sum over the batch is then summed over the parts, and what is one number for each sample is gathered,
so that every process weighs the whole batch.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..distributed import ALONE, Communicator
from ..errors import UsageError
from ..models.features import deep_features, features_and_logits, running_statistics, running_statistics_kept
from ..models.noise import has_unequal_noise, noise_at_its_mean
from ..models.sync_batch_norm import batch_statistics
from ..policy.network import PolicyNetwork, normalise_weights, reject_below_mean
from ..runtime.device import freed_memory_returned
from ..runtime.precision import at_least_float32, autocast
from .forward_mode import Losses, Parameters, Recording, agrees_with_torch, recorded
from .hypergradients import Hypergradient, hypergradient_along, weighted_gradient
from .inner_rate import InnerRate
from .microbatch import Batch, Forward, Forwards, share_of
from .options import StepOptions
from .weighted_step import reduce_gradients, update, weighted_loss, weighted_step


@dataclass(frozen=True)
class StepRecord:
    """What one bilevel step did; tensors are detached. n counts the samples of the whole batch, in all processes.

    Attributes:
        loss: float [], the weighted training loss.
        raw: float [n], the outputs before normalisation of the policy that the weighted step used.
        weights: float [n], as used in the weighted step; sum 1.
        alpha: float [] or [tensors], after its update.
        hypergradient: of the old weights; None if this iteration took none.
        theta_gradient: float [policy's parameters], of the validation loss with respect to theta (Eq. 3); None without
            a hypergradient.
    """

    loss: Tensor
    raw: Tensor
    weights: Tensor
    alpha: Tensor
    hypergradient: Hypergradient | None
    theta_gradient: Tensor | None


class BilevelStep:
    """One iteration of Algorithm 1 of MetaAugment after the batch has been augmented.

    Source: Zhou et al., AAAI 2021, Eq. 2 to 4. A network whose noise differs between forward and backward has no true
    gradient: its hypergradient is that of the network with this noise at its mean, its weighted step is its own.

    Attributes:
        how: it is executed, in words, for the run's record.
        noise_at_mean: whether the hypergradient is that of the network with its noise at the mean.

    Args:
        network: the task network, a timm model.
        policy: the policy network, theta.
        rate: the inner rate, alpha.
        optimizer: of the task network's parameters (Eq. 4).
        policy_optimizer: of theta and alpha (Eq. 3).
        options: how it is done.
        extractor: a timm model with parameters of its own that the policy sees the images through, a part of theta
            (the paper's ablation); None takes the task network's features.
        communicator: to the processes that have the other parts of the batch. All of them come to the same theta,
            alpha and w.

    Raises:
        UsageError: a simultaneous step, which would be that of the network with its noise at the mean; an extractor of
            its own where the batch comes in parts one after the other, whose graph would be that of all of them.
    """

    def __init__(
        self,
        network: nn.Module,
        policy: PolicyNetwork,
        rate: InnerRate,
        optimizer: torch.optim.Optimizer,
        policy_optimizer: torch.optim.Optimizer,
        options: StepOptions | None = None,
        extractor: nn.Module | None = None,
        communicator: Communicator = ALONE,
    ) -> None:
        self.network, self.policy, self.rate = network, policy, rate
        self.optimizer, self.policy_optimizer = optimizer, policy_optimizer
        self.options = options or StepOptions()
        self.extractor, self.communicator = extractor, communicator
        self._own_rules: bool | None = None  # whether they are right for this network: found out by the first batch
        self.how = "eager"
        self.noise_at_mean = has_unequal_noise(network)
        if self.noise_at_mean and self.options.simultaneous:
            why = "the virtual step has the noise of Shake-Shake or ShakeDrop at its mean, the weighted step has not"
            raise UsageError("simultaneous", why, "leave it out for this network")
        if extractor is not None and self.options.accumulate > 1:
            why = "an extractor that is trained with theta would keep the graphs of all parts"
            raise UsageError("accumulate", why, "set accumulate=1 or extractor=shared")

    def __call__(
        self,
        images: Tensor,
        labels: Tensor,
        embedding: Tensor,
        validation: tuple[Tensor, Tensor] | None,
        noise_seed: int,
        features: Tensor | None = None,
    ) -> StepRecord:
        """Update theta, alpha and w; nothing moves if a loss is not finite.

        Args:
            images: float [n, C, H, W], augmented and normalised; n counts all copies, of this process's part.
            labels: int64 [n].
            embedding: float [n, 2K], of the images' transformations.
            validation: images float [m, C, H, W], normalised, and labels int64 [m]; None leaves theta and alpha as they
                are.
            noise_seed: seeds torch's global generators for the network's own noise (dropout, stochastic depth), so
                that the forward-mode pass replays that of the forward.
            features: float [n, F] of a frozen extractor; None takes the network's own.
        """
        for module in self._learners:
            module.train()
        batch = Batch(images, labels, embedding, features, noise_seed)
        frugal = self.options.low_memory and images.device.type == "cpu"
        # Only the mathematical form of attention has a forward-mode derivative; all passes must draw the same noise.
        attention = nullcontext() if validation is None else sdpa_kernel(SDPBackend.MATH)
        with freed_memory_returned() if frugal else nullcontext(), attention:
            return self._step(batch, validation)

    def _step(self, batch: Batch, validation: tuple[Tensor, Tensor] | None) -> StepRecord:
        options, network, communicator = self.options, self.network, self.communicator
        parts = batch.parts(options.accumulate, communicator.rank)
        lessons = [] if validation is None else list(zip(*(half.chunk(len(parts)) for half in validation), strict=True))
        keeps = len(parts) == 1 and not options.low_memory
        records = keeps and options.precision == "float32"  # our own forward-mode rules are for a single type
        learned, old_raw = None, None
        if lessons and not keeps:
            with noise_at_its_mean(*self._learners):
                self._check_rules(parts[0], None)  # while there is no graph beside it
        if lessons and self._learns_apart:
            with running_statistics_kept(network), noise_at_its_mean(*self._learners):
                first = [part.part(options.fraction) for part in parts]
                some = Forwards(network, self.forward, first, records and options.fraction == 1)
                count = share_of(len(lessons[0][1]), options.fraction)
                learned, _ = self._learn(some, [(images[:count], labels[:count]) for images, labels in lessons], False)
        joint = bool(lessons) and learned is None
        forwards = Forwards(network, self.forward, parts, joint and records)
        if joint:
            learned, old_raw = self._learn(forwards, lessons, keeps and not options.simultaneous)

        with torch.no_grad():
            raw = communicator.gather(self._raw(forwards)) if old_raw is None or not options.simultaneous else old_raw
            weights = normalise_weights(raw)
            if options.reject_below_mean:
                weights = reject_below_mean(weights)
        own = forwards.shares(communicator.shard(len(weights)).of(weights))
        if learned is not None and not learned.validation_loss.isfinite():
            loss = learned.validation_loss  # theta has not moved, and w does not either
        elif options.simultaneous and learned is not None:
            for parameter, gradient in zip(self._parameters().values(), learned.gradient, strict=True):
                parameter.grad = gradient.clone()  # which clipping changes
            (loss,) = communicator.sum([weighted_loss(forwards.losses, own)])
            update(network, self.optimizer, options.clip_norm, loss)
        else:
            loss = weighted_step(forwards.graphs(), own, network, self.optimizer, options.clip_norm, communicator)
        communicator.average([buffer for module in self._learners for buffer in running_statistics(module)])
        by_theta = None
        if learned is not None:
            gradients = (parameter.grad for parameter in self.policy.parameters())
            by_theta = torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])
        return StepRecord(loss, raw, weights, self.rate().detach(), learned, by_theta)

    @property
    def _learners(self) -> list[nn.Module]:
        """The networks with noise and statistics."""
        return [module for module in (self.network, self.extractor) if module is not None]

    @property
    def _learns_apart(self) -> bool:
        """Whether the hypergradient has a forward of its own, which the weighted step cannot use."""
        return self.noise_at_mean or self.options.fraction < 1

    def forward(self, batch: Batch, records: bool = False) -> Forward:
        """Losses and features at w, with their graph."""
        torch.manual_seed(batch.noise_seed)
        with recorded() if records else nullcontext() as recording:
            with self._computing(batch.images):
                own, logits = features_and_logits(self.network, batch.images)
            losses = F.cross_entropy(at_least_float32(logits), batch.labels, reduction="none")
        return Forward(losses, at_least_float32(own) if batch.features is None else batch.features, recording)

    def _raw(self, forwards: Forwards) -> Tensor:
        """The policy's outputs before normalisation, float [n], of this process's samples."""
        own = forwards.features
        if self.extractor is not None:
            with self._computing(forwards.images):
                own = deep_features(self.extractor, forwards.images)
            own = at_least_float32(own)
        raw: Tensor = self.policy(own, forwards.embedding)
        return raw

    def _learn(
        self, forwards: Forwards, lessons: Sequence[tuple[Tensor, Tensor]], keep_graph: bool
    ) -> tuple[Hypergradient, Tensor]:
        """Update theta and alpha (Eq. 2 and 3); also the old theta's raw outputs, float [n]."""
        network, parameters, communicator = self.network, self._parameters(), self.communicator
        raw, alpha = communicator.gather(self._raw(forwards)), self.rate()
        weights = normalise_weights(raw)
        own = forwards.shares(communicator.shard(len(weights)).of(weights.detach()))
        with running_statistics_kept(network):
            self._check_rules(forwards.parts[0], forwards.recording)
            gradients = weighted_gradient(forwards.graphs(keep_graph), own, list(parameters.values()), keep_graph)
            outcome = hypergradient_along(
                parameters,
                communicator.sum(gradients),
                alpha,
                [self._training_losses(part) for part in forwards.parts],
                [self._validation_loss(*pair) for pair in zip(forwards.parts, lessons, strict=True)],
                recording=forwards.recording,
                own_rules=bool(self._own_rules),
                communicator=communicator,
            )
        self.policy_optimizer.zero_grad()
        torch.autograd.backward([weights, alpha], [outcome.weights, outcome.alpha])
        reduce_gradients(self._theta(), communicator)  # alpha's is whole already
        if outcome.validation_loss.isfinite():
            self.policy_optimizer.step()
        return outcome, raw.detach()

    @contextmanager
    def _computing(self, images: Tensor) -> Iterator[None]:
        """Around every call of a network."""
        options = self.options
        with autocast(options.precision, images.device), batch_statistics(options.synchronised, self.communicator):
            yield

    def _theta(self) -> list[nn.Parameter]:
        return [*self.policy.parameters(), *([] if self.extractor is None else self.extractor.parameters())]

    def _validation_loss(self, part: Batch, lesson: tuple[Tensor, Tensor]) -> Losses:
        """This part's share of the mean meta-validation loss as a function of the parameters."""
        network, (images, labels) = self.network, lesson
        share = 1 / (self.communicator.size * self.options.accumulate)

        def loss(at: Parameters) -> Tensor:
            torch.manual_seed(part.noise_seed + 1)
            with self._computing(images):
                logits = functional_call(network, dict(at), (images,))
            return F.cross_entropy(at_least_float32(logits), labels) * share

        return loss

    def _training_losses(self, batch: Batch) -> Losses:
        """The losses of `forward` as a function of the parameters, with the same noise."""
        network = self.network

        def losses(at: Parameters) -> Tensor:
            torch.manual_seed(batch.noise_seed)
            with self._computing(batch.images):
                logits = functional_call(network, dict(at), (batch.images,))
            return F.cross_entropy(at_least_float32(logits), batch.labels, reduction="none")

        return losses

    def _check_rules(self, batch: Batch, recording: Recording | None) -> None:
        """Find out, once, whether the forward-mode rules of our own are right for this network."""
        if self.options.precision != "float32":
            self._own_rules = False
        if self._own_rules is None:
            with running_statistics_kept(self.network):
                agrees = agrees_with_torch(self._training_losses(batch), self._parameters(), recording)
            self._own_rules = not self.communicator.largest(not agrees)[0]  # one way for all processes

    def _parameters(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in self.network.named_parameters() if tensor.requires_grad}
