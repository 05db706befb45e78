"""`mapolicy predict`: what a trained network sees in images."""

import csv
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from ..errors import InputError, UsageError
from ..inference.network_file import NetworkFile
from ..runtime.sanitize import printable
from . import display, networks, options
from .grouped import grouped
from .progress import counted

if TYPE_CHECKING:
    from ..inference.predict import Prediction


@dataclass(frozen=True)
class Table:
    """How predictions are shown."""

    panel: ClassVar[str] = options.OUTPUT

    top: Annotated[int, typer.Option(help="Classes of each image, the likeliest first.", min=1)] = 5
    as_csv: Annotated[bool, typer.Option("--csv", help="Print a table: a line for each image, with commas.")] = False


@grouped
def predict(
    *,
    network: networks.NetworkArgument,
    images: Annotated[
        list[str], typer.Argument(help="Image files of any size, and folders of them.", metavar="IMAGE|FOLDER...")
    ],
    table: Table,
    execution: networks.Execution,
    checks: networks.NetworkChecks,
    output: options.Output,
) -> None:
    """Say which classes a trained network sees in images.

    The images are read as those were that the network learned from. Files that are no images are named, the others are
    answered, and the exit code is 3.

    Example: mapolicy predict runs/my-train photos cat.jpg --top 3
    """
    if table.as_csv and output.as_json:
        raise UsageError("--csv", "--json is another form of the same", "leave one of the two out")
    file = checks.read(network)

    from ..inference.predict import find_images, predict_files

    paths = find_images(images)
    built = checks.build(file, execution.device)
    found: list[Prediction] = []
    show = _csv_printer(min(table.top, len(built.classes))) if table.as_csv else _print_text
    # Lines of predictions on a terminal show the progress themselves.
    quiet = execution.quiet or not (output.as_json or not sys.stdout.isatty())
    with counted("images", len(paths), quiet) as tell:
        for batch in predict_files(built, paths, table.top, execution.batch_size):
            for prediction in batch:
                if prediction.error:
                    display.note(f"{prediction.path}: {prediction.error}")
                if not output.as_json:
                    show(prediction)
            found += batch
            tell(len(found))
    display.note_dark(sum(prediction.dark for prediction in found))
    failed = [prediction for prediction in found if prediction.error]
    if output.as_json:
        display.print_json(_document(file, found))
    if failed:
        what, remedy = f"{len(failed)} of {len(found)} images", "the others are answered"
        first = f"{printable(failed[0].path)} {failed[0].error}"
        raise InputError(what, first, remedy if len(failed) < len(found) else "name images that Pillow can read")


def _print_text(prediction: "Prediction") -> None:
    if not prediction.error:
        likeliest = ", ".join(f"{name} {100 * share:.1f} %" for name, share in prediction.likeliest)
        print(printable(f"{prediction.path}  {likeliest}"))


def _csv_printer(top: int) -> "Callable[[Prediction], None]":
    """Print the table's head; the function that is returned prints the line of a prediction."""
    columns = [f"{name}_{number}" for number in range(1, top + 1) for name in ("class", "probability")]
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["image", *columns, "error"])

    def line(prediction: "Prediction") -> None:
        cells = [cell for name, share in prediction.likeliest for cell in (name, f"{share:.6f}")]
        cells += [""] * (2 * top - len(cells))
        writer.writerow([printable(prediction.path), *cells, printable(prediction.error)])

    return line


def _document(file: NetworkFile, found: "Sequence[Prediction]") -> dict[str, Any]:
    return {
        "network": file.source,
        "architecture": file.config.architecture,
        "bundle": file.config.mapolicy.bundle,
        "images": [
            {
                "image": each.path,
                "classes": [{"class": name, "probability": share} for name, share in each.likeliest],
            }
            for each in found
            if not each.error
        ],
        "failed": [{"image": each.path, "error": each.error} for each in found if each.error],
    }
