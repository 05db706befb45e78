"""The adversarial sampler: one update in closed form, its fixed point, planted difficulty, resume."""

import math

import pytest
import torch

from mapolicy.policy.adversarial_sampler import MEMORY, AdversarialSampler
from mapolicy.policy.level_sampler import STAGES
from mapolicy.policy.sampler import Observation
from mapolicy.policy.samplers import learned_draws
from mapolicy.transforms.space import SPACES
from mapolicy.transforms.transformation import Transformation

SPACE = SPACES["metaaugment-v1"]
ROTATE, SOLARIZE, IDENTITY = (SPACE.names.index(name) for name in ("Rotate", "Solarize", "Identity"))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def observed(sampler: AdversarialSampler, transformation: Transformation, losses: torch.Tensor) -> None:
    sampler.observe(Observation(sampler.code(transformation), losses=losses))


def test_one_update_is_the_policy_gradient_that_autograd_finds() -> None:
    """At a start that is not uniform: of sum_c q_c r_c + entropy_weight * H(q), with r the cells' mean rewards."""
    start = torch.randn(14, 2, generator=generator(), dtype=torch.float64).mean(1, keepdim=True).expand(14, 2)
    start = start - start.max()
    sampler = AdversarialSampler(SPACE, bins=1, rate=0.01, entropy=0.3, start=start)
    operations = torch.arange(14).repeat(20)
    other = operations[torch.randperm(280, generator=generator(1))]
    level = torch.full((280,), 3.0)
    losses = torch.rand(280, generator=generator(2), dtype=torch.float64) + operations / 7
    observed(sampler, Transformation(operations, other, level, level, SPACE), losses)

    scores = ((losses - losses.mean()) / losses.std(correction=0)).clamp(-3, 3)
    # The directions of Rotate are cells of their own, and one was drawn. Identity has one cell in two places.
    phi = start.clone().requires_grad_()
    q = torch.softmax(phi.flatten(), 0).reshape(14, 2)
    mean = torch.stack([scores.repeat(2)[torch.cat([operations, other]) == each].mean() for each in range(14)])
    shared = torch.tensor([spread is None or not spread.signed for spread in SPACE.ranges.values()])
    rewards = torch.stack([torch.where(shared, mean, 0.0), mean], 1)
    torch.testing.assert_close(sampler.rewards, rewards, rtol=1e-12, atol=1e-15)
    ((q * rewards).sum() - 0.3 * (q * q.log()).sum()).backward()
    assert phi.grad is not None
    gradient = torch.where(shared[:, None], phi.grad.sum(1, keepdim=True).expand(14, 2), phi.grad)
    moved = start + 0.01 * gradient / (gradient.abs() + 1e-8)  # Adam's first step
    torch.testing.assert_close(sampler.log_levels, moved - moved.max(), rtol=1e-9, atol=1e-12)


def test_rewards_are_a_moving_average_within_the_copies_of_an_image() -> None:
    """Two images, one much harder than the other: what counts is which of their copies is."""
    sampler = AdversarialSampler(SPACE, bins=1, copies=2)
    rotate, identity = torch.tensor([ROTATE, IDENTITY]).repeat(2), torch.full((4,), IDENTITY)
    level = torch.full((4,), 5.0)
    drawn = Transformation(rotate, identity, level, level, SPACE)
    observed(sampler, drawn, torch.tensor([2.0, 1.0, 102.0, 101.0]))
    assert float(sampler.rewards[ROTATE, 1]) == pytest.approx(1)
    observed(sampler, drawn, torch.tensor([1.0, 2.0, 101.0, 102.0]))
    assert float(sampler.rewards[ROTATE, 1]) == pytest.approx(1 - 2 / MEMORY)
    assert float(sampler.rewards[SOLARIZE].abs().max()) == 0


def test_the_fixed_point_is_exponential_in_the_reward() -> None:
    """q_c / q_d = exp((r_c - r_d) / entropy_weight), which no rate and no optimiser is part of."""
    sampler = AdversarialSampler(SPACE, bins=1, rate=0.02, entropy=0.5)
    hard = torch.zeros(14)
    hard[ROTATE], hard[SOLARIZE] = 1.0, -1.0
    for step in range(1500):
        drawn = sampler.sample(256, generator(step))
        noise = torch.randn(256, generator=generator(10_000 + step))
        observed(sampler, drawn, hard[drawn.first] + hard[drawn.second] + 3 + 0.1 * noise)
    logs, rewards = sampler.cells.log(), sampler.rewards
    for operation in (ROTATE, SOLARIZE):
        expected = float(rewards[operation].mean() - rewards[IDENTITY].mean()) / 0.5
        found = float(logs[operation].mean() - logs[IDENTITY].mean())
        assert abs(expected) > 1
        assert found == pytest.approx(expected, abs=0.4)
    assert float(sampler.probabilities.sum()) == pytest.approx(1)
    assert sampler.probabilities.argmax() == ROTATE * 14 + ROTATE


@pytest.mark.parametrize("losses", [torch.full((8,), 2.0), torch.tensor([math.nan, *[1.0] * 7]), None], ids=str)
def test_losses_without_information_move_nothing(losses: torch.Tensor | None) -> None:
    sampler = AdversarialSampler(SPACE)
    sampler.observe(Observation(sampler.code(sampler.sample(8, generator())), losses=losses))
    assert torch.equal(sampler.log_levels, torch.zeros(14, 8, dtype=torch.float64))
    assert sampler.iteration == 1


def test_a_resumed_sampler_goes_on_as_if_nothing_had_happened() -> None:
    def go_on(sampler: AdversarialSampler, first: int, last: int) -> None:
        for step in range(first, last):
            drawn = sampler.sample(32, generator(step))
            observed(sampler, drawn, torch.rand(32, generator=generator(100 + step)) + drawn.first / 14)

    whole, before, after = (AdversarialSampler(SPACE, iterations=20) for _ in range(3))
    go_on(whole, 0, 20)
    go_on(before, 0, 7)
    after.restore(before.state(), 7)
    go_on(after, 7, 20)
    assert torch.equal(whole.log_levels, after.log_levels)
    assert torch.equal(whole.stages, after.stages)
    assert len(whole.stages) == STAGES


def test_a_bundle_draws_as_the_sampler_did() -> None:
    sampler = AdversarialSampler(SPACE, bins=2, rate=0.3, iterations=40)
    for step in range(40):
        drawn = sampler.sample(64, generator(step))
        observed(sampler, drawn, drawn.magnitude1.abs() + drawn.magnitude2.abs())
    draws = learned_draws(sampler, SPACE.name, course=True)
    assert draws.levels is not None
    assert draws.log_levels is not None
    assert float(draws.log_levels.max()) == 0
    staged = draws.at(SPACE, draws.levels.strength)
    last = torch.softmax(sampler.stages[-1].flatten(), 0).reshape(14, 4)
    torch.testing.assert_close(staged.cells(0.999), last, rtol=1e-5, atol=1e-9)
    assert float(last[ROTATE, 0]) > 2 * float(last[ROTATE, 1]), "large angles are hard"
    torch.testing.assert_close(draws.probabilities, staged.probabilities, rtol=1e-12, atol=0)
    again = AdversarialSampler(SPACE, bins=2, start=draws.log_levels[-1])
    torch.testing.assert_close(again.cells, last, rtol=1e-5, atol=1e-9)
