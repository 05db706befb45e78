"""How far a command is, on stderr: a bar on a terminal, a line every ten seconds elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from . import display

SECONDS = 10.0


@contextmanager
def counted(what: str, total: int, quiet: bool) -> Iterator[Callable[[int], None]]:
    """Show progress within the block.

    Args:
        what: is counted, such as "images".
        total: their number.
        quiet: show nothing.

    Yields:
        A function to call with the number that is done.
    """
    console = Console(stderr=True)
    if quiet or not display.redraws(console):
        latest = time.monotonic()

        def tell(done: int) -> None:
            nonlocal latest
            if not quiet and time.monotonic() - latest >= SECONDS:
                latest = time.monotonic()
                display.note(f"{done} of {total} {what}")

        yield tell
        return
    columns = (TextColumn(what, markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)
