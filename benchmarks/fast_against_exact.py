"""Does `--fast` cost accuracy? The same searches with exact and with fast steps, paired by seed.

python benchmarks/fast_against_exact.py --data-dir DIR --dataset omniglot-small1 > fast-omniglot.json
python benchmarks/fast_against_exact.py --data-dir DIR --dataset cifar100 > fast-cifar100.json

DIR holds the folders of images. Each seed has its own split and a search with WRN-10-1 on 16 x 16 pixels; reported is
the proxy's accuracy on the test split, which the search has not seen. Omniglot: 15 / 2 / 3 images of each class.
CIFAR-100: 50 training and 10 meta-validation images of each class, the whole test split.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

from mapolicy import SearchConfig, recipes, search_policy
from mapolicy.compare.stats import half_width
from mapolicy.config.choices import FAST
from mapolicy.data.splits import load_splits
from mapolicy.policy.pipeline import Pipeline
from mapolicy.policy.sampler import relative_entropy
from mapolicy.runtime.device import resolve_device
from mapolicy.runtime.machine import versions
from mapolicy.training.callbacks import Reporter
from mapolicy.training.evaluate import evaluate

KINDS = {"exact": {}, "fast": FAST}
DATASETS = {
    "omniglot-small1": {
        "base_augmentation": "none",
        "cutout": 0,
        "train_per_class": 15,
        "validation_per_class": 2,
        "test_per_class": 3,
    },
    "cifar100": {"cutout": 8, "train_per_class": 50, "validation_per_class": 10},
}


class Result(Reporter):
    """Keeps the result of a run."""

    def on_complete(self, result) -> None:
        """Keep the result."""
        self.figures = dict(result)


def search(settings: dict, kind: str) -> dict:
    """Run one search and test its proxy."""
    config, reporter = SearchConfig.from_mapping(settings | KINDS[kind]), Result()
    bundle = search_policy(config, reporter)
    device = resolve_device(config.device)
    splits = load_splits(config, device, config.stage)
    proxy = bundle.build_extractor(device)
    test = evaluate(proxy, splits.test(), Pipeline(config, splits.mean, splits.std, device), config.batch_size)
    return {
        "kind": kind,
        "seed": config.seed,
        "test_top1": test.top1,
        "test_images": len(splits.test()),
        "entropy": relative_entropy(bundle.probabilities),
        **{
            key: reporter.figures[key] for key in ("validation_top1", "alpha", "weight_spread", "cost_ratio", "seconds")
        },
    }


def paired(rows: list[dict], key: str) -> dict:
    """Mean difference fast - exact, with half of its 95 % interval."""
    by_kind = {kind: [row[key] for row in rows if row["kind"] == kind] for kind in KINDS}
    differences = [fast - exact for fast, exact in zip(by_kind["fast"], by_kind["exact"], strict=False)]
    summary = {kind: [statistics.mean(values), statistics.stdev(values)] for kind, values in by_kind.items()}
    return {
        **summary,
        "differences": differences,
        "mean": statistics.mean(differences),
        "half_interval": half_width(differences),
    }


def main() -> None:
    """Search with each seed both ways, then summarise. Each search prints a line to stderr."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--dataset", choices=DATASETS, required=True)
    parser.add_argument("--proxy", default="wrn10_1")
    parser.add_argument("--image-size", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    _, settings = recipes.load("search-any")
    settings |= DATASETS[arguments.dataset] | {
        "dataset": f"folder:{arguments.data_dir / arguments.dataset}",
        "proxy": arguments.proxy,
        "image_size": arguments.image_size,
        "epochs": arguments.epochs,
        "threads": 1,
    }
    rows = []
    for seed in range(arguments.seeds):
        for kind in KINDS:
            rows.append(search(settings | {"seed": seed, "split_seed": seed}, kind))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    summary = {key: paired(rows, key) for key in ("test_top1", "cost_ratio")}
    print(json.dumps({"settings": settings, "rows": rows, "summary": summary, "versions": versions()}, indent=1))


if __name__ == "__main__":
    main()
