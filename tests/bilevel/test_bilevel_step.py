"""The bilevel step against double backward through the same mathematics, in float64."""

import copy
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

import mapolicy.models  # noqa: F401 - registers the networks in timm
from mapolicy.bilevel.bilevel_step import BilevelStep
from mapolicy.bilevel.inner_rate import InnerRate
from mapolicy.bilevel.options import StepOptions
from mapolicy.bilevel.sample_loss import SampleLoss, cross_entropy
from mapolicy.errors import UsageError
from mapolicy.models.features import deep_features, features_and_logits, running_statistics_kept
from mapolicy.models.noise import noise_at_its_mean
from mapolicy.models.pyramidnet import PyramidNet
from mapolicy.models.shake_shake import ShakeShakeNetwork
from mapolicy.policy.network import PolicyNetwork, normalise_weights
from mapolicy.runtime.random import seed_for
from mapolicy.transforms.space import EMBEDDING_WIDTH

CLASSES = 5
SEED = seed_for(0, "test", "noise", 0)


class Case:
    """A network, a policy that weighs unequally, and batches, all float64 and small.

    `losses` are of a training and of a meta-validation sample.
    """

    def __init__(
        self,
        arch: str | Callable[[], nn.Module] = "wrn10_1",
        copies: int = 1,
        per_layer: bool = False,
        side: int = 8,
        losses: tuple[SampleLoss, SampleLoss] = (cross_entropy, cross_entropy),
        policy_input: str = "both",
        **arguments: float,
    ) -> None:
        self.losses = losses
        torch.manual_seed(3)
        built = timm.create_model(arch, num_classes=CLASSES, in_chans=1, **arguments) if type(arch) is str else arch()
        self.network = built.double()
        batch = 6
        self.images = torch.randn(batch * copies, 1, side, side, dtype=torch.float64)
        self.labels = torch.randint(CLASSES, (batch,)).repeat_interleave(copies)
        self.embedding = torch.rand(batch * copies, EMBEDDING_WIDTH, dtype=torch.float64) * 11
        self.validation_images = torch.randn(7, 1, side, side, dtype=torch.float64)
        self.validation_labels = torch.randint(CLASSES, (7,))
        self.policy = PolicyNetwork(self.network.head_hidden_size, policy_input=policy_input).double()
        nn.init.normal_(self.policy.output.weight, std=0.3)
        tensors = len(list(self.network.parameters())) if per_layer else None
        self.rate = InnerRate(0.3, tensors).double()
        if per_layer:
            self.rate.log_alpha.data += torch.randn_like(self.rate.log_alpha)

    def step(self, learning_rate: float = 0.0, policy_learning_rate: float = 0.0, **options: float) -> BilevelStep:
        learned = [*self.policy.parameters(), *self.rate.parameters()]
        return BilevelStep(
            self.network,
            self.policy,
            self.rate,
            torch.optim.SGD(self.network.parameters(), lr=learning_rate),
            torch.optim.SGD(learned, lr=policy_learning_rate),
            StepOptions(**options),
            training_loss=self.losses[0],
            validation_loss=self.losses[1],
        )

    def run(self, step: BilevelStep, learns: bool = True):
        validation = (self.validation_images, self.validation_labels) if learns else None
        return step(self.images, self.labels, self.embedding, validation, noise_seed=SEED)

    def double_backward(self, equal: bool = False) -> dict[str, torch.Tensor]:
        """Eq. 2 and 3 written out, differentiated by autograd through the inner gradient.

        With `equal` the weights have the value 1/n and the derivative of the policy's.
        """
        network = copy.deepcopy(self.network).train()
        parameters = dict(network.named_parameters())
        with running_statistics_kept(network):
            torch.manual_seed(SEED)
            logits = network(self.images)
            torch.manual_seed(SEED)
            features, _ = features_and_logits(network, self.images)
            losses = self.losses[0](logits, self.labels)
            weights = normalise_weights(self.policy(features.detach(), self.embedding, losses.detach()))
            if equal:
                weights = 1 / len(weights) + (weights - weights.detach())
            gradients = torch.autograd.grad((weights * losses).sum(), list(parameters.values()), create_graph=True)
            alpha = self.rate()
            rates = alpha if alpha.ndim else alpha.expand(len(parameters))
            moved = {n: p - a * g for (n, p), a, g in zip(parameters.items(), rates, gradients, strict=True)}
            torch.manual_seed(SEED + 1)
            logits = functional_call(network, moved, (self.validation_images,))
            loss = self.losses[1](logits, self.validation_labels).mean()
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


