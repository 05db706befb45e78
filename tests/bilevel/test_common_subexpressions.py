"""Equal values are computed once, and only equal ones."""

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from mapolicy.bilevel.common_subexpressions import merge_equal


def test_equal_values_are_computed_once() -> None:
    def function(images: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        first = torch.var_mean(torch.conv2d(images, weight))
        second = torch.var_mean(torch.conv2d(images, torch.ops.aten.alias(weight)))
        other = torch.conv2d(images, weight * 2)
        return first[0] + second[0] + second[1] + other.sum() + torch.rand_like(weight).sum()

    arguments = torch.randn(2, 1, 4, 4), torch.randn(3, 1, 2, 2)
    module = make_fx(function)(*arguments)
    count = lambda name: sum(name in str(node.target) for node in module.graph.nodes)  # noqa: E731
    assert (count("convolution"), count("var_mean"), count("alias")) == (3, 2, 1)
    torch.manual_seed(0)
    expected = module(*arguments)
    merge_equal(module.graph)
    module.recompile()
    assert (count("convolution"), count("var_mean"), count("alias"), count("rand")) == (2, 1, 0, 1)
    torch.manual_seed(0)
    assert torch.equal(module(*arguments), expected)


def test_draws_are_not_merged() -> None:
    module = make_fx(lambda x: torch.rand_like(x) - torch.rand_like(x))(torch.zeros(3))
    merge_equal(module.graph)
    module.recompile()
    assert module(torch.zeros(3)).abs().sum() > 0
