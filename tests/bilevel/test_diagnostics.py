"""Signal and noise of made-up hypergradients; p_jk and weights by chance and not by chance."""

import math

import pytest
import torch

from mapolicy.bilevel.diagnostics import PolicyMonitor, WeightShares, weight_spread
from mapolicy.policy.network import PolicyNetwork
from mapolicy.policy.sampler import TransformationSampler
from mapolicy.transforms.space import OPERATION_NAMES

K = len(OPERATION_NAMES)

WIDTH = 400
EQUAL = torch.full((8,), 1 / 8)
NONE = torch.zeros(8, dtype=torch.int64)  # labels, or pairs


def watched(signal: float, count: int = 1500, window: int = 100) -> PolicyMonitor:
    """A monitor of `count` gradients: a fixed direction of length `signal`, and noise of length 1."""
    draws = torch.Generator().manual_seed(1)
    direction = torch.randn(WIDTH, generator=draws)
    monitor = PolicyMonitor(WIDTH, window, 1)
    for _ in range(count):
        noise = torch.randn(WIDTH, generator=draws) / math.sqrt(WIDTH)
        scale = float(torch.rand((), generator=draws)) + 0.5  # the length of a hypergradient says nothing
        monitor.observe(scale * (signal * direction / direction.norm() + noise), EQUAL, NONE, NONE)
    return monitor


@pytest.mark.parametrize("signal", [0.2, 0.5, 1.0])
def test_signal_to_noise_is_found(signal: float) -> None:
    monitor = watched(signal)
    estimate = monitor.signal_to_noise()
    assert estimate.low < signal**2 < estimate.high
    assert estimate.value == pytest.approx(signal**2, abs=0.02 + 0.1 * signal**2)
    assert 0 < estimate.high - estimate.low < 0.1
    assert monitor.recent()["signal_to_noise"] == pytest.approx(signal**2, abs=0.2)


def test_noise_alone_is_told() -> None:
    monitor = watched(0.0)
    estimate = monitor.signal_to_noise()
    assert estimate.low < 0 < estimate.high
    (warning, *_) = monitor.warnings(moved_sampler())
    assert warning.startswith("warning: the hypergradients do not agree with each other beyond chance")
    assert not any("hypergradients" in text for text in watched(0.5).warnings(moved_sampler()))


def test_iterations_without_a_hypergradient_are_left_out() -> None:
    monitor = PolicyMonitor(2, window=3, classes=1)
    assert monitor.recent() == {}
    assert math.isnan(monitor.signal_to_noise().value)
    first, second = torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])
    for gradient in (first, None, second, None):
        monitor.observe(gradient, EQUAL, NONE, NONE)
    cosine = math.sqrt(0.5)
    assert monitor.count == 1
    assert monitor.total.item() == pytest.approx(cosine)
    assert monitor.recent()["signal_to_noise"] == pytest.approx(cosine / (1 - cosine), rel=1e-5)
    monitor.observe(None, EQUAL, NONE, NONE)
    monitor.observe(None, EQUAL, NONE, NONE)
    assert monitor.recent() == {}, "the window has moved on"


def test_a_resumed_monitor_goes_on() -> None:
    whole, first = watched(0.5, 40), watched(0.5, 40)
    resumed = PolicyMonitor(WIDTH, 100, 1)
    resumed.load_state_dict(first.state_dict())
    gradient = torch.ones(WIDTH)
    for monitor in (whole, resumed):
        monitor.observe(gradient, EQUAL, NONE, NONE)
    assert resumed.signal_to_noise() == whole.signal_to_noise()
    assert torch.equal(resumed.cosines, whole.cosines)


def test_width_is_the_policy_networks() -> None:
    policy = PolicyNetwork(64)
    assert (
        PolicyMonitor.of(policy, 5, 1).previous.shape == torch.nn.utils.parameters_to_vector(policy.parameters()).shape
    )


def test_weight_spread_is_deviation_over_mean() -> None:
    assert weight_spread(torch.full((8,), 1 / 8)) == pytest.approx(0, abs=1e-7)
    assert weight_spread(torch.tensor([0.25, 0.75])) == pytest.approx(0.5)
    assert weight_spread(torch.tensor([0.5, 1.5])) == pytest.approx(0.5), "the scale does not matter"


def test_spread_of_the_window() -> None:
    monitor = PolicyMonitor(WIDTH, window=2, classes=1)
    for weights in ([0.0, 1.0], [0.25, 0.75], [0.4, 0.6]):
        monitor.observe(None, torch.tensor(weights), *torch.zeros(2, len(weights), dtype=torch.int64))
    estimate = monitor.spread()
    assert estimate.value == pytest.approx((0.5 + 0.2) / 2)
    assert estimate.high - estimate.value == pytest.approx(1.96 * 0.15, rel=1e-5)
    assert not any("nearly equal" in text for text in monitor.warnings(moved_sampler()))
    equal = PolicyMonitor(WIDTH, window=2, classes=1)
    equal.observe(None, EQUAL, NONE, NONE)
    assert any("nearly equal" in text for text in equal.warnings(moved_sampler()))


