"""Batch normalisation with the statistics of the whole batch of all processes.

`nn.SyncBatchNorm` works only on GPUs and has no forward-mode derivative, which the hypergradient needs.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

from ..distributed import Communicator
from ..runtime.precision import at_least_float32


def synchronised_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: float,
    eps: float,
    communicator: Communicator,
) -> Tensor:
    """`F.batch_norm` in training mode over the inputs of all processes, which have the same shape [n, C, ...].

    Differentiable by input, weight and bias in forward and backward mode. Backward gives each process the gradient of
    the sum of all processes' losses by its own input. It computes in float32 or wider. Communication: forward gathers
    2C numbers, the forward-mode derivative and backward sum 2C each.

    Source: Ioffe and Szegedy, "Batch Normalization" (ICML 2015); the running variance is unbiased, as in torch.
    """
    with torch.no_grad():
        value = at_least_float32(forward_ad.unpack_dual(input).primal.detach())
        var, mean = torch.var_mean(value, _all_but_channels(value), correction=0)
        means, variances = communicator.gather(torch.stack([mean, var])[None]).unbind(1)
        mean = means.mean(0)
        var = variances.mean(0) + (means - mean).square().mean(0)
        if running_mean is not None and running_var is not None:
            count = value.numel() // value.shape[1] * communicator.size
            running_mean.lerp_(mean.to(running_mean), momentum)
            running_var.lerp_((var * (count / max(1, count - 1))).to(running_var), momentum)
    weight = torch.ones_like(mean) if weight is None else weight
    bias = torch.zeros_like(mean) if bias is None else bias
    normalised: Tensor = _Normalisation.apply(input, weight, bias, mean, (var + eps).rsqrt(), communicator)
    return normalised


class _Normalisation(torch.autograd.Function):
    """weight * (input - mean) * inverse + bias, with mean and inverse deviation over the inputs of all processes.

    Its Jacobian by the input is symmetric, so forward mode and backward share `_centred`.
    """

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, inverse: Tensor, communicator: Communicator
    ) -> Tensor:
        ctx.communicator = communicator
        ctx.save_for_backward(input, weight, mean, inverse)
        ctx.save_for_forward(input, weight, mean, inverse)
        unit = _unit(input, mean, inverse)
        return (unit * _along(weight, unit) + _along(bias, unit)).to(input.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, mean, inverse = ctx.saved_tensors
        unit, gradient = _unit(input, mean, inverse), at_least_float32(gradients[0])
        change, by_bias, by_weight = _centred(gradient, unit, ctx.communicator)
        by_input = (change * _along(weight * inverse, unit)).to(input.dtype)
        return by_input, by_weight.to(weight.dtype), by_bias.to(weight.dtype), None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        input, weight, mean, inverse = ctx.saved_tensors
        by_input, by_weight, by_bias = tangents[:3]
        unit = _unit(input, mean, inverse)
        found = torch.zeros_like(unit)
        if by_input is not None:
            change, _, _ = _centred(at_least_float32(by_input), unit, ctx.communicator)
            found = change * _along(weight * inverse, unit)
        if by_weight is not None:
            found = found + unit * _along(by_weight, unit)
        if by_bias is not None:
            found = found + _along(by_bias, unit)
        return found.to(input.dtype)


def _centred(change: Tensor, unit: Tensor, communicator: Communicator) -> tuple[Tensor, Tensor, Tensor]:
    """The change minus its effect on mean and deviation; also this process's sums of it and of it * unit."""
    dims = _all_but_channels(unit)
    own = torch.stack([change.sum(dims), (change * unit).sum(dims)])
    (total,) = communicator.sum([own])
    shift, stretch = total / (unit.numel() // unit.shape[1] * communicator.size)
    return change - _along(shift, unit) - unit * _along(stretch, unit), own[0], own[1]


def _unit(input: Tensor, mean: Tensor, inverse: Tensor) -> Tensor:
    value = at_least_float32(input)
    return (value - _along(mean, value)) * _along(inverse, value)


def _along(channels: Tensor, like: Tensor) -> Tensor:
    return channels.reshape(1, -1, *(1,) * (like.ndim - 2))


def _all_but_channels(tensor: Tensor) -> list[int]:
    return [dim for dim in range(tensor.ndim) if dim != 1]


class _Synchronised(TorchFunctionMode):
    def __init__(self, communicator: Communicator) -> None:
        super().__init__()
        self._communicator = communicator

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is not F.batch_norm:
            return function(*args, **kwargs)
        return self._batch_norm(*args, **kwargs)

    def _batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if not training:
            return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
        return synchronised_batch_norm(
            input, running_mean, running_var, weight, bias, momentum, eps, self._communicator
        )


def batch_statistics(synchronised: bool, communicator: Communicator) -> AbstractContextManager[Any]:
    """Inside the block `F.batch_norm` in training mode uses the batch of all processes if `synchronised`, else its own.

    Enter it last: another torch-function mode entered after it would see the unsynchronised calls.
    """
    return _Synchronised(communicator) if synchronised and communicator.size > 1 else nullcontext()
