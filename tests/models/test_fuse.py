"""Folding: what is folded computes the same, what cannot be is left, what would differ is not used."""

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, StdConv2d
from torch import Tensor, nn

from mapolicy import models  # noqa: F401 - registers the wide residual networks
from mapolicy.models.features import deep_features
from mapolicy.models.fuse import agree, fusable_pairs, fuse_conv_bn


def images(side: int = 16, channels: int = 3) -> Tensor:
    return torch.randn(4, channels, side, side, generator=torch.Generator().manual_seed(0))


def settled(network: nn.Module, side: int = 16) -> nn.Module:
    """With running statistics and an affine part that are not those of a fresh network."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(std=0.1)
    return network.eval().requires_grad_(False)


def build(name: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return settled(timm.create_model(name, num_classes=4))


def run(network: nn.Module, x: Tensor) -> Tensor:
    out: Tensor = network(x)
    return out


def normalisations(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("wrn10_1", 7, 4),  # pre-activation: what follows a sum, or convolves both ways, cannot be folded
        ("test_resnet", 15, 0),
        ("test_efficientnet", 13, 0),  # BatchNorm and activation in one layer
        ("tf_mobilenetv3_small_minimal_100", 34, 0),  # padding that depends on the size
        ("test_convnext", 0, 0),
        ("test_vit", 0, 0),
    ],
)
def test_the_folded_network_computes_the_same(name: str, before: int, after: int) -> None:
    network = build(name)
    side = 160 if "vit" in name else 32
    state = {key: value.clone() for key, value in network.state_dict().items()}
    result = fuse_conv_bn(network, deep_features, images(side))
    assert (normalisations(network), normalisations(result)) == (before, after)
    assert result is not network
    other = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        expected, got = deep_features(network, other), deep_features(result, other)
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert network.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items()), "left as it was"
    hooks = [module for net in (network, result) for module in net.modules() if module._forward_hooks]
    assert hooks == []


def test_networks_that_cannot_be_traced_are_folded() -> None:
    network = build("tf_mobilenetv3_small_minimal_100")
    with pytest.raises(torch.fx.proxy.TraceError):
        torch.fx.symbolic_trace(network)
    assert normalisations(fuse_conv_bn(network, deep_features, images(32))) == 0


def test_the_folded_weight_is_the_closed_form_in_float64() -> None:
    network = settled(nn.Sequential(nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5)))
    convolution, normalisation = network
    scale = normalisation.weight.double() / (normalisation.running_var.double() + normalisation.eps).sqrt()
    weight = (convolution.weight.double() * scale[:, None, None, None]).float()
    bias = (normalisation.bias.double() - normalisation.running_mean.double() * scale).float()
    result = fuse_conv_bn(network, run, images())
    torch.testing.assert_close(result[0].weight, weight, rtol=1e-7, atol=0)
    torch.testing.assert_close(result[0].bias, bias, rtol=1e-7, atol=1e-9)
    assert isinstance(result[1], nn.Identity)


class Small(nn.Module):
    """A convolution and a BatchNorm; subclasses use them in ways of their own."""

    def __init__(self, convolution: type[nn.Conv2d] = nn.Conv2d, normalisation: type[nn.BatchNorm2d] = nn.BatchNorm2d):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv = convolution(3, 3, 3, padding=1)
            self.bn = normalisation(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class UsedTwice(Small):
    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv(x)
        return hidden + self.bn(hidden)


class ConvolvesTwice(Small):
    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(self.conv(x)))


class NormalisesTwice(Small):
    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.bn(self.conv(x)))


class ActivatedInPlace(Small):
    def forward(self, x: Tensor) -> Tensor:
        return self.bn(F.relu_(self.conv(x)))


class GatedByItsOwn(Small):
    """Uses the convolution's output a second time where no gradient shows it."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv(x)
        return self.bn(hidden) * hidden.detach().sigmoid()


def test_the_small_network_is_folded() -> None:
    assert normalisations(fuse_conv_bn(settled(Small()), run, images())) == 0
    act = fuse_conv_bn(settled(Small(normalisation=BatchNormAct2d)), run, images())
    assert normalisations(act) == 0
    assert isinstance(act.bn, nn.ReLU), "its activation stays"


@pytest.mark.parametrize("kind", [UsedTwice, ConvolvesTwice, NormalisesTwice, ActivatedInPlace])
def test_what_cannot_be_folded_is_left(kind: type[Small]) -> None:
    network = settled(kind())
    assert fusable_pairs(network, run, images()) == []
    assert torch.equal(run(fuse_conv_bn(network, run, images()), images()), run(network, images()))


def test_a_convolution_with_a_weight_of_its_own_making_is_left() -> None:
    assert fusable_pairs(settled(Small(StdConv2d)), run, images()) == []


def test_a_network_that_does_not_agree_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    network = settled(GatedByItsOwn())
    assert len(fusable_pairs(network, run, images())) == 1
    assert fuse_conv_bn(network, run, images()) is network
    small = settled(Small())
    assert fuse_conv_bn(small, run, images()) is not small
    monkeypatch.setattr("mapolicy.models.fuse.fuse_conv_bn_eval", lambda convolution, normalisation: convolution)
    assert fuse_conv_bn(small, run, images()) is small


def test_the_choice_is_made_by_the_images_alone() -> None:
    one, two = (fuse_conv_bn(build("test_resnet"), deep_features, images(32)).state_dict() for _ in range(2))
    assert all(torch.equal(value, two[key]) for key, value in one.items())


def test_agreement() -> None:
    expected = torch.tensor([1.0, -4.0])
    assert agree(expected + 0.3, expected, 0.1)
    assert not agree(expected + torch.tensor([0.0, 0.5]), expected, 0.1)
    for odd in (torch.nan, torch.inf):
        assert not agree(expected + odd, expected, 0.1)
        assert not agree(expected, expected + odd, 0.1)
        assert not agree(expected + odd, expected + odd, 0.1)
