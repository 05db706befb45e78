"""The bilevel step: virtual step (Eq. 2), hypergradient (Eq. 3), weighted step (Eq. 4) of MetaAugment.

The hypergradient is exact and needs no second derivative of the network. With the virtual step
w_hat = w - alpha * sum_i P_i grad L_i(w) and v the gradient of the validation loss at w_hat,

    dL_val/dP_i   = - < alpha * v, grad L_i(w) >
    dL_val/dalpha = - < v, sum_i P_i grad L_i(w) >

and all inner products < alpha * v, grad L_i(w) > are the directional derivatives of the per-sample losses at w along
alpha * v: one forward-mode pass. The forward of Eq. 2 and of Eq. 4 is the same batch at the same w, so its graph is
kept: the weighted step needs no forward of its own, and the forward-mode pass takes its values from there.

A batch may come in parts: one for each process, and each process's again in `accumulate` parts, one after the other.
What Eq. 2 and 3 sum over the batch is then summed over the parts, and what is one number for each sample is gathered,
so that every process weighs the whole batch.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from .config import RunConfig
from .distributed import ALONE, Communicator
from .errors import UsageError
from .features import deep_features, features_and_logits, running_statistics, running_statistics_kept
from .forward_mode import (
    Losses,
    Parameters,
    Recording,
    agrees_with_torch,
    directional_derivative,
    recorded,
    torchs_derivative,
)
from .models.noise import has_unequal_noise, noise_at_its_mean
from .policy import PolicyNetwork, normalise_weights, reject_below_mean
from .precision import at_least_single, autocast
from .runtime import freed_memory_returned
from .synchronised import batch_statistics


@dataclass(frozen=True)
class Hypergradient:
    """Derivatives of the validation loss after the virtual step.

    Attributes:
        weights: float [n], with respect to the weights P_i.
        alpha: the shape of alpha, with respect to alpha.
        validation_loss: float [], the loss they are derivatives of.
        gradient: g = sum_i P_i grad L_i(w), a tensor for each parameter.
    """

    weights: Tensor
    alpha: Tensor
    validation_loss: Tensor
    gradient: tuple[Tensor, ...]


def hypergradient(
    parameters: Parameters,
    losses: Tensor,
    weights: Tensor,
    alpha: Tensor,
    training_losses: Losses,
    validation_loss: Losses,
    recording: Recording | None = None,
    keep_graph: bool = True,
    own_rules: bool = True,
) -> Hypergradient:
    """How the validation loss after one weighted gradient step depends on the step's weights and its length.

    Exact, by one backward pass over `losses`, one gradient of `validation_loss` and one forward-mode pass of
    `training_losses`. Source: MetaAugment (Zhou et al., AAAI 2021), Eq. 2 and 3.

    Args:
        parameters: the task network's parameters w by name.
        losses: float [n], the per-sample losses at w, with their graph.
        weights: float [n], P_i.
        alpha: float [] or [number of parameters], the inner rate, of all parameters or of each.
        training_losses: the same losses as a function of the parameters; it must repeat the same noise and touch no
            buffers.
        validation_loss: the mean validation loss, float [], as a function of the parameters; it must touch no buffers.
        recording: of the forward that gave `losses` (see `forward_mode.recorded`); None computes its values again.
        keep_graph: whether the graph of `losses` is still needed.
        own_rules: False leaves the forward-mode pass to torch (see `forward_mode.agrees_with_torch`).
    """
    gradients = _gradient([losses], [weights.detach()], list(parameters.values()), keep_graph)
    return hypergradient_along(
        parameters, gradients, alpha, [training_losses], [validation_loss], recording, own_rules=own_rules
    )


def hypergradient_along(
    parameters: Parameters,
    gradients: Sequence[Tensor],
    alpha: Tensor,
    training_losses: Sequence[Losses],
    validation_losses: Sequence[Losses],
    recording: Recording | None = None,
    own_rules: bool = True,
    communicator: Communicator = ALONE,
) -> Hypergradient:
    """`hypergradient` where the batch comes in parts and its weighted gradient is known.

    Args:
        parameters, alpha, recording, own_rules: as of `hypergradient`; only a single part has a recording.
        gradients: g, of all parts in all processes.
        training_losses: of each of this process's parts.
        validation_losses: of each of this process's parts of the meta-validation batch; those of all processes sum to
            the mean loss.
        communicator: to the other processes.
    """
    names, tensors = list(parameters), list(parameters.values())
    rates = alpha.detach().expand(len(names)).unbind()
    moved = {
        name: torch.addcmul(tensor.detach(), rate, gradient, value=-1).requires_grad_()
        for name, tensor, rate, gradient in zip(names, tensors, rates, gradients, strict=True)
    }
    found = [_value_and_gradient(loss, moved) for loss in validation_losses]
    loss, *descent = communicator.sum(_summed(found))
    direction = {name: rate * v for name, rate, v in zip(names, rates, descent, strict=True)}
    if own_rules:
        each = [directional_derivative(losses, parameters, direction, recording) for losses in training_losses]
    else:
        each = [torchs_derivative(losses, parameters, direction) for losses in training_losses]
    slopes = communicator.gather(torch.cat(each))
    by_tensor = torch.stack([-(v * gradient).sum() for v, gradient in zip(descent, gradients, strict=True)])
    return Hypergradient(
        weights=-slopes,
        alpha=by_tensor if alpha.ndim else by_tensor.sum(),
        validation_loss=loss,
        gradient=tuple(gradients),
    )


def _gradient(
    losses: Iterable[Tensor], weights: Sequence[Tensor], tensors: Sequence[Tensor], keep_graph: bool
) -> list[Tensor]:
    """Sum over all parts and samples of weight times the loss's gradient, a tensor for each of `tensors`."""
    return _summed(
        torch.autograd.grad(part, tensors, grad_outputs=share, retain_graph=keep_graph, materialize_grads=True)
        for part, share in zip(losses, weights, strict=True)
    )


