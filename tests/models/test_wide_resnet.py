"""Wide residual networks: the published sizes, names by pattern, and the blocks written out a second time."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mapolicy.models.wide_resnet import LISTED, WideResNet, register


def small(**arguments: object) -> nn.Module:
    """A WRN-10-1 whose every number matters, normalisation's too, in float64."""
    torch.manual_seed(0)
    network = timm.create_model("wrn10_1", num_classes=5, **arguments).double()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.3)
            nn.init.normal_(layer.running_mean, std=0.3)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
    return network


def images(side: int = 8, channels: int = 3) -> Tensor:
    return torch.randn(4, channels, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def written_out(state: dict[str, Tensor], x: Tensor, training: bool) -> tuple[Tensor, Tensor]:
    """Feature and logits of WRN-10-1: one block a stage; each widens, so each but the first has a projection."""

    def activated(x: Tensor, name: str) -> Tensor:
        mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        if training:
            mean, variance = x.mean(dim=(0, 2, 3)), x.var(dim=(0, 2, 3), unbiased=False)
        scaled = (x - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt()
        return (scaled * state[f"{name}.weight"][:, None, None] + state[f"{name}.bias"][:, None, None]).clamp(min=0)

    x = F.conv2d(x, state["conv1.weight"], padding=1)
    for stage, stride in (("stage1.0", 1), ("stage2.0", 2), ("stage3.0", 2)):
        a = activated(x, f"{stage}.bn1")
        y = F.conv2d(a, state[f"{stage}.conv1.weight"], stride=stride, padding=1)
        y = F.conv2d(activated(y, f"{stage}.bn2"), state[f"{stage}.conv2.weight"], padding=1)
        x = y + (x if stage == "stage1.0" else F.conv2d(a, state[f"{stage}.shortcut.weight"], stride=stride))
    feature = activated(x, "bn").mean(dim=(2, 3))
    return feature, feature @ state["fc.weight"].T + state["fc.bias"]


@pytest.mark.parametrize("side", [8, 32])
@pytest.mark.parametrize("training", [False, True])
def test_output_equals_the_blocks_written_out(training: bool, side: int) -> None:
    network = small().train(training)
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    feature, logits = written_out(state, images(side), training)
    torch.testing.assert_close(network(images(side)), logits, rtol=1e-10, atol=1e-12)
    maps = network.forward_features(images(side))
    torch.testing.assert_close(network.forward_head(maps, pre_logits=True), feature, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "classes", "parameters"),
    [
        ("wrn28_10", 10, 36_479_194),
        ("wrn28_10", 100, 36_536_884),
        ("wrn40_2", 10, 2_243_546),
        ("wrn40_2", 100, 2_255_156),
    ],
)
def test_number_of_parameters(name: str, classes: int, parameters: int) -> None:
    with torch.device("meta"):
        network = timm.create_model(name, num_classes=classes)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


@pytest.mark.parametrize(("name", "depth"), [("wrn10_1", 10), ("wrn16_2", 16), ("wrn28_10", 28), ("wrn40_2", 40)])
def test_depth_counts_the_convolutions(name: str, depth: int) -> None:
    """As the paper does: the first, two a block, and three projections (WRN-10-1's first stage needs none)."""
    with torch.device("meta"):
        network = timm.create_model(name)
    sizes = [module.kernel_size for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert sizes.count((3, 3)) == depth - 3
    assert sizes.count((1, 1)) == (2 if name == "wrn10_1" else 3)
    assert network.num_classes == 10


@pytest.mark.parametrize("depth", [-2, 4, 9, 11, 29])
def test_depth_must_be_6n_plus_4(depth: int) -> None:
    with pytest.raises(ValueError, match=f"^depth {depth} is not 6n \\+ 4$"):
        WideResNet(depth, 1)


@pytest.mark.parametrize("name", LISTED)
def test_timm_lists_it(name: str) -> None:
    assert timm.is_model(name)
    assert name in timm.list_models("wrn*")


def test_any_depth_and_width_by_its_name() -> None:
    assert not timm.is_model("wrn22_3")
    assert register("wrn22_3")
    assert register("wrn22_3"), "a second time changes nothing and warns of nothing"
    with torch.device("meta"):
        network = timm.create_model("wrn22_3", num_classes=7)
    sizes = [module.kernel_size for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert (sizes.count((3, 3)), sizes.count((1, 1))) == (22 - 3, 3)
    assert (network.head_hidden_size, network.num_classes) == (3 * 64, 7)


@pytest.mark.parametrize(
    "name",
    ["wrn4_1", "wrn29_10", "wrn28_0", "wrn28_", "wrn028_10", "wrn1000_1", "wrn28_100", "wrn28_10_2", "WRN28_10", "wrn"],
)
def test_there_is_no_such_network(name: str) -> None:
    assert not register(name)
    assert not timm.is_model(name)


def test_dropout_stands_between_the_convolutions() -> None:
    network = small(drop_rate=0.5)
    assert [layer.p for layer in network.modules() if isinstance(layer, nn.Dropout)] == [0.5] * 3
    plain = small()
    plain.load_state_dict(network.state_dict())
    torch.testing.assert_close(network.eval()(images()), plain.eval()(images()), rtol=0, atol=0)
    network.train()
    torch.manual_seed(0)
    assert (network(images()) - network(images())).abs().max() > 1e-3
