"""Reports and explanations of a policy that learned levels and weighs all samples equally."""

import numpy as np
import pytest
import torch

from mapolicy import PolicyBundle
from mapolicy.bundle.findings import at_levels, relative_frequencies, verdict, what_was_learned
from mapolicy.bundle.load import open_bundle
from mapolicy.report import figures
from mapolicy.report.explain import explain
from mapolicy.report.explain import relative_frequencies as frequencies_of
from mapolicy.report.gather import Report, gather
from mapolicy.report.page import page
from mapolicy.report.picture_files import picture_files
from mapolicy.report.sample_weights import SampleWeights
from mapolicy.report.tables import level_table
from mapolicy.runtime.random import generator
from mapolicy.transforms.parse import parse_transformations
from mapolicy.transforms.space import SPACES
from tests.helpers.bundle_factory import log_levels
from tests.helpers.make_bundles import DATA

PATH = DATA / "format-2-levels.safetensors"
CPU = torch.device("cpu")


@pytest.fixture
def levels() -> PolicyBundle:
    return PolicyBundle.load(PATH)


@pytest.fixture
def gathered(levels: PolicyBundle, monkeypatch: pytest.MonkeyPatch) -> Report:
    monkeypatch.setattr(PolicyBundle, "build_extractor", lambda *_: pytest.fail("equal weights need no extractor"))
    return gather(open_bundle(PATH), levels)


def test_a_report_shows_levels_and_no_weights(gathered: Report, levels: PolicyBundle) -> None:
    table = levels.log_levels.double().numpy()
    np.testing.assert_array_equal(gathered.levels.values, relative_frequencies(table, levels.strength))
    iterations = levels.manifest.run.iterations
    learned = what_was_learned(table, levels.strength, levels.operation_space, iterations=iterations)
    assert list(gathered.findings.learned) == learned
    assert gathered.response is gathered.samples is gathered.classes is None
    assert gathered.probabilities is not None


def test_the_page_says_what_was_learned_before_anything_else(gathered: Report, levels: PolicyBundle) -> None:
    text = page(gathered).decode()
    sentence = verdict(levels.manifest.verification, levels.strength)
    assert text.index(sentence[1:]) < text.index('id="where"')
    for line in gathered.findings.learned:
        assert line[1:] in text
    assert "his policy sees the transformation, not the image" in text
    assert 'id="table-levels"' in text
    rows = [row for row in levels.manifest.verification.rows if row.strength is None]
    for row in rows:
        assert f'<th scope="row">{row.policy}</th>' in text
        assert f"{100 * row.correct / levels.manifest.verification.images:.1f}" in text
    for absent in ('id="magnitudes"', 'id="samples"', 'id="classes"', "spread of the weights"):
        assert absent not in text
    assert text.count("colspan") == 1, "the kept row"


def test_the_heat_map_of_levels_is_among_the_pictures(gathered: Report) -> None:
    assert {"levels.png", "levels.svg", "probabilities.png"} <= set(picture_files(gathered))


def test_a_cell_of_the_levels_is_told_in_the_operations_unit() -> None:
    space = SPACES["metaaugment-v1"]
    table = level_table(log_levels().astype(np.float64), 30.0, space)
    rotate = space.names.index("Rotate")
    assert table.columns == ["-10 to -5", "-5 to 0", "0 to 5", "5 to 10"]
    assert table.details[rotate][0] == (
        "Rotate at -30 to -15 degrees: drawn less than 0.01 times as often as at random"
    )
    assert table.details[space.names.index("Equalize")][0].startswith("Equalize: drawn ")
    assert table.strength.min() == pytest.approx(-1, abs=0.01)
    assert at_levels("Color", -10, 0, space) == "Color at factor 0.1 to 1"


def test_a_policy_that_draws_uniformly_has_no_colour() -> None:
    table = level_table(np.zeros((1, 14, 4)), 30.0, SPACES["wide"])
    assert abs(table.strength).max() < 1e-6
    assert set(np.unique(table.values)) == {1.0}


def test_curves_of_zeros_are_left_out() -> None:
    curves = {"weight_spread": [(1.0, 0.0), (2.0, 0.0)], "alpha": [(1.0, 0.1), (2.0, 0.2)]}
    assert list(figures.curve_draws(curves)) == ["alpha, step size of the virtual step"]


def test_an_explanation_says_how_often_each_transformation_is_drawn(levels: PolicyBundle) -> None:
    """As often as a large sample has it, over a uniform one."""
    chosen = parse_transformations("Rotate:9,Color:-3;Equalize;Solarize:2,TranslateX:4", levels.operation_space)
    found = frequencies_of(levels, chosen)
    sampler = levels.sampler()
    drawn = sampler.sample(400_000, generator(0, "levels", "transformation", 0))
    pair = sampler.grid.cell(drawn.first, drawn.magnitude1) * sampler.grid.group.numel()
    pair += sampler.grid.cell(drawn.second, drawn.magnitude2)
    # Cells that the space cannot tell apart are equally likely, so one cell of each pair stands for it.
    wanted = sampler.grid.cell(chosen.first, chosen.magnitude1) * sampler.grid.group.numel()
    wanted += sampler.grid.cell(chosen.second, chosen.magnitude2)
    for code, frequency in zip(wanted.tolist(), found.tolist(), strict=True):
        count = int((pair == code).sum())
        expected = frequency * 400_000 / sampler.grid.group.numel() ** 2
        assert abs(count - expected) < 5 * expected**0.5 + 5
    image = torch.zeros(1, 8, 8, dtype=torch.uint8)
    explanation = explain(SampleWeights(levels, CPU), image, chosen, "zero")
    torch.testing.assert_close(explanation.weights, found)
    assert "frequency" in explanation.document()["transformations"][0]


def test_a_policy_of_pairs_with_equal_weights_is_explained_by_p_jk(bundle: PolicyBundle) -> None:
    chosen = parse_transformations("Rotate:9,Color:-3", bundle.operation_space)
    names = bundle.operation_space.names
    expected = bundle.probabilities[names.index("Rotate"), names.index("Color")].double() * 196
    torch.testing.assert_close(frequencies_of(bundle, chosen), expected[None])


def test_two_policies_with_equal_weights_are_compared_by_p_jk_alone(gathered: Report, levels: PolicyBundle) -> None:
    report = gather(open_bundle(PATH), levels, against=levels)
    assert report.changes.effect is None
    assert "Both policies weigh all samples equally, so there are no weights to compare." in page(report).decode()