def _value_and_gradient(function: Losses, at: dict[str, Tensor]) -> list[Tensor]:
    value = function(at)
    return [value.detach(), *torch.autograd.grad(value, list(at.values()), materialize_grads=True)]


def _summed(terms: Iterable[Sequence[Tensor]]) -> list[Tensor]:
    """Tensor by tensor; one term after the other, so that only two are there at a time."""
    total: list[Tensor] = []
    for term in terms:
        total = [one + other for one, other in zip(total, term, strict=True)] if total else list(term)
    return total


class InnerRate(nn.Module):
    """The learnable inner rate alpha of Eq. 2, kept positive as the exponential of what is learned.

    Args:
        initial: alpha at the start.
        tensors: None for one alpha of all parameters, or the number of parameter tensors for one of each.
    """

    def __init__(self, initial: float, tensors: int | None = None) -> None:
        super().__init__()
        shape = () if tensors is None else (tensors,)
        self.log_alpha = nn.Parameter(torch.full(shape, initial).log())

    def forward(self) -> Tensor:
        """Alpha, float [] or [tensors]."""
        return self.log_alpha.exp()


@dataclass(frozen=True)
class StepOptions:
    """How an iteration is done; the defaults are the paper's algorithm.

    Attributes:
        clip_norm: largest norm of the weighted step's gradient; 0 does not clip.
        fraction: share of the training batch and of the meta-validation batch that the hypergradient is taken on.
        simultaneous: w and theta move at once: the weighted step has the old theta's weights, so that its gradient is
            the virtual step's.
        reject_below_mean: the weighted step leaves out samples whose weight is below the batch's mean, and weighs the
            others equally (the paper's ablation).
        low_memory: the batch's forward is computed once more for the weighted step instead of keeping its graph; on a
            CPU freed memory goes back to the system at once (`runtime.freed_memory_returned`).
        accumulate: parts that a process's batch is computed in, one after the other, which keeps no graph either.
        synchronised: batch normalisation by the statistics of all processes' samples.
        precision: that the networks' products are computed in, in all passes; the rest is in single precision.
    """

    clip_norm: float = 0.0
    fraction: float = 1.0
    simultaneous: bool = False
    reject_below_mean: bool = False
    low_memory: bool = False
    accumulate: int = 1
    synchronised: bool = False
    precision: str = "float32"

    @classmethod
    def of(cls, config: RunConfig) -> Self:
        """The options that a configuration names."""
        return cls(
            clip_norm=config.clip_norm,
            fraction=config.meta_fraction,
            simultaneous=config.simultaneous,
            reject_below_mean=config.reject_below_mean,
            low_memory=config.low_memory,
            accumulate=config.accumulate,
            synchronised=config.batch_norm == "synchronised",
            precision=config.precision,
        )


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


