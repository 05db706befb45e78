"""The bilevel step against double backward through the same mathematics, in float64."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

import mapolicy.models  # noqa: F401 - registers wrn10_1
from mapolicy.bilevel import BilevelStep, InnerRate
from mapolicy.features import features_and_logits, running_statistics_kept
from mapolicy.policy import PolicyNetwork, normalise_weights
from mapolicy.runtime import seed_for
from mapolicy.space import EMBEDDING_WIDTH

CLASSES = 5
SEED = seed_for(0, "test", "noise", 0)


class Case:
    """A network, a policy that weighs unequally, and batches, all float64 and small."""

    def __init__(
        self, arch: str = "wrn10_1", copies: int = 1, per_layer: bool = False, side: int = 8, **arguments: float
    ) -> None:
        torch.manual_seed(3)
        self.network = timm.create_model(arch, num_classes=CLASSES, in_chans=1, **arguments).double()
        batch = 6
        self.images = torch.randn(batch * copies, 1, side, side, dtype=torch.float64)
        self.labels = torch.randint(CLASSES, (batch,)).repeat_interleave(copies)
        self.embedding = torch.rand(batch * copies, EMBEDDING_WIDTH, dtype=torch.float64) * 11
        self.validation_images = torch.randn(7, 1, side, side, dtype=torch.float64)
        self.validation_labels = torch.randint(CLASSES, (7,))
        self.policy = PolicyNetwork(self.network.head_hidden_size).double()
        nn.init.normal_(self.policy.output.weight, std=0.3)
        tensors = len(list(self.network.parameters())) if per_layer else None
        self.rate = InnerRate(0.3, tensors).double()
        if per_layer:
            self.rate.log_alpha.data += torch.randn_like(self.rate.log_alpha)

    def step(
        self, learning_rate: float = 0.0, policy_learning_rate: float = 0.0, clip_norm: float = 0.0
    ) -> BilevelStep:
        learned = [*self.policy.parameters(), *self.rate.parameters()]
        return BilevelStep(
            self.network,
            self.policy,
            self.rate,
            torch.optim.SGD(self.network.parameters(), lr=learning_rate),
            torch.optim.SGD(learned, lr=policy_learning_rate),
            clip_norm,
        )

    def run(self, step: BilevelStep):
        return step(
            self.images, self.labels, self.embedding, self.validation_images, self.validation_labels, noise_seed=SEED
        )

    def double_backward(self) -> dict[str, torch.Tensor]:
        """Eq. 2 and 3 written out, differentiated by autograd through the inner gradient."""
        network = copy.deepcopy(self.network).train()
        parameters = dict(network.named_parameters())
        with running_statistics_kept(network):
            torch.manual_seed(SEED)
            logits = network(self.images)
            torch.manual_seed(SEED)
            features, _ = features_and_logits(network, self.images)
            losses = F.cross_entropy(logits, self.labels, reduction="none")
            weights = normalise_weights(self.policy(features.detach(), self.embedding))
            gradients = torch.autograd.grad((weights * losses).sum(), list(parameters.values()), create_graph=True)
            alpha = self.rate()
            rates = alpha if alpha.ndim else alpha.expand(len(parameters))
            moved = {n: p - a * g for (n, p), a, g in zip(parameters.items(), rates, gradients, strict=True)}
            logits = functional_call(network, moved, (self.validation_images,))
            loss = F.cross_entropy(logits, self.validation_labels)
        learned = {"alpha": self.rate.log_alpha} | dict(self.policy.named_parameters())
        return dict(zip(learned, torch.autograd.grad(loss, list(learned.values())), strict=True))


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


@pytest.mark.parametrize("copies", [1, 4])
@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize(
    ("arch", "arguments"),
    [("wrn10_1", {}), ("wrn10_1", {"drop_rate": 0.3}), ("resnet10t", {"drop_path_rate": 0.4, "drop_rate": 0.2})],
    ids=["batchnorm", "dropout", "stochastic-depth"],
)
def test_hypergradient_equals_double_backward(arch: str, arguments: dict, per_layer: bool, copies: int) -> None:
    case = Case(arch, copies, per_layer, **arguments)
    assert any(isinstance(module, nn.BatchNorm2d) for module in case.network.modules())
    expected = case.double_backward()
    case.run(case.step())
    got = {"alpha": case.rate.log_alpha.grad} | {n: p.grad for n, p in case.policy.named_parameters()}
    assert set(got) == set(expected)
    for name, gradient in got.items():
        assert gradient is not None
        assert expected[name].norm() > 0, f"{name}: nothing is compared"
        assert relative_error(gradient, expected[name]) < 1e-9, name


@pytest.mark.parametrize("arch", ["resnetv2_18", "repvit_m0_9", "shvit_s1"])
def test_noise_and_normalisation_in_the_head_are_replayed(arch: str) -> None:
    """Heads that are no single linear layer: dropout before a convolution, BatchNorm before the last layer."""
    case = Case(arch, side=32, drop_rate=0.3)
    expected = case.double_backward()
    case.run(case.step())
    for name, parameter in case.policy.named_parameters():
        assert relative_error(parameter.grad, expected[name]) < 1e-9, name


def test_attention_networks_have_a_hypergradient() -> None:
    arguments = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "attn_drop_rate": 0.2}
    case = Case("vit_tiny_patch16_224", **arguments)
    expected = case.double_backward()
    case.run(case.step())
    for name, parameter in case.policy.named_parameters():
        assert relative_error(parameter.grad, expected[name]) < 1e-9, name


def test_weighted_step_uses_the_new_theta_and_the_old_w() -> None:
    case = Case()
    before = copy.deepcopy(case.network)
    step = case.step(learning_rate=0.1, policy_learning_rate=50.0)
    old_weights = normalise_weights(case.policy(features_and_logits(before.train(), case.images)[0], case.embedding))
    record = case.run(step)

    reference = copy.deepcopy(before)
    reference.load_state_dict(Case().network.state_dict())
    reference.train()
    features, logits = features_and_logits(reference, case.images)
    weights = normalise_weights(case.policy(features, case.embedding)).detach()  # theta has moved by now
    assert (weights - old_weights).abs().max() > 1e-3
    torch.testing.assert_close(record.weights, weights, rtol=1e-12, atol=0)
    (weights * F.cross_entropy(logits, case.labels, reduction="none")).sum().backward()
    for (name, got), parameter in zip(case.network.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(got, parameter - 0.1 * parameter.grad, rtol=1e-12, atol=1e-14, msg=name)


def test_running_statistics_move_once_an_iteration() -> None:
    case = Case()
    reference = copy.deepcopy(case.network).train()
    reference(case.images)
    case.run(case.step(learning_rate=0.1))
    for name, buffer in case.network.named_buffers():
        torch.testing.assert_close(buffer, dict(reference.named_buffers())[name], rtol=1e-12, atol=0, msg=name)


def test_one_forward_a_pass() -> None:
    """Forward, validation, forward-mode: the weighted step has no forward of its own."""
    case = Case()
    calls = []
    case.network.conv1.register_forward_hook(lambda *_: calls.append(1))
    case.run(case.step(learning_rate=0.1))
    assert len(calls) == 3


def test_gradient_is_clipped() -> None:
    case = Case()
    before = [p.detach().clone() for p in case.network.parameters()]
    case.run(case.step(learning_rate=1.0, clip_norm=0.01))
    after = case.network.parameters()
    moved = torch.stack([(p.detach() - b).norm() for p, b in zip(after, before, strict=True)]).norm()
    assert float(moved) == pytest.approx(0.01, rel=1e-3)


def test_alpha_stays_positive_whatever_the_step() -> None:
    case = Case()
    case.run(case.step(policy_learning_rate=10.0))
    assert case.rate().item() > 0
