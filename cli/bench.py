"""`mapolicy bench`: what the operations, a search's iteration and training with a policy cost on this machine."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Annotated, Any, TypeVar

import typer

from ..config import RunConfig, SearchConfig, TrainConfig
from . import display, options

app = typer.Typer(
    help="Measure what the operations, a search's iteration and training with a policy cost on this machine.",
    rich_markup_mode=None,
)

# Whose recipe gives optimiser, clipping, base augmentation and Cutout; its images are not read.
RECIPE_OF = "cifar100"
PROXY = "wrn16_2"
LARGER = "wrn40_2"
SIZES = (32, 224)

Config = TypeVar("Config", bound=RunConfig)

Threads = Annotated[int, typer.Option(help="CPU threads of torch.", min=1, max=1024)]
Rounds = Annotated[int, typer.Option(help="Measurements of each candidate.", min=1, max=10_000)]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
BatchSize = Annotated[int, typer.Option(help="Images in a batch.", min=2, max=1_000_000)]
ImageSize = Annotated[int, typer.Option(help="Side of the images, pixels.", min=8, max=4096)]


@app.command("operations")
def operations(
    image_size: Annotated[
        list[int] | None,
        typer.Option(help="Side of the images, pixels, any number of times; else 32 and 224.", min=8, max=4096),
    ] = None,
    batch_size: BatchSize = 128,
    rounds: Rounds = 11,
    threads: Threads = 1,
    device: Device = "cpu",
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Two random operations for each image: ours, Pillow's doing exactly the same, and other libraries' policies.

    Albumentations and kornia take part where they are installed. Example: mapolicy bench operations --image-size 32
    """
    from ..bench.operations import measure_operations
    from ..runtime.device import resolve_device

    report = measure_operations(
        image_size or SIZES, batch_size, rounds, threads, resolve_device(device), _progress(quiet)
    ).document()
    if as_json:
        display.print_json(report)
        return
    columns = {
        "pixels": lambda row: str(row["image_size"]),
        "us/image": lambda row: f"{row['us_per_image']:.0f}",
        "images/s": lambda row: f"{row['images_per_second']:.0f}",
        "as Pillow": lambda row: {True: "bit for bit", False: "NO", None: "other work"}[row.get("equal")],
    }
    _print(report, columns)


@app.command("step")
def step(
    arch: Annotated[str, typer.Option(help="timm name of the network that searches.")] = PROXY,
    image_size: ImageSize = 32,
    batch_size: BatchSize = 128,
    validation_batch_size: Annotated[
        int, typer.Option(help="Meta-validation images in a batch.", min=2, max=1_000_000)
    ] = 128,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the step and the plain step too; takes minutes on a CPU.")
    ] = False,
    memory: Annotated[bool, typer.Option(help="Measure each peak, in a process of its own.")] = True,
    rounds: Rounds = 3,
    threads: Threads = 1,
    device: Device = "cpu",
    settings: options.Settings = None,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """One iteration of a search after its augmentation: ours, a plain training step, and double backward.

    Example: mapolicy bench step --arch wrn16_2 --image-size 32
    """
    config = _config(
        SearchConfig,
        arch,
        settings,
        image_size=image_size,
        batch_size=batch_size,
        validation_batch_size=validation_batch_size,
        threads=threads,
        device=device,
    )

    from ..bench.step import measure_step

    report = measure_step(config, rounds, compiled=compiled, memory=memory, progress=_progress(quiet)).document()
    if as_json:
        display.print_json(report)
        return
    columns = {
        "peak MiB": lambda row: _figure(row.get("peak_mib"), "{:.0f}"),
        "x plain's": lambda row: _figure(row.get("peak_ratio"), "{:.2f}"),
    }
    _print(report, columns if memory else {})


@app.command("transfer")
def transfer(
    proxy: Annotated[str, typer.Option(help="timm name of the bundle's network.")] = PROXY,
    arch: Annotated[
        list[str] | None,
        typer.Option(help=f"timm name of a network to train, any number of times; else the proxy's and {LARGER}."),
    ] = None,
    image_size: ImageSize = 32,
    batch_size: BatchSize = 128,
    rounds: Rounds = 5,
    threads: Threads = 1,
    device: Device = "cpu",
    settings: options.Settings = None,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """One iteration of training with a frozen policy, with equal weights, and plain: augmentation and network.

    A --set that only searches or only trainings know is for these alone.

    Example: mapolicy bench transfer --proxy wrn16_2 --arch wrn40_2
    """
    flags = {"image_size": image_size, "batch_size": batch_size, "threads": threads, "device": device}
    search = _config(SearchConfig, proxy, _without_those_of(TrainConfig, SearchConfig, settings), **flags)
    trained = _without_those_of(SearchConfig, TrainConfig, settings)
    targets = [_config(TrainConfig, name, trained, **flags) for name in arch or (proxy, LARGER)]

    from ..bench.transfer import measure_transfer

    report = measure_transfer(search, targets, rounds, _progress(quiet)).document()
    if as_json:
        display.print_json(report)
        return
    _print(report, {"network": lambda row: row["arch"]})


def _config(kind: type[Config], network: str, settings: list[str] | None, **flags: Any) -> Config:
    """The recipe's configuration for the network, with the command's flags."""
    config, _ = options.resolve(kind, None, network, RECIPE_OF, {}, flags, settings, None)
    return config


def _without_those_of(other: type[RunConfig], kind: type[RunConfig], settings: list[str] | None) -> list[str]:
    """The `key=value` texts less those whose key only the other stage knows."""
    foreign = {field.name for field in fields(other)} - {field.name for field in fields(kind)}
    return [text for text in settings or [] if text.partition("=")[0].strip() not in foreign]


def _progress(quiet: bool) -> Callable[[str], None]:
    if quiet:
        return lambda text: None
    return lambda text: print(f"mapolicy: {text}", file=sys.stderr, flush=True)


def _figure(value: float | None, form: str) -> str:
    return "not measured" if value is None else form.format(value)


def _print(report: Mapping[str, Any], columns: Mapping[str, Callable[[Mapping[str, Any]], str]]) -> None:
    """The rows as a table on stdout, and below it what the figures depend on."""
    from rich.console import Console
    from rich.table import Column, Table

    rows: Sequence[Mapping[str, Any]] = report["rows"]
    table = Table(Column("what", no_wrap=True))
    for name in ("ms", "quartiles", f"x {rows[0]['against']}", "quartiles", *columns):
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
    console = Console(width=None if Console().is_terminal else 120)
    console.print(table)
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
