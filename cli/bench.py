"""`mapolicy bench`: what operations, photos, a search's iteration and training with a policy cost on this machine."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer

from ..config import RunConfig, SearchConfig, TrainConfig
from ..errors import UsageError
from . import display, options
from .grouped import grouped
from .help import HelpCommand, HelpGroup
from .resolve import Config, resolve

app = typer.Typer(
    help="Measure operations, photos, search and training on this machine.", cls=HelpGroup, rich_markup_mode=None
)

# Whose recipe gives optimiser, clipping, base augmentation and Cutout; its images are not read.
RECIPE_OF = "cifar100"
PROXY = "wrn16_2"
LARGER = "wrn40_2"
SIZES, PHOTO_SIZES = (32, 224), (64, 224)
MOST_COLUMNS = 1000  # of a table

Column = Callable[[Mapping[str, Any]], str]
Rounds = Annotated[int, typer.Option(help="Measurements of each candidate.", min=1, max=10_000)]
BatchSize = Annotated[int, typer.Option(help="Images in a batch.", min=2, max=1_000_000)]
ImageSize = Annotated[int, typer.Option(help="Side of the images, pixels.", min=8, max=4096)]


@dataclass(frozen=True)
class Bench:
    """Where a measurement runs."""

    panel: ClassVar[str] = "Machine"

    threads: Annotated[int, typer.Option(help="CPU threads of torch.", min=1, max=1024)] = 1
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "cpu"
    quiet: options.Quiet = False

    def progress(self, text: str) -> None:
        """Show a line on stderr, unless --quiet was given."""
        if not self.quiet:
            print(f"mapolicy: {text}", file=sys.stderr, flush=True)


@app.command("operations", cls=HelpCommand)
@grouped
def operations(
    *,
    image_size: Annotated[
        list[int] | None,
        typer.Option(help="Side of the images, pixels; repeatable; by default 32 and 224.", min=8, max=4096),
    ] = None,
    batch_size: BatchSize = 128,
    rounds: Rounds = 11,
    bench: Bench,
    output: options.Output,
) -> None:
    """Time random operations, also those of other libraries.

    Each image gets two. Pillow does exactly the same operations, other libraries their own policies.
    Albumentations and kornia take part if they are installed.

    Example: mapolicy bench operations --image-size 32
    """
    from ..bench.operations import measure_operations
    from ..runtime.device import resolve_device

    device = resolve_device(bench.device)
    report = measure_operations(image_size or SIZES, batch_size, rounds, bench.threads, device, bench.progress)
    columns: dict[str, Column] = {
        "pixels": lambda row: str(row["image_size"]),
        "us/image": lambda row: f"{row['us_per_image']:.0f}",
        "images/s": lambda row: f"{row['images_per_second']:.0f}",
        "as Pillow": lambda row: {True: "bit for bit", False: "NO", None: "other work"}[row.get("equal")],
    }
    _show(output, report.document(), columns)


@app.command("data", cls=HelpCommand)
@grouped
def data(
    folder: Annotated[
        Path | None,
        typer.Argument(help="Folder that holds JPEGs, at any depth; without it synthetic ones of 484 x 387."),
    ] = None,
    *,
    image_size: Annotated[
        list[int] | None,
        typer.Option(help="Side of the crops, pixels; repeatable; by default 64 and 224.", min=8, max=4096),
    ] = None,
    batch_size: BatchSize = 128,
    rounds: Rounds = 11,
    bench: Bench,
    output: options.Output,
) -> None:
    """Time random resized crops of photos, also torchvision's.

    By default a photo is decoded in the first epoch and kept; rows with -small keep a small copy instead
    (keep_images=small), files-anew keeps nothing (off). torchvision decodes it for each crop. Both are measured with
    two random operations too.

    Example: mapolicy bench data photos --image-size 224
    """
    if bench.device not in ("cpu", "auto"):
        raise UsageError(f"--device {bench.device}", "photos are decoded and cropped on the CPU", "leave it out")
    from ..bench.photos import measure_photos

    report = measure_photos(folder, image_size or PHOTO_SIZES, batch_size, rounds, bench.threads, bench.progress)
    columns: dict[str, Column] = {
        "pixels": lambda row: str(row["image_size"]),
        "images/s": lambda row: f"{row['images_per_second']:.0f}",
        "times as fast": lambda row: f"{row['times_as_fast']:.2f}",
    }
    _show(output, report.document(), columns)


@app.command("step", cls=HelpCommand)
@grouped
def step(
    *,
    arch: Annotated[str, typer.Option(help="timm name of the proxy network.")] = PROXY,
    image_size: ImageSize = 32,
    batch_size: BatchSize = 128,
    validation_batch_size: Annotated[
        int, typer.Option(help="Meta-validation images in a batch.", min=2, max=1_000_000)
    ] = 128,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Also compile the step and the plain step; takes minutes on a CPU.")
    ] = False,
    memory: Annotated[bool, typer.Option(help="Measure peak memory, in a process for each row.")] = True,
    rounds: Rounds = 3,
    settings: options.SetOption = None,
    bench: Bench,
    output: options.Output,
) -> None:
    """Time an iteration of a search, without its augmentation.

    It is compared with a plain training step and with double backward.

    Example: mapolicy bench step --arch wrn16_2 --image-size 32
    """
    sizes = {"image_size": image_size, "batch_size": batch_size, "validation_batch_size": validation_batch_size}
    config = _config(SearchConfig, arch, settings, bench, sizes)

    from ..bench.step import measure_step

    report = measure_step(config, rounds, compiled=compiled, memory=memory, progress=bench.progress)
    columns: dict[str, Column] = {
        "peak MiB": lambda row: _figure(row.get("peak_mib"), "{:.0f}"),
        "x plain's": lambda row: _figure(row.get("peak_ratio"), "{:.2f}"),
    }
    _show(output, report.document(), columns if memory else {})


@app.command("transfer", cls=HelpCommand)
@grouped
def transfer(
    *,
    proxy: Annotated[str, typer.Option(help="timm name of the bundle's network.")] = PROXY,
    arch: Annotated[
        list[str] | None,
        typer.Option(
            help=f"timm name of a network to train; repeatable; by default the proxy's and {LARGER}.",
        ),
    ] = None,
    image_size: ImageSize = 32,
    batch_size: BatchSize = 128,
    rounds: Rounds = 5,
    settings: options.SetOption = None,
    bench: Bench,
    output: options.Output,
) -> None:
    """Time an iteration of training with a policy, and a plain one.

    The policy is frozen, fine-tuned, or uniform draws. Augmentation and network are timed together. A --set that only
    search or only train knows applies to that stage alone.

    Example: mapolicy bench transfer --proxy wrn16_2 --arch wrn40_2
    """
    sizes = {"image_size": image_size, "batch_size": batch_size}
    search = _config(SearchConfig, proxy, _without_those_of(TrainConfig, SearchConfig, settings), bench, sizes)
    trained = _without_those_of(SearchConfig, TrainConfig, settings)
    targets = [_config(TrainConfig, name, trained, bench, sizes) for name in arch or (proxy, LARGER)]

    from ..bench.transfer import measure_transfer

    report = measure_transfer(search, targets, rounds, bench.progress)
    _show(output, report.document(), {"network": lambda row: row["arch"]})


def _config(
    kind: type[Config], network: str, settings: list[str] | None, bench: Bench, sizes: Mapping[str, int]
) -> Config:
    """The recipe's configuration for the network, with the command's options."""
    flags = {**sizes, "threads": bench.threads, "device": bench.device}
    config, _ = resolve(kind, network, RECIPE_OF, flags=flags, settings=settings)
    return config


def _without_those_of(other: type[RunConfig], kind: type[RunConfig], settings: list[str] | None) -> list[str]:
    """The `key=value` texts without those that only the other stage knows."""
    foreign = {field.name for field in fields(other)} - {field.name for field in fields(kind)}
    return [text for text in settings or [] if text.partition("=")[0].strip() not in foreign]


def _figure(value: float | None, form: str) -> str:
    return "not measured" if value is None else form.format(value)


def _show(output: options.Output, report: Mapping[str, Any], columns: Mapping[str, Column]) -> None:
    """Print the rows as a table with these further columns, and below it what the figures depend on."""
    if output.as_json:
        display.print_json(report)
        return
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Column as TableColumn
    from rich.table import Table

    rows: Sequence[Mapping[str, Any]] = report["rows"]
    table = Table(TableColumn("what", no_wrap=True))
    references = {row["against"] for row in rows}
    against = rows[0]["against"] if len(references) == 1 else "reference"
    for name in ("ms", "quartiles", f"x {against}", "quartiles", *columns):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row["what"],
            f"{row['median_ms']:.1f}",
            f"{row['low_ms']:.1f}-{row['high_ms']:.1f}",
            f"{row['ratio']:.3f}",
            f"{row['ratio_low']:.3f}-{row['ratio_high']:.3f}",
            *(column(row) for column in columns.values()),
        )
    console = Console()
    whole = Measurement.get(console, console.options.update(width=MOST_COLUMNS), table).maximum
    Console(width=max(console.width, whole)).print(table)  # in a narrow terminal lines wrap, and no figure is cut
    machine = report["hardware"]
    facts = {
        "figures": f"medians of {rows[0]['n']} interleaved rounds; {report['time']}",
        "settings": ", ".join(f"{name} {value}" for name, value in report["settings"].items()),
        "hardware": ", ".join(f"{name} {value}" for name, value in machine.items()),
        "versions": ", ".join(f"{name} {value}" for name, value in report["versions"].items()),
    }
    if report["left_out"]:
        facts["left out"] = ", ".join(f"{name} ({why})" for name, why in report["left_out"].items())
    display.print_figures(facts)
