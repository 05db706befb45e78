"""timm's feature contract, for the smallest network of each family."""

import pytest
import timm
import torch
from torch import Tensor, nn

import mapolicy.models  # noqa: F401 - registers the networks in timm

WIDTHS = {"wrn10_1": 64, "wrn16_2": 128, "shakeshake26_2x32d": 128, "pyramidnet110_a48": 64}
EACH = pytest.mark.parametrize("name", WIDTHS)


def build(name: str, **arguments: object) -> nn.Module:
    torch.manual_seed(0)
    network: nn.Module = timm.create_model(name, **({"num_classes": 5} | arguments))
    return network.double().eval()


def images(side: int = 8, channels: int = 3) -> Tensor:
    return torch.randn(2, channels, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@EACH
def test_feature_contract(name: str) -> None:
    network = build(name, in_chans=1)
    x = images(channels=1)
    maps = network.forward_features(x)
    feature = network.forward_head(maps, pre_logits=True)
    assert maps.shape == (2, network.num_features, 2, 2)
    assert feature.shape == (2, network.head_hidden_size)
    assert network.head_hidden_size == network.num_features == WIDTHS[name]
    assert torch.equal(network(x), network.forward_head(maps))
    assert torch.equal(network.get_classifier()(feature), network(x))
    assert network.pretrained_cfg["classifier"] == "fc"
    assert network.pretrained_cfg["input_size"] == (3, 32, 32)


@EACH
def test_reset_classifier(name: str) -> None:
    network = build(name)
    feature = network.forward_head(network.forward_features(images()), pre_logits=True)
    network.reset_classifier(7, "avg")
    network.double()
    assert network.num_classes == network.get_classifier().out_features == 7
    assert torch.equal(network(images()), network.get_classifier()(feature))
    network.reset_classifier(0)
    assert network.num_classes == 0
    assert torch.equal(network(images()), feature)
    with pytest.raises(ValueError, match="global_pool 'max' is not 'avg'"):
        network.reset_classifier(7, global_pool="max")
    assert network.num_classes == 0, "a refused change changes nothing"


@EACH
def test_created_without_a_classifier(name: str) -> None:
    assert build(name, num_classes=0)(images()).shape == (2, WIDTHS[name])


@pytest.mark.parametrize(("name", "arguments"), [*((name, {}) for name in WIDTHS), ("wrn10_1", {"stem_stride": 2})])
def test_feature_info_is_true(name: str, arguments: dict[str, int]) -> None:
    network = build(name, **arguments)
    assert network.feature_info[0]["reduction"] == arguments.get("stem_stride", 1)
    assert [entry["module"] for entry in network.feature_info] == ["stage1", "stage2", "stage3"]
    for entry in network.feature_info:
        seen: list[Tensor] = []
        handle = network.get_submodule(entry["module"]).register_forward_hook(lambda *call, to=seen: to.append(call[2]))
        network(images(16))
        handle.remove()
        assert seen[0].shape == (2, entry["num_chs"], 16 // entry["reduction"], 16 // entry["reduction"])


@EACH
def test_initial_weights(name: str) -> None:
    for part, module in build(name).named_modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 2000:
            inputs = module.weight[0].numel()
            assert module.weight.std().item() == pytest.approx((2 / inputs) ** 0.5, rel=0.15), part
            assert module.bias is None, part
        if isinstance(module, nn.Linear):
            assert not module.bias.any()
