"""Hypergradients of networks whose forward and backward noise differ: which replacement ranks samples best?

OMP_NUM_THREADS=1 python benchmarks/noise_replacements.py --data-dir DIR > replacements.json

DIR holds cifar100, a folder of images. A small Shake-Shake 26 2x8d and a small PyramidNet-20 with ShakeDrop are trained
on augmented images for some steps. Their forward and backward noise differ, so the step's gradient is not the gradient
of any loss.

Reference, on several batches: dE[validation loss]/dP_i after the weighted step of the real network, the mean over
`--draws` noise samples, by the chain rule (the backward pass is linear in P, so its transpose is a forward-mode pass
whose tangents have the backward's factors). The validation loss has fresh noise ("noisy") or the mean noise
("evaluated").

Compared with it, by Spearman's rank correlation: one hypergradient of the network with its noise at the mean ("mean");
one of the network that uses its forward noise in both passes ("forward"); and the latter with the mean noise in the
validation pass ("forward, then mean").
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from mapolicy import SearchConfig, TransformationSampler, recipes
from mapolicy.bilevel.forward_mode import torchs_derivative
from mapolicy.data.splits import load_splits
from mapolicy.models import noise
from mapolicy.models.features import running_statistics_kept
from mapolicy.models.pyramidnet import PyramidNet
from mapolicy.models.shake_shake import ShakeShakeNetwork
from mapolicy.policy.augmentations import SampledTransformations
from mapolicy.policy.pipeline import Pipeline
from mapolicy.runtime.device import resolve_device
from mapolicy.runtime.machine import versions

NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "Shake-Shake 26 2x8d": lambda classes: ShakeShakeNetwork(8, classes),
    "PyramidNet-20, alpha 24, ShakeDrop": lambda classes: PyramidNet(20, 24, False, classes),
}
RULES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "real": noise.shaken,
    "forward": lambda x, forward, backward: x * forward,
    "transposed": lambda x, forward, backward: x * backward + x.detach() * (forward - backward),
}
Point = dict[str, Tensor]


@contextmanager
def rule(name: str, network: nn.Module) -> Iterator[None]:
    """Within it the network's noise follows a key of `RULES`, or has its mean ("mean")."""
    if name == "mean":
        with noise.noise_at_its_mean(network):
            yield
        return
    before, noise.shaken = noise.shaken, RULES[name]
    try:
        yield
    finally:
        noise.shaken = before


class Bench:
    """A network at one point of its training, with a training batch and a validation batch."""

    def __init__(self, network: nn.Module, batch: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor], rate: float):
        self.network, self.batch, self.held_out, self.rate = network, batch, held_out, rate
        self.w = {name: parameter.detach() for name, parameter in network.named_parameters()}
        self.count = len(batch[1])

    def losses(self, at: Point, seed: int) -> Tensor:
        """Losses of the training batch, float [n], with the noise of this seed."""
        torch.manual_seed(seed)
        return F.cross_entropy(functional_call(self.network, at, (self.batch[0],)), self.batch[1], reduction="none")

    def gradient(self, at: Point, seed: int, noise_rule: str) -> Point:
        """Gradient of the mean training loss."""
        moved = {name: tensor.clone().requires_grad_() for name, tensor in at.items()}
        with rule(noise_rule, self.network):
            loss = self.losses(moved, seed).mean()
            return dict(zip(moved, torch.autograd.grad(loss, list(moved.values())), strict=True))

    def descent(self, at: Point, seed: int, noise_rule: str) -> Point:
        """Gradient of the mean validation loss; `noise_rule` is "forward" or "mean", which are true gradients."""
        moved = {name: tensor.clone().requires_grad_() for name, tensor in at.items()}
        torch.manual_seed(seed)
        with rule(noise_rule, self.network):
            loss = F.cross_entropy(functional_call(self.network, moved, (self.held_out[0],)), self.held_out[1])
            return dict(zip(moved, torch.autograd.grad(loss, list(moved.values())), strict=True))

    def hypergradient(self, seed: int, step: str, slopes: str, validation: str) -> Tensor:
        """dL_val/dP_i, float [n], after the virtual step with equal weights; each pass has its own noise rule."""
        gradient = self.gradient(self.w, seed, step)
        w_hat = {name: tensor - self.rate * gradient[name] for name, tensor in self.w.items()}
        v = self.descent(w_hat, seed + 1, validation)
        with rule(slopes, self.network):
            products = torchs_derivative(lambda at: self.losses(at, seed), self.w, v)
        return -self.rate * products


