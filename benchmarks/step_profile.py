"""How the time of a step divides into forward convolutions, backward convolutions and the rest.

python benchmarks/step_profile.py --arch wrn16_2 --rounds 3 plain exact compiled plain_compiled

The steps are those of `mapolicy bench step`, on one thread, in turn, each after two iterations of warm-up (the first
compiles, which takes minutes). Median CPU milliseconds of an iteration, by torch's profiler.
"""

import argparse
import json
import statistics
import sys

from torch.autograd.profiler_util import EventList
from torch.profiler import ProfilerActivity, profile

from mapolicy import SearchConfig, recipes
from mapolicy.bench.step_case import COMPILED, PLAIN, PLAIN_COMPILED, StepCase, candidate
from mapolicy.runtime.device import reproducible, resolve_device
from mapolicy.runtime.machine import hardware, versions

FORWARD, BACKWARD = "aten::mkldnn_convolution", "aten::convolution_backward"


def parts(events: EventList) -> dict[str, float]:
    """Self CPU time in milliseconds by kind of work, and the number of convolution calls."""
    total = {"forward": 0.0, "backward": 0.0, "rest": 0.0, "forward calls": 0.0, "backward calls": 0.0}
    for event in events:
        kind = {FORWARD: "forward", BACKWARD: "backward"}.get(event.key, "rest")
        total[kind] += event.self_cpu_time_total / 1000
        if kind != "rest":
            total[f"{kind} calls"] += event.count
    return total


def main() -> None:
    """Profile the steps and print a JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="*", default=[PLAIN, "exact", COMPILED, PLAIN_COMPILED])
    parser.add_argument("--arch", default="wrn16_2")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    _, settings = recipes.load("search-cifar100-wrn28_10")
    config = SearchConfig.from_mapping(settings | {"proxy": arguments.arch, "threads": 1, "device": "cpu"})
    device = resolve_device(config.device)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in arguments.steps}
    with reproducible(config.threads, device):
        case = StepCase.build(config, device)
        candidates = {name: candidate(case, name) for name in arguments.steps}
        for name, step in candidates.items():
            print(f"warming up {name}", file=sys.stderr, flush=True)
            step.work(0)
            step.work(1)
        for number in range(arguments.rounds):
            for name, step in candidates.items():
                with profile(activities=[ProfilerActivity.CPU]) as recorded:
                    step.work(2 + number)
                found[name].append(parts(recorded.key_averages()))
    medians = {
        name: {part: statistics.median(sample[part] for sample in samples) for part in samples[0]}
        for name, samples in found.items()
    }
    settings = {"arch": arguments.arch, "rounds": arguments.rounds, "batch_size": config.batch_size}
    print(json.dumps({"steps": medians, "settings": settings, "hardware": hardware(device), "versions": versions()}))


if __name__ == "__main__":
    main()
