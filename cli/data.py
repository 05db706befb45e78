"""`mapolicy data`: what a data set is, as a run would use it, and what is likely to go wrong."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from ..config import SearchConfig
from ..runtime.sanitize import printable
from ..runtime.words import plural, size_in_words
from . import display, options
from .data_folder import with_fitting_batches
from .grouped import grouped
from .planned import Planner

if TYPE_CHECKING:
    from ..data.dataset_report import DatasetReport
    from ..data.survey import Survey

ANY_NETWORK = "wrn28_10"  # whose recipes say how the data sets of the paper are split
LISTED = 20  # lines of a list; --json has all


@grouped
def data(
    *,
    dataset: options.DatasetArgument = None,
    clear_cache: Annotated[
        bool, typer.Option("--clear-cache", help="Remove the images that runs kept of it (keep_images), and stop.")
    ] = False,
    settings: options.Settings,
    output: options.Output,
) -> None:
    """Look at a data set: what a run would use, and likely trouble.

    Shows classes with their counts, splits, sizes, formats, what is left out and why, and images that lie in several
    splits. Images are decoded to find damaged ones; of a large data set as many as take some seconds, and all with
    --skip-corrupt. Nothing is written. With --clear-cache, the files of images that runs kept of the data set are
    removed instead.

    Example: mapolicy data folder:photos
    """
    config, recipe = settings.resolve(SearchConfig, ANY_NETWORK, dataset)
    if clear_cache:
        _clear_cache(config, output)
        return
    typed = settings.typed()
    planner = Planner.of(recipe, typed, budget=None, started=0.0)
    if planner is not None:
        config = planner.choose(config)
    else:
        (config,), _ = with_fitting_batches([config], [recipe], typed, learns=True)

    from ..data.dataset_report import report_dataset

    found = report_dataset(config)
    if output.as_json:
        display.print_json(found.document())
        return
    chosen = "" if planner is None else ", and what a search chooses for this data"
    display.print_figures(_figures(found) | {"settings": f"{recipe}{chosen}"})
    _print_classes(found)
    _print_list("good to know", list(found.notes))
    reasons = [f"{each.path}: {each.why}" for each in found.left_out]
    _print_list(f"not used: {len(reasons)} files and folders", reasons)
    _print_list(f"same content: {len(found.copies)} groups", [str(group) for group in found.copies])
    _print_list("likely trouble", list(found.trouble))


def _clear_cache(config: SearchConfig, output: options.Output) -> None:
    from ..data.kept_images import cache_folder, clear
    from ..data.kept_loader import cache_owners

    folder = cache_folder(config.cache_dir)
    cleared = [clear(folder, owner) for owner in cache_owners(config)]
    files, space = (sum(numbers) for numbers in zip(*cleared, strict=True))
    if output.as_json:
        display.print_json({"folder": str(folder), "files": files, "bytes": space})
        return
    display.print_figures(
        {"removed": f"{plural(files, 'file')} of kept images, {size_in_words(space)}", "folder": str(folder)}
    )


def _figures(found: "DatasetReport") -> dict[str, str]:
    pool, reading = found.pool, found.reading
    parts = {"images": f"{sum(found.images.values())}: {', '.join(f'{n} {part}' for part, n in found.images.items())}"}
    return {
        "data set": found.name if found.name == found.where else f"{found.name} ({found.where})",
        "classes": str(len(found.classes)),
        **parts,
        "size": f"{pool.fact(reading)}; sides {pool.smallest} to {pool.largest}",
        "formats": _counted(pool.formats),
        "pixels": f"{_counted(pool.modes)}; read as {'grey' if reading.channels == 1 else 'colour'}",
        **({} if found.test is None else {"test images": _test(found.test)}),
    }


def _test(test: "Survey") -> str:
    return f"{test.size}; {_counted(test.formats)}; {_counted(test.modes)}"


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in counts.items()) or "none"


def _print_classes(found: "DatasetReport") -> None:
    parts = list(found.images)
    rows = [[printable(name)[:40], *(str(counts[part]) for part in parts)] for name, counts in found.classes.items()]
    rows = [["class", *parts], *rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    print()
    for name, *counts in rows[: LISTED + 1]:
        numbers = [text.rjust(width) for text, width in zip(counts, widths[1:], strict=True)]
        print("  ".join([name.ljust(widths[0]), *numbers]))
    if len(rows) > LISTED + 1:
        print(f"... and {len(rows) - LISTED - 1} more classes (--json lists all)")


def _print_list(title: str, lines: list[str]) -> None:
    if not lines:
        return
    print(f"\n{title}")
    for line in lines[:LISTED]:
        print(f"  {printable(line)}")
    if len(lines) > LISTED:
        print(f"  ... and {len(lines) - LISTED} more (--json lists all)")
