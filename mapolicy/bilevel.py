"""The bilevel step: virtual step (Eq. 2), hypergradient (Eq. 3), weighted step (Eq. 4) of MetaAugment.

The hypergradient is exact and needs no second derivative of the network. With the virtual step
w_hat = w - alpha * sum_i P_i grad L_i(w) and v the gradient of the validation loss at w_hat,

    dL_val/dP_i   = - < alpha * v, grad L_i(w) >
    dL_val/dalpha = - < v, sum_i P_i grad L_i(w) >

and all inner products < alpha * v, grad L_i(w) > are the directional derivatives of the per-sample losses at w along
alpha * v: one forward-mode pass. The forward of Eq. 2 and of Eq. 4 is the same batch at the same w, so its graph is
kept and the weighted step needs no forward of its own.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from .features import features_and_logits, running_statistics_kept
from .policy import PolicyNetwork, normalise_weights

Parameters = Mapping[str, Tensor]


@dataclass(frozen=True)
class Hypergradient:
    """Derivatives of the validation loss after the virtual step.

    Attributes:
        weights: float [n], with respect to the weights P_i.
        alpha: the shape of alpha, with respect to alpha.
        validation_loss: float [], the loss they are derivatives of.
    """

    weights: Tensor
    alpha: Tensor
    validation_loss: Tensor


def hypergradient(
    parameters: Parameters,
    losses: Tensor,
    weights: Tensor,
    alpha: Tensor,
    training_losses: Callable[[dict[str, Tensor]], Tensor],
    validation_loss: Callable[[dict[str, Tensor]], Tensor],
) -> Hypergradient:
    """How the validation loss after one weighted gradient step depends on the step's weights and its length.

    Exact, by one backward pass over `losses`, one gradient of `validation_loss` and one forward-mode pass of
    `training_losses`. The graph of `losses` is kept. Source: MetaAugment (Zhou et al., AAAI 2021), Eq. 2 and 3.

    Args:
        parameters: the task network's parameters w by name.
        losses: float [n], the per-sample losses at w, with their graph.
        weights: float [n], P_i.
        alpha: float [] or [number of parameters], the inner rate, of all parameters or of each.
        training_losses: the same losses as a function of the parameters; it must repeat the same noise and touch no
            buffers.
        validation_loss: the mean validation loss, float [], as a function of the parameters; it must touch no buffers.
    """
    _load_forward_mode()
    names, tensors = list(parameters), list(parameters.values())
    rates = alpha.detach().expand(len(names)).unbind()
    gradients = torch.autograd.grad(
        losses, tensors, grad_outputs=weights.detach(), retain_graph=True, materialize_grads=True
    )
    moved = {
        name: torch.addcmul(tensor.detach(), rate, gradient, value=-1).requires_grad_()
        for name, tensor, rate, gradient in zip(names, tensors, rates, gradients, strict=True)
    }
    loss = validation_loss(moved)
    descent = torch.autograd.grad(loss, list(moved.values()), materialize_grads=True)
    direction = {name: rate * v for name, rate, v in zip(names, rates, descent, strict=True)}
    outcome = jvp(training_losses, ({name: parameters[name].detach() for name in names},), (direction,))
    by_tensor = torch.stack([-(v * gradient).sum() for v, gradient in zip(descent, gradients, strict=True)])
    return Hypergradient(
        weights=-outcome[1].detach(),
        alpha=by_tensor if alpha.ndim else by_tensor.sum(),
        validation_loss=loss.detach(),
    )


@cache
def _load_forward_mode() -> None:
    # torch loads its forward-mode rules at the first use, and in doing so warns of its own use of torch.jit.script.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
        jvp(torch.sin, (torch.zeros(()),), (torch.ones(()),))


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
class StepRecord:
    """What one bilevel step did; tensors are detached.

    Attributes:
        loss: float [], the weighted training loss.
        validation_loss: float [], after the virtual step.
        raw: float [n], the new policy's outputs before normalisation.
        weights: float [n], the same normalised to sum 1, as used in the weighted step.
        alpha: float [] or [tensors], after its update.
        hypergradient: float [n], with respect to the weights.
    """

    loss: Tensor
    validation_loss: Tensor
    raw: Tensor
    weights: Tensor
    alpha: Tensor
    hypergradient: Tensor


class BilevelStep:
    """One iteration of Algorithm 1 of MetaAugment after the batch has been augmented.

    Source: Zhou et al., AAAI 2021, Eq. 2 to 4.

    Args:
        network: the task network, a timm model.
        policy: the policy network, theta.
        rate: the inner rate, alpha.
        optimizer: of the task network's parameters (Eq. 4).
        policy_optimizer: of theta and alpha (Eq. 3).
        clip_norm: largest norm of the weighted step's gradient; 0 does not clip.
    """

    def __init__(
        self,
        network: nn.Module,
        policy: PolicyNetwork,
        rate: InnerRate,
        optimizer: torch.optim.Optimizer,
        policy_optimizer: torch.optim.Optimizer,
        clip_norm: float = 0.0,
    ) -> None:
        self.network, self.policy, self.rate = network, policy, rate
        self.optimizer, self.policy_optimizer = optimizer, policy_optimizer
        self.clip_norm = clip_norm

    def __call__(
        self,
        images: Tensor,
        labels: Tensor,
        embedding: Tensor,
        validation_images: Tensor,
        validation_labels: Tensor,
        noise_seed: int,
        features: Tensor | None = None,
    ) -> StepRecord:
        """Update theta, alpha and w.

        Args:
            images: float [n, C, H, W], augmented and normalised; n counts all copies.
            labels: int64 [n].
            embedding: float [n, 2K], of the images' transformations.
            validation_images: float [m, C, H, W], normalised.
            validation_labels: int64 [m].
            noise_seed: seeds torch's global generators for the network's own noise (dropout, stochastic depth), so
                that the forward-mode pass replays that of the forward.
            features: float [n, F] of a frozen extractor; None takes the network's own.
        """
        network = self.network
        parameters = {name: tensor for name, tensor in network.named_parameters() if tensor.requires_grad}

        def training_losses(at: Parameters) -> Tensor:
            torch.manual_seed(noise_seed)
            return F.cross_entropy(functional_call(network, dict(at), (images,)), labels, reduction="none")

        def validation_loss(at: Parameters) -> Tensor:
            return F.cross_entropy(functional_call(network, dict(at), (validation_images,)), validation_labels)

        network.train()
        # Only the mathematical form of attention has a forward-mode derivative; both passes must draw the same noise.
        with sdpa_kernel(SDPBackend.MATH):
            torch.manual_seed(noise_seed)
            own_features, logits = features_and_logits(network, images)
            losses = F.cross_entropy(logits, labels, reduction="none")
            features = own_features if features is None else features

            alpha = self.rate()
            weights = normalise_weights(self.policy(features, embedding))
            with running_statistics_kept(network):
                outcome = hypergradient(parameters, losses, weights, alpha, training_losses, validation_loss)
        self.policy_optimizer.zero_grad()
        torch.autograd.backward([weights, alpha], [outcome.weights, outcome.alpha])
        self.policy_optimizer.step()

        with torch.no_grad():
            raw = self.policy(features, embedding)
            new_weights = normalise_weights(raw)
        loss = weighted_step(losses, new_weights, self.network, self.optimizer, self.clip_norm)
        return StepRecord(
            loss=loss,
            validation_loss=outcome.validation_loss,
            raw=raw,
            weights=new_weights,
            alpha=self.rate().detach(),
            hypergradient=outcome.weights,
        )


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
    if clip_norm:
        nn.utils.clip_grad_norm_(network.parameters(), clip_norm)
    optimizer.step()
    return (losses.detach() * weights).sum()
