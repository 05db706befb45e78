"""Progress of a run: a live display on a terminal and in a notebook, plain lines elsewhere."""

import io
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.jupyter import JUPYTER_HTML_FORMAT
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from ..runtime.sanitize import printable
from ..training.callbacks import Record, Reporter, Reporters
from .display import LABELS, duration, note, redraws

# Names of figures in a record, in the order of the display, with their formats.
SHOWN = {
    "loss": "{:.3f}",
    "validation_loss": "{:.3f}",
    "validation_top1": "{:.2f} %",
    "alpha": "{:.4f}",
    "entropy": "{:.5f}",
    "weight_spread": "{:.3f}",
    "learning_rate": "{:.4f}",
    "images_per_second": "{:.0f}",
}


WITH_SPARKLINE = ("loss", "validation_loss", "validation_top1", "entropy", "weight_spread")
MOST_DRAWN = "pairs of operations drawn most often"
SMALLEST_SPREAD = 5e-4  # a smaller one is shown as 0.000: the weights are equal but for rounding
BARS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
NARROW = 50  # characters; a narrower terminal gets numbers without a bar
LONGEST_SPARKLINE = 40  # characters
TEXT_WIDTH = 36  # characters of labels and figures together
CELL_WIDTH = 100  # characters, in a notebook
CELL_SECONDS = 1.0  # between two redraws there
ITERATIONS_UNTIL_TIME = 3  # of a run that is too short to be measured before its start, or that goes on


class QuietReporter(Reporter):
    """Prints only messages on stderr, and keeps the result for the command to print.

    Attributes:
        facts: lines to show when the run starts, besides the facts that the run itself gives.
        result: the figures of the last run.
    """

    def __init__(self) -> None:
        self.facts: Mapping[str, str] = {}
        self.result: Mapping[str, Any] = {}

    def on_note(self, text: str) -> None:
        """Print one line on stderr."""
        note(text)

    def on_complete(self, result: Mapping[str, Any]) -> None:
        """Keep the result until the command prints it."""
        self.result = result


class FullReporter(QuietReporter):
    """Also tells of each run of a comparison."""

    def on_compare(self, done: int, runs: int, text: str, seconds_left: float) -> None:
        """Print one line about the run of a comparison that just ended."""
        self.on_note(f"{done} of {runs}: {text}; {duration(seconds_left)} left")


class PlainReporter(FullReporter):
    """Prints one line for each epoch, for log files and pipes."""

    def on_start(self, what: str, iterations: int, facts: Mapping[str, str], seconds: float | None) -> None:
        """Print the run's name and its number of iterations, then each fact on a line of its own."""
        self._latest: dict[str, float] = {}
        self._likeliest = ""
        self._until_time = ITERATIONS_UNTIL_TIME if seconds is None else 0
        self.on_note(f"{what}: {iterations} iterations")
        for key, value in {**facts, **self.facts}.items():
            self.on_note(f"  {key}: {value}")

    def on_step(self, iteration: int, seconds_left: float) -> None:
        """Print the estimated time after some iterations, where it was not known at the start."""
        self._until_time -= 1
        if self._until_time == 0:
            self.on_note(f"  time: about {duration(seconds_left)} left, by the first iterations")

    def on_log(self, record: Record) -> None:
        """Keep the figures; `on_evaluate` prints the latest ones."""
        self._latest |= record

    def on_evaluate(self, record: Record) -> None:
        """Print the latest figures and the estimated time left on one line."""
        self._latest |= record
        figures = "  ".join(f"{LABELS.get(key, key)} {value}" for key, value in shown(self._latest).items())
        left = duration(self._latest.get("seconds_left", 0))
        self.on_note(f"epoch {record['epoch']:.0f}  {figures}  {left} left")

    def on_policy(self, likeliest: Sequence[tuple[str, str, float]]) -> None:
        """Print the pairs of operations that are drawn most when they have changed."""
        named = "; ".join(f"{first} + {second}" for first, second, _ in likeliest)
        if named != self._likeliest:
            self._likeliest = named
            self.on_note(f"{MOST_DRAWN}: {named}")