@dataclass(frozen=True)
class Batch:
    """Images float [n, C, H, W], labels int64 [n], embedding float [n, 2K], features float [n, F] or None."""

    images: Tensor
    labels: Tensor
    embedding: Tensor
    features: Tensor | None
    noise_seed: int

    def part(self, share: float) -> "Batch":
        """The first of them; a batch is in random order."""
        return self._rows(0, _share(len(self.labels), share), self.noise_seed)

    def parts(self, count: int, rank: int) -> list["Batch"]:
        """This many of equal size, in order; each part of each process draws noise of its own.

        Raises:
            UsageError: the batch cannot be divided so.
        """
        size, rest = divmod(len(self.labels), count)
        if rest:
            raise UsageError("accumulate", f"{count} does not divide {len(self.labels)} samples", "set a divisor")
        # Two seeds each: of the training and of the meta-validation batch.
        return [
            self._rows(number * size, size, self.noise_seed + 2 * (rank * count + number)) for number in range(count)
        ]

    def _rows(self, first: int, count: int, noise_seed: int) -> "Batch":
        rows = slice(first, first + count)
        features = None if self.features is None else self.features[rows]
        return Batch(self.images[rows], self.labels[rows], self.embedding[rows], features, noise_seed)


def _share(count: int, share: float) -> int:
    return max(2, round(count * share))  # batch normalisation needs two


@dataclass(frozen=True)
class _Forward:
    """A batch's forward: losses float [n] with their graph, features float [n, F], perhaps what was computed."""

    losses: Tensor
    features: Tensor
    recording: Recording | None


class _Forwards:
    """The forwards of a batch in parts, as often as they are needed; the running statistics move in the first one.

    The graph of a batch that comes in one part is kept from one use to the next. Of several parts only one has a graph
    at a time, so that the features, which weigh all of them, need a forward before: without a graph.
    """

    def __init__(self, step: "BilevelStep", parts: list[Batch], records: bool = False) -> None:
        self.parts, self._step, self._moved = parts, step, False
        self._kept: Tensor | None = None
        self.recording: Recording | None = None
        frozen = [part.features for part in parts if part.features is not None]
        if len(parts) == 1:
            forward = self._forward(parts[0], records)
            self._kept, self.recording, seen = forward.losses, forward.recording, [forward.features]
        elif frozen:
            seen = frozen
        else:
            with torch.no_grad():
                seen = [self._forward(part).features for part in parts]
            self._moved = True
        self.features = torch.cat(seen)
        self.images, self.embedding = (
            torch.cat([getattr(part, name) for part in parts]) if len(parts) > 1 else getattr(parts[0], name)
            for name in ("images", "embedding")
        )
        self.losses: list[Tensor] = []

    def graphs(self, keep: bool = False) -> Iterator[Tensor]:
        """The losses float [n] of each part with their graph, one part after the other.

        Args:
            keep: the graph of a single part will be needed once more.
        """
        self.losses = []
        for part in self.parts:
            losses = self._forward(part).losses if self._kept is None else self._kept
            self._kept = losses if keep and len(self.parts) == 1 else None
            self.losses.append(losses.detach())
            yield losses
            del losses
        self._moved = True

    def shares(self, rows: Tensor) -> list[Tensor]:
        """What each part has of one number for each sample."""
        return list(rows.split([len(part.labels) for part in self.parts]))

    def _forward(self, part: Batch, records: bool = False) -> _Forward:
        with running_statistics_kept(self._step.network) if self._moved else nullcontext():
            forward = self._step.forward(part, records)
        self._moved = self._moved or len(self.parts) == 1
        return forward


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
                some = _Forwards(
                    self, [part.part(options.fraction) for part in parts], records and options.fraction == 1
                )
                count = _share(len(lessons[0][1]), options.fraction)
                learned, _ = self._learn(some, [(images[:count], labels[:count]) for images, labels in lessons], False)
        joint = bool(lessons) and learned is None
        forwards = _Forwards(self, parts, joint and records)
        if joint:
            learned, old_raw = self._learn(forwards, lessons, keeps and not options.simultaneous)

        with torch.no_grad():
            raw = communicator.gather(self._raw(forwards)) if old_raw is None or not options.simultaneous else old_raw
            weights = normalise_weights(raw)
            if options.reject_below_mean:
                weights = reject_below_mean(weights)
        own = forwards.shares(communicator.part(len(weights)).of(weights))
        if learned is not None and not learned.validation_loss.isfinite():
            loss = learned.validation_loss  # theta has not moved, and w does not either
        elif options.simultaneous and learned is not None:
            for parameter, gradient in zip(self._parameters().values(), learned.gradient, strict=True):
                parameter.grad = gradient.clone()  # which clipping changes
            (loss,) = communicator.sum([_weighted_loss(forwards.losses, own)])
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

    def forward(self, batch: Batch, records: bool = False) -> _Forward:
        """Losses and features at w, with their graph."""
        torch.manual_seed(batch.noise_seed)
        with recorded() if records else nullcontext() as recording:
            with self._computing(batch.images):
                own, logits = features_and_logits(self.network, batch.images)
            losses = F.cross_entropy(at_least_single(logits), batch.labels, reduction="none")
        return _Forward(losses, at_least_single(own) if batch.features is None else batch.features, recording)

    def _raw(self, forwards: _Forwards) -> Tensor:
        """The policy's outputs before normalisation, float [n], of this process's samples."""
        own = forwards.features
        if self.extractor is not None:
            with self._computing(forwards.images):
                own = deep_features(self.extractor, forwards.images)
            own = at_least_single(own)
        raw: Tensor = self.policy(own, forwards.embedding)
        return raw

    def _learn(
        self, forwards: _Forwards, lessons: Sequence[tuple[Tensor, Tensor]], keep_graph: bool
    ) -> tuple[Hypergradient, Tensor]:
        """Update theta and alpha (Eq. 2 and 3); also the old theta's raw outputs, float [n]."""
        network, parameters, communicator = self.network, self._parameters(), self.communicator
        raw, alpha = communicator.gather(self._raw(forwards)), self.rate()
        weights = normalise_weights(raw)
        own = forwards.shares(communicator.part(len(weights)).of(weights.detach()))
        with running_statistics_kept(network):
            self._check_rules(forwards.parts[0], forwards.recording)
            gradients = _gradient(forwards.graphs(keep_graph), own, list(parameters.values()), keep_graph)
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
            return F.cross_entropy(at_least_single(logits), labels) * share

        return loss

    def _training_losses(self, batch: Batch) -> Losses:
        """The losses of `_forward` as a function of the parameters, with the same noise."""
        network = self.network

        def losses(at: Parameters) -> Tensor:
            torch.manual_seed(batch.noise_seed)
            with self._computing(batch.images):
                logits = functional_call(network, dict(at), (batch.images,))
            return F.cross_entropy(at_least_single(logits), batch.labels, reduction="none")

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


