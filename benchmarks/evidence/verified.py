"""Did the check at a search's end tell the truth? What it said against what the test images said.

python benchmarks/evidence/verified.py docs/images/evidence-verify.png

Each point is a search and a network that was trained with its file: across, how much better the learned policy was than
another in the check, on held-out images and the search's own network; up, how much better on the test images. Only
searches are used that ended with the check and whose check kept the learned policy: a file that keeps uniform draws
trains with them. Prints the numbers that docs/evidence.md gives.
"""

import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt

HERE = Path(__file__).resolve().parent
# By data set and network the tables of searches that ended with the check; those of a row share their bundles.
TABLES = {
    "Omniglot, the proxy's network": ("omniglot-equal-time",),
    "the same, images set aside": ("omniglot-aside",),
    "Omniglot, other networks": (
        "omniglot-transfer-wrn16_1",
        "omniglot-transfer-mobilevit_xxs",
        "omniglot-transfer-resnet10t",
    ),
    "hand signs": ("signs-transfer-wrn16_1", "signs-transfer-test_resnet"),
    "CIFAR-100, 16 px": ("cifar20-verify",),
    "CIFAR-100, 32 px": ("cifar20-32px", "cifar20-32px-test_resnet"),
}
MARKERS = "vPosD^"  # one for each of `TABLES`
POLICIES = ("learned", "uniform", "trivialaugment")
Accuracies = dict[str, float]


def read(name: str) -> dict:
    """A table's document; an empty one where it is missing."""
    path = HERE / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {"rows": [], "bundles": []}


def said(check: dict) -> Accuracies:
    """Share of the held-out images that a check found right, per cent, by policy."""
    return {row["policy"]: 100 * row["correct"] / check["images"] for row in check["rows"] if row["policy"] in POLICIES}


def checks(document: dict) -> dict[str, Accuracies]:
    """What the checks of a table's searches said, by bundle or draw; of those that kept the learned policy."""
    found = {str(draw): check for draw, check in (document.get("checks") or {}).items()}
    found |= {bundle["bundle"]: bundle.get("verification") for bundle in document.get("bundles", ())}
    return {unit: said(check) for unit, check in found.items() if check and kept(check) == "learned"}


def kept(check: dict) -> str:
    """The policy that the file keeps: the best of the learned one and uniform draws, of equals the learned one."""
    right = {row["policy"]: row["correct"] for row in check["rows"]}
    return max(("learned", "uniform"), key=lambda policy: right[policy])


def measured(document: dict) -> dict[str, Accuracies]:
    """Test accuracies of a table by bundle or draw, and policy."""
    found: dict[str, Accuracies] = {}
    for row in document["rows"]:
        if row["mode"] in (None, "frozen") and row["policy"] in POLICIES:
            unit = str(row["draw"]) if "draw" in row else row["bundle"]
            found.setdefault(unit, {})[row["policy"]] = row["test_top1"]
    return found


def pairs(tables: tuple[str, ...]) -> Iterator[tuple[Accuracies, Accuracies]]:
    """What a check said and what a network's test images said, for each search and network."""
    told = {unit: what for document in map(read, tables) for unit, what in checks(document).items()}
    for document in map(read, tables):
        for unit, accuracies in measured(document).items():
            if unit in told:
                yield told[unit], accuracies


def main() -> None:
    """Draw the picture, print the numbers."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.4), layout="constrained", sharey=True)
    for place, (title, tables) in enumerate(TABLES.items()):
        found = list(pairs(tables))
        for panel, other in zip(axes, POLICIES[1:], strict=True):
            both = [(check, test) for check, test in found if other in test]
            across = [check["learned"] - check[other] for check, _ in both]
            up = [test["learned"] - test[other] for _, test in both]
            panel.plot(across, up, MARKERS[place], label=f"{title} ({len(both)})", alpha=0.7)
            if len(both) > 2:
                correlation = statistics.correlation(across, up) if len(set(across)) > 1 else float("nan")
                mean = f"said {statistics.mean(across):+.1f}, measured {statistics.mean(up):+.1f}"
                same = sum(a * b > 0 for a, b in zip(across, up, strict=True))
                told = sum(a != 0 for a in across)
                agreed = f"same sign {same} of the {told} times that it said a difference"
                print(f"{title}, less {other}: {len(both)} points, r = {correlation:+.2f}, {mean}, {agreed}")
    for panel, other in zip(axes, POLICIES[1:], strict=True):
        panel.axhline(0, color="grey", linewidth=1)
        panel.axvline(0, color="grey", linewidth=1)
        panel.axline((0, 0), slope=1, color="grey", linewidth=1, linestyle=":")
        panel.set_xlabel("in the check, points")
        panel.set_title("learned less uniform draws" if other == "uniform" else "learned less TrivialAugment")
    axes[0].set_ylabel("on the test images, points")
    axes[0].legend(frameon=False)
    figure.savefig(sys.argv[1], dpi=120)


if __name__ == "__main__":
    main()
