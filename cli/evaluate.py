"""`mapolicy evaluate`: how good a trained network is on a labelled data set."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..config import TrainConfig
from ..runtime.files import write_atomically
from ..runtime.sanitize import printable
from . import completion, display, networks, options, outputs
from .grouped import grouped
from .progress import counted

if TYPE_CHECKING:
    from ..inference.evaluate import NetworkOnImages

LISTED_CLASSES = 40  # on the screen


@dataclass(frozen=True)
class Chosen:
    """Which images are used."""

    all_images: Annotated[
        bool,
        typer.Option(
            "--all-images",
            help="Use all images outside a test split of the data set's own, those that the network learned from "
            "included.",
        ),
    ] = False
    data_dir: options.DataDir = None
    skip_corrupt: options.SkipCorrupt = False


@grouped
def evaluate(
    *,
    network: networks.NetworkArgument,
    dataset: Annotated[
        str,
        typer.Argument(
            help="A data set with the network's classes, such as folder:PATH.",
            metavar="DATASET",
            autocompletion=completion.datasets,
        ),
    ],
    chosen: Chosen,
    out: Annotated[Path | None, typer.Option(help="Folder for tables (CSV, JSON) and pictures.", metavar="DIR")] = None,
    force: options.Force = False,
    execution: networks.Execution,
    checks: networks.NetworkChecks,
    output: options.Output,
) -> None:
    """Measure a trained network on a labelled data set.

    The images are those of the data set's test split; without one, those that the network's training held out; of
    another data set without one, all images. --out writes figures of each class, the confusion matrix and the
    reliability.

    Example: mapolicy evaluate runs/my-train folder:data/birds --out evaluation
    """
    if out is not None:
        outputs.ensure_folder_writable(out, "--out", force=force)
    file = checks.read(network)

    from ..data import damaged
    from ..data.dataset_factory import open_source
    from ..inference.evaluate import evaluate_network, images_to_evaluate

    defaults = TrainConfig.defaults()
    data_dir = Path(chosen.data_dir or defaults["data_dir"])
    source = open_source(dataset, data_dir, defaults["memory_limit_gib"], defaults["download"], nested_classes=True)
    built = checks.build(file, execution.device)
    images = images_to_evaluate(source, built, chosen.all_images)
    with counted("images", len(images.indices), execution.quiet) as tell:
        found = evaluate_network(built, images, execution.batch_size, chosen.skip_corrupt, tell)
    if found.learned:
        part = f"about {found.learned} of these {len(images.indices)} images"
        display.note(f"warning: the network learned from {part}, so its figures are too high")
    if found.corrupt:
        display.note(damaged.note(found.corrupt))
    display.note_dark(found.dark)
    document = _document(file.source, source.name, found)
    if out is not None:
        _write(out, found, document)
    if output.as_json:
        display.print_json(document | {"out": out and str(out)})
        return
    _print(found, source.name)
    if out is not None:
        print(f"\nfiles  {out}")


def _document(network: str, dataset: str, found: "NetworkOnImages") -> dict[str, Any]:
    figures = found.evaluation
    return {
        "network": network,
        "dataset": dataset,
        "which": found.what,
        "images": figures.images,
        "learned_from": found.learned,
        "corrupt": list(found.corrupt),
        **figures.figures(),
        "classes": figures.class_table(),
        "reliability": [vars(each) for each in figures.bins],
    }


def _print(found: "NetworkOnImages", dataset: str) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    figures = found.evaluation
    display.print_figures(
        {
            "images": f"{figures.images} of {dataset}: {found.what}",
            "top-1": f"{figures.top1:.2f} %",
            "top-5": f"{figures.top5:.2f} %",
            **display.class_figures(figures),
        }
    )
    print()
    table = Table(box=None, pad_edge=False)
    for column in ("recall", "precision", "images"):
        table.add_column(column, justify="right")
    table.add_column("class, the weakest first")
    rows = sorted((row for row in figures.classes if row.images), key=lambda row: row.recall or 0.0)
    for row in rows[:LISTED_CLASSES]:
        table.add_row(_per_cent(row.recall), _per_cent(row.precision), str(row.images), Text(printable(row.name)))
    Console(highlight=False).print(table)
    if len(rows) > LISTED_CLASSES:
        print(f"and {len(rows) - LISTED_CLASSES} more; --out writes all of them")


def _write(out: Path, found: "NetworkOnImages", document: dict[str, Any]) -> None:
    from ..report.evaluation_files import evaluation_files

    for name, content in evaluation_files(found.evaluation, found.confusion(), document).items():
        write_atomically(out / name, content)


def _per_cent(value: float | None) -> str:
    return "never predicted" if value is None else f"{value:.2f} %"