def smoothed(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits, labels, reduction="none", label_smoothing=0.1)


def focal(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    losses = F.cross_entropy(logits, labels, reduction="none")
    return (1 - torch.exp(-losses)) ** 2 * losses


@pytest.mark.parametrize(
    "losses", [(smoothed, cross_entropy), (cross_entropy, smoothed), (focal, focal), (smoothed, focal)]
)
@pytest.mark.parametrize("equal", [False, True], ids=["weighted", "equal"])
def test_hypergradient_of_other_losses_equals_double_backward(
    losses: tuple[SampleLoss, SampleLoss], equal: bool
) -> None:
    case, usual = Case(losses=losses), Case()
    expected, other = case.double_backward(equal), usual.double_backward(equal)
    case.run(case.step(equal_weights=equal))
    got = {"alpha": case.rate.log_alpha.grad} | {n: p.grad for n, p in case.policy.named_parameters()}
    for name, gradient in got.items():
        assert relative_error(gradient, expected[name]) < 1e-9, name
        assert relative_error(other[name], expected[name]) > 1e-3, f"{name}: cross entropy would pass as well"


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
    step = case.step(learning_rate=0.1)
    case.run(step)  # the first one also checks that the forward can be replayed
    calls = []
    case.network.conv1.register_forward_hook(lambda *_: calls.append(1))
    case.run(step)
    assert len(calls) == 3


@pytest.mark.parametrize(
    ("options", "learns", "passes"),
    [
        ({}, True, 1 + 2 + 3 + 2 + 2),
        ({}, False, 3),
        ({"simultaneous": True}, True, 1 + 2 + 3 + 2),
        ({"low_memory": True}, True, 1 + 2 + 3 + 3 + 1 + 2),
        ({"low_memory": True, "simultaneous": True}, True, 1 + 2 + 3 + 3),
        ({"fraction": 0.5}, True, 3 + (1 + 2 + 3 + 3) / 2),
        ({"equal_weights": True}, True, 1 + 2 + 3 + 2),
        ({"equal_weights": True}, False, 3),
        ({"equal_weights": True, "low_memory": True}, True, 1 + 2 + 3 + 3),
        ({"equal_weights": True, "fraction": 0.5}, True, 3 + (1 + 2 + 3 + 3) / 2),
    ],
)
def test_passes_of_an_iteration(options: dict, learns: bool, passes: float) -> None:
    """Counted in floating point operations of convolutions and matrix products; a plain step is 3 forwards."""
    case = Case()
    case.validation_images, case.validation_labels = case.images, case.labels
    step = case.step(**options)
    case.run(step, learns)
    with FlopCounterMode(display=False) as iteration:
        case.run(step, learns)
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        case.network(case.images)
    # The images have no gradient, so the first convolution's backward is half as dear.
    assert iteration.get_total_flops() / forward.get_total_flops() == pytest.approx(passes, rel=0.04)


@pytest.mark.parametrize("arch", ["wrn10_1", "resnet10t", "resnetv2_18", "convnext_atto"])
def test_what_the_forward_has_computed_is_not_computed_again(arch: str) -> None:
    case = Case(arch, side=32)
    step = case.step()
    expected = case.double_backward()
    case.run(step)
    assert step.own_rules
    for name, parameter in case.policy.named_parameters():
        assert relative_error(parameter.grad, expected[name]) < 1e-9, name


def test_a_network_that_cannot_be_replayed_is_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mapolicy.bilevel.bilevel_step.agrees_with_torch", lambda *_: False)
    case = Case()
    expected = case.double_backward()
    case.run(case.step())
    for name, parameter in case.policy.named_parameters():
        assert relative_error(parameter.grad, expected[name]) < 1e-9, name


def test_an_iteration_that_does_not_learn_leaves_the_policy_alone() -> None:
    case, taught = Case(), Case()
    before = copy.deepcopy(case.policy.state_dict())
    record = case.run(case.step(learning_rate=0.1, policy_learning_rate=1.0), learns=False)
    assert record.hypergradient is None
    assert all(torch.equal(before[name], tensor) for name, tensor in case.policy.state_dict().items())
    assert case.rate().item() == pytest.approx(0.3)
    same = taught.run(taught.step(learning_rate=0.1, policy_learning_rate=0.0))  # learns at a rate of 0
    assert same.hypergradient is not None
    torch.testing.assert_close(record.weights, same.weights)
    for ours, theirs in zip(case.network.state_dict().values(), taught.network.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_low_memory_changes_nothing_but_the_memory() -> None:
    normal, low = Case(drop_rate=0.3), Case(drop_rate=0.3)
    rates = {"learning_rate": 0.1, "policy_learning_rate": 5.0, "clip_norm": 1.0}
    normal.run(normal.step(**rates))
    low.run(low.step(**rates, low_memory=True))
    for part in ("network", "policy", "rate"):
        ours, theirs = getattr(low, part).state_dict(), getattr(normal, part).state_dict()
        for name in ours:
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-9, atol=1e-12, msg=f"{part} {name}")


@pytest.mark.parametrize("low", [False, True])
def test_low_memory_returns_what_is_freed(low: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    within = []

    @contextmanager
    def returned() -> Iterator[None]:
        within.append("entered")
        yield
        within.append("left")

    monkeypatch.setattr("mapolicy.bilevel.bilevel_step.freed_memory_returned", returned)
    case = Case()
    case.run(case.step(low_memory=low))
    assert within == (["entered", "left"] if low else [])


@pytest.mark.parametrize("low", [False, True])
def test_low_memory_keeps_no_graph_during_the_validation_pass(low: bool) -> None:
    class Held:
        def __init__(self, tensor: torch.Tensor) -> None:
            self.tensor = tensor

    held: weakref.WeakSet[Held] = weakref.WeakSet()
    alive = []

    def pack(tensor: torch.Tensor) -> Held:
        saved = Held(tensor)
        held.add(saved)
        return saved

    case = Case()
    step = case.step(low_memory=low)
    step.own_rules = False  # a recording has hooks of its own
    forward = step.losses.forward
    step.losses.forward = lambda batch, records=False: forward(batch)
    case.network.conv1.register_forward_pre_hook(
        lambda module, inputs: (
            alive.append(sum(saved.tensor.ndim == 4 for saved in held))
            if inputs[0].data_ptr() == case.validation_images.data_ptr()
            else None
        )
    )
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
        case.run(step)
    assert (alive[0] == 0) == low


def test_a_simultaneous_step_uses_the_old_theta() -> None:
    case, reference = Case(), Case()
    step = case.step(learning_rate=0.1, policy_learning_rate=50.0, simultaneous=True, clip_norm=1e-3)
    record = case.run(step)
    network = reference.network.train()
    features, logits = features_and_logits(network, reference.images)
    raw = reference.policy(features, reference.embedding)
    torch.testing.assert_close(record.raw, raw.detach(), rtol=1e-12, atol=0)
    losses = F.cross_entropy(logits, reference.labels, reduction="none")
    (normalise_weights(raw).detach() * losses).sum().backward()
    nn.utils.clip_grad_norm_(network.parameters(), 1e-3)
    assert record.loss.item() == pytest.approx((record.weights * losses).sum().item())
    assert (case.policy.output.weight - reference.policy.output.weight).abs().max() > 1e-3, "theta has moved"
    for name, parameter in network.named_parameters():
        expected = parameter - 0.1 * parameter.grad
        torch.testing.assert_close(case.network.get_parameter(name), expected, rtol=1e-10, atol=1e-14, msg=name)


def test_a_part_of_the_batch_teaches_and_all_of_it_trains() -> None:
    case, part = Case(), Case()
    part.images, part.labels, part.embedding = part.images[:3], part.labels[:3], part.embedding[:3]
    part.validation_images, part.validation_labels = part.validation_images[:4], part.validation_labels[:4]
    expected = part.double_backward()
    reference = copy.deepcopy(case.network).train()
    reference(case.images)
    record = case.run(case.step(fraction=0.5))
    for name, parameter in case.policy.named_parameters():
        assert relative_error(parameter.grad, expected[name]) < 1e-9, name
    assert relative_error(case.rate.log_alpha.grad, expected["alpha"]) < 1e-9
    assert len(record.weights) == 6
    assert record.weights.sum().item() == pytest.approx(1)
    for name, buffer in case.network.named_buffers():
        torch.testing.assert_close(buffer, reference.get_buffer(name), rtol=1e-12, atol=0, msg=name)


def test_rejected_samples_do_not_train() -> None:
    case, reference = Case(), Case()
    record = case.run(case.step(learning_rate=0.1, reject_below_mean=True))
    kept = record.raw >= record.raw.mean()
    assert 0 < int(kept.sum()) < 6
    torch.testing.assert_close(record.weights, kept.double() / kept.sum())
    reference.network.train()
    losses = F.cross_entropy(reference.network(reference.images), reference.labels, reduction="none")
    losses[kept].mean().backward()
    for name, parameter in reference.network.named_parameters():
        expected = parameter - 0.1 * parameter.grad
        torch.testing.assert_close(case.network.get_parameter(name), expected, rtol=1e-10, atol=1e-14, msg=name)


def test_an_extractor_of_its_own_learns_with_theta() -> None:
    """Its gradient is double backward's through features that are not detached."""
    case = Case()
    torch.manual_seed(8)
    extractor = timm.create_model("wrn10_1", num_classes=CLASSES, in_chans=1).double()
    learned = [*case.policy.parameters(), *extractor.parameters(), case.rate.log_alpha]
    step = BilevelStep(
        case.network,
        case.policy,
        case.rate,
        torch.optim.SGD(case.network.parameters(), lr=0.0),
        torch.optim.SGD(learned, lr=0.0),
        extractor=extractor,
    )
    network, own = copy.deepcopy(case.network).train(), copy.deepcopy(extractor).train()
    parameters = dict(network.named_parameters())
    losses = F.cross_entropy(network(case.images), case.labels, reduction="none")
    weights = normalise_weights(case.policy(deep_features(own, case.images), case.embedding))
    gradients = torch.autograd.grad((weights * losses).sum(), list(parameters.values()), create_graph=True)
    moved = {n: p - 0.3 * g for (n, p), g in zip(parameters.items(), gradients, strict=True)}
    logits = functional_call(network, moved, (case.validation_images,))
    inner = [p for n, p in own.named_parameters() if not n.startswith("fc")]
    expected = torch.autograd.grad(F.cross_entropy(logits, case.validation_labels), inner)
    case.run(step)
    for (name, parameter), gradient in zip(extractor.named_parameters(), expected, strict=False):
        assert relative_error(parameter.grad, gradient) < 1e-7, name


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


UNEQUAL = pytest.mark.parametrize(
    "build",
    [
        lambda: ShakeShakeNetwork(2, CLASSES, in_chans=1),
        lambda: PyramidNet(8, 6, False, CLASSES, in_chans=1),
        lambda: PyramidNet(11, 6, True, CLASSES, in_chans=1),
    ],
    ids=["shake-shake", "pyramidnet", "pyramidnet-bottleneck"],
)


@UNEQUAL
@pytest.mark.parametrize("options", [{}, {"low_memory": True}, {"fraction": 0.999}], ids=str)
def test_unequal_noise_stands_at_its_mean_in_the_hypergradient(build: Callable[[], nn.Module], options: dict) -> None:
    """Double backward through the network at the mean of its noise; the batches are whole in each case."""
    case = Case(build)
    with noise_at_its_mean(case.network):
        # The reference works on a copy, which keeps the noise where it is.
        expected = case.double_backward()
    step = case.step(**options)
    assert step.noise_at_mean
    case.run(step)
    for name, parameter in [*case.policy.named_parameters(), ("alpha", case.rate.log_alpha)]:
        assert expected[name].norm() > 0
        assert relative_error(parameter.grad, expected[name]) < 1e-9, name


@UNEQUAL
@pytest.mark.parametrize("learns", [False, True])
def test_unequal_noise_is_the_weighted_steps_own(build: Callable[[], nn.Module], learns: bool) -> None:
    case, reference = Case(build), Case(build).network.train()
    record = case.run(case.step(learning_rate=0.1), learns)
    torch.manual_seed(SEED)
    features, logits = features_and_logits(reference, case.images)
    losses = F.cross_entropy(logits, case.labels, reduction="none")
    raw = case.policy(features, case.embedding).detach()
    torch.testing.assert_close(record.raw, raw, rtol=1e-9, atol=1e-12)
    losses.backward(normalise_weights(raw))
    for (name, parameter), moved in zip(reference.named_parameters(), case.network.parameters(), strict=True):
        torch.testing.assert_close(moved, parameter - 0.1 * parameter.grad, rtol=1e-9, atol=1e-12, msg=name)
    for name, buffer in reference.named_buffers():  # running statistics move once, by the noisy forward
        torch.testing.assert_close(case.network.get_buffer(name), buffer, rtol=1e-9, atol=1e-12, msg=name)


def test_a_hypergradient_with_the_noise_at_its_mean_costs_a_forward_more() -> None:
    case = Case(lambda: ShakeShakeNetwork(2, CLASSES, in_chans=1))
    case.validation_images, case.validation_labels = case.images, case.labels
    step = case.step()
    case.run(step)
    assert step.own_rules
    with FlopCounterMode(display=False) as iteration:
        case.run(step)
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        case.network(case.images)
    passes = (1 + 2 + 3 + 2) + 3
    assert iteration.get_total_flops() / forward.get_total_flops() == pytest.approx(passes, rel=0.04)


def test_a_simultaneous_step_cannot_have_two_kinds_of_noise() -> None:
    case = Case(lambda: ShakeShakeNetwork(2, CLASSES, in_chans=1))
    with pytest.raises(UsageError, match=r"^simultaneous: .+; leave it out for this network$"):
        case.step(simultaneous=True)


@pytest.mark.parametrize("build", [None, lambda: ShakeShakeNetwork(2, CLASSES, in_chans=1)], ids=["equal", "unequal"])
def test_an_own_extractors_noise_stands_at_its_mean_only_while_it_learns(build: Callable | None) -> None:
    case = Case(build or "wrn10_1")
    extractor = copy.deepcopy(case.network)
    learned = [*case.policy.parameters(), *extractor.parameters(), *case.rate.parameters()]
    optimizers = [torch.optim.SGD(of, lr=0.1) for of in (case.network.parameters(), learned)]
    step = BilevelStep(case.network, case.policy, case.rate, *optimizers, extractor=extractor)
    noisy: list[bool] = []
    extractor.conv1.register_forward_hook(
        lambda *_: noisy.append(any(getattr(module, "noisy", False) for module in extractor.modules()))
    )
    case.run(step)
    assert noisy == [False, build is not None], "Eq. 3, then the weights of Eq. 4"


def test_the_record_has_theta_s_gradient() -> None:
    """What a plain gradient step of the policy has moved by, over its rate; nothing without a hypergradient."""
    case = Case()
    before = torch.nn.utils.parameters_to_vector(case.policy.parameters()).detach().clone()
    record = case.run(case.step(policy_learning_rate=0.5))
    after = torch.nn.utils.parameters_to_vector(case.policy.parameters()).detach()
    assert record.theta_gradient is not None
    assert record.theta_gradient.abs().max() > 0
    torch.testing.assert_close(record.theta_gradient, (before - after) / 0.5, rtol=1e-6, atol=1e-12)
    assert case.run(case.step(), learns=False).theta_gradient is None


VIT = {"arch": "vit_tiny_patch16_224", "img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}


def plain_step(case: Case, learning_rate: float, **settings: float) -> None:
    """One update of the case's network by the gradient of the mean loss; nothing else moves."""
    network = case.network.train()
    torch.manual_seed(SEED)
    optimizer = torch.optim.SGD(network.parameters(), lr=learning_rate, **settings)
    case.losses[0](network(case.images), case.labels).mean().backward()
    optimizer.step()


@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize("options", [{}, {"low_memory": True}, {"fraction": 0.5}], ids=str)
def test_equal_weights_take_a_plain_step(options: dict, learns: bool) -> None:
    case, plain = Case(drop_rate=0.3, losses=(focal, cross_entropy)), Case(drop_rate=0.3, losses=(focal, cross_entropy))
    before = copy.deepcopy(case.policy.state_dict())
    record = case.run(case.step(0.1, 5.0, equal_weights=True, **options), learns)
    plain_step(plain, 0.1)
    for name, tensor in plain.network.state_dict().items():  # batch statistics too
        torch.testing.assert_close(case.network.state_dict()[name], tensor, rtol=1e-10, atol=1e-14, msg=name)
    torch.testing.assert_close(record.weights, torch.full((6,), 1 / 6, dtype=torch.float64), rtol=1e-15, atol=0)
    moved = any(not torch.equal(before[name], tensor) for name, tensor in case.policy.state_dict().items())
    assert moved == learns, "theta is learned beside it"


def test_equal_weights_reach_the_optimiser_alone() -> None:
    """Weight decay and clipping are those of a plain step."""
    case, plain = Case(), Case()
    record = case.run(case.step(0.1, equal_weights=True, clip_norm=1e-3))
    network = plain.network.train()
    loss = F.cross_entropy(network(plain.images), plain.labels)
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), 1e-3)
    torch.optim.SGD(network.parameters(), lr=0.1).step()
    assert record.loss.item() == pytest.approx(loss.item(), rel=1e-12)
    for ours, theirs in zip(case.network.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("options", [{}, {"low_memory": True}, {"simultaneous": True}], ids=str)
def test_slopes_under_equal_weights_are_inner_products(options: dict) -> None:
    """s_i = < alpha v, grad L_i >, each from a backward of its own, and dL_val/dtheta = - sum_i s_i dP_i/dtheta."""
    case = Case(per_layer=True)
    network = copy.deepcopy(case.network).train()
    parameters = list(network.parameters())
    features, logits = features_and_logits(network, case.images)
    losses = F.cross_entropy(logits, case.labels, reduction="none")
    each = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in losses]
    rates, mean = case.rate().detach(), [torch.stack(of).mean(0) for of in zip(*each, strict=True)]
    names = [name for name, _ in network.named_parameters()]
    at = [(p - a * g).detach().requires_grad_() for p, a, g in zip(parameters, rates, mean, strict=True)]
    moved = dict(zip(names, at, strict=True))
    validation = F.cross_entropy(functional_call(network, moved, (case.validation_images,)), case.validation_labels)
    v = torch.autograd.grad(validation, at)
    slopes = [sum((a * d * g).sum() for a, d, g in zip(rates, v, of, strict=True)) for of in each]
    weights = normalise_weights(case.policy(features.detach(), case.embedding))
    by_theta = torch.autograd.grad(-(torch.stack(slopes).detach() * weights).sum(), list(case.policy.parameters()))

    record = case.run(case.step(equal_weights=True, **options))
    assert record.hypergradient is not None
    torch.testing.assert_close(-record.hypergradient.weights, torch.stack(slopes).detach(), rtol=1e-9, atol=1e-14)
    for parameter, expected in zip(case.policy.parameters(), by_theta, strict=True):
        assert relative_error(parameter.grad, expected) < 1e-9


def test_equal_weights_in_micro_batches_give_the_same() -> None:
    """Without batch statistics, which would be those of each micro-batch."""
    whole, parts = Case(**VIT), Case(**VIT)
    whole.validation_images, whole.validation_labels = whole.validation_images[:6], whole.validation_labels[:6]
    parts.validation_images, parts.validation_labels = whole.validation_images, whole.validation_labels
    records = [
        case.run(case.step(0.1, 5.0, equal_weights=True, accumulate=count)) for case, count in ((whole, 1), (parts, 2))
    ]
    slopes = [record.hypergradient.weights for record in records if record.hypergradient is not None]
    torch.testing.assert_close(*slopes, rtol=1e-9, atol=1e-13)
    for part in ("network", "policy", "rate"):
        ours, theirs = getattr(parts, part).state_dict(), getattr(whole, part).state_dict()
        for name in ours:
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-9, atol=1e-12, msg=f"{part} {name}")


