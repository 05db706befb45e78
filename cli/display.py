"""What commands print: results on stdout, notes on stderr."""

import json
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..bundle.findings import Findings
from ..runtime.sanitize import printable
from ..runtime.words import plural

if TYPE_CHECKING:
    from rich.console import Console

    from ..inference.measures import Evaluation
    from ..training.dry_run import Forecast

LABELS = {
    "validation_loss": "meta-validation loss",
    "validation_top1": "meta-validation top-1",
    "entropy": "entropy of p_jk",
    "weight_spread": "weights' spread",
    "signal_to_noise": "signal to noise",
    "learning_rate": "learning rate",
    "images_per_second": "images a second",
}


LONG = 5.0  # seconds, after which a user wants to know what is being done
# What a command says of a bundle's network when it has not built it.
NOT_BUILT = "its tensors are checked; its first use also checks the architecture and that features are finite"


def note(text: str) -> None:
    """Print one line on stderr."""
    print(printable(f"mapolicy: {text}"), file=sys.stderr, flush=True)


@contextmanager
def note_if_long(text: str, quiet: bool = False, seconds: float = LONG) -> Iterator[None]:
    """Print one line on stderr if the block is not done after some seconds."""
    timer = threading.Timer(seconds, note, (text,))
    timer.daemon = True
    if not quiet:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def note_dark(images: int) -> None:
    """Say on stderr that so many images are seen dark, if any."""
    if images:
        note(
            f"warning: {plural(images, 'image')} with more than 8 bits a pixel and small values: the network was "
            "trained on 8-bit images and sees them dark; convert them to 8 bits, or train on such images"
        )


def redraws(console: "Console") -> bool:
    """Whether a display can be redrawn there: on a terminal, and not below a notebook's cell.

    A command after `!` in a cell gets a terminal, but the cell keeps every line and shows what moves the cursor as
    text. Jupyter's launcher sets the first variable, every IPython kernel the second.
    """
    kernel = "JPY_PARENT_PID" in os.environ or "matplotlib_inline" in os.environ.get("MPLBACKEND", "")
    return console.is_terminal and not console.is_dumb_terminal and not kernel


def print_json(document: Mapping[str, Any]) -> None:
    """Print one JSON document on stdout."""
    print(json.dumps(document, indent=2, allow_nan=False))


def print_figures(figures: Mapping[str, str]) -> None:
    """Print names and values on stdout, one pair on each line. Unprintable characters are replaced."""
    width = max(len(name) for name in figures)
    for name, value in figures.items():
        print(printable(f"{name:<{width}}  {value}"))


def print_findings(findings: Findings) -> None:
    """Print on stdout what a policy learned and how it did in its own check, sentences first; nothing if not known."""
    print_sentences(findings)
    print_check(findings)


def print_sentences(findings: Findings) -> None:
    """Print on stdout what follows from a policy's check, and what was learned, in sentences."""
    _print_paragraph(findings.verdict)
    if findings.learned:
        _print_paragraph("what was learned", findings.learned)
    _print_paragraph(findings.weights)


def print_check(findings: Findings) -> None:
    """Print on stdout how a policy was checked, and the accuracy under each policy that was compared."""
    width = max((len(name) for name, _ in findings.rows), default=0)
    _print_paragraph(findings.checked, [f"{name:<{width}}  {text}" for name, text in findings.rows])


def _print_paragraph(title: str, lines: Sequence[str] = ()) -> None:
    if title:
        print("\n".join(map(printable, (title, *(f"  {line}" for line in lines)))), end="\n\n")


def print_forecast(
    forecast: "Forecast",
    network: str,
    settings: str,
    as_json: bool,
    plan: Mapping[str, str] | None = None,
    document: Mapping[str, Any] | None = None,
) -> None:
    """Print on stdout what a run would cost; `plan` and `document` are what else there is to say, in words and values.

    A name of the plan may end in spaces, which tell several warnings apart.
    """
    if as_json:
        print_json({"network": network, "settings": settings, **forecast.figures(), **(document or {})})
        return
    print_figures(
        {
            **(plan or {}),
            "settings": f"from {settings}",
            "network": f"{network}, {forecast.parameters / 1e6:.2f} million parameters",
            "iterations": str(forecast.iterations),
            **forecast.facts(),
            **forecast.warnings,
        }
    )


def effect_on_weights(effect: Mapping[str, Any]) -> dict[str, str]:
    """Two lines about how another dtype of the extractor changes the weights.

    Args:
        effect: the fields of a `compress.WeightEffect`.
    """
    return {
        "weights' ranks": f"correlation {effect['rank_correlation']:.6f} over {effect['samples']} synthetic samples",
        "weights' change": f"at most {effect['largest_difference']:.2g} of a weight",
    }


def duration(seconds: float) -> str:
    """Format seconds as 1:02:03 or 2:03."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def whole_time(command: float, run: float) -> str:
    """One value: the seconds of a command, and of its run, which may have begun in an earlier command."""
    return f"{duration(command)} for this command, {duration(run)} for the run itself"


def class_figures(evaluation: "Evaluation") -> dict[str, str]:
    """Three lines about the accuracy of each class and the calibration."""
    weakest = evaluation.weakest()
    return {
        "balanced accuracy": f"{evaluation.balanced_accuracy:.2f} %, the mean over the classes",
        "weakest class": f"{weakest.name}: {weakest.recall:.2f} % of {weakest.images} images",
        "calibration error": f"{evaluation.calibration_error:.2f} % (ECE)",
    }


def size(count: int) -> str:
    """Format a number of bytes as 1.4 MB."""
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def ratio(value: float | None) -> str:
    """Format a cost ratio; None means that the run was too short to measure one."""
    return "not measured (too few iterations)" if value is None else f"{value:.2f}x a plain step"


def with_interval(figures: Mapping[str, Any], name: str, meaning: str) -> dict[str, str]:
    """One line with a figure of the search and its interval.

    Args:
        figures: of a search or a bundle; where one of the three numbers is missing there is no line.
        name: of the figure; its interval is in `NAME_low` and `NAME_high`.
        meaning: what the interval is of.
    """
    found = [figures.get(key) for key in (name, f"{name}_low", f"{name}_high")]
    if None in found:
        return {}
    value, low, high = found
    return {LABELS[name]: f"{value:.4f} ({low:.4f} to {high:.4f}, {meaning})"}


def weight_shares(figures: Mapping[str, Any]) -> dict[str, str]:
    """One line with the shares of the weights' variance; an old bundle has none, and gives no line."""
    found = [figures.get(f"weight_share_{of}") for of in ("class", "operations")]
    if None in found:
        return {}
    by_class, by_operations = found
    return {"weights' variance": f"{by_operations:.0%} between operations, {by_class:.0%} between classes"}


def spread_of_weights(figures: Mapping[str, Any]) -> dict[str, str]:
    """Two lines about how the weights of samples differ; equal weights give none."""
    return {**with_interval(figures, "weight_spread", "of 95 % of the last epoch's batches"), **weight_shares(figures)}


def signal_to_noise(figures: Mapping[str, Any]) -> dict[str, str]:
    """One line with the signal-to-noise ratio of the hypergradient."""
    return with_interval(figures, "signal_to_noise", "of a hypergradient, 95 % interval")
