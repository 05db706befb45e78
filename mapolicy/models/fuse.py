"""Convolution and BatchNorm as one convolution, for a network that is only evaluated."""

import copy
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack

import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.utils.fusion import fuse_conv_bn_eval

# By exact type: a subclass may do more to its weight (standardise it, say) than a fold knows of.
CONVOLUTIONS = (nn.Conv2d, Conv2dSame)
NORMALISATIONS = (nn.BatchNorm2d, BatchNormAct2d)

TOLERANCE = 1e-4  # of the largest output; folding alone moves it by about 1e-6, a wrong fold by about 1

Function = Callable[[nn.Module, Tensor], Tensor]


def fuse_conv_bn(network: nn.Module, function: Function, images: Tensor) -> nn.Module:
    """A copy of the network in which each BatchNorm that alone follows a convolution has become part of it.

    The pairs are found while the images pass, so that any control flow will do; nothing is traced and no code is
    generated. What the copy makes of the images is compared with what the network makes of them: where they differ, the
    network itself is returned. The same network and images give the same answer.

    Args:
        network: in evaluation mode; left as it is.
        function: what is computed with it, a tensor.
        images: float [n, C, H, W], the network's input, for finding and for comparing.
    """
    with torch.no_grad():
        expected = function(network, images)
    result = copy.deepcopy(network)
    pairs = fusable_pairs(result, function, images)
    replacements: dict[nn.Module, nn.Module] = {}
    for convolution, normalisation in pairs:
        exact = copy.deepcopy(convolution).double(), copy.deepcopy(normalisation).double()
        replacements[convolution] = fuse_conv_bn_eval(*exact).to(convolution.weight.dtype)
        act = normalisation.get_submodule("act") if isinstance(normalisation, BatchNormAct2d) else nn.Identity()
        replacements[normalisation] = act
    for parent in list(result.modules()):
        for name, child in list(parent.named_children()):
            if child in replacements:
                setattr(parent, name, replacements[child])
    result.eval()
    with torch.no_grad():
        found = function(result, images)
    return result if agree(found, expected, TOLERANCE) else network


def agree(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Whether no number differs by more than a share of the largest one; never where one is not finite."""
    difference = (found - expected).abs().max()
    return bool(difference.isfinite() and difference <= tolerance * expected.abs().max())


def fusable_pairs(network: nn.Module, function: Function, images: Tensor) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """The pairs that can be folded: each layer is used once, and the convolution's output by that BatchNorm alone.

    Read off autograd's graph of the function, which shows every use that the outcome depends on.
    """
    calls: Counter[nn.Module] = Counter()
    outputs: dict[Node, nn.Conv2d] = {}
    candidates: list[tuple[Node, nn.Conv2d, nn.BatchNorm2d]] = []

    def after_convolution(layer: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(layer, nn.Conv2d)
        calls[layer] += 1
        if output.grad_fn is not None:
            outputs[output.grad_fn] = layer

    def before_normalisation(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, nn.BatchNorm2d)
        calls[layer] += 1
        node = inputs[0].grad_fn if inputs else None
        if node is not None and node in outputs and layer.running_mean is not None:
            candidates.append((node, outputs[node], layer))

    with ExitStack() as hooks, torch.enable_grad():
        for layer in network.modules():
            if type(layer) in CONVOLUTIONS:
                hooks.enter_context(layer.register_forward_hook(after_convolution))
            elif type(layer) in NORMALISATIONS:
                hooks.enter_context(layer.register_forward_pre_hook(before_normalisation))
        outcome = function(network, images.detach().requires_grad_().clone())
    uses = _uses(outcome.grad_fn)
    return [
        (convolution, normalisation)
        for node, convolution, normalisation in candidates
        if uses[node] == calls[convolution] == calls[normalisation] == 1
    ]


def _uses(outcome: Node | None) -> Counter[Node]:
    """How often each node of a graph is used by another."""
    uses: Counter[Node] = Counter()
    waiting = [] if outcome is None else [outcome]
    while waiting:
        for node, _ in waiting.pop().next_functions:
            if node is not None:
                if node not in uses:
                    waiting.append(node)
                uses[node] += 1
    return uses