def ranks(values: Tensor) -> Tensor:
    """Rank of each value, float."""
    return values.argsort().argsort().double()


def correlation(first: Tensor, second: Tensor) -> float:
    """Spearman's rank correlation."""
    return float(torch.corrcoef(torch.stack([ranks(first), ranks(second)]))[0, 1])


def compare(bench: Bench, draws: int, tries: int) -> dict[str, dict[str, float]]:
    """Rank correlation of each replacement's hypergradient with the reference, mean over `tries` noise samples."""
    references = {}
    for name, validation in (("noisy", "forward"), ("evaluated", "mean")):
        single = [bench.hypergradient(10 * draw, "real", "transposed", validation) for draw in range(draws)]
        halves = [torch.stack(single[part::2]).mean(0) for part in (0, 1)]
        references[name] = torch.stack(single).mean(0), correlation(*halves)
    replacements = {
        "mean": [bench.hypergradient(0, "mean", "mean", "mean")],
        "forward": [bench.hypergradient(5 + 10 * n, "forward", "forward", "forward") for n in range(tries)],
        "forward, then mean": [bench.hypergradient(5 + 10 * n, "forward", "forward", "mean") for n in range(tries)],
    }
    result: dict[str, dict[str, float]] = {}
    for name, (reference, halves_agree) in references.items():
        result[name] = {"halves of the truth": halves_agree} | {
            replacement: statistics.mean(correlation(one, reference) for one in found)
            for replacement, found in replacements.items()
        }
    return result


def main() -> None:
    """Train each network, compare at each checkpoint, print one document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=40)
    parser.add_argument("--tries", type=int, default=5)
    parser.add_argument("--batches", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--checkpoints", type=int, nargs="+", default=[40, 300])
    arguments = parser.parse_args()
    _, settings = recipes.load("search-any")
    settings |= {
        "dataset": f"folder:{arguments.data_dir / 'cifar100'}",
        "proxy": "shakeshake26_2x32d",
        "batch_size": arguments.batch_size,
        "train_per_class": 100,
        "validation_per_class": 10,
        "threads": 1,
    }
    config = SearchConfig.from_mapping(settings)
    torch.set_num_threads(1)
    device = resolve_device("cpu")
    splits = load_splits(config, device, config.stage)
    pipeline = Pipeline(config, splits.mean, splits.std, device)
    augmentation = SampledTransformations(TransformationSampler(), config.operation_space)
    order = torch.Generator().manual_seed(0)

    def draw(split, step: int, augment: bool) -> tuple[Tensor, Tensor]:
        chosen = torch.randperm(len(split), generator=order)[: config.batch_size]
        (batch,) = split.batches([(step, chosen)], augment=augment)
        if not augment:
            return pipeline.normalise(batch[0]), batch[1]
        augmented = pipeline.augment(*batch, augmentation, step)
        return augmented.inputs, augmented.labels

    rows = []
    for name, build in NETWORKS.items():
        torch.manual_seed(0)
        network = build(len(splits.classes)).train()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
        for step in range(max(arguments.checkpoints)):
            images, labels = draw(splits.train, step, True)
            torch.manual_seed(step)
            loss = F.cross_entropy(network(images), labels)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimizer.step()
            if step + 1 in arguments.checkpoints:
                for number in range(arguments.batches):
                    batch = draw(splits.train, 10_000 + number, True)
                    held_out = draw(splits.meta_validation, 20_000 + number, False)
                    with running_statistics_kept(network):
                        found = compare(Bench(network, batch, held_out, 0.05), arguments.draws, arguments.tries)
                    rows.append(
                        {"network": name, "steps": step + 1, "loss": float(loss.detach()), "batch": number, **found}
                    )
                    print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    print(json.dumps({"arguments": vars(arguments) | {"data_dir": "DIR"}, "rows": rows, "versions": versions()}))


if __name__ == "__main__":
    main()