def test_a_fraction_teaches_under_equal_weights() -> None:
    """Theta's gradient is that of the first half alone; `rows` say which samples the derivatives belong to."""
    case, part = Case(), Case()
    part.images, part.labels, part.embedding = part.images[:3], part.labels[:3], part.embedding[:3]
    part.validation_images, part.validation_labels = part.validation_images[:4], part.validation_labels[:4]
    expected = part.double_backward(equal=True)
    record = case.run(case.step(equal_weights=True, fraction=0.5))
    for name, parameter in case.policy.named_parameters():
        assert relative_error(parameter.grad, expected[name]) < 1e-9, name
    assert record.rows is not None
    assert record.rows.tolist() == [0, 1, 2]
    assert record.raw is None, "the outputs of the other half are not needed"


# Other weightings: Meta-Weight-Net, and Ren et al.


@pytest.mark.parametrize("options", [{}, {"low_memory": True}, {"simultaneous": True}], ids=str)
def test_a_policy_of_the_loss_equals_double_backward(options: dict) -> None:
    """Meta-Weight-Net: the policy sees each sample's detached loss at w, and nothing else."""
    case = Case(per_layer=True, policy_input="loss", losses=(focal, cross_entropy), drop_rate=0.3)
    assert sum(parameter.numel() for parameter in case.policy.parameters()) == 301
    expected = case.double_backward()
    case.run(case.step(**options))
    got = {"alpha": case.rate.log_alpha.grad} | {n: p.grad for n, p in case.policy.named_parameters()}
    assert set(got) == set(expected)
    for name, gradient in got.items():
        assert expected[name].norm() > 0, f"{name}: nothing is compared"
        assert relative_error(gradient, expected[name]) < 1e-9, name