class LiveReporter(FullReporter):
    """Redraws a display on a terminal: a progress bar, figures with sparklines, the most probable transformations."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self._live: Live | None = None
        self._clear()

    def _clear(self) -> None:
        self._latest: dict[str, float] = {}
        self._history: dict[str, list[float]] = {name: [] for name in WITH_SPARKLINE}
        self._likeliest: Sequence[tuple[str, str, float]] = ()
        self._before: Mapping[tuple[str, str], float] = {}

    def on_start(self, what: str, iterations: int, facts: Mapping[str, str], seconds: float | None) -> None:
        """Print the facts, then start to redraw the display four times a second."""
        self._clear()
        for key, value in {**facts, **self.facts}.items():
            self._print(Text(printable(f"{key:>16}  {value}")))
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]} left", markup=False),
            console=self._console,
            expand=True,
        )
        left = "?" if seconds is None else duration(seconds)
        self._bar = self._progress.add_task(what, total=iterations, left=left)
        self._begin()

    def _begin(self) -> None:
        self._live = Live(self, console=self._console, refresh_per_second=4)
        self._live.start()

    def _print(self, line: Text) -> None:
        """A line above the display."""
        self._console.print(line)

    def on_step(self, iteration: int, seconds_left: float) -> None:
        """Move the progress bar and update the time left."""
        self._progress.update(self._bar, completed=iteration, left=duration(seconds_left))

    def on_log(self, record: Record) -> None:
        """Show these figures from the next redraw on."""
        self._note(record)

    def on_evaluate(self, record: Record) -> None:
        """Show the accuracy from the next redraw on."""
        self._note(record)

    def on_policy(self, likeliest: Sequence[tuple[str, str, float]]) -> None:
        """Show the most probable transformations, with an arrow where a probability rose or fell."""
        self._before = {(first, second): p for first, second, p in self._likeliest}
        self._likeliest = likeliest

    def on_note(self, text: str) -> None:
        """Print a line above the display; warnings are yellow."""
        self._print(Text(printable(text), style="yellow" if text.startswith("warning") else ""))

    def on_finish(self) -> None:
        """Stop redrawing; the last state stays on the screen."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _note(self, record: Record) -> None:
        self._latest |= record
        for name, values in self._history.items():
            if name in record:
                values.append(record[name])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Render the display; rich calls this for each redraw with the terminal's current width."""
        figures = Table.grid(padding=(0, 2))
        room = min(LONGEST_SPARKLINE, options.max_width - TEXT_WIDTH)
        for key, value in shown(self._latest).items():
            values = self._history.get(key, [])
            line = sparkline(values, room) if room > 0 and not options.ascii_only else ""
            figures.add_row(Text(LABELS.get(key, key), style="dim"), Text(value), Text(line, style="cyan"))
        if options.max_width < NARROW:
            task = self._progress.tasks[self._bar]
            yield Text(f"{task.completed:.0f}/{task.total:.0f} {task.fields['left']} left")
        else:
            yield self._progress
        yield figures
        if self._likeliest:
            transformations = Table.grid(padding=(0, 2))
            for first, second, p in self._likeliest:
                trend = self._trend(first, second, p, options.ascii_only)
                transformations.add_row(Text(f"{first} + {second}"), Text(f"{100 * p:.3f} %"), Text(trend))
            yield Text(f"{MOST_DRAWN} (share of all draws)", style="dim")
            yield transformations

    def _trend(self, first: str, second: str, p: float, ascii_only: bool) -> str:
        if not self._before:
            return ""
        old = self._before.get((first, second), -1.0)
        up, down, same = ("up", "down", "") if ascii_only else ("\u2191", "\u2193", "")
        return up if p > old else down if p < old else same


