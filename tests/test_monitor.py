"""Signal and noise of made-up hypergradients; p_jk and weights by chance and not by chance."""

import math

import pytest
import torch

from mapolicy.monitor import PolicyMonitor, weight_spread
from mapolicy.policy import PolicyNetwork
from mapolicy.sampler import K, TransformationSampler

WIDTH = 400
EQUAL = torch.full((8,), 1 / 8)


def watched(signal: float, count: int = 1500, window: int = 100) -> PolicyMonitor:
    """A monitor of `count` gradients: a fixed direction of length `signal`, and noise of length 1."""
    draws = torch.Generator().manual_seed(1)
    direction = torch.randn(WIDTH, generator=draws)
    monitor = PolicyMonitor(WIDTH, window)
    for _ in range(count):
        noise = torch.randn(WIDTH, generator=draws) / math.sqrt(WIDTH)
        scale = float(torch.rand((), generator=draws)) + 0.5  # the length of a hypergradient says nothing
        monitor.observe(scale * (signal * direction / direction.norm() + noise), EQUAL)
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
    monitor = PolicyMonitor(2, window=3)
    assert monitor.recent() == {}
    assert math.isnan(monitor.signal_to_noise().value)
    first, second = torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])
    for gradient in (first, None, second, None):
        monitor.observe(gradient, EQUAL)
    cosine = math.sqrt(0.5)
    assert monitor.count == 1
    assert monitor.total.item() == pytest.approx(cosine)
    assert monitor.recent()["signal_to_noise"] == pytest.approx(cosine / (1 - cosine), rel=1e-5)
    monitor.observe(None, EQUAL)
    monitor.observe(None, EQUAL)
    assert monitor.recent() == {}, "the window has moved on"


def test_a_resumed_monitor_goes_on() -> None:
    whole, first = watched(0.5, 40), watched(0.5, 40)
    resumed = PolicyMonitor(WIDTH, 100)
    resumed.load_state_dict(first.state_dict())
    gradient = torch.ones(WIDTH)
    for monitor in (whole, resumed):
        monitor.observe(gradient, EQUAL)
    assert resumed.signal_to_noise() == whole.signal_to_noise()
    assert torch.equal(resumed.cosines, whole.cosines)


def test_width_is_the_policy_networks() -> None:
    policy = PolicyNetwork(64)
    assert PolicyMonitor.of(policy, 5).previous.shape == torch.nn.utils.parameters_to_vector(policy.parameters()).shape


def test_weight_spread_is_deviation_over_mean() -> None:
    assert weight_spread(torch.full((8,), 1 / 8)) == pytest.approx(0, abs=1e-7)
    assert weight_spread(torch.tensor([0.25, 0.75])) == pytest.approx(0.5)
    assert weight_spread(torch.tensor([0.5, 1.5])) == pytest.approx(0.5), "the scale does not matter"


def test_spread_of_the_window() -> None:
    monitor = PolicyMonitor(WIDTH, window=2)
    for weights in ([0.0, 1.0], [0.25, 0.75], [0.4, 0.6]):
        monitor.observe(None, torch.tensor(weights))
    estimate = monitor.spread()
    assert estimate.value == pytest.approx((0.5 + 0.2) / 2)
    assert estimate.high - estimate.value == pytest.approx(1.96 * 0.15, rel=1e-5)
    assert not any("nearly equal" in text for text in monitor.warnings(moved_sampler()))
    equal = PolicyMonitor(WIDTH, window=2)
    equal.observe(None, EQUAL)
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
    monitor = PolicyMonitor(3, 3)
    monitor.observe(torch.ones(3), EQUAL)
    assert not any("nan" in text for text in monitor.warnings(TransformationSampler()))


def test_figures_have_no_holes() -> None:
    figures = watched(0.5).figures(moved_sampler())
    assert set(figures) == {
        f"{name}{end}" for name in ("signal_to_noise", "weight_spread") for end in ("", "_low", "_high")
    } | {"entropy_by_chance_low", "entropy_by_chance_high"}
    assert set(PolicyMonitor(3, 3).figures(TransformationSampler())) == {
        "entropy_by_chance_low",
        "entropy_by_chance_high",
    }