@pytest.mark.parametrize("learns", [True, False])
def test_the_weighted_step_of_a_policy_of_the_loss(learns: bool) -> None:
    case, plain = Case(policy_input="loss"), Case(policy_input="loss")
    record = case.run(case.step(0.1), learns)
    losses = F.cross_entropy(plain.network.train()(plain.images), plain.labels, reduction="none")
    raw = torch.sigmoid(plain.policy.output(F.relu(plain.policy.loss_layer(losses.detach()[:, None])))).flatten()
    (raw.detach() / raw.detach().sum() * losses).sum().backward()
    torch.optim.SGD(plain.network.parameters(), lr=0.1).step()
    assert float(record.weights.std()) > 1e-4, "they differ"
    torch.testing.assert_close(record.losses, losses.detach(), rtol=1e-12, atol=0)
    for name, tensor in plain.network.state_dict().items():
        torch.testing.assert_close(case.network.state_dict()[name], tensor, rtol=1e-10, atol=1e-14, msg=name)


def test_a_policy_of_the_loss_in_micro_batches_gives_the_same() -> None:
    whole, parts = Case(**VIT, policy_input="loss"), Case(**VIT, policy_input="loss")
    for case in (whole, parts):
        case.validation_images, case.validation_labels = case.validation_images[:6], case.validation_labels[:6]
    for case, count in ((whole, 1), (parts, 2)):
        case.run(case.step(0.1, 5.0, accumulate=count))
    for part in ("network", "policy", "rate"):
        ours, theirs = getattr(parts, part).state_dict(), getattr(whole, part).state_dict()
        for name in ours:
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-9, atol=1e-12, msg=f"{part} {name}")


