"""The bilevel step: virtual step (Eq. 2), hypergradient (Eq. 3), weighted step (Eq. 4) of MetaAugment.

The hypergradient is exact and needs no second derivative of the network. With the virtual step
w_hat = w - alpha * sum_i P_i grad L_i(w) and v the gradient of the validation loss at w_hat,

    dL_val/dP_i   = - < alpha * v, grad L_i(w) >
    dL_val/dalpha = - < v, sum_i P_i grad L_i(w) >

and all inner products < alpha * v, grad L_i(w) > are the directional derivatives of the per-sample losses at w along
alpha * v: one forward-mode pass. The forward of Eq. 2 and of Eq. 4 is the same batch at the same w, so its graph is
kept: the weighted step needs no forward of its own, and the forward-mode pass takes its values from there.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from .config import RunConfig
from .errors import UsageError
from .features import deep_features, features_and_logits, running_statistics_kept
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
    names, tensors = list(parameters), list(parameters.values())
    rates = alpha.detach().expand(len(names)).unbind()
    gradients = torch.autograd.grad(
        losses, tensors, grad_outputs=weights.detach(), retain_graph=keep_graph, materialize_grads=True
    )
    moved = {
        name: torch.addcmul(tensor.detach(), rate, gradient, value=-1).requires_grad_()
        for name, tensor, rate, gradient in zip(names, tensors, rates, gradients, strict=True)
    }
    loss = validation_loss(moved)
    descent = torch.autograd.grad(loss, list(moved.values()), materialize_grads=True)
    direction = {name: rate * v for name, rate, v in zip(names, rates, descent, strict=True)}
    if own_rules:
        slopes = directional_derivative(training_losses, parameters, direction, recording)
    else:
        slopes = torchs_derivative(training_losses, parameters, direction)
    by_tensor = torch.stack([-(v * gradient).sum() for v, gradient in zip(descent, gradients, strict=True)])
    return Hypergradient(
        weights=-slopes,
        alpha=by_tensor if alpha.ndim else by_tensor.sum(),
        validation_loss=loss.detach(),
        gradient=gradients,
    )


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
        low_memory: the batch's forward is computed once more for the weighted step instead of keeping its graph.
    """

    clip_norm: float = 0.0
    fraction: float = 1.0
    simultaneous: bool = False
    reject_below_mean: bool = False
    low_memory: bool = False

    @classmethod
    def of(cls, config: RunConfig) -> Self:
        """The options that a configuration names."""
        return cls(
            clip_norm=config.clip_norm,
            fraction=config.meta_fraction,
            simultaneous=config.simultaneous,
            reject_below_mean=config.reject_below_mean,
            low_memory=config.low_memory,
        )


