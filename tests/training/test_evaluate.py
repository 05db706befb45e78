"""Accuracy against counting by hand."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from mapolicy.training.evaluate import Accuracy, evaluate


class Images:
    """Image number n is one pixel of value n; batches come as a split's do."""

    def __init__(self, labels: list[int]) -> None:
        self.labels = torch.tensor(labels)
        self.asked: list[tuple[int, list[int]]] = []

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, schedule: list[tuple[int, Tensor]], augment: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        assert not augment
        for step, positions in schedule:
            self.asked.append((step, positions.tolist()))
            yield positions.to(torch.uint8)[:, None, None, None], self.labels[positions]


class Table(nn.Module):
    """Gives image n the n-th row of a table as its logits; expects images halved, as `PIPELINE` normalises them."""

    def __init__(self, rows: list[list[float]]) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.tensor(rows))
        self.norm = nn.BatchNorm1d(len(rows[0]))
        self.seen: list[tuple[bool, bool, torch.dtype]] = []

    def forward(self, x: Tensor) -> Tensor:
        logits = self.rows[(x.flatten() * 2).long()]
        self.seen.append((self.training, torch.is_grad_enabled(), x.dtype))
        self.last = self.norm(logits) * 0 + logits
        return self.last


PIPELINE = SimpleNamespace(normalise=lambda images: images.float() / 2)
# The likeliest classes of each image, in order; the sixth of six is never among the five likeliest.
ORDERS = [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [2, 0, 1, 5, 3, 4], [3, 5, 0, 2, 1, 4], [1, 2, 3, 4, 5, 0]]
LABELS = [0, 0, 3, 3, 4]  # first, sixth, fifth, first, fourth


def rows(orders: list[list[int]]) -> list[list[float]]:
    return [[-float(order.index(label)) for label in range(len(order))] for order in orders]


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_counted_by_hand(batch_size: int) -> None:
    split = Images(LABELS)
    accuracy = evaluate(Table(rows(ORDERS)), split, PIPELINE, batch_size)
    assert accuracy == Accuracy(top1=pytest.approx(40.0), top5=pytest.approx(80.0))
    assert [step for step, _ in split.asked] == list(range(len(split.asked)))
    assert [len(positions) for _, positions in split.asked][:-1] == [batch_size] * (len(split.asked) - 1)
    assert [position for _, positions in split.asked for position in positions] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("classes", [2, 3, 4, 5])
def test_five_classes_or_fewer_are_all_among_the_five_likeliest(classes: int) -> None:
    orders = [list(range(classes))] * 4
    accuracy = evaluate(Table(rows(orders)), Images([0, 1, 1, classes - 1]), PIPELINE, 3)
    assert accuracy == Accuracy(top1=25.0, top5=100.0)


@pytest.mark.parametrize("training", [False, True])
def test_network_is_left_as_it_was(training: bool) -> None:
    network = Table(rows(ORDERS)).train(training)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    evaluate(network, Images(LABELS), PIPELINE, 2)
    assert network.training == network.norm.training == training
    assert network.seen == [(False, False, torch.float32)] * 3
    assert not network.last.requires_grad
    assert network.rows.grad is None
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert torch.is_grad_enabled()
