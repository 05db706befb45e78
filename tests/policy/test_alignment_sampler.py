"""The alignment sampler: one update in closed form, the draw against q, planted harm, resume."""

import math

import pytest
import torch
from scipy.stats import chisquare

from mapolicy.policy.alignment_sampler import STAGES, AlignmentSampler, estimate_effects
from mapolicy.policy.levels import LevelGrid, StagedLevels
from mapolicy.policy.sampler import Observation
from mapolicy.transforms.space import SPACES, level_edges
from mapolicy.transforms.transformation import Transformation

SPACE = SPACES["metaaugment-v1"]
NAMES = SPACE.names
ROTATE, SOLARIZE, IDENTITY = (NAMES.index(name) for name in ("Rotate", "Solarize", "Identity"))
BATCH = 512


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def observed(sampler: AlignmentSampler, transformation: Transformation, alignment: torch.Tensor) -> None:
    rows = torch.arange(len(transformation))
    sampler.observe(Observation(sampler.code(transformation), None, alignment, rows))


def test_cells_that_the_space_cannot_tell_apart_share_a_value() -> None:
    grid = LevelGrid(SPACE, 4)
    assert grid.group.shape == (14, 8)
    assert len(set(grid.group[IDENTITY].tolist())) == 1
    assert grid.group[SOLARIZE].tolist() == grid.group[SOLARIZE].flip(0).tolist()
    assert len(set(grid.group[SOLARIZE].tolist())) == 4
    assert len(set(grid.group[ROTATE].tolist())) == 8
    assert grid.groups == 3 * 1 + 2 * 4 + 9 * 8
    assert level_edges(4) == (-10, -7.5, -5, -2.5, 0, 2.5, 5, 7.5, 10)
    levels = torch.tensor([-10.0, -7.6, -7.5, -0.1, 0.0, 2.4, 9.9, 10.0])
    expected = ROTATE * 8 + torch.tensor([0, 0, 1, 3, 4, 4, 7, 7])
    assert grid.cell(torch.full((8,), ROTATE), levels).tolist() == expected.tolist()


def test_the_draw_follows_q() -> None:
    grid = LevelGrid(SPACE, 4)
    weights = torch.rand(14 * 8, generator=generator(), dtype=torch.float64)
    cells = weights / weights.sum()
    drawn = grid.draw(cells, 40_000, generator(1))
    for operation, magnitude in ((drawn.first, drawn.magnitude1), (drawn.second, drawn.magnitude2)):
        counts = torch.bincount(grid.cell(operation, magnitude), minlength=112)
        assert chisquare(counts.numpy(), (cells * 40_000).numpy()).pvalue > 1e-3
    other = torch.full((112,), 1 / 112, dtype=torch.float64)
    assert chisquare(counts.numpy(), (other * 40_000).numpy()).pvalue < 1e-6, "the test can fail"
    within = (drawn.magnitude1 + 10) % 2.5 / 2.5
    assert abs(float(within.mean()) - 0.5) < 0.01, "levels are uniform within a bin"
    # The two positions are independent.
    both = torch.bincount(drawn.first * 14 + drawn.second, minlength=196).reshape(14, 14).double()
    expected = both.sum(1)[:, None] * both.sum(0) / 40_000
    assert float(((both - expected) ** 2 / expected).sum()) < 169 + 5 * math.sqrt(2 * 169)


def test_two_updates_in_closed_form() -> None:
    sampler = AlignmentSampler(SPACE, bins=1, strength=2.0, rate=0.25, decay=0.4)
    operations = torch.arange(14).repeat(20)
    levels = torch.full((280,), 5.0)
    observed(sampler, Transformation(operations, operations, levels, levels), -(operations == SOLARIZE).float())
    # A score has mean 0 and deviation 1: one of 14 operations at -1, the others at 0.
    deviation = math.sqrt(1 / 14 * 13 / 14)
    low = max(-3.0, (-1 + 1 / 14) / deviation)
    first = -0.25 * 40 * -low / (40 + 2)
    expected = torch.zeros(14, 2, dtype=torch.float64)
    expected[SOLARIZE] = first
    torch.testing.assert_close(sampler.log_levels, expected, rtol=0, atol=1e-6)
    # The second batch has Solarize in the first position alone: half as often, its running count is 40 - 20 / 20.
    other = (operations + 1) % 14
    second = Transformation(operations, torch.where(other == SOLARIZE, IDENTITY, other), levels, levels)
    observed(sampler, second, -(operations == SOLARIZE).float())
    expected[SOLARIZE] = (1 - 0.25 * 0.4) * first + 0.25 * 20 * low / (39 + 2)
    assert float(sampler.log_levels[SOLARIZE, 1]) == pytest.approx(float(expected[SOLARIZE, 1]), abs=1e-6)
    expected[:] = sampler.log_levels  # operations in the second position of Solarize's samples lose a little too
    q = torch.softmax(2.0 * expected.flatten(), 0).reshape(14, 2)
    torch.testing.assert_close(sampler.cells, q, rtol=0, atol=1e-12)
    torch.testing.assert_close(sampler.probabilities, q.sum(1)[:, None] * q.sum(1), rtol=0, atol=1e-12)


def test_shrinkage_against_its_definition() -> None:
    """A single level for each operation: James and Stein's factor, operation by operation."""
    counts = torch.tensor([100.0, 400.0, 50.0], dtype=torch.float64)
    means = torch.tensor([0.5, -0.3, 0.1], dtype=torch.float64)
    found = estimate_effects(counts, counts * means, counts, torch.arange(3))
    between = float((means**2 - 1 / counts).mean())
    torch.testing.assert_close(found.values, means * between / (between + 1 / counts), rtol=1e-9, atol=1e-12)
    assert (found.operations, found.levels) == (pytest.approx(math.sqrt(between)), 0)


