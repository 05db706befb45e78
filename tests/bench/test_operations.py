"""`mapolicy bench operations`: synthetic images, Pillow's results against ours, and what is left as it was."""

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch

from mapolicy import Transformation
from mapolicy.bench import operations, pillow
from mapolicy.bench.synthetic import synthetic_images
from mapolicy.transforms.space import OPERATION_NAMES

CPU = torch.device("cpu")


def test_images_are_smooth_with_noise() -> None:
    images = synthetic_images(8, 32)
    assert images.shape == (8, 3, 32, 32)
    assert images.dtype == torch.uint8
    assert torch.equal(images, synthetic_images(8, 32))
    pixels = images.double()
    steps = (pixels[..., 1:] - pixels[..., :-1]).std()
    assert 5 < steps < 40, "neighbours are alike, but not equal"
    assert pixels.std() > 2 * steps


@pytest.mark.parametrize("name", OPERATION_NAMES)
def test_pillows_work_is_ours(name: str) -> None:
    """Each operation on its own, over its whole range and both directions, with a fill colour."""
    images = synthetic_images(21, 19)
    levels = torch.linspace(-10, 10, 21)
    index = torch.full((21,), OPERATION_NAMES.index(name))
    identity = torch.full((21,), OPERATION_NAMES.index("Identity"))
    transformation = Transformation(index, identity, levels, torch.zeros(21))
    fill = torch.tensor([10, 200, 90], dtype=torch.uint8)
    result = pillow.transform_by_pillow(pillow.to_pillow(images), transformation, (10, 200, 90))
    assert torch.equal(pillow.from_pillow(result), transformation.apply(images, fill=fill))
    assert name == "Identity" or not torch.equal(pillow.from_pillow(result), images)


def test_operations_are_measured_and_compared() -> None:
    report = operations.measure_operations([8, 12], 4, 2, 1, CPU)
    document = report.document()
    by_side = {side: [row for row in document["rows"] if row["image_size"] == side] for side in (8, 12)}
    for rows in by_side.values():
        names = [row["what"] for row in rows]
        assert names[:5] == ["mapolicy", "pillow", "torchvision-tensor", "torchvision-pil", "timm"]
        assert len(names) + len(document["left_out"]) == 7
        assert {row["against"] for row in rows} == {"pillow"}
        assert [row["same_work"] for row in rows] == [True, True] + [False] * (len(rows) - 2)
        assert [row.get("equal") for row in rows] == [True, True] + [None] * (len(rows) - 2)
        for row in rows:
            assert row["us_per_image"] == pytest.approx(1000 * row["median_ms"] / 4)
            assert row["images_per_second"] * row["us_per_image"] == pytest.approx(1e6)
    assert document["versions"]["pillow"]


def test_with_several_threads_ours_is_measured_on_one_too(set_threads: Callable[[int], None]) -> None:
    set_threads(1)
    document = operations.measure_operations([8], 4, 1, 2, CPU).document()
    assert [row["what"] for row in document["rows"]][:3] == ["mapolicy", "mapolicy-one-thread", "pillow"]
    assert "wall-clock" in document["time"]
    assert all(row["equal"] for row in document["rows"][:3])


def test_a_difference_from_pillow_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    other = dict.fromkeys(pillow.FUNCTIONS, pillow.FUNCTIONS["Identity"])
    monkeypatch.setattr(pillow, "FUNCTIONS", other)
    rows = operations.measure_operations([8], 8, 1, 1, CPU).rows
    assert [row.facts["equal"] for row in rows[:2]] == [False, False]


def test_random_states_and_threads_are_left_as_they_were() -> None:
    def states() -> tuple:
        return torch.get_num_threads(), random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()

    before = states()
    operations.measure_operations([8], 4, 1, 2, CPU)
    for one, other in zip(before, states(), strict=True):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
