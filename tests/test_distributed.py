"""One run on several processes: the same result, the same failures, one writer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import on_ranks
from torch import Tensor

from mapolicy.bilevel import BilevelStep, InnerRate, StepOptions
from mapolicy.distributed import ALONE, Part, all_of, communicator
from mapolicy.errors import InputError
from mapolicy.networks import build_network
from mapolicy.policy import PolicyNetwork
from mapolicy.space import EMBEDDING_WIDTH

CPU = torch.device("cpu")
WITHOUT_STATISTICS = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}  # layer norm


def test_a_process_alone_is_all_there_is() -> None:
    rows = torch.arange(6.0, requires_grad=True)
    assert communicator() is ALONE
    assert ALONE.part(6) == all_of(6) == Part(0, 6, 6)
    assert ALONE.gather(rows) is rows
    assert ALONE.sum([rows])[0] is rows
    assert (ALONE.largest(3, 0), ALONE.broadcast(b"x"), ALONE.sent) == ([3, 0], b"x", 0)


def test_what_processes_tell_each_other(tmp_path: Path) -> None:
    def told() -> dict[str, Any]:
        group = communicator()
        own = torch.arange(2.0) + 10 * group.rank
        rows = own.clone().requires_grad_()
        gathered = group.gather(rows)
        (gathered * torch.arange(float(len(gathered)))).sum().backward()
        tensors = [torch.full((2, 3), 1.0 + group.rank), torch.tensor(group.rank), torch.ones(2, 2).t()]
        mean = torch.tensor([float(group.rank)])
        group.average([mean])
        return {
            "part": group.part(6),
            "gathered": gathered.detach(),
            "gradient": rows.grad,
            "sums": group.sum(tensors),
            "mean": mean,
            "largest": group.largest(group.rank, -group.rank),
            "bytes": group.broadcast(b"from %d" % group.rank),
        }

    size = 3
    for rank, got in enumerate(on_ranks(size, told, tmp_path)):
        assert got["part"] == Part(2 * rank, 2, 6)
        assert got["gathered"].tolist() == [0, 1, 10, 11, 20, 21]
        assert got["gradient"].tolist() == [2 * rank, 2 * rank + 1]
        assert [total.tolist() for total in got["sums"]] == [[[6] * 3] * 2, 3, [[3, 3], [3, 3]]]
        assert got["mean"].tolist() == [1]
        assert (got["largest"], got["bytes"]) == ([2, 0], b"from 0")


def test_processes_that_were_given_different_things_are_told(tmp_path: Path) -> None:
    def differing() -> str:
        group = communicator()
        try:
            group.check_equal("its data set", f"images {group.rank}")
        except InputError as problem:
            return str(problem)
        return ""

    assert on_ranks(2, differing, tmp_path) == [
        "",
        "rank 1: its data set is not that of rank 0; give all processes the same",
    ]


class Steps:
    """A small network that is searched on for some iterations, each on a batch of its own."""

    def __init__(self, dtype: torch.dtype, arch: str, arguments: dict[str, Any], **options: Any) -> None:
        self.dtype = dtype
        self.network = build_network(arch, arguments, 4, 1, 0, CPU).to(dtype)
        torch.manual_seed(1)
        self.policy = PolicyNetwork(self.network.head_hidden_size).to(dtype)
        torch.nn.init.normal_(self.policy.output.weight, std=0.3)
        self.rate = InnerRate(0.05).to(dtype)
        self.step = BilevelStep(
            self.network,
            self.policy,
            self.rate,
            torch.optim.SGD(self.network.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3),
            torch.optim.AdamW([*self.policy.parameters(), *self.rate.parameters()], lr=0.01),
            StepOptions(**options),
            communicator=communicator(),
        )

    def iterate(self, count: int, batch: int = 12, lessons: int = 8) -> dict[str, Tensor]:
        """The state after some iterations; each process computes its part of the batch."""
        group, record = self.step.communicator, None
        for number in range(count):
            draws = torch.Generator().manual_seed(number)

            def own(*shape: int, draws: torch.Generator = draws) -> Tensor:
                drawn = torch.randn(*shape, generator=draws, dtype=torch.float64).to(self.dtype)
                return group.part(len(drawn)).of(drawn)

            def classes(count: int, draws: torch.Generator = draws) -> Tensor:
                return group.part(count).of(torch.randint(4, (count,), generator=draws))

            validation = own(lessons, 1, 8, 8), classes(lessons)
            images, labels, embedding = own(batch, 1, 8, 8), classes(batch), own(batch, EMBEDDING_WIDTH)
            record = self.step(images, labels, embedding, validation if number % 3 < 2 else None, noise_seed=number)
        assert record is not None
        modules = {"network": self.network, "policy": self.policy, "rate": self.rate}
        state = {f"{kind}.{name}": t for kind, module in modules.items() for name, t in module.state_dict().items()}
        return state | {"weights": record.weights, "raw": record.raw, "loss": record.loss}


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert set(one) == set(other)
    assert len(one) > 10
    return max(float((one[name] - other[name]).abs().max()) for name in one)


VIT = ("vit_tiny_patch16_224", WITHOUT_STATISTICS)


@pytest.mark.parametrize(
    "options",
    [{"clip_norm": 0.5}, {"low_memory": True, "reject_below_mean": True}, {"simultaneous": True}],
    ids=["paper", "low-memory", "simultaneous"],
)
def test_two_processes_and_one_are_the_same_run(options: dict[str, Any], tmp_path: Path) -> None:
    def run() -> dict[str, Tensor]:
        return Steps(torch.float64, *VIT, **options).iterate(24)

    alone = run()
    start = Steps(torch.float64, *VIT, **options).iterate(1)
    assert distance(alone, start) > 1e-2, "nothing has moved"
    first, second = on_ranks(2, run, tmp_path)
    assert distance(first, second) == 0
    assert distance(first, alone) <= 1e-12
    again, _ = on_ranks(2, run, tmp_path)
    assert distance(first, again) == 0


@pytest.mark.parametrize(("iterations", "bound"), [(1, 1e-6), (5, 1e-5)])
def test_in_single_precision_they_differ_by_rounding(iterations: int, bound: float, tmp_path: Path) -> None:
    def run() -> dict[str, Tensor]:
        return Steps(torch.float32, *VIT).iterate(iterations)

    first, second = on_ranks(2, run, tmp_path)
    assert distance(first, second) == 0
    assert distance(first, run()) <= bound
