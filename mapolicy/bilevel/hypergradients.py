"""The hypergradient (Eq. 3 of MetaAugment): exact, and without a second derivative of the network.

With the virtual step w_hat = w - alpha * sum_i P_i grad L_i(w) and v the gradient of the validation loss at w_hat,

    dL_val/dP_i   = - < alpha * v, grad L_i(w) >
    dL_val/dalpha = - < v, sum_i P_i grad L_i(w) >

and all inner products < alpha * v, grad L_i(w) > are the directional derivatives of the per-sample losses at w along
alpha * v: one forward-mode pass.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..distributed import ALONE, Communicator
from .forward_mode import Losses, Parameters, Recording, directional_derivative, torchs_derivative


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
    """Derivatives of the validation loss after one weighted gradient step, by the step's weights and its length.

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
    gradients = weighted_gradient([losses], [weights.detach()], list(parameters.values()), keep_graph)
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
    """`hypergradient` of a batch in micro-batches whose weighted gradient is known.

    Args:
        parameters, alpha, recording, own_rules: as of `hypergradient`; only a single micro-batch has a recording.
        gradients: g, of all micro-batches in all processes.
        training_losses: of each of this process's micro-batches.
        validation_losses: of each of this process's micro-batches of the meta-validation batch; over all processes they
            sum to the mean loss.
        communicator: to the other processes.
    """
    names, tensors = list(parameters), list(parameters.values())
    rates = alpha.detach().expand(len(names)).unbind()
    moved = {
        name: torch.addcmul(tensor.detach(), rate, gradient, value=-1).requires_grad_()
        for name, tensor, rate, gradient in zip(names, tensors, rates, gradients, strict=True)
    }
    found = [_value_and_gradient(loss, moved) for loss in validation_losses]
    loss, *descent = communicator.sum(summed(found))
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


def weighted_gradient(
    losses: Iterable[Tensor], weights: Sequence[Tensor], tensors: Sequence[Tensor], keep_graph: bool
) -> list[Tensor]:
    """Sum over all micro-batches and samples of weight times gradient of the loss, a tensor for each of `tensors`."""
    return summed(
        torch.autograd.grad(part, tensors, grad_outputs=share, retain_graph=keep_graph, materialize_grads=True)
        for part, share in zip(losses, weights, strict=True)
    )


def _value_and_gradient(function: Losses, at: dict[str, Tensor]) -> list[Tensor]:
    value = function(at)
    return [value.detach(), *torch.autograd.grad(value, list(at.values()), materialize_grads=True)]


def summed(terms: Iterable[Sequence[Tensor]]) -> list[Tensor]:
    """Sum the terms tensor by tensor; only two terms are in memory at a time."""
    total: list[Tensor] = []
    for term in terms:
        total = [one + other for one, other in zip(total, term, strict=True)] if total else list(term)
    return total
