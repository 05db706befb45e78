"""Shake-Shake networks: the published sizes, the blocks written out a second time, and that they learn."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mapolicy.models.noise import ShakeShake
from mapolicy.models.shake_shake import Block, ShakeShakeNetwork, Shortcut
from tests.helpers.descent import loss_falls

STAGE_BLOCKS = 4


def counted(width: int, classes: int, channels: int = 3) -> int:
    """Parameters of Shake-Shake 26 2x(width)d by its description: 1 + 2 x 12 convolutions deep, and a classifier."""
    total, before = 9 * channels * 16 + 2 * 16, 16
    for stage in (1, 2, 4):
        after = stage * width
        for block in range(STAGE_BLOCKS):
            entering = before if block == 0 else after
            total += 2 * (9 * entering * after + 9 * after * after + 2 * 2 * after)
        total += before * after + 2 * after  # the shortcut of the first block
        before = after
    return total + before * classes + classes


@pytest.mark.parametrize(
    ("name", "width", "millions"),
    [("shakeshake26_2x32d", 32, 2.9), ("shakeshake26_2x96d", 96, 26.2), ("shakeshake26_2x112d", 112, 35.6)],
)
@pytest.mark.parametrize("classes", [10, 100])
def test_number_of_parameters(name: str, width: int, millions: float, classes: int) -> None:
    with torch.device("meta"):
        network = timm.create_model(name, num_classes=classes)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    assert parameters == counted(width, classes)
    assert classes == 100 or round(parameters / 1e6, 1) == millions
    assert network.head_hidden_size == 4 * width
    assert sum(isinstance(module, ShakeShake) for module in network.modules()) == 3 * STAGE_BLOCKS


def batch(side: int = 8, channels: int = 3) -> Tensor:
    return torch.randn(4, channels, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_shortcut_sees_two_grids_of_pixels() -> None:
    """Every second pixel, and of each its neighbour up and to the left, black beyond the border."""
    torch.manual_seed(0)
    shortcut = Shortcut(3, 6, 2).double().eval()
    x = batch()
    activated = x.clamp(min=0)
    shifted = torch.zeros_like(activated)
    shifted[:, :, 1:, 1:] = activated[:, :, :-1, :-1]
    halves = [
        torch.einsum("oc,bchw->bohw", convolution.weight[:, :, 0, 0], grid[:, :, ::2, ::2])
        for convolution, grid in ((shortcut.conv1, activated), (shortcut.conv2, shifted))
    ]
    expected = torch.cat(halves, dim=1) / (1 + 1e-5) ** 0.5
    torch.testing.assert_close(shortcut(x), expected)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_block_written_out(stride: int, training: bool) -> None:
    torch.manual_seed(0)
    block = Block(3, 4, stride).double().train(training)
    x = batch()

    def normalised(x: Tensor) -> Tensor:
        mean, variance = torch.zeros(()), torch.ones(())
        if training:
            mean, variance = x.mean(dim=(0, 2, 3), keepdim=True), x.var(dim=(0, 2, 3), unbiased=False, keepdim=True)
        return (x - mean) / (variance + 1e-5).sqrt()

    branches = []
    for weights in ([p for p in part.parameters() if p.ndim == 4] for part in (block.branch1, block.branch2)):
        hidden = normalised(F.conv2d(x.clamp(min=0), weights[0], stride=stride, padding=1))
        branches.append(normalised(F.conv2d(hidden.clamp(min=0), weights[1], padding=1)))
    torch.manual_seed(5)
    output = block(x)
    torch.manual_seed(5)
    alpha = torch.rand(2, 4, 1, 1, 1, dtype=torch.float64)[0] if training else torch.tensor(0.5)
    expected = alpha * branches[0] + (1 - alpha) * branches[1] + block.shortcut(x)
    torch.testing.assert_close(output, expected)


def test_equal_widths_have_no_shortcut() -> None:
    assert isinstance(Block(4, 4, 1).shortcut, nn.Identity)


def test_a_few_steps_reduce_the_loss() -> None:
    torch.manual_seed(0)
    network = ShakeShakeNetwork(4, num_classes=3).train()
    assert loss_falls(network, batch().float(), torch.tensor([0, 1, 2, 0]), steps=10)