def reweighting(case: Case) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Ren et al. (2018), Algorithm 1, written out: the weights, and the network's state after a step of rate 0.1."""
    network = copy.deepcopy(case.network).train()
    parameters = dict(network.named_parameters())
    with running_statistics_kept(network):
        torch.manual_seed(SEED)
        losses = case.losses[0](network(case.images), case.labels)
        perturbations = torch.zeros(len(losses), dtype=torch.float64, requires_grad=True)
        inner = torch.autograd.grad((perturbations * losses).sum(), list(parameters.values()), create_graph=True)
        moved = {n: p - case.rate().detach() * g for (n, p), g in zip(parameters.items(), inner, strict=True)}
        torch.manual_seed(SEED + 1)
        held_out = case.losses[1](functional_call(network, moved, (case.validation_images,)), case.validation_labels)
        (slopes,) = torch.autograd.grad(held_out.mean(), perturbations)
    weights = (-slopes).clamp(min=0)
    weights = weights / weights.sum()
    torch.manual_seed(SEED)
    (weights * case.losses[0](network(case.images), case.labels)).sum().backward()
    torch.optim.SGD(network.parameters(), lr=0.1).step()
    return weights, network.state_dict()


@pytest.mark.parametrize("options", [{}, {"low_memory": True}], ids=str)
def test_reweighting_is_that_of_ren_et_al(options: dict) -> None:
    case = Case(copies=2, losses=(focal, cross_entropy), drop_rate=0.3)
    before = copy.deepcopy([case.policy.state_dict(), case.rate.state_dict()])
    weights, state = reweighting(case)
    assert 0 < int((weights == 0).sum()) < len(weights), "some are rejected, some are not"
    record = case.run(case.step(0.1, 5.0, reweights=True, **options))
    torch.testing.assert_close(record.weights, weights, rtol=1e-9, atol=1e-14)
    for name, tensor in state.items():  # batch statistics too
        torch.testing.assert_close(case.network.state_dict()[name], tensor, rtol=1e-9, atol=1e-13, msg=name)
    assert record.raw is None
    assert record.theta_gradient is None
    for ours, theirs in zip([case.policy.state_dict(), case.rate.state_dict()], before, strict=True):
        for name, tensor in ours.items():
            assert torch.equal(tensor, theirs[name]), "theta and alpha are not learned"


def test_reweighting_in_micro_batches_gives_the_same() -> None:
    whole, parts = Case(**VIT), Case(**VIT)
    for case in (whole, parts):
        case.validation_images, case.validation_labels = case.validation_images[:6], case.validation_labels[:6]
    records = [case.run(case.step(0.1, reweights=True, accumulate=count)) for case, count in ((whole, 1), (parts, 2))]
    torch.testing.assert_close(records[0].weights, records[1].weights, rtol=1e-9, atol=1e-13)
    for name, tensor in whole.network.state_dict().items():
        torch.testing.assert_close(parts.network.state_dict()[name], tensor, rtol=1e-9, atol=1e-12, msg=name)


def test_reweighting_of_a_network_with_unequal_noise_takes_a_step() -> None:
    case = Case(lambda: ShakeShakeNetwork(2, CLASSES, in_chans=1))
    before = copy.deepcopy(case.network.state_dict())
    record = case.run(case.step(0.1, reweights=True))
    assert float(record.weights.sum()) == pytest.approx(1)
    assert any(not torch.equal(before[name], tensor) for name, tensor in case.network.state_dict().items())
