"""The sampler against Eq. 5 written out in plain Python."""

import math
from collections import defaultdict

import pytest
import torch

from mapolicy.policy.sampler import Observation, TransformationSampler, likeliest, relative_entropy
from mapolicy.transforms.transformation import Transformation

K = 14


def batch(pairs: list[tuple[int, int]]) -> Transformation:
    first, second = (torch.tensor(side) for side in zip(*pairs, strict=True))
    return Transformation.draw_magnitudes(first, second, torch.Generator())


def expected_probabilities(
    history: list[tuple[list[tuple[int, int]], list[float]]], epsilon: float, power: float
) -> list[float]:
    """Eq. 5 over the iterations in `history`, v_jk raised to a power."""
    outputs: dict[tuple[int, int], list[float]] = defaultdict(list)
    for pairs, raw in history:
        for pair, value in zip(pairs, raw, strict=True):
            outputs[pair].append(value)
    means = {pair: sum(values) / len(values) for pair, values in outputs.items()}
    unseen = sum(means.values()) / len(means)
    v = [means.get((j, k), unseen) ** power for j in range(K) for k in range(K)]
    return [(1 - epsilon) * value / sum(v) + epsilon / K**2 for value in v]


def test_starts_uniform() -> None:
    sampler = TransformationSampler()
    assert sampler.probabilities.flatten().tolist() == pytest.approx([1 / 196] * 196)
    assert relative_entropy(sampler.probabilities) == pytest.approx(1)


@pytest.mark.parametrize(("epsilon", "temperature"), [(0.0, 1.0), (0.1, 1.0), (1.0, 1.0), (0.0, 0.2), (0.1, 4.0)])
def test_probabilities_are_eq_5_over_the_last_r_iterations_every_s(epsilon: float, temperature: float) -> None:
    every, history = 3, 5
    sampler = TransformationSampler(epsilon, every, history, temperature)
    generator = torch.Generator().manual_seed(0)
    seen: list[tuple[list[tuple[int, int]], list[float]]] = []
    current = sampler.probabilities.flatten().tolist()
    for iteration in range(1, 15):
        pairs = [tuple(pair) for pair in torch.randint(0, K, (40, 2), generator=generator).tolist()]
        raw = torch.rand(40, generator=generator)
        sampler.record(batch(pairs).pair, raw)
        seen.append((pairs, raw.tolist()))
        if iteration % every == 0:
            current = expected_probabilities(seen[-history:], epsilon, 1 / temperature)
        assert sampler.probabilities.flatten().tolist() == pytest.approx(current, rel=1e-6), iteration
        assert math.fsum(sampler.probabilities.flatten().tolist()) == pytest.approx(1, abs=1e-12)
        assert float(sampler.probabilities.min()) >= epsilon / 196 - 1e-12


def test_pairs_never_seen_take_the_mean_of_the_seen() -> None:
    sampler = TransformationSampler(epsilon=0.0)
    sampler.record(batch([(0, 1), (2, 3), (2, 3)]).pair, torch.tensor([0.2, 0.5, 0.7]))
    assert float(sampler.means[0, 1]) == pytest.approx(0.2)
    assert float(sampler.means[2, 3]) == pytest.approx(0.6)
    assert float(sampler.means[5, 5]) == pytest.approx(0.4)


def test_the_coldest_sampler_of_the_smallest_outputs_is_finite() -> None:
    sampler = TransformationSampler(epsilon=0.0, temperature=0.01)
    sampler.record(batch([(0, 1), (2, 3)]).pair, torch.tensor([1e-30, 2e-30]))
    assert float(sampler.probabilities[2, 3]) == pytest.approx(1)
    assert float(sampler.probabilities.sum()) == pytest.approx(1)


def test_samples_follow_the_probabilities() -> None:
    probabilities = torch.rand(K, K, generator=torch.Generator().manual_seed(1)) ** 4
    probabilities /= probabilities.sum()
    sampler = TransformationSampler(probabilities=probabilities)
    count = 200_000
    transformation = sampler.sample(count, torch.Generator().manual_seed(2))
    observed = torch.bincount(transformation.pair, minlength=196).double()
    expected = probabilities.flatten().double() * count
    chi_squared = float(((observed - expected) ** 2 / expected).sum())
    assert chi_squared < 195 + 5 * math.sqrt(2 * 195)


