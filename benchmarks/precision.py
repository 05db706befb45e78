"""Errors of the hypergradient in half precision: the gradients of theta and alpha, and s_i, against float64.

    python benchmarks/precision.py --data-dir DATA

DATA holds cifar100/train with a folder for each class. A search runs for some iterations in float32. Then, on new
batches, the same hypergradient is computed in every precision from the same state.
"""

import argparse
import copy
import statistics
from collections.abc import Mapping

import torch
from torch import Tensor

from mapolicy import SearchConfig, recipes
from mapolicy.bilevel.bilevel_step import BilevelStep
from mapolicy.bilevel.options import StepOptions
from mapolicy.data.batch_sampler import training_plan, validation_plan
from mapolicy.runtime.device import reproducible
from mapolicy.runtime.random import seed_for
from mapolicy.search import PreparedSearch
from mapolicy.training.callbacks import Reporter
from mapolicy.training.iteration import BilevelIteration

PRECISIONS = ("float32", "bfloat16", "float16")


def main() -> None:
    """Search, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--proxy", default="wrn10_1")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--iterations", type=int, default=100, help="before the measurement")
    parser.add_argument("--batches", type=int, default=10)
    given = parser.parse_args()
    _, values = recipes.load("search-cifar100-wrn40_2")
    changes = {
        "dataset": "folder:cifar100",
        "data_dir": given.data_dir,
        "proxy": given.proxy,
        "epochs": 1,
        "threads": 1,
        "train_per_class": 300,
        "validation_per_class": 20,
        "test_per_class": 1,
        "policy_learning_rate": 1e-2,
    }
    config = SearchConfig.from_mapping(values | changes)
    device = torch.device(given.device)
    errors: dict[str, dict[str, list[float]]] = {}
    with reproducible(1, device) as threads:
        search = PreparedSearch.prepared(config, Reporter(), threads, device)
        iteration, setup = search.iteration, search.setup
        plan = training_plan(config, len(setup.training), 0)[: given.iterations + given.batches]
        held_out = setup.splits.meta_validation
        validation = setup.batches(held_out, validation_plan(config, len(held_out), [step for step, _ in plan]))
        training = setup.batches(setup.training, plan, augment=True)
        for (step, _), batch, validation_batch in zip(plan, training, validation, strict=True):
            if step < given.iterations:
                iteration(step, batch, validation_batch)
                continue
            expected = hypergradient(iteration, search.step, step, batch, validation_batch, torch.float64, "float32")
            for precision in PRECISIONS:
                got = hypergradient(iteration, search.step, step, batch, validation_batch, torch.float32, precision)
                for name, tensor in expected.items():
                    found = errors.setdefault(f"{precision:9} {name}", {"cosine": [], "error": []})
                    found["cosine"].append(float(torch.cosine_similarity(got[name].double(), tensor, dim=0)))
                    found["error"].append(float((got[name] - tensor).norm() / tensor.norm()))
    print(f"{given.proxy}, {given.device}, after {given.iterations} iterations, {given.batches} batches")
    for name, found in errors.items():
        error, cosine = found["error"], found["cosine"]
        print(
            f"{name:24} relative error {statistics.median(error):.2e} (largest {max(error):.2e}), "
            f"cosine {statistics.median(cosine):.5f} (least {min(cosine):.5f})"
        )


def hypergradient(
    iteration: BilevelIteration,
    step: BilevelStep,
    number: int,
    batch: tuple[Tensor, Tensor],
    validation_batch: tuple[Tensor, Tensor],
    dtype: torch.dtype,
    precision: str,
) -> Mapping[str, Tensor]:
    """One hypergradient from the present state, which is not changed."""
    setup, config = iteration.setup, iteration.setup.config
    augmented = setup.pipeline.augment(*batch, iteration.augmentation, number)
    network, policy, rate = (copy.deepcopy(module).to(dtype) for module in (step.network, step.policy, step.rate))
    frozen = [torch.optim.SGD(module.parameters(), lr=0.0) for module in (network, policy)]
    copied_step = BilevelStep(network, policy, rate, *frozen, StepOptions(precision=precision))
    assert augmented.transformation is not None
    record = copied_step(
        augmented.inputs.to(dtype),
        augmented.labels,
        augmented.transformation.embed().to(dtype),
        (setup.pipeline.normalise(validation_batch[0]).to(dtype), validation_batch[1]),
        noise_seed=seed_for(config.seed, config.stage, "noise", number),
    )
    assert record.hypergradient is not None
    assert record.theta_gradient is not None
    return {
        "theta": record.theta_gradient,
        "s_i": record.hypergradient.weights,
        "alpha": record.hypergradient.alpha.reshape(1),
        "g": torch.cat([gradient.flatten() for gradient in record.hypergradient.gradient]),
    }


if __name__ == "__main__":
    main()
