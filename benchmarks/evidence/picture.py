"""The picture of docs/evidence.md: what learned policies gain over uniform draws and over TrivialAugment.

python benchmarks/evidence/picture.py docs/images/evidence.png

Each row is a table: the mean of the paired differences in test top-1, frozen, with its 95 % interval (Student's t).
"""

import statistics
import sys
from pathlib import Path

import matplotlib.pyplot as plt
from render import differences

from mapolicy.compare.stats import half_width

HERE = Path(__file__).resolve().parent
TABLES = (
    ("omniglot-alignment", "Omniglot, WRN-10-1 (the proxy)"),
    ("omniglot-wide", "Omniglot, strong ranges, WRN-10-1"),
    ("omniglot-transfer-wrn16_1", "Omniglot, WRN-16-1"),
    ("omniglot-transfer-test_resnet", "Omniglot, test_resnet"),
    ("omniglot-transfer-resnet10t", "Omniglot, resnet10t"),
    ("omniglot-transfer-mobilevit_xxs", "Omniglot, mobilevit_xxs"),
    ("signs-batch40", "hand signs, WRN-10-1 (the proxy)"),
    ("signs-transfer-wrn16_1", "hand signs, WRN-16-1"),
    ("signs-transfer-test_resnet", "hand signs, test_resnet"),
    ("cifar20", "CIFAR-100, 16 px, WRN-10-1 (the proxy)"),
    ("cifar20-verify", "the same, four other draws"),
    ("cifar20-32px", "CIFAR-100, 32 px, WRN-10-1 (the proxy)"),
    ("cifar20-32px-test_resnet", "CIFAR-100, 32 px, test_resnet"),
    ("cifar20-50", "CIFAR-100, 50 images, WRN-10-1 (the proxy)"),
    ("cifar20-50-test_resnet", "CIFAR-100, 50 images, test_resnet"),
)
COLOURS = {"uniform": "#2166ac", "trivialaugment": "#b2182b"}
NAMES = {"uniform": "over uniform draws of the same operations", "trivialaugment": "over TrivialAugment"}


def main() -> None:
    """Draw what tables there are."""
    tables = [(HERE / f"{name}.json", title) for name, title in TABLES if (HERE / f"{name}.json").exists()]
    figure, axes = plt.subplots(figsize=(8, 0.45 * len(tables) + 1.4), layout="constrained")
    for place, other in enumerate(COLOURS):
        measured = [(row, differences(path, other)) for row, (path, _) in enumerate(tables)]
        found = [values for _, values in measured if values]
        heights = [-row - 0.15 + 0.3 * place for row, values in measured if values]
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
    axes.set_yticks(
        [-row for row in range(len(tables))],
        [f"{title}, n = {len(differences(path, 'uniform'))}" for path, title in tables],
    )
    figure.supxlabel("gain of the learned policy in test top-1, points (mean and 95 % interval)", fontsize="medium")
    axes.legend(loc="lower center", bbox_to_anchor=(0.3, 1.0), ncols=2, frameon=False)
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.savefig(sys.argv[1], dpi=120)


if __name__ == "__main__":
    main()
