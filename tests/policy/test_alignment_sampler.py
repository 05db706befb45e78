"""The alignment sampler: one update in closed form, the draw against q, planted harm, resume."""

import math

import pytest
import torch
from scipy.stats import chisquare

from mapolicy.policy.alignment_sampler import AlignmentSampler, estimate_effects
from mapolicy.policy.level_sampler import STAGES
from mapolicy.policy.levels import (
    FeatureDirections,
    LevelGrid,
    SampleEffects,
    StagedLevels,
    class_context,
)
from mapolicy.policy.sampler import Observation
from mapolicy.policy.samplers import learned_draws
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


def test_a_few_cells_with_large_scores_do_not_make_the_others_look_harmful() -> None:
    """The batch's mean is above most cells, and above the weakest transformations too."""

    def helps_a_lot(operation: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
        return 2 * (operation == SOLARIZE) * (magnitude.abs() > 5).float()

    row = trained(helps_a_lot).cells * 112
    others = torch.cat([row[:SOLARIZE], row[SOLARIZE + 1 :]])
    assert others.mean() > 0.9, "with scores from the batch's mean: 0.02"
    assert row[SOLARIZE].mean() < 2.5


def test_where_most_levels_harm_all_of_them_are_thinned() -> None:
    """The typical cell harms; the weakest transformations do not."""

    def harms(operation: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
        return -((operation != IDENTITY) & (magnitude.abs() > 2.5)).float()

    sampler = trained(harms)
    weakest = sampler.grid.weakest[sampler.grid.group]
    told = torch.tensor([SPACE.ranges[name] is not None for name in NAMES])
    cells = sampler.cells * 112
    assert cells[told][~weakest[told]].mean() < 0.1, "counted from the typical cell: 0.19"
    assert cells[weakest].mean() > 2


def test_the_weakest_transformations_are_those_next_to_no_change() -> None:
    grid = LevelGrid(SPACES["autoaugment"], 4)
    weakest = grid.weakest[grid.group].int().tolist()
    assert weakest[ROTATE] == [0, 0, 0, 1, 1, 0, 0, 0]
    assert weakest[SOLARIZE] == [0, 0, 0, 1, 1, 0, 0, 0], "its threshold is 256 at level 0"
    assert weakest[NAMES.index("Contrast")] == [0, 1, 1, 0, 0, 1, 1, 0], "levels 0 to 10 are factors 0.1 to 1.9"
    assert weakest[IDENTITY] == [1] * 8
    assert weakest[NAMES.index("Equalize")] == [0] * 8
    wide = LevelGrid(SPACE, 1)
    assert wide.weakest[wide.group].int().tolist()[ROTATE] == [1, 1], "a bin that begins there holds stronger ones too"


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


def test_a_bundle_has_the_mean_of_the_second_half_or_the_course() -> None:
    sampler = trained(beyond_five, iterations=40)
    mean, course = (learned_draws(sampler, SPACE.name, course=course).log_levels for course in (False, True))
    assert mean is not None
    assert course is not None
    assert mean.shape == (1, 14, 8)
    assert course.shape == (STAGES, 14, 8)
    torch.testing.assert_close(mean[0], course[STAGES // 2 :].mean(0))
    assert float((mean[0] - course[0]).abs().max()) > 0.5
    both = [StagedLevels(SPACE, table, 3.0).probabilities for table in (mean, course)]
    torch.testing.assert_close(*both)


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


def seen(harm, context_of, inputs: int, iterations: int = 400, sign: float = 1.0) -> AlignmentSampler:
    """A sampler that sees images: `harm(images, drawn)` float [n], from images drawn by `context_of(step)`."""
    sampler = AlignmentSampler(SPACE, iterations=iterations, inputs=inputs)
    for step in range(iterations):
        images, context = context_of(step)
        drawn = sampler.sample(BATCH, generator(step), context=context)
        noise = torch.randn(BATCH, generator=generator(10_000 + step))
        alignment = sign * harm(images, drawn) + noise
        rows = torch.arange(BATCH)
        sampler.observe(Observation(sampler.code(drawn), None, alignment, rows, context))
    return sampler


def shares(sampler: AlignmentSampler, context: torch.Tensor) -> torch.Tensor:
    """How often each cell is drawn for images with this h(x), over a uniform draw's, [n, 14, 8]."""
    effects = sampler.sample_effects
    assert effects is not None
    return StagedLevels(SPACE, sampler.log_levels[None], 3.0, SampleEffects(effects)).cells(0.0, context) * 112


def classes(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.randint(10, (BATCH,), generator=generator(20_000 + step))
    return labels, class_context(labels, 10)


def harm_of_five_classes(labels: torch.Tensor, drawn: Transformation) -> torch.Tensor:
    """Rotation destroys the label of classes 0 to 4."""
    rotated = (drawn.first == ROTATE).float() + (drawn.second == ROTATE).float()
    return -2 * rotated * (labels < 5)


def test_classes_that_rotation_harms_are_told_from_the_others() -> None:
    sampler = seen(harm_of_five_classes, classes, inputs=10)
    rotated = shares(sampler, class_context(torch.arange(10), 10))[:, ROTATE].mean(1)
    assert rotated[:5].max() < 0.1
    assert rotated[5:].min() > 0.5
    assert rotated[5:].mean() > 0.8
    other = seen(harm_of_five_classes, classes, inputs=10, sign=-1.0)
    rotated = shares(other, class_context(torch.arange(10), 10))[:, ROTATE].mean(1)
    assert rotated[:5].min() > rotated[5:].max(), "the sign counts"


TRANSLATE = NAMES.index("TranslateX")
SIDES = FeatureDirections(torch.zeros(6), torch.eye(6)[:3])


def sides(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Deep features of six numbers; the second one says where the object is."""
    features = torch.randn(BATCH, 6, generator=generator(30_000 + step))
    return features[:, 1], SIDES.context(features)


def harm_out_of_the_frame(side: torch.Tensor, drawn: Transformation) -> torch.Tensor:
    """Moving an object further to its own side moves it out of the frame."""
    found = torch.zeros(BATCH)
    for operation, magnitude in ((drawn.first, drawn.magnitude1), (drawn.second, drawn.magnitude2)):
        found -= 3 * ((operation == TRANSLATE) & (magnitude * side > 0)).float() * side.abs()
    return found


def test_an_object_on_the_left_is_not_moved_further_left() -> None:
    sampler = seen(harm_out_of_the_frame, sides, inputs=3)
    extreme = torch.tensor([[0.0, -2.0, 0.0], [0.0, 2.0, 0.0]])
    left, right = shares(sampler, extreme)[:, TRANSLATE]
    assert left[:4].mean() < 0.5 * left[4:].mean()
    assert right[4:].mean() < 0.5 * right[:4].mean()


def test_without_evidence_draws_stay_those_of_the_data_set() -> None:
    sampler = seen(lambda labels, drawn: torch.zeros(BATCH), classes, inputs=10)
    effects = sampler.sample_effects
    assert effects is not None
    own = shares(sampler, class_context(torch.arange(10), 10))
    common = sampler.cells * 112
    assert float((own - common).abs().mean()) < 0.01
    assert float(effects.abs().mean()) < 0.003


def test_turned_directions_keep_the_draws() -> None:
    sampler = seen(harm_out_of_the_frame, sides, inputs=3, iterations=100)
    quarter = torch.tensor([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    context = torch.randn(50, 3, generator=generator(5))
    raw = sampler.state()["seen"] @ context.double().T
    sampler.turn(quarter)  # the mean of new times old, where the old coordinates are uncorrelated
    torch.testing.assert_close(sampler.state()["seen"] @ (context @ quarter.T).double().T, raw)


def test_leading_directions_are_standardised_principal_components() -> None:
    mixing = torch.randn(5, 5, generator=generator(1)) * torch.tensor([3.0, 2.0, 1.0, 0.5, 0.0])[:, None]
    features = torch.randn(400, 5, generator=generator(2)) @ mixing + 7
    found = FeatureDirections.leading(features, 3)
    context = (features - found.center) @ found.directions.T
    torch.testing.assert_close(context.mean(0), torch.zeros(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(context.T @ context / 400, torch.eye(3), rtol=0, atol=1e-3)
    axes = torch.linalg.svd(features - features.mean(0), full_matrices=False).Vh
    cosines = (torch.nn.functional.normalize(found.directions, dim=1) * axes[:3]).sum(1).abs()
    torch.testing.assert_close(cosines, torch.ones(3), rtol=0, atol=1e-3)
    assert torch.equal(FeatureDirections.leading(features, 3).directions, found.directions)
    assert (FeatureDirections.leading(torch.ones(10, 2), 4).directions == 0).all()