class NotebookReporter(LiveReporter):
    """The same display in a cell of a Jupyter notebook, as one output that is replaced about once a second.

    rich renders it as HTML. Its own `Live` needs ipywidgets for that, and a saved notebook does not keep widgets.
    """

    def __init__(self) -> None:
        super().__init__(Console(file=io.StringIO(), width=CELL_WIDTH, force_jupyter=False))
        self._lines: list[Text] = []
        self._handle: Any = None
        self._running = False
        self._shown = 0.0

    def on_step(self, iteration: int, seconds_left: float) -> None:
        """Move the progress bar, and redraw if the last time is a second ago."""
        super().on_step(iteration, seconds_left)
        if time.monotonic() - self._shown >= CELL_SECONDS:
            self._draw()

    def on_finish(self) -> None:
        """Draw the last state, which stays in the cell."""
        if self._running:
            self._draw()

    def _begin(self) -> None:
        self._running = True
        self._draw()

    def _print(self, line: Text) -> None:
        self._lines.append(line)
        self._draw()

    def _draw(self) -> None:
        from IPython.display import display  # there in every kernel

        self._shown = time.monotonic()
        if self._handle is None:
            self._handle = display(self, display_id=True)
        else:
            self._handle.update(self)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        """What a notebook shows: HTML, and text without colours where there is none."""
        console = Console(file=io.StringIO(), width=CELL_WIDTH, record=True, force_jupyter=False)
        parts: list[RenderableType] = [*self._lines, *([self] if self._running else [])]
        for part in parts:
            console.print(part)
        html = console.export_html(inline_styles=True, code_format=JUPYTER_HTML_FORMAT, clear=False)
        return {"text/plain": console.export_text(), "text/html": html}


def sparkline(values: Sequence[float], width: int) -> str:
    """Draw a series of values as a row of block characters.

    Args:
        values: in their order. Fewer than two give an empty text.
        width: largest number of characters. Where there are more values, each character shows the mean of several.
    """
    if len(values) < 2:
        return ""
    count = min(width, len(values))
    edges = [round(number * len(values) / count) for number in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    if not high - low > 1e-9 * max(abs(low), abs(high)):  # also if one of them is NaN
        return BARS[0] * count
    return "".join(BARS[round((value - low) / (high - low) * (len(BARS) - 1))] for value in means)


def with_loggers(display: QuietReporter, names: Sequence[str] | None) -> Reporter:
    """A reporter that calls the display and the loggers that `--logger` names.

    Raises:
        UsageError: there is no such logger, or its package is not installed.
    """
    if not names:
        return display
    from ..integrations.loggers import make_logger

    return Reporters(display, [make_logger(name) for name in dict.fromkeys(names)])


def reporter(quiet: bool = False, settings_from: str | None = None) -> QuietReporter:
    """The display of a run: in the cell of a notebook, else on stderr.

    Args:
        quiet: whether to print messages only.
        settings_from: name of the recipe, printed when the run starts; None prints none.

    Returns:
        A `NotebookReporter` in a Jupyter kernel, a `LiveReporter` on a terminal, a `PlainReporter` elsewhere, a
        `QuietReporter` if `quiet`.
    """
    if quiet:
        return QuietReporter()
    console = Console(stderr=True)
    display: QuietReporter = PlainReporter()
    if console.is_jupyter:
        display = NotebookReporter()
    elif redraws(console):
        display = LiveReporter(console)
    if settings_from is not None:
        display.facts = {"settings": f"from {settings_from}"}
    return display


def shown(record: Record) -> dict[str, str]:
    """The figures of a record that the display shows, formatted, by name; no spread where all weights are equal."""
    equal = {"weight_spread"} if record.get("weight_spread", 0.0) < SMALLEST_SPREAD else set()
    return {key: form.format(record[key]) for key, form in SHOWN.items() if key in record and key not in equal}
