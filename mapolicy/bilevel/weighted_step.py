"""The weighted step (Eq. 4 of MetaAugment): one update of the task network, over micro-batches and processes."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from ..distributed import ALONE, Communicator
from .hypergradients import summed


def weighted_step(
    losses: Iterable[Tensor],
    weights: Sequence[Tensor],
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    clip_norm: float,
    communicator: Communicator = ALONE,
) -> Tensor:
    """The step of Eq. 4: one optimiser update by the gradient of sum_i P_i L_i over the whole batch.

    Args:
        losses: of each micro-batch, float [n] with their graph, which is freed before the next one is computed.
        weights: of each micro-batch, float [n], P_i, without a graph; their sum over all processes is 1.
        network: whose gradients are summed and clipped.
        optimizer: of the network's parameters.
        clip_norm: largest global gradient norm; 0 does not clip.
        communicator: to the processes that have the other shards.

    Returns:
        The weighted loss, float [], detached; if it is not finite, nothing was updated.
    """
    optimizer.zero_grad()
    seen = []
    for part, share in zip(losses, weights, strict=True):
        part.backward(gradient=share)
        seen.append(part.detach())
    (loss,) = reduce_gradients(network.parameters(), communicator, weighted_loss(seen, weights))
    update(network, optimizer, clip_norm, loss)
    return loss


def weighted_loss(losses: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """sum_i P_i L_i over these micro-batches, float []."""
    (loss,) = summed([(part * share).sum()] for part, share in zip(losses, weights, strict=True))
    return loss


def reduce_gradients(parameters: Iterable[nn.Parameter], communicator: Communicator, *others: Tensor) -> list[Tensor]:
    """Sum the parameters' gradients over all processes; return the sums of the other tensors."""
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
