"""Did the check at a search's end tell the truth? What it said against what the test images said.

python benchmarks/evidence/verified.py docs/images/evidence-verify.png

Each point is a search and a network that was trained with its file: across, how much better the learned policy was than
another in the check, on held-out images and the search's own network; up, how much better on the test images. Only
tables whose searches ended with the check are used. Prints the numbers that docs/evidence.md gives.
"""

import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt

HERE = Path(__file__).resolve().parent
# By data set the tables of searches that ended with the check; those of a data set share their bundles.
TABLES = {
    "Omniglot": (
        "omniglot-alignment",
        "omniglot-transfer-wrn16_1",
        "omniglot-transfer-test_resnet",
        "omniglot-transfer-mobilevit_xxs",
        "omniglot-transfer-resnet10t",
    ),
    "hand signs": ("signs-batch40", "signs-transfer-wrn16_1", "signs-transfer-test_resnet"),
    "CIFAR-100, 16 px": ("cifar20-verify",),
    "CIFAR-100, 32 px": ("cifar20-32px", "cifar20-32px-test_resnet"),
}
POLICIES = ("learned", "uniform", "trivialaugment")
Accuracies = dict[str, float]


def read(name: str) -> dict:
    """A table's document; an empty one where it is missing."""
    path = HERE / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {"rows": [], "bundles": []}


def said(check: dict) -> Accuracies:
    """Share of the held-out images that a check found right, per cent, by policy."""
    return {row["policy"]: 100 * row["correct"] / check["images"] for row in check["rows"] if row["policy"] in POLICIES}


def checks(tables: tuple[str, ...]) -> dict[str, Accuracies]:
    """What the checks of a data set's searches said, by the number of the split or draw."""
    found = {}
    for document in map(read, tables):
        found |= {draw: said(check) for draw, check in (document.get("checks") or {}).items() if check}
        for bundle in document.get("bundles", ()):
            if bundle.get("verification"):
                found[number(bundle)] = said(bundle["verification"])
    return found


def number(bundle: dict) -> str:
    """The split of a bundle, which its file's name has."""
    return bundle["origin"].removeprefix("bundle").removesuffix(".safetensors")


def measured(document: dict) -> dict[str, Accuracies]:
    """Test accuracies of a table by split or draw, and policy."""
    splits = {bundle["bundle"]: number(bundle) for bundle in document.get("bundles", ())}
    found: dict[str, Accuracies] = {}
    for row in document["rows"]:
        if row["mode"] in (None, "frozen") and row["policy"] in POLICIES:
            split = str(row["draw"]) if "draw" in row else splits[row["bundle"]]
            found.setdefault(split, {})[row["policy"]] = row["test_top1"]
    return found


def pairs(tables: tuple[str, ...]) -> Iterator[tuple[Accuracies, Accuracies]]:
    """What a check said and what a network's test images said, for each search and network."""
    told = checks(tables)
    for document in map(read, tables):
        for split, accuracies in measured(document).items():
            if split in told:
                yield told[split], accuracies


def main() -> None:
    """Draw the picture, print the numbers."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.4), layout="constrained", sharey=True)
    everything = []
    for place, (title, tables) in enumerate(TABLES.items()):
        found = list(pairs(tables))
        everything += found
        for panel, other in zip(axes, POLICIES[1:], strict=True):
            both = [(check, test) for check, test in found if other in test]
            across = [check["learned"] - check[other] for check, _ in both]
            up = [test["learned"] - test[other] for _, test in both]
            panel.plot(across, up, "osD^"[place], label=f"{title} ({len(both)})", alpha=0.7)
            if len(both) > 2:
                correlation = statistics.correlation(across, up) if len(set(across)) > 1 else float("nan")
                mean = f"said {statistics.mean(across):+.1f}, measured {statistics.mean(up):+.1f}"
                same = sum((a > 0) == (b > 0) for a, b in zip(across, up, strict=True))
                print(f"{title}, less {other}: {len(both)} points, r = {correlation:+.2f}, {mean}, same sign {same}")
    for panel, other in zip(axes, POLICIES[1:], strict=True):
        panel.axhline(0, color="grey", linewidth=1)
        panel.axvline(0, color="grey", linewidth=1)
        panel.axline((0, 0), slope=1, color="grey", linewidth=1, linestyle=":")
        panel.set_xlabel("in the check, points")
        panel.set_title("learned less uniform draws" if other == "uniform" else "learned less TrivialAugment")
    axes[0].set_ylabel("on the test images, points")
    axes[0].legend(frameon=False)
    figure.savefig(sys.argv[1], dpi=120)
    whole = [(check, test) for check, test in everything if set(check) <= set(test)]
    losses = [max(test.values()) - test[max(check, key=lambda name: check[name])] for check, test in whole]
    best = sum(loss == 0 for loss in losses)
    near = sum(loss <= 2 for loss in losses)
    print(
        f"of {len(losses)}: what did best in the check was best on the test images {best} times, within 2 points of the"
        f" best {near} times; it loses {statistics.mean(losses):.1f} points on average, {max(losses):.1f} at most"
    )


if __name__ == "__main__":
    main()
