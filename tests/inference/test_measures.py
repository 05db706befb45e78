"""Figures of a classifier, counted a second time by hand."""

import math
import random

import pytest
import torch

from mapolicy.inference.measures import Evaluation, Outcomes, confusion

CLASSES = ("ant", "bee", "cat", "dog")


@pytest.fixture(scope="module")
def drawn() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of 400 images of unequal classes, the last of which has none, and their labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 10, (400,), generator=generator).clamp(max=2)
    logits = 2 * torch.randn(400, 4, generator=generator)
    logits[torch.arange(400), labels] += 1
    logits[:, 3] -= 100
    return logits, labels


def test_figures_of_all_images(drawn: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, labels = drawn
    found = Evaluation.of(labels, Outcomes.of(logits, labels), CLASSES)
    said, truth = logits.argmax(1).tolist(), labels.tolist()
    assert found.images == 400
    assert found.top1 == pytest.approx(100 * sum(a == b for a, b in zip(said, truth, strict=True)) / 400)
    assert found.top5 == 100
    recalls = []
    for label, row in enumerate(found.classes):
        of_class = [a for a, b in zip(said, truth, strict=True) if b == label]
        as_class = [b for a, b in zip(said, truth, strict=True) if a == label]
        assert (row.name, row.images) == (CLASSES[label], len(of_class))
        recall = 100 * of_class.count(label) / len(of_class) if of_class else None
        assert row.recall == (recall if recall is None else pytest.approx(recall))
        precision = 100 * as_class.count(label) / len(as_class) if as_class else None
        assert row.precision == (precision if precision is None else pytest.approx(precision))
        recalls += [] if recall is None else [recall]
    assert len(recalls) == 3
    assert found.balanced_accuracy == pytest.approx(sum(recalls) / 3)
    assert found.weakest().recall == pytest.approx(min(recalls))
    assert found.class_table()["dog"] == {"images": 0, "recall": None, "precision": None}


def test_calibration_error_written_out(drawn: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Guo et al. (2017), Eq. 3, image by image."""
    logits, labels = drawn
    found = Evaluation.of(labels, Outcomes.of(logits, labels), CLASSES)
    sums = [[0.0, 0.0] for _ in range(15)]
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        powers = [math.exp(value - max(row)) for value in row]
        confidence = max(powers) / sum(powers)
        place = next(number for number in range(15) if confidence <= (number + 1) / 15)
        sums[place][0] += confidence
        sums[place][1] += row.index(max(row)) == label
    assert found.calibration_error == pytest.approx(100 * sum(abs(a - b) for a, b in sums) / 400)
    assert sum(each.images for each in found.bins) == 400
    assert all(each.low < each.confidence <= each.high for each in found.bins)


def test_a_network_that_knows_how_sure_it_is_has_a_small_error() -> None:
    draw = random.Random(0)
    labels = torch.tensor([0 if draw.random() < 0.8 else 1 for _ in range(20_000)])
    sure = torch.tensor([[math.log(0.8), math.log(0.2)]]).repeat(20_000, 1)
    assert Evaluation.of(labels, Outcomes.of(sure, labels), ("a", "b")).calibration_error < 1
    boastful = 20 * sure
    error = Evaluation.of(labels, Outcomes.of(boastful, labels), ("a", "b")).calibration_error
    assert error == pytest.approx(20, abs=1)


def test_a_majority_class_does_not_hide_the_others() -> None:
    labels = torch.tensor([0] * 95 + [1] * 5)
    always_first = torch.tensor([[3.0, 0.0]]).repeat(100, 1)
    found = Evaluation.of(labels, Outcomes.of(always_first, labels), ("common", "rare"))
    assert (found.top1, found.balanced_accuracy) == (95, 50)
    assert found.weakest().name == "rare"
    assert confusion(labels, always_first.argmax(1), 2).tolist() == [[95, 0], [5, 0]]


def test_batches_are_joined_in_their_order(drawn: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, labels = drawn
    parts = [Outcomes.of(*part) for part in zip(logits.split(64), labels.split(64), strict=True)]
    whole, joined = Outcomes.of(logits, labels), Outcomes.joined(parts)
    assert torch.equal(joined.predicted, whole.predicted)
    assert torch.equal(joined.confidence, whole.confidence)
    assert torch.equal(joined.in_top5, whole.in_top5)


def test_the_fifth_likeliest_is_the_last_that_is_right() -> None:
    logits = torch.arange(6.0).flip(0).repeat(6, 1)
    assert Outcomes.of(logits, torch.arange(6)).in_top5.tolist() == [1, 1, 1, 1, 1, 0]