def test_samples_depend_on_the_generator_alone() -> None:
    sampler = TransformationSampler()
    torch.manual_seed(0)
    one = sampler.sample(64, torch.Generator().manual_seed(7))
    torch.manual_seed(1)
    two = sampler.sample(64, torch.Generator().manual_seed(7))
    other = sampler.sample(64, torch.Generator().manual_seed(8))
    assert torch.equal(one.pair, two.pair)
    assert torch.equal(one.magnitude1, two.magnitude1)
    assert not torch.equal(one.pair, other.pair)


def test_goes_on_from_its_state() -> None:
    generator = torch.Generator().manual_seed(4)
    data = [(torch.randint(0, K, (8, 2), generator=generator), torch.rand(8, generator=generator)) for _ in range(9)]

    def feed(sampler: TransformationSampler, part: slice) -> None:
        for pairs, raw in data[part]:
            sampler.record(batch([tuple(pair) for pair in pairs.tolist()]).pair, raw)

    whole = TransformationSampler(0.1, 2, 4)
    feed(whole, slice(None))
    first = TransformationSampler(0.1, 2, 4)
    feed(first, slice(0, 5))
    second = TransformationSampler(0.1, 2, 4)
    second.restore({name: tensor.clone() for name, tensor in first.state().items()}, 5)
    feed(second, slice(5, None))
    assert torch.equal(second.probabilities, whole.probabilities)
    assert torch.equal(second.means, whole.means)


def test_entropy_is_relative_to_uniform() -> None:
    single = torch.zeros(K, K)
    single[3, 4] = 1
    assert relative_entropy(single) == 0
    half = torch.zeros(K, K)
    half[0, :2] = 0.5
    assert relative_entropy(half) == pytest.approx(math.log(2) / math.log(196))


@pytest.mark.parametrize(
    "arguments", [{"epsilon": -0.1}, {"epsilon": 1.1}, {"temperature": 0.0}, {"every": 0}, {"history": 0}]
)
def test_impossible_settings_are_refused(arguments: dict) -> None:
    with pytest.raises(ValueError, match="epsilon"):
        TransformationSampler(**arguments)


@pytest.mark.parametrize("temperature", [1.0, 0.4])
def test_entropy_by_chance_holds_for_outputs_that_know_no_operation(temperature: float) -> None:
    """In about 95 of 100 samplers whose outputs depend on nothing but chance, and in none with a preference."""
    within = []
    for seed in range(60):
        draws = torch.Generator().manual_seed(seed)
        sampler = TransformationSampler(history=4, every=4, temperature=temperature)
        for _ in range(4):
            raw = 0.3 + 0.4 * torch.rand(800, generator=draws)
            sampler.record(sampler.sample(800, draws).pair, raw)
        low, high = sampler.entropy_by_chance()
        assert 0.94 < low < high < 1
        within.append(low <= relative_entropy(sampler.probabilities) <= high)
    assert 0.85 <= sum(within) / len(within) <= 1
    assert TransformationSampler().entropy_by_chance() == (0, 1), "nothing is known before the first outputs"

    told = TransformationSampler()
    drawn = told.sample(4000, draws)
    told.record(drawn.pair, 0.3 + 0.2 * (drawn.first == 2) + 0.1 * torch.rand(4000, generator=draws))
    assert relative_entropy(told.probabilities) < told.entropy_by_chance()[0]


def test_the_likeliest_are_named_in_their_order() -> None:
    probabilities = torch.full((14, 14), 0.001)
    probabilities[2, 9], probabilities[9, 2] = 0.3, 0.2
    (first, second) = likeliest(probabilities, 2)
    assert first == ("Rotate", "ShearX", pytest.approx(0.3))
    assert second == ("ShearX", "Rotate", pytest.approx(0.2))


def test_iterations_without_outputs_leave_p_jk_as_it_is() -> None:
    """Equal weights without a hypergradient compute no outputs; the history may hold nothing else."""
    sampler = TransformationSampler(history=1)
    drawn = sampler.sample(64, torch.Generator().manual_seed(0))
    sampler.observe(Observation(drawn.pair, torch.linspace(0.1, 0.9, 64)))
    before = sampler.probabilities.clone()
    sampler.observe(Observation(drawn.pair))
    assert sampler.iteration == 2
    assert torch.equal(sampler.probabilities, before)
    assert before.std() > 0