def weighted_step(
    losses: Iterable[Tensor],
    weights: Sequence[Tensor],
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    clip_norm: float,
    communicator: Communicator = ALONE,
) -> Tensor:
    """The step of Eq. 4: one optimiser update by the gradient of sum_i P_i L_i over all parts of the batch.

    Args:
        losses: of each part, float [n] with their graph, which is freed before the next part's is asked for.
        weights: of each part, float [n], P_i, without a graph; those of all parts in all processes have sum 1.
        network: whose gradients are summed and clipped.
        optimizer: of the network's parameters.
        clip_norm: largest global gradient norm; 0 does not clip.
        communicator: to the processes that have the other parts.

    Returns:
        The weighted loss, float [], detached; where it is not finite, there was no update.
    """
    optimizer.zero_grad()
    seen = []
    for part, share in zip(losses, weights, strict=True):
        part.backward(gradient=share)
        seen.append(part.detach())
    (loss,) = reduce_gradients(network.parameters(), communicator, _weighted_loss(seen, weights))
    update(network, optimizer, clip_norm, loss)
    return loss


def _weighted_loss(losses: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    (loss,) = _summed([(part * share).sum()] for part, share in zip(losses, weights, strict=True))
    return loss


def reduce_gradients(parameters: Iterable[nn.Parameter], communicator: Communicator, *others: Tensor) -> list[Tensor]:
    """Sum the gradients that the parameters hold over all processes; also the sums of the other tensors."""
    learned = [parameter for parameter in parameters if parameter.grad is not None]
    gradients = [parameter.grad for parameter in learned if parameter.grad is not None]
    sums = communicator.sum([*gradients, *others])
    for parameter, gradient in zip(learned, sums, strict=False):
        parameter.grad = gradient
    return sums[len(learned) :]


def update(network: nn.Module, optimizer: torch.optim.Optimizer, clip_norm: float, loss: Tensor) -> None:
    """One optimiser update by the gradients that the network's parameters hold, if their loss is finite.

    Args:
        network: whose gradients are clipped.
        optimizer: of its parameters.
        clip_norm: largest global gradient norm; 0 does not clip.
        loss: float [].
    """
    if not loss.isfinite():
        return
    if clip_norm:
        nn.utils.clip_grad_norm_(network.parameters(), clip_norm)
    optimizer.step()
