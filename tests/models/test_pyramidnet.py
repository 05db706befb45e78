"""PyramidNet with ShakeDrop: the published sizes, the blocks written out a second time, and that it learns."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mapolicy.models.noise import ShakeDrop
from mapolicy.models.pyramidnet import PyramidNet
from tests.helpers.descent import loss_falls


def counted(depth: int, alpha: int, bottlenecks: bool, classes: int) -> tuple[int, int]:
    """Parameters by the description, and those of them that belong to normalisation."""
    total = (depth - 2) // (3 if bottlenecks else 2)
    weights, normalisation, before = 3 * 9 * 16, 2 * 16, 16
    for number in range(1, total + 1):
        width = int(16 + alpha * number / total + 0.5)
        if bottlenecks:
            weights += before * width + 9 * width * width + width * 4 * width
            normalisation += 2 * (before + width + width + 4 * width)
            before = 4 * width
        else:
            weights += 9 * before * width + 9 * width * width
            normalisation += 2 * (before + width + width)
            before = width
    normalisation += 2 * before
    return weights + before * classes + classes + normalisation, normalisation


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize(
    ("name", "arguments", "width"),
    [("pyramidnet110_a48", (110, 48, False), 64), ("pyramidnet272_a200", (272, 200, True), 864)],
)
def test_number_of_parameters(name: str, arguments: tuple[int, int, bool], width: int, classes: int) -> None:
    with torch.device("meta"):
        network = timm.create_model(name, num_classes=classes)
    parameters, normalisation = counted(*arguments, classes)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    of_layers = (module for module in network.modules() if isinstance(module, nn.BatchNorm2d))
    assert sum(parameter.numel() for layer in of_layers for parameter in layer.parameters()) == normalisation
    assert network.head_hidden_size == width, "the published width"
    if classes == 10:  # the authors count without normalisation, and cut the smaller one's after a digit: 26.0M, 1.7M
        published = {"pyramidnet110_a48": 1.7, "pyramidnet272_a200": 26.0}[name]
        assert (parameters - normalisation) / 1e6 == pytest.approx(published, abs=0.1)
        assert name != "pyramidnet272_a200" or round((parameters - normalisation) / 1e6, 1) == published


@pytest.mark.parametrize(("name", "depth"), [("pyramidnet110_a48", 110), ("pyramidnet272_a200", 272)])
def test_depth_counts_the_convolutions_and_the_classifier(name: str, depth: int) -> None:
    with torch.device("meta"):
        network = timm.create_model(name)
    assert sum(isinstance(module, nn.Conv2d) for module in network.modules()) == depth - 1


@pytest.mark.parametrize(("depth", "bottlenecks", "form"), [(111, False, "6n"), (110 - 1, True, "9n"), (2, True, "9n")])
def test_depth_must_fit(depth: int, bottlenecks: bool, form: str) -> None:
    with pytest.raises(ValueError, match=rf"^depth {depth} is not {form} \+ 2$"):
        PyramidNet(depth, 48, bottlenecks)


def test_drop_probability_rises_to_its_largest() -> None:
    with torch.device("meta"):
        network = timm.create_model("pyramidnet272_a200")
    drops = [module.probability for module in network.modules() if isinstance(module, ShakeDrop)]
    assert drops == pytest.approx([0.5 * (number + 1) / 90 for number in range(90)])
    plain = PyramidNet(11, 4, True, drop_path_rate=0.0)
    assert not any(isinstance(module, ShakeDrop) for module in plain.modules())


def written_out(network: nn.Module, x: Tensor, bottlenecks: bool) -> Tensor:
    """Logits in evaluation mode of a network whose running statistics are fresh: BN divides by sqrt(1 + 1e-5)."""
    scale = (1 + 1e-5) ** -0.5
    x = F.conv2d(x, network.conv1.weight, padding=1) * scale
    blocks = [block for part in network.feature_info for block in network.get_submodule(part["module"])]
    for number, block in enumerate(blocks, start=1):
        halve = number in (len(blocks) // 3 + 1, 2 * len(blocks) // 3 + 1)
        weights = [parameter for parameter in block.parameters() if parameter.ndim == 4]
        strides = (1, 2 if halve else 1, 1) if bottlenecks else (2 if halve else 1, 1)
        y = x * scale
        for position, (weight, stride) in enumerate(zip(weights, strides, strict=True)):
            y = F.conv2d(y, weight, stride=stride, padding=weight.shape[-1] // 2) * scale
            y = y.clamp(min=0) if position < len(weights) - 1 else y
        if halve:
            x = (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
        y = (1 - 0.5 * number / len(blocks)) * y
        y[:, : x.shape[1]] += x
        x = y
    feature = (x * scale).clamp(min=0).mean(dim=(2, 3))
    return feature @ network.fc.weight.T + network.fc.bias


@pytest.mark.parametrize("bottlenecks", [False, True])
def test_written_out(bottlenecks: bool) -> None:
    torch.manual_seed(0)
    network = PyramidNet(20, 11, bottlenecks, num_classes=5).double().eval()
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(network(x), written_out(network, x, bottlenecks))


def test_an_odd_side_is_halved_upwards_as_the_convolution_does() -> None:
    assert PyramidNet(8, 4, False).eval()(torch.zeros(1, 3, 7, 7)).shape == (1, 10)


def test_a_few_steps_reduce_the_loss() -> None:
    torch.manual_seed(0)
    network = PyramidNet(11, 12, True, num_classes=3).train()
    assert loss_falls(network, torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 0]), steps=15)
