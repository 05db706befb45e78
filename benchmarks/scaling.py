"""Seconds of a search's iteration on several processes, against the model in docs/scaling.md.

    torchrun --nproc-per-node 2 benchmarks/scaling.py

Every process also computes alone, on its share of the batch and on the whole batch, all in turn, so that a noisy
machine disturbs all measurements alike. The model adds the cost of bytes and of calls to the time of the share; both
costs are measured by sums of one number and of 2^20 numbers.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from mapolicy.bilevel.bilevel_step import BilevelStep
from mapolicy.bilevel.inner_rate import InnerRate
from mapolicy.bilevel.options import StepOptions
from mapolicy.distributed import ALONE, Communicator, process_group
from mapolicy.models.factory import build_network
from mapolicy.policy.network import PolicyNetwork
from mapolicy.transforms.space import EMBEDDING_WIDTH


class Timed(Communicator):
    """A communicator that times its calls to another one.

    Attributes:
        seconds, calls: time and number of the calls since they were set to 0.
    """

    def __init__(self, group: Communicator) -> None:
        self._group, self.rank, self.size = group, group.rank, group.size
        self.seconds, self.calls = 0.0, 0
        for name in ("sum", "gather", "largest", "average"):
            setattr(self, name, self._timed(getattr(group, name)))

    def _timed(self, method: Callable) -> Callable:
        def timed(*arguments: object) -> object:
            start = time.perf_counter()
            result = method(*arguments)
            self.seconds, self.calls = self.seconds + time.perf_counter() - start, self.calls + 1
            return result

        return timed


def main() -> None:
    """Measure; rank 0 prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--proxy", default="wrn16_2")
    parser.add_argument("--batch", type=int, default=64, help="images of the whole batch, and of the validation batch")
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with process_group(torch.device("cpu"), 120.0) as group:
        shared = Timed(group)
        share = given.batch // group.size
        work = {"together": step(given.proxy, share, shared)}
        work |= {
            "alone, its share": step(given.proxy, share, ALONE),
            "alone, all": step(given.proxy, given.batch, ALONE),
        }
        samples: dict[str, list[float]] = {name: [] for name in work}
        waits: list[float] = []
        calls, before = 0, group.sent
        for round_number in range(given.rounds + 1):
            for name, iterate in work.items():
                group.largest(0)
                shared.seconds, shared.calls, start = 0.0, 0, time.perf_counter()
                iterate()
                if round_number:  # the first one warms up
                    samples[name].append(time.perf_counter() - start)
                if name == "together":
                    waits.append(shared.seconds)
                    calls = shared.calls
        sent = (group.sent - before) / (given.rounds + 1)
        small, large = (_sum_seconds(group, numbers) for numbers in (1, 2**20))
        if group.rank:
            return
        medians = {name: statistics.median(found) for name, found in samples.items()}
        share_seconds, together = medians["alone, its share"], medians["together"]
        per_byte = (large - small) / (4 * (2**20 - 1))
        model = share_seconds + calls * small + sent * per_byte
        print(f"{given.proxy}, batch {given.batch}, {group.size} processes, {given.rounds} rounds")
        for name, seconds in medians.items():
            spread = f"{min(samples[name]) * 1e3:.0f} to {max(samples[name]) * 1e3:.0f}"
            print(f"{name:15} {seconds * 1e3:8.1f} ms ({spread})")
        print(f"in sums and gathers {statistics.median(waits) * 1e3:.1f} ms, waiting for the others included")
        print(f"sent {sent / 1e6:.2f} MB an iteration in {calls} calls; a call {small * 1e6:.0f} us, ")
        print(f"a sum of 4 MiB {large * 1e3:.2f} ms")
        print(f"model {model * 1e3:.1f} ms, measured over model {together / model:.2f}")
        print(f"speed-up over one process {medians['alone, all'] / together:.2f} of {group.size}")


def step(arch: str, count: int, communicator: Communicator) -> Callable[[], object]:
    """A function that runs one iteration on `count` random images of this process."""
    network = build_network(arch, {}, 10, 3, 0, torch.device("cpu")).to(memory_format=torch.channels_last)
    torch.manual_seed(1 + communicator.rank)
    policy = PolicyNetwork(network.head_hidden_size)
    optimizers = (torch.optim.SGD(module.parameters(), lr=1e-3) for module in (network, policy))
    bilevel = BilevelStep(network, policy, InnerRate(0.01), *optimizers, StepOptions(), communicator=communicator)
    images, labels = torch.randn(2, count, 3, 32, 32), torch.randint(10, (2, count))
    inputs = [half.contiguous(memory_format=torch.channels_last) for half in images]
    embedding = torch.rand(count, EMBEDDING_WIDTH)
    return lambda: bilevel(inputs[0], labels[0], embedding, (inputs[1], labels[1]), noise_seed=0)


def _sum_seconds(group: Communicator, numbers: int) -> float:
    values, found = torch.zeros(numbers), []
    for _ in range(21):
        start = time.perf_counter()
        group.sum([values])
        found.append(time.perf_counter() - start)
    return statistics.median(found)


if __name__ == "__main__":
    main()
