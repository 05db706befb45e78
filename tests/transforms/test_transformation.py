"""Transformations: the embedding against the paper's rule written out, application against one by one."""

import pytest
import torch

from mapolicy.transforms.functional import OPERATIONS, apply_operation
from mapolicy.transforms.transformation import Transformation

WITHOUT_MAGNITUDE = {"AutoContrast", "Equalize", "Identity"}
NAMES = [operation.name for operation in OPERATIONS]


def all_pairs(generator: torch.Generator) -> Transformation:
    pairs = torch.cartesian_prod(torch.arange(14), torch.arange(14))
    return Transformation.draw_magnitudes(pairs[:, 0], pairs[:, 1], generator)


def test_embedding_is_the_papers() -> None:
    """Zhou et al.: m1 + 1 at position 2j - 1, m2 + 1 at 2k, counted from 1; 11 for functions without magnitude."""
    transformation = all_pairs(torch.Generator().manual_seed(0))
    embedding = transformation.embed()
    assert embedding.shape == (196, 28)
    assert embedding.dtype == torch.float32
    for row in range(196):
        j, k = int(transformation.first[row]) + 1, int(transformation.second[row]) + 1
        expected = [0.0] * 28
        m1, m2 = abs(float(transformation.magnitude1[row])), abs(float(transformation.magnitude2[row]))
        expected[2 * j - 1 - 1] = 11.0 if NAMES[j - 1] in WITHOUT_MAGNITUDE else m1 + 1
        expected[2 * k - 1] = 11.0 if NAMES[k - 1] in WITHOUT_MAGNITUDE else m2 + 1
        assert embedding[row].tolist() == pytest.approx(expected, rel=1e-6), (NAMES[j - 1], NAMES[k - 1])


def test_embedding_does_not_know_the_direction() -> None:
    transformation = all_pairs(torch.Generator().manual_seed(1))
    mirrored = Transformation(
        transformation.first, transformation.second, -transformation.magnitude1, -transformation.magnitude2
    )
    assert torch.equal(transformation.embed(), mirrored.embed())


def test_apply_is_the_first_operation_then_the_second() -> None:
    generator = torch.Generator().manual_seed(2)
    transformation = all_pairs(generator)
    images = torch.randint(0, 256, (196, 3, 12, 12), generator=generator, dtype=torch.uint8)
    fill = torch.tensor([10, 20, 30], dtype=torch.uint8)
    got = transformation.apply(images, "wide", fill)
    for row in range(196):
        one = slice(row, row + 1)
        first = apply_operation(images[one], transformation.first[one], transformation.magnitude1[one], "wide", fill)
        both = apply_operation(first, transformation.second[one], transformation.magnitude2[one], "wide", fill)
        assert torch.equal(got[one], both), row


def test_order_matters() -> None:
    rotate, solarize = NAMES.index("Rotate"), NAMES.index("Solarize")
    images = torch.randint(0, 256, (1, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    fill = torch.tensor([200], dtype=torch.uint8)

    def through(first: int, second: int) -> torch.Tensor:
        level = torch.tensor([6.0])
        return Transformation(torch.tensor([first]), torch.tensor([second]), level, level).apply(images, fill=fill)

    assert not torch.equal(through(rotate, solarize), through(solarize, rotate))


def test_magnitudes_are_uniform_with_either_direction() -> None:
    count = 40_000
    zeros = torch.zeros(count, dtype=torch.int64)
    transformation = Transformation.draw_magnitudes(zeros, zeros, torch.Generator().manual_seed(3))
    for magnitude in (transformation.magnitude1, transformation.magnitude2):
        level = magnitude.abs().double()
        assert float(level.max()) <= 10
        # Standard error of the mean of U[0, 10] is 2.89 / 200, of the share of signs 0.5 / 200.
        assert abs(float(level.mean()) - 5) < 5 * 2.89 / 200
        assert abs(float(level.var()) - 100 / 12) < 0.2
        assert abs(float((magnitude > 0).double().mean()) - 0.5) < 5 * 0.5 / 200
    correlation = torch.corrcoef(torch.stack([transformation.magnitude1, transformation.magnitude2]))[0, 1]
    assert abs(float(correlation)) < 0.03


def test_pair_counts_row_by_row() -> None:
    transformation = all_pairs(torch.Generator())
    assert transformation.pair.tolist() == list(range(196))
