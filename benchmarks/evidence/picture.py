"""The picture of docs/evidence.md: what learned policies gain over uniform draws and over TrivialAugment.

python benchmarks/evidence/picture.py docs/images/evidence.png

Each row is a table: the mean of the paired differences in test top-1, frozen, with its 95 % interval (Student's t).
"""

import json
import statistics
import sys
from pathlib import Path

import matplotlib.pyplot as plt

from mapolicy.compare.stats import half_width

HERE = Path(__file__).resolve().parent
TABLES = (
    ("omniglot-alignment", "Omniglot, WRN-10-1"),
    ("omniglot-alignment-wrn16_1", "Omniglot, WRN-16-1"),
    ("omniglot-alignment-test_resnet", "Omniglot, test_resnet"),
    ("omniglot-alignment-resnet10t", "Omniglot, resnet10t"),
    ("omniglot-alignment-vit", "Omniglot, small ViT"),
    ("omniglot-wide", "Omniglot, strong ranges, WRN-10-1"),
    ("signs-batch40", "hand signs, WRN-10-1"),
    ("cifar20", "CIFAR-100, 20 classes, WRN-10-1"),
)
COLOURS = {"uniform": "#2166ac", "trivialaugment": "#b2182b"}
NAMES = {"uniform": "over uniform draws of the same operations", "trivialaugment": "over TrivialAugment"}


def differences(table: Path, other: str) -> list[float]:
    """Learned, frozen, less another policy, per cent, of each unit."""
    units: dict[object, dict[str, float]] = {}
    for row in json.loads(table.read_text())["rows"]:
        if row["mode"] in (None, "frozen"):
            units.setdefault(row.get("bundle", row.get("draw")), {})[row["policy"]] = row["test_top1"]
    return [unit["learned"] - unit[other] for unit in units.values()]


def main() -> None:
    """Draw what tables there are."""
    tables = [(HERE / f"{name}.json", title) for name, title in TABLES if (HERE / f"{name}.json").exists()]
    figure, axes = plt.subplots(figsize=(8, 0.55 * len(tables) + 1.4), layout="constrained")
    for place, other in enumerate(COLOURS):
        found = [differences(path, other) for path, _ in tables]
        heights = [-row - 0.15 + 0.3 * (1 - place) for row in range(len(tables))]
        axes.errorbar(
            [statistics.mean(values) for values in found],
            heights,
            xerr=[half_width(values) or 0 for values in found],
            fmt="o",
            color=COLOURS[other],
            capsize=3,
            label=NAMES[other],
        )
    axes.axvline(0, color="grey", linewidth=1)
    axes.set_yticks([-row for row in range(len(tables))], [title for _, title in tables])
    axes.set_xlabel("gain of the learned policy in test top-1, points (mean and 95 % interval)")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.savefig(sys.argv[1], dpi=120)


if __name__ == "__main__":
    main()