def moved_sampler(preference: float = 0.5) -> TransformationSampler:
    """After outputs that depend on the first operation by `preference`, and on chance."""
    sampler, draws = TransformationSampler(history=50, every=50), torch.Generator().manual_seed(0)
    for _ in range(50):
        drawn = sampler.sample(256, draws)
        noise = 0.2 * torch.rand(256, generator=draws)
        sampler.record(drawn.pair, 0.4 + preference * (drawn.first < K // 2) * 0.5 + noise)
    return sampler


def test_p_jk_beyond_chance_and_within() -> None:
    monitor = watched(0.5)
    assert not any("p_jk" in text for text in monitor.warnings(moved_sampler(0.5)))
    assert any("p_jk is uniform within chance" in text for text in monitor.warnings(moved_sampler(0.0)))


def test_what_is_not_known_is_not_warned_of() -> None:
    monitor = PolicyMonitor(3, 3, 1)
    monitor.observe(torch.ones(3), EQUAL, NONE, NONE)
    assert not any("nan" in text for text in monitor.warnings(TransformationSampler()))


def test_figures_have_no_holes() -> None:
    figures = watched(0.5).figures(moved_sampler())
    assert set(figures) == {
        f"{name}{end}" for name in ("signal_to_noise", "weight_spread") for end in ("", "_low", "_high")
    } | {"entropy_by_chance_low", "entropy_by_chance_high"}
    assert set(PolicyMonitor(3, 3, 1).figures(TransformationSampler())) == {
        "entropy_by_chance_low",
        "entropy_by_chance_high",
    }


CLASSES = 5


def shared(by_class: float, by_operation: float, batches: int = 400, window: int = 10_000) -> WeightShares:
    """Weights of 1, and of made-up parts with these variances; noise brings the variance to 0.04."""
    draws = torch.Generator().manual_seed(2)

    def effect(groups: int, variance: float) -> torch.Tensor:
        values = torch.randn(groups, generator=draws, dtype=torch.float64)
        return (values - values.mean()) / values.std(correction=0) * math.sqrt(variance)

    of_class, of_first = effect(CLASSES, by_class), effect(K, by_operation)
    shares = WeightShares(CLASSES, window)
    for _ in range(batches):
        labels = torch.randint(CLASSES, (128,), generator=draws)
        first, second = torch.randint(K, (2, 128), generator=draws)
        noise = torch.randn(128, generator=draws, dtype=torch.float64) * math.sqrt(0.04 - by_class - by_operation)
        shares.observe((1 + of_class[labels] + of_first[first] + noise) / 128, labels, first * K + second)
    return shares


@pytest.mark.parametrize(("by_class", "by_operation"), [(0.0, 0.0), (0.03, 0.0), (0.0, 0.02), (0.01, 0.02)])
def test_shares_of_the_weights_variance_are_found(by_class: float, by_operation: float) -> None:
    found = shared(by_class, by_operation).figures()
    assert found["weight_share_class"] == pytest.approx(by_class / 0.04, abs=0.02)
    assert found["weight_share_operations"] == pytest.approx(by_operation / 0.04, abs=0.02)


def test_a_few_samples_of_noise_have_no_share() -> None:
    """Group means of 128 samples in 14 groups scatter; that is not counted."""
    raw = 2 * (K - 1) / 127  # what scatter alone puts between the means
    assert abs(shared(0.0, 0.0, batches=1, window=10**6).figures()["weight_share_operations"]) < 0.7 * raw
    assert WeightShares(CLASSES, 10).figures() == {}
    equal = WeightShares(CLASSES, 10)
    equal.observe(torch.full((64,), 1 / 64), torch.arange(64) % CLASSES, torch.arange(64))
    assert equal.figures() == {}


def test_shares_forget() -> None:
    """What came long before the window does not count: weights by class, then as many batches of weights by noise."""
    draws = torch.Generator().manual_seed(3)
    shares = WeightShares(CLASSES, window=20)
    for batch in range(400):
        labels = torch.randint(CLASSES, (128,), generator=draws)
        pair = torch.randint(K * K, (128,), generator=draws)
        weights = 1 + 0.1 * (labels - 2) if batch < 200 else 1 + 0.1 * torch.randn(128, generator=draws)
        shares.observe(weights, labels, pair)
        if batch == 199:
            assert shares.figures()["weight_share_class"] == pytest.approx(1, abs=0.02)  # batches differ in their mean
    assert abs(shares.figures()["weight_share_class"]) < 0.03


def test_weights_that_follow_classes_are_warned_of() -> None:
    for by_class, by_operation, warned in ((0.03, 0.01, True), (0.01, 0.02, False), (0.005, 0.0, False)):
        monitor = watched(0.5)
        monitor.spreads.fill_(0.2)
        monitor.shares = shared(by_class, by_operation, batches=100)
        found = [text for text in monitor.warnings(moved_sampler()) if "the weights tell classes apart" in text]
        assert bool(found) == warned
    monitor.shares = shared(0.03, 0.005)
    (found,) = (text for text in monitor.warnings(moved_sampler()) if "tell classes apart" in text)
    assert "75% of their variance" in found.replace("74%", "75%").replace("76%", "75%")
    assert "policy_input=embedding" in found
