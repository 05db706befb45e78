"""The demo over several seeds, as JSON on stdout: the source of the figures in README.md and the digits recipes.

python benchmarks/digits_demo.py --seeds 5 > digits.json
"""

import argparse
import json
import statistics
import sys

from mapolicy import PolicyBundle, SearchConfig, TrainConfig, recipes, search_policy, train_network
from mapolicy.policy.sampler import relative_entropy
from mapolicy.runtime.machine import versions
from mapolicy.training.callbacks import Reporter

POLICIES = ("learned", "uniform", "none", "trivialaugment")


class Result(Reporter):
    """Keeps the result of a run."""

    def on_complete(self, result) -> None:
        """Keep the result."""
        self.figures = dict(result)


def main() -> None:
    """Search and train with each seed, then summarise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    seeds = range(parser.parse_args().seeds)
    _, search_settings = recipes.load("search-digits")
    _, train_settings = recipes.load("train-digits")
    rows = []
    for seed in seeds:
        reporter = Result()
        bundle: PolicyBundle = search_policy(SearchConfig.from_mapping(search_settings | {"seed": seed}), reporter)
        entropy = relative_entropy(bundle.probabilities)
        rows.append({"stage": "search", "seed": seed, "entropy": entropy, **reporter.figures})
        for policy in POLICIES:
            config = TrainConfig.from_mapping(train_settings | {"seed": seed, "policy": policy})
            train_network(config, bundle, reporter)
            rows.append({"stage": "train", "seed": seed, **reporter.figures})
        print(f"seed {seed} done", file=sys.stderr)
    summary = {}
    for policy in POLICIES:
        top1 = [row["test_top1"] for row in rows if row.get("policy") == policy]
        spread = statistics.stdev(top1) if len(top1) > 1 else None
        summary[policy] = {"mean": statistics.mean(top1), "standard_deviation": spread, "n": len(top1)}
    print(json.dumps({"rows": rows, "summary": summary, "versions": versions()}, indent=1))


if __name__ == "__main__":
    main()