def trained(harm, iterations: int = 150, sign: float = 1.0, noise: float = 1.0) -> AlignmentSampler:
    """A sampler whose derivatives come from `harm` of each position and noise, measured under its own draws."""
    sampler = AlignmentSampler(SPACE, iterations=iterations)
    for step in range(iterations):
        drawn = sampler.sample(BATCH, generator(step))
        alignment = sign * sum(
            harm(*side) for side in ((drawn.first, drawn.magnitude1), (drawn.second, drawn.magnitude2))
        )
        observed(sampler, drawn, alignment + noise * torch.randn(BATCH, generator=generator(10_000 + step)))
    return sampler


def beyond_five(operation: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    return -((operation == ROTATE) & (magnitude.abs() > 5)).float()


def one_direction(operation: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    return -((operation == ROTATE) & (magnitude < 0)).float()


def test_what_harms_beyond_a_level_is_thinned_beyond_it() -> None:
    row = (trained(beyond_five).cells * 112)[ROTATE]
    beyond, below = row[[0, 1, 6, 7]], row[2:6]
    assert beyond.max() < 0.2
    assert below.mean() > 0.8


def test_a_direction_is_told_from_the_other() -> None:
    row = (trained(one_direction).cells * 112)[ROTATE]
    assert row[:4].max() < 0.2
    assert row[4:].mean() > 0.8


def test_a_harmless_operation_keeps_its_share() -> None:
    cells = trained(beyond_five).cells * 112
    others = torch.cat([cells[:ROTATE], cells[ROTATE + 1 :]])
    assert others.mean() > 0.95
    assert others.mean(1).min() > 0.6


def test_with_the_sign_turned_harm_is_not_thinned() -> None:
    row = (trained(beyond_five, sign=-1.0).cells * 112)[ROTATE]
    assert row[[0, 1, 6, 7]].min() > 1, "what helps keeps its share"


def test_without_signal_draws_keep_their_variety() -> None:
    sampler = trained(lambda operation, magnitude: torch.zeros(len(operation)))
    cells = sampler.cells.flatten()
    # A walk below 0 thins by chance: the price of the method where nothing harms.
    assert float(-(cells * cells.log()).sum()) > 0.95 * math.log(112)
    assert sampler.figures()["thinned_share"] < 0.15
    effects = sampler.effects
    assert effects is not None
    assert effects.operations + effects.levels < 0.03


def test_equal_derivatives_and_broken_ones_teach_nothing() -> None:
    sampler = AlignmentSampler(SPACE)
    for value in (0.5, math.nan):
        observed(sampler, sampler.sample(64, generator()), torch.full((64,), value))
    assert sampler.effects is None
    assert (sampler.log_levels == 0).all()
    assert sampler.warnings() == []


def test_a_restored_sampler_goes_on_alike() -> None:
    def steps(sampler: AlignmentSampler, first: int, last: int) -> None:
        for step in range(first, last):
            drawn = sampler.sample(BATCH, generator(step))
            observed(sampler, drawn, beyond_five(drawn.first, drawn.magnitude1))

    whole, other = AlignmentSampler(SPACE, iterations=20), AlignmentSampler(SPACE, iterations=20)
    steps(whole, 0, 20)
    steps(other, 0, 7)
    resumed = AlignmentSampler(SPACE, iterations=20)
    resumed.restore({name: tensor.clone() for name, tensor in other.state().items()}, 7)
    steps(resumed, 7, 20)
    for name, tensor in whole.state().items():
        assert torch.equal(tensor, resumed.state()[name]), name
    assert torch.equal(whole.stages, resumed.stages)
    assert len(whole.stages) == STAGES


def test_a_part_of_the_batch_teaches_by_its_own_rows() -> None:
    whole, part = AlignmentSampler(SPACE), AlignmentSampler(SPACE)
    drawn = whole.sample(64, generator())
    alignment, rows = torch.randn(16, generator=generator(1)), torch.arange(32, 48)
    part.observe(Observation(part.code(drawn), None, alignment, rows))
    own = Transformation(drawn.first[rows], drawn.second[rows], drawn.magnitude1[rows], drawn.magnitude2[rows])
    observed(whole, own, alignment)
    assert torch.equal(part.log_levels, whole.log_levels)


def test_stages_follow_each_other() -> None:
    table = torch.zeros(4, 14, 8)
    table[3, ROTATE] = -1.0
    levels = StagedLevels(SPACE, table, strength=50.0)
    assert levels.relative(0.0)[ROTATE].tolist() == pytest.approx([1.0] * 8)
    assert levels.relative(0.76)[ROTATE].max() < 1e-9
    assert levels.relative(None)[ROTATE].max() < 1e-9, "the second half's mean is -1/2"
    assert (levels.sample(500, generator(), 0.9).first != ROTATE).all()
    assert (levels.sample(500, generator(), 0.1).first == ROTATE).any()
    assert float(levels.probabilities.sum()) == pytest.approx(1)
    assert torch.equal(StagedLevels(SPACE, table, 0.0).cells(0.9), torch.full((14, 8), 1 / 112, dtype=torch.float64))


def test_codes_name_pairs() -> None:
    sampler = AlignmentSampler(SPACE)
    drawn = sampler.sample(200, generator())
    code = sampler.code(drawn)
    assert code.max() < sampler.codes
    assert torch.equal(sampler.pair(code), drawn.pair)
