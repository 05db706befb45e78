"""The Markdown tables of docs/evidence.md from the JSON of comparisons.

python benchmarks/evidence/render.py benchmarks/evidence/omniglot.json
python benchmarks/evidence/render.py benchmarks/evidence/omniglot-transfer-*.json

One file gives a row for each policy; several, or one of `cifar20.py`, give a row for each file, with what the learned
policy gains, and one for their average where all have the same splits: of a split's networks first, so that a split
counts once.
"""

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from mapolicy.compare.policies import titles
from mapolicy.compare.stats import half_width

OTHERS = ("uniform", "trivialaugment", "randaugment", "none")


def differences(path: Path, other: str, policy: str = "learned") -> list[float]:
    """A policy less another one, frozen, per cent, for each unit: a bundle, or a draw of classes."""
    units: dict[object, dict[str, float]] = {}
    for row in json.loads(path.read_text())["rows"]:
        if row["mode"] in (None, "frozen"):
            units.setdefault(row.get("bundle", row.get("draw")), {})[row["policy"]] = row["test_top1"]
    return [unit[policy] - unit[other] for unit in units.values() if other in unit]


def interval(values: Sequence[float]) -> str:
    """Mean and 95 % interval."""
    if not values:
        return ""
    mean, half = statistics.mean(values), half_width(values)
    return f"{mean:+.1f}" if half is None else f"{mean:+.1f} ({mean - half:+.1f} to {mean + half:+.1f})"


def difference(found: dict | None) -> str:
    """The same as a comparison's document has it."""
    if found is None:
        return ""
    if found["half_width"] is None:
        return f"{found['mean']:+.2f}"
    low, high = found["mean"] - found["half_width"], found["mean"] + found["half_width"]
    return f"{found['mean']:+.2f} ({low:+.2f} to {high:+.2f})"


def by_policy(path: Path) -> None:
    """One row for each network and policy, the best first."""
    document = json.loads(path.read_text())
    named = titles(document["bundles"])
    print("| network | policy | test top-1 %, mean ± deviation | to `uniform` | to the best baseline | cost |")
    print("|---|---|---|---|---|---|")
    for row in sorted(document["summary"], key=lambda row: (row["arch"], -row["test_top1"])):
        spread = "" if row["deviation"] is None else f" ± {row['deviation']:.2f}"
        cost = "" if row["cost_ratio"] is None else f"{row['cost_ratio']:.2f}"
        cells = (
            row["arch"],
            named.get(row["policy"], row["policy"]) + (", fine-tuned" if row["mode"] == "finetune" else ""),
            f"{row['test_top1']:.2f}{spread}",
            *map(difference, (row["versus_uniform"], row["versus_rival"])),
            cost,
        )
        print(f"| {' | '.join(cells)} |")


def splits(path: Path) -> list[str]:
    """Which splits a table is about, by the names of its bundles."""
    return [bundle["origin"] for bundle in json.loads(path.read_text()).get("bundles", ())]


def averages(paths: Sequence[Path], other: str) -> list[float]:
    """For each split the average of several networks' differences; empty where a table lacks some."""
    found = [differences(path, other) for path in paths]
    if len({len(each) for each in found}) != 1:
        return []
    return [statistics.mean(each) for each in zip(*found, strict=True)]


def gains(paths: Sequence[Path]) -> None:
    """One row for each file."""
    print("| table | n | learned, % | less `uniform` | less TrivialAugment | less RandAugment | less `none` |")
    print("|---|---|---|---|---|---|---|")
    for path in paths:
        rows = [row for row in json.loads(path.read_text())["rows"] if row["policy"] == "learned"]
        learned = [row["test_top1"] for row in rows if row["mode"] in (None, "frozen")]
        cells = (path.stem, str(len(learned)), f"{statistics.mean(learned):.1f}")
        print(f"| {' | '.join((*cells, *(interval(differences(path, other)) for other in OTHERS)))} |")
    if len(paths) > 1 and all(splits(path) == splits(paths[0]) != [] for path in paths):
        cells = ("average", str(len(splits(paths[0]))), "")
        print(f"| {' | '.join((*cells, *(interval(averages(paths, other)) for other in OTHERS)))} |")


def main() -> None:
    """A comparison by policy, anything else by what is gained."""
    paths = [Path(name) for name in sys.argv[1:]]
    whole = len(paths) == 1 and "summary" in json.loads(paths[0].read_text())
    by_policy(paths[0]) if whole else gains(paths)


if __name__ == "__main__":
    main()
