"""A comparison on stdout: what it found in a sentence for each policy, a table, and what its figures mean."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..compare.stats import PROXY, Difference, Summary
from ..registries import ZERO_COST_POLICIES
from ..runtime.sanitize import printable
from . import display

if TYPE_CHECKING:
    from ..compare.comparison import Comparison
    from ..compare.forecast import ComparisonForecast


def show(comparison: "Comparison", folder: Path) -> None:
    """Print what was found in sentences, the summary as a table, then what its figures mean and depend on."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    summary = comparison.titled_summary()
    if found := sentences(summary):
        print("\n".join(map(printable, found)), end="\n\n")
    table = Table("network", "policy")
    for name in ("epochs", "n", "test top-1 %", "to best baseline", "to uniform", "seconds", "x plain step"):
        table.add_column(name, justify="right")
    for position, entry in enumerate(summary):
        if position and entry.arch != summary[position - 1].arch:
            table.add_section()
        table.add_row(
            entry.arch,
            escape(printable(entry.policy if entry.mode in (None, "frozen") else f"{entry.policy}, {entry.mode}")),
            str(entry.epochs),
            str(entry.n),
            f"{entry.test_top1:.2f}" if entry.deviation is None else f"{entry.test_top1:.2f} ± {entry.deviation:.2f}",
            _difference(entry.versus_rival),
            _difference(entry.versus_uniform),
            "-" if entry.seconds is None else f"{entry.seconds:.1f}",
            "-" if entry.cost_ratio is None else f"{entry.cost_ratio:.2f}",
        )
    console = Console(width=None if Console().is_terminal else 140)
    console.print(table)
    print("details")
    display.print_figures(_facts(comparison) | {"run folder": str(folder)})


def show_forecast(expected: "ComparisonForecast", as_json: bool) -> None:
    """Print what a comparison would take: all of it, then one training of each kind, then what to change."""
    if as_json:
        display.print_json(expected.document())
        return
    lines = {"trainings": expected.trainings_in_words(), "time": expected.time_in_words() or "nothing is left to do"}
    lines |= {f"{row.arch}, {row.policy}": expected.row_in_words(row) for row in expected.rows}
    lines |= {f"{arch}: {name}": text for arch, name, text in expected.warnings_by_name()}
    display.print_figures(lines)


def sentences(summary: Sequence[Summary]) -> list[str]:
    """What was found about each policy that was learned, against the best one that needs no search."""
    found = []
    for entry in summary:
        rival = entry.versus_rival
        if entry.policy in ZERO_COST_POLICIES or entry.policy == PROXY or rival is None:
            continue
        name = entry.policy if entry.mode in (None, "frozen") else f"{entry.policy}, {entry.mode}"
        against = f"{rival.against}, the best policy without a search"
        if round(rival.mean, 1) == 0:
            text = f"{entry.arch}: {name} is as good as {against}"
        else:
            side = "above" if rival.mean > 0 else "below"
            text = f"{entry.arch}: {name} is {abs(rival.mean):.1f} points {side} {against}"
        found.append(f"{text} ({_certainty(rival, entry.unit)})")
    return found


def _certainty(difference: Difference, unit: str) -> str:
    """The interval of a difference, and whether it may be chance."""
    units = f"{difference.n} {unit}{'' if difference.n == 1 else 's'}"
    if difference.interval is None:
        return f"no interval from {units}; this may be chance"
    low, high = difference.interval
    chance = "; this may be chance" if low <= 0 <= high else ""
    return f"95 % interval {low:+.1f} to {high:+.1f} over {units}{chance}"


def _difference(difference: Difference | None) -> str:
    if difference is None:
        return "-"
    sure = "" if difference.half_width is None else f" ± {difference.half_width:.2f}"
    return f"{difference.mean:+.2f}{sure}"


def _facts(comparison: "Comparison") -> dict[str, str]:
    facts = _meanings(comparison)
    facts["budget"] = str(comparison.budget["kind"])
    if "pace" in comparison.budget:
        facts["budget"] += ": epochs by the time of the first iterations; the slowest policy trains for those asked for"
    facts["bundles"] = "; ".join(
        f"{about['bundle']} ({about.get('proxy') or about['source']})" for about in comparison.bundles
    )
    for name in ("hardware", "versions"):
        facts[name] = ", ".join(f"{key} {value}" for key, value in getattr(comparison, name).items())
    facts |= {f"note {number}": text for number, text in enumerate(comparison.notes, 1)}
    facts |= {f"failed: {run}": f"{failure.what}: {failure.why}" for run, failure in comparison.failed.items()}
    return facts


def _meanings(comparison: "Comparison") -> dict[str, str]:
    """What the table's columns mean, and how certain its figures are."""
    from ..compare.stats import LEVEL

    facts: dict[str, str] = {}
    units = {entry.unit for entry in comparison.summary if entry.policy != "proxy"}
    if "bundle" in units:
        facts["n"] = "bundles; each counts with the mean over its seeds"
    elif units:
        facts["n"] = "seeds, all on one split: the intervals say nothing about other splits and searches"
    facts["±"] = "of an accuracy: the standard deviation; of a paired difference: half of its "
    facts["±"] += f"{100 * LEVEL:.0f} % interval (Student's t). A smaller difference is not significant."
    baselines = {entry.arch: entry.versus_rival.against for entry in comparison.summary if entry.versus_rival}
    if baselines:
        named = ", ".join(f"{policy} ({arch})" for arch, policy in baselines.items())
        facts["best baseline"] = f"{named}: chosen on the test split, which favours the baseline"
    if any(entry.n == 1 for entry in comparison.summary):
        facts["n = 1"] = "no interval: the difference may be chance"
    if comparison.summary:
        worst = max(comparison.summary, key=lambda entry: entry.sampling_error)
        images = " or ".join(str(count) for count in sorted({row.test_images for row in comparison.rows}))
        error = f"the standard error of one accuracy is up to {worst.sampling_error:.2f} points"
        facts["test split"] = f"{images} images: {error}"
    return facts
