"""One forward gives the feature and the logits that the network itself would give."""

import copy

import pytest
import timm
import torch
from timm.models.volo import VOLO
from torch import Tensor, nn

import mapolicy.models  # noqa: F401 - registers wrn10_1
from mapolicy.errors import UsageError
from mapolicy.models.features import deep_features, feature_width, features_and_logits, running_statistics_kept

TINY_VIT = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
# A distilled network has two classifiers.
CASES = [
    ("wrn10_1", 8, {}),
    ("resnet10t", 32, {}),
    ("vit_tiny_patch16_224", 8, TINY_VIT),
    ("deit_tiny_distilled_patch16_224", 8, TINY_VIT),
    ("convnext_atto", 32, {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 24)}),
    ("test_byobnet", 32, {}),
    ("test_convnext", 32, {}),
    ("test_efficientnet", 32, {}),
    ("test_mambaout", 32, {}),
    ("test_nfnet", 32, {}),
    ("test_resnet", 32, {}),
    ("test_vit", 32, {"img_size": 32}),
]
NETWORKS = pytest.mark.parametrize(("name", "side", "arguments"), CASES, ids=[case[0] for case in CASES])
LINEAR = [case[0] for case in CASES if "distilled" not in case[0]]


def make(name: str, arguments: dict, **more: object) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=5, **arguments, **more).eval()


def images(side: int, channels: int = 3) -> Tensor:
    return torch.randn(3, channels, side, side, generator=torch.Generator().manual_seed(1))


def count_calls(network: nn.Module, module: nn.Module) -> list[int]:
    calls: list[int] = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


def first_layer(network: nn.Module) -> nn.Module:
    return next(
        m for m in network.modules() if next(m.parameters(recurse=False), None) is not None and not list(m.children())
    )


@NETWORKS
def test_feature_and_logits_are_the_network_s_own(name: str, side: int, arguments: dict) -> None:
    network = make(name, arguments)
    x = images(side)
    features, logits = features_and_logits(network, x)
    torch.testing.assert_close(logits, network(x), rtol=1e-5, atol=1e-6)
    expected = network.forward_head(network.forward_features(x), pre_logits=True)
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-6)
    assert features.shape == (3, network.head_hidden_size)
    assert (features[0] - features[1]).abs().max() > 1e-4, "nothing is compared"
    if name in LINEAR:
        classifier = network.get_classifier()
        torch.testing.assert_close(features @ classifier.weight.T + classifier.bias, logits, rtol=1e-5, atol=1e-6)


@NETWORKS
def test_body_runs_once(name: str, side: int, arguments: dict) -> None:
    network = make(name, arguments)
    body = count_calls(network, first_layer(network))
    features_and_logits(network, images(side))
    assert len(body) == 1


@NETWORKS
@pytest.mark.parametrize("training", [False, True])
def test_width_is_found_and_nothing_is_moved(name: str, side: int, arguments: dict, training: bool) -> None:
    network = make(name, arguments).train(training)
    before, random_state = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    assert feature_width(network, side, 3) == network.head_hidden_size
    assert all(module.training == training for module in network.modules())
    assert torch.equal(torch.get_rng_state(), random_state)
    after = network.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_training_forward_moves_the_running_statistics_once() -> None:
    network, reference = make("wrn10_1", {}).train(), make("wrn10_1", {}).train()
    features_and_logits(network, images(8))
    reference(images(8))
    assert all(torch.equal(a, b) for a, b in zip(network.buffers(), reference.buffers(), strict=True))
    assert network.bn.num_batches_tracked == 1


@pytest.mark.parametrize("name", ["resnet10t", "resnetv2_18", "repvit_m0_9", "shvit_s1"])
def test_logits_in_training_are_the_networks_own_with_the_same_noise(name: str) -> None:
    """Dropout and BatchNorm in the head, between the feature and the last layer, too."""
    network = make(name, {}, drop_rate=0.5).train()
    with running_statistics_kept(network):
        torch.manual_seed(3)
        _, logits = features_and_logits(network, images(32))
        torch.manual_seed(3)
        torch.testing.assert_close(logits, network(images(32)), rtol=0, atol=0)
        torch.manual_seed(4)
        assert not torch.equal(logits, network(images(32))), "there is noise"


def test_gradients_go_through_the_logits_alone() -> None:
    network = make("wrn10_1", {})
    features, logits = features_and_logits(network, images(8))
    assert not features.requires_grad
    (gradient,) = torch.autograd.grad(logits.sum(), network.conv1.weight)
    assert gradient.norm() > 0


def test_features_alone_are_the_same_features() -> None:
    network = make("resnet10t", {}).eval()
    assert torch.equal(deep_features(network, images(32)), features_and_logits(network, images(32))[0])


# ---- what cannot be used


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("name", "arguments", "side", "channels", "fix"),
    [
        ("vit_tiny_patch16_224", TINY_VIT, 16, 3, "use --image-size 8 or --model-arg img_size=16, or another network"),
        ("vit_tiny_patch16_224", TINY_VIT, 8, 1, "use --model-arg img_size=8, or another network"),
        ("wrn10_1", {}, 8, 1, "use --image-size 32, or another network"),
    ],
    ids=["size", "channels", "channels-of-ours"],
)
def test_images_that_do_not_fit(name: str, arguments: dict, side: int, channels: int, fix: str, training: bool) -> None:
    network = make(name, arguments).train(training)
    with pytest.raises(UsageError) as refusal:
        feature_width(network, side, channels)
    line = str(refusal.value)
    assert line.startswith(f"network {type(network).__name__}: does not take {channels} x {side} x {side} images (")
    assert line.endswith(f"); {fix}")
    assert "\n" not in line
    assert all(module.training == training for module in network.modules())


class Odd(nn.Module):
    """A network whose parts can be made not to fit together."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.fc = nn.Linear(3, 5)

    def get_classifier(self) -> nn.Module:
        return self.fc

    def forward_features(self, x: Tensor) -> Tensor:
        if self.fault == "two-lines":
            raise RuntimeError("this\nthat")
        return x.mean(dim=(2, 3)) if self.fault != "map" else x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        if self.fault == "map":
            return x if pre_logits else self.fc(x.mean(dim=(2, 3)))
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.fc(x.mean(dim=(2, 3)))
        if self.fault == "tuple":
            return logits, logits  # type: ignore[return-value]
        return logits.tanh() + 1 if self.fault == "after-the-classifier" else logits


def test_odd_network_without_a_fault() -> None:
    assert feature_width(Odd("none"), 4, 3) == 3


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("after-the-classifier", "has no single feature that its logits follow from"),
        ("map", "has no single feature that its logits follow from"),
        ("two-lines", "does not take 3 x 4 x 4 images (this)"),
        ("tuple", ""),
    ],
)
def test_networks_without_a_feature(fault: str, why: str) -> None:
    with pytest.raises(UsageError) as refusal:
        feature_width(Odd(fault), 4, 3)
    assert refusal.value.why.startswith(why)
    assert "\n" not in str(refusal.value)


def test_what_a_head_adds_to_its_classifier_does_not_matter() -> None:
    """VOLO's second head adds to the logits."""
    network = VOLO(num_classes=5, img_size=32, layers=(1,) * 4, embed_dims=(16, 32, 32, 32), num_heads=(2,) * 4)
    assert feature_width(network, 32, 3) == 32


def test_a_network_without_timm_s_methods() -> None:
    with pytest.raises(UsageError, match=r"network Conv2d: does not take .*forward_features"):
        feature_width(nn.Conv2d(3, 2, 1), 4, 3)
