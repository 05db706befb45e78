"""Fuse each BatchNorm with the convolution before it, for a network in evaluation mode."""

import copy
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack

import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.utils.fusion import fuse_conv_bn_eval

# Compared by exact type: a subclass may standardise its weight, for example, which fusing would ignore.
CONVOLUTIONS = (nn.Conv2d, Conv2dSame)
NORMALISATIONS = (nn.BatchNorm2d, BatchNormAct2d)

TOLERANCE = 1e-4  # relative to the largest output; a correct fusion differs by about 1e-6, a wrong one by about 1

Function = Callable[[nn.Module, Tensor], Tensor]


def fuse_conv_bn(network: nn.Module, function: Function, images: Tensor) -> nn.Module:
    """A copy of the network in which each BatchNorm is fused with its convolution, where that is possible.

    The pairs are found during a forward pass, so any control flow works; nothing is traced and no code is generated. If
    the copy's output for the images differs from the network's, the network itself is returned.

    Args:
        network: in evaluation mode; it is not changed.
        function: computes a tensor from the network and images, as the caller will use it.
        images: float [n, C, H, W], the network's input, to find the pairs and to compare outputs.
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
    """Whether no element differs by more than `tolerance` times the largest; false if one is not finite."""
    difference = (found - expected).abs().max()
    return bool(difference.isfinite() and difference <= tolerance * expected.abs().max())


def fusable_pairs(network: nn.Module, function: Function, images: Tensor) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """The pairs that can be fused: both layers are called once, and only the BatchNorm uses the convolution's output.

    They are read from autograd's graph of the function, which has every use that the output depends on.
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
    """How many edges of a graph lead to each node."""
    uses: Counter[Node] = Counter()
    to_visit = [] if outcome is None else [outcome]
    while to_visit:
        for node, _ in to_visit.pop().next_functions:
            if node is not None:
                if node not in uses:
                    to_visit.append(node)
                uses[node] += 1
    return uses
