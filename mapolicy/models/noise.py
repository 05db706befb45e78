"""Shake-Shake and ShakeDrop: residual noise with different factors in forward and backward.

Backward of such a network is not the gradient of its forward. Code that needs a true gradient sets the noise to its
mean by `noise_at_its_mean`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class _ForwardAndBackward(torch.autograd.Function):
    """forward * x, whose backward multiplies the gradient by `backward` instead of `forward`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, forward: Tensor, backward: Tensor) -> Tensor:
        ctx.save_for_backward(backward)
        return x * forward

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (backward,) = ctx.saved_tensors
        return gradient * backward, None, None


def shaken(x: Tensor, forward: Tensor, backward: Tensor) -> Tensor:
    """forward * x, whose backward multiplies the gradient by `backward`; both factors broadcast with x."""
    value: Tensor = _ForwardAndBackward.apply(x, forward, backward)
    return value


class UnequalNoise(nn.Module):
    """Base of layers with different random factors in forward and backward.

    Attributes:
        at_mean: whether it uses the mean of its forward factor in training mode too, in forward and backward.
    """

    def __init__(self) -> None:
        super().__init__()
        self.at_mean = False

    @property
    def noisy(self) -> bool:
        """Whether the next forward draws noise; all of it comes from torch's global generator of the device."""
        return self.training and not self.at_mean


class ShakeShake(UnequalNoise):
    """A random convex combination of two branches, drawn for each image, with another one in backward.

    In evaluation mode both factors are 0.5. Source: Gastaldi, "Shake-Shake regularization" (2017),
    "Shake-Shake-Image", and github.com/xgastaldi/shake-shake.
    """

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Two [B, C, H, W] to alpha_i first_i + (1 - alpha_i) second_i with alpha_i ~ U(0, 1); backward: beta_i."""
        if not self.noisy:
            return 0.5 * (first + second)
        alpha, beta = torch.rand(2, len(first), 1, 1, 1, dtype=first.dtype, device=first.device)
        return shaken(first, alpha, beta) + shaken(second, 1 - alpha, 1 - beta)


class ShakeDrop(UnequalNoise):
    """With probability p replaces the factor 1 of a residual branch by noise.

    The gate b is 1 with probability 1 - p, drawn once for the batch. Where it is 0 the branch is multiplied by alpha ~
    U(-1, 1) and its gradient by beta ~ U(0, 1), both drawn for each image. In evaluation mode the factor is 1 - p, the
    mean of the forward factor. Source:
    Yamada, Iwamura, Akiba and Kise, "ShakeDrop Regularization for Deep Residual Learning" (IEEE Access 2019), and
    fast-autoaugment's networks/shakedrop.py (gate for the batch, alpha and beta for each image).

    Args:
        probability: p.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to (b + alpha_i - b alpha_i) x_i; the gradient's factor is b + beta_i - b beta_i."""
        if not self.noisy:
            return (1 - self.probability) * x
        kept = torch.rand((), device=x.device) >= self.probability
        alpha, beta = torch.rand(2, len(x), 1, 1, 1, dtype=x.dtype, device=x.device)
        one = torch.ones_like(alpha)
        # Selected on the device: reading the gate would make every block wait for the GPU.
        return shaken(x, torch.where(kept, one, 2 * alpha - 1), torch.where(kept, one, beta))

    def extra_repr(self) -> str:
        """The probability, for the module's repr."""
        return f"probability={self.probability:g}"


def has_unequal_noise(network: nn.Module) -> bool:
    """Whether the network's noise differs between forward and backward, so that it has no true gradient."""
    return any(isinstance(module, UnequalNoise) for module in network.modules())


@contextmanager
def noise_at_its_mean(*networks: nn.Module) -> Iterator[None]:
    """Inside the block unequal noise is at the mean of its forward factor; the networks have a true gradient."""
    modules = (module for network in networks for module in network.modules())
    layers = [module for module in modules if isinstance(module, UnequalNoise)]
    for layer in layers:
        layer.at_mean = True
    try:
        yield
    finally:
        for layer in layers:
            layer.at_mean = False