@dataclass(frozen=True)
class StepRecord:
    """What one bilevel step did; tensors are detached.

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
        count = _share(len(self.labels), share)
        features = None if self.features is None else self.features[:count]
        return Batch(
            self.images[:count], self.labels[:count], self.embedding[:count], features, noise_seed=self.noise_seed
        )


def _share(count: int, share: float) -> int:
    return max(2, round(count * share))  # batch normalisation needs two


@dataclass(frozen=True)
class _Forward:
    """A batch's forward: losses float [n] with their graph, features float [n, F], perhaps what was computed."""

    losses: Tensor
    features: Tensor
    recording: Recording | None


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

    Raises:
        UsageError: a simultaneous step, which would be that of the network with its noise at the mean.
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
    ) -> None:
        self.network, self.policy, self.rate = network, policy, rate
        self.optimizer, self.policy_optimizer = optimizer, policy_optimizer
        self.options = options or StepOptions()
        self.extractor = extractor
        self._own_rules: bool | None = None  # whether they are right for this network: found out by the first batch
        self.how = "eager"
        self.noise_at_mean = has_unequal_noise(network)
        if self.noise_at_mean and self.options.simultaneous:
            why = "the virtual step has the noise of Shake-Shake or ShakeDrop at its mean, the weighted step has not"
            raise UsageError("simultaneous", why, "leave it out for this network")

    def __call__(
        self,
        images: Tensor,
        labels: Tensor,
        embedding: Tensor,
        validation: tuple[Tensor, Tensor] | None,
        noise_seed: int,
        features: Tensor | None = None,
    ) -> StepRecord:
        """Update theta, alpha and w.

        Args:
            images: float [n, C, H, W], augmented and normalised; n counts all copies.
            labels: int64 [n].
            embedding: float [n, 2K], of the images' transformations.
            validation: images float [m, C, H, W], normalised, and labels int64 [m]; None leaves theta and alpha as they
                are.
            noise_seed: seeds torch's global generators for the network's own noise (dropout, stochastic depth), so
                that the forward-mode pass replays that of the forward.
            features: float [n, F] of a frozen extractor; None takes the network's own.
        """
        for module in (self.network, self.extractor):
            if module is not None:
                module.train()
        batch = Batch(images, labels, embedding, features, noise_seed)
        # Only the mathematical form of attention has a forward-mode derivative; all passes must draw the same noise.
        with nullcontext() if validation is None else sdpa_kernel(SDPBackend.MATH):
            return self._step(batch, validation)

    def _step(self, batch: Batch, validation: tuple[Tensor, Tensor] | None) -> StepRecord:
        options, network = self.options, self.network
        learned, old_raw = None, None
        learners = [module for module in (network, self.extractor) if module is not None]
        if validation is not None and options.low_memory:
            with noise_at_its_mean(*learners):
                self._check_rules(batch, None)  # while there is no graph beside it
        if validation is not None and self._learns_apart:
            part, count = batch.part(options.fraction), _share(len(validation[1]), options.fraction)
            records = options.fraction == 1 and not options.low_memory
            with running_statistics_kept(network), noise_at_its_mean(*learners):
                forward = self._forward(part, records)
                learned, _ = self._learn(part, forward, (validation[0][:count], validation[1][:count]))
        lesson = validation if learned is None else None
        forward = self._forward(batch, records=lesson is not None and not options.low_memory)
        if lesson is not None:
            learned, old_raw = self._learn(batch, forward, lesson)
            if options.low_memory and not options.simultaneous:
                with running_statistics_kept(network):
                    forward = self._forward(batch)

        with torch.no_grad():
            raw = old_raw if options.simultaneous and old_raw is not None else self._raw(batch, forward)
            weights = normalise_weights(raw)
            if options.reject_below_mean:
                weights = reject_below_mean(weights)
        if options.simultaneous and learned is not None:
            for parameter, gradient in zip(self._parameters().values(), learned.gradient, strict=True):
                parameter.grad = gradient.clone()  # which clipping changes
            update(network, self.optimizer, options.clip_norm)
            loss = (forward.losses.detach() * weights).sum()
        else:
            loss = weighted_step(forward.losses, weights, network, self.optimizer, options.clip_norm)
        by_theta = None
        if learned is not None:
            gradients = (parameter.grad for parameter in self.policy.parameters())
            by_theta = torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])
        return StepRecord(loss, raw, weights, self.rate().detach(), learned, by_theta)

    @property
    def _learns_apart(self) -> bool:
        """Whether the hypergradient has a forward of its own, which the weighted step cannot use."""
        return self.noise_at_mean or self.options.fraction < 1

    def _forward(self, batch: Batch, records: bool = False) -> _Forward:
        torch.manual_seed(batch.noise_seed)
        with recorded() if records else nullcontext() as recording:
            own, logits = features_and_logits(self.network, batch.images)
            losses = F.cross_entropy(logits, batch.labels, reduction="none")
        return _Forward(losses, own if batch.features is None else batch.features, recording)

    def _raw(self, batch: Batch, forward: _Forward) -> Tensor:
        """The policy's outputs before normalisation, float [n]."""
        own = forward.features if self.extractor is None else deep_features(self.extractor, batch.images)
        raw: Tensor = self.policy(own, batch.embedding)
        return raw

    def _learn(
        self, batch: Batch, forward: _Forward, validation: tuple[Tensor, Tensor]
    ) -> tuple[Hypergradient, Tensor]:
        """Update theta and alpha (Eq. 2 and 3); also the old theta's raw outputs, float [n]."""
        network, parameters = self.network, self._parameters()
        training_losses = self._training_losses(batch)

        def validation_loss(at: Parameters) -> Tensor:
            torch.manual_seed(batch.noise_seed + 1)
            return F.cross_entropy(functional_call(network, dict(at), (validation[0],)), validation[1])

        raw, alpha = self._raw(batch, forward), self.rate()
        weights = normalise_weights(raw)
        with running_statistics_kept(network):
            self._check_rules(batch, forward.recording)
            outcome = hypergradient(
                parameters,
                forward.losses,
                weights,
                alpha,
                training_losses,
                validation_loss,
                recording=forward.recording,
                keep_graph=not (self.options.low_memory or self.options.simultaneous or self._learns_apart),
                own_rules=bool(self._own_rules),
            )
        self.policy_optimizer.zero_grad()
        torch.autograd.backward([weights, alpha], [outcome.weights, outcome.alpha])
        self.policy_optimizer.step()
        return outcome, raw.detach()

    def _training_losses(self, batch: Batch) -> Losses:
        """The losses of `_forward` as a function of the parameters, with the same noise."""
        network = self.network

        def losses(at: Parameters) -> Tensor:
            torch.manual_seed(batch.noise_seed)
            return F.cross_entropy(functional_call(network, dict(at), (batch.images,)), batch.labels, reduction="none")

        return losses

    def _check_rules(self, batch: Batch, recording: Recording | None) -> None:
        """Find out, once, whether the forward-mode rules of our own are right for this network."""
        if self._own_rules is None:
            with running_statistics_kept(self.network):
                self._own_rules = agrees_with_torch(self._training_losses(batch), self._parameters(), recording)

    def _parameters(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in self.network.named_parameters() if tensor.requires_grad}


def weighted_step(
    losses: Tensor, weights: Tensor, network: nn.Module, optimizer: torch.optim.Optimizer, clip_norm: float
) -> Tensor:
    """The step of Eq. 4: one optimiser update by the gradient of sum_i P_i L_i.

    Args:
        losses: float [n] with their graph, which is freed.
        weights: float [n], P_i, without a graph.
        network: whose gradients are clipped.
        optimizer: of the network's parameters.
        clip_norm: largest global gradient norm; 0 does not clip.

    Returns:
        The weighted loss, float [], detached.
    """
    optimizer.zero_grad()
    losses.backward(gradient=weights)
    update(network, optimizer, clip_norm)
    return (losses.detach() * weights).sum()


def update(network: nn.Module, optimizer: torch.optim.Optimizer, clip_norm: float) -> None:
    """One optimiser update by the gradients that the network's parameters hold, clipped to a global norm (0: not)."""
    if clip_norm:
        nn.utils.clip_grad_norm_(network.parameters(), clip_norm)
    optimizer.step()
