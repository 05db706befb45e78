"""The Markdown table of a comparison's JSON, as it stands in docs/evidence.md.

python benchmarks/evidence/render.py benchmarks/evidence/omniglot.json
"""

import json
import sys
from pathlib import Path

from mapolicy.compare.policies import titles


def difference(found: dict | None) -> str:
    """Mean and 95 % interval."""
    if found is None:
        return ""
    if found["half_width"] is None:
        return f"{found['mean']:+.2f}"
    low, high = found["mean"] - found["half_width"], found["mean"] + found["half_width"]
    return f"{found['mean']:+.2f} ({low:+.2f} to {high:+.2f})"


def main() -> None:
    """One row for each network and policy, the best first."""
    document = json.loads(Path(sys.argv[1]).read_text())
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


if __name__ == "__main__":
    main()
