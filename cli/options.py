"""Options that several commands share, each declared once, in groups that a command takes as one object."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from ..bundle.limits import Limits
from ..bundle.load import Opened, open_bundle
from ..bundle.manifest_base import parse_digest
from ..config.choices import DEVICES, FAST, STORED_DTYPES
from ..registries import DATASETS
from ..runtime import rank_environment
from . import completion, display, outputs, run_progress
from .resolve import Config, resolve, typed

if TYPE_CHECKING:
    from ..training.callbacks import Reporter


def either(names: tuple[str, ...]) -> str:
    """Join names for a sentence: "auto, cpu or cuda"."""
    return f"{', '.join(names[:-1])} or {names[-1]}"


OUTPUT = "Output"
SOURCES = "a file, hf://NAMESPACE/NAME[/FILE][@REVISION] or https://..."
DatasetArgument = Annotated[
    str | None,
    typer.Argument(help=f"Data set: {either(tuple(DATASETS))}.", metavar="DATASET", autocompletion=completion.datasets),
]
DatasetOfBundle = Annotated[
    str | None,
    typer.Argument(
        help="Data set; the default is the bundle's.", metavar="DATASET", autocompletion=completion.datasets
    ),
]
BundleArgument = Annotated[str, typer.Argument(help=f"The bundle: {SOURCES}", metavar="FILE")]
ExtractorDtype = Annotated[
    str | None, typer.Option(help=f"dtype of the extractor in the bundle: {either(STORED_DTYPES)}.")
]
DataDir = Annotated[str | None, typer.Option(help="Folder of the data sets; downloads go there too.", metavar="DIR")]
Device = Annotated[str | None, typer.Option(help=f"{either(DEVICES)}.")]
IncludeValidation = Annotated[
    bool, typer.Option("--include-validation", help="Train on the meta-validation images as well.")
]
Verify = Annotated[
    bool | None,
    typer.Option(
        "--verify/--no-verify",
        help="End with a check: train the proxy from scratch under several policies and compare them on held-out "
        "images.",
        show_default="as the recipe says",
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Estimate time and memory from a few iterations; write nothing.", rich_help_panel="Run"
    ),
]
NestedClasses = Annotated[
    bool,
    typer.Option("--nested-classes", help="Take the class folders as they are: their images lie in subfolders."),
]
SkipCorrupt = Annotated[bool, typer.Option("--skip-corrupt", help="Skip images that cannot be decoded, and name them.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite existing files.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.", rich_help_panel=OUTPUT)]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Override one setting; repeatable. `mapolicy settings` lists them.",
        metavar="KEY=VALUE",
        autocompletion=completion.settings,
    ),
]
LimitOption = Annotated[
    list[str] | None,
    typer.Option(
        "--limit",
        help="Accept a larger file: file_bytes, header_bytes, tensors, parameters, pixels.",
        metavar="NAME=NUMBER",
    ),
]


@dataclass(frozen=True)
class Output:
    """How a command shows its result."""

    panel: ClassVar[str] = OUTPUT

    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON; all else goes to stderr.")] = False
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False

    def show(self, document: Mapping[str, Any], figures: Mapping[str, str]) -> None:
        """Print the result on stdout: the document with --json, else the figures."""
        if self.as_json:
            display.print_json(document)
        else:
            display.print_figures(figures)


@dataclass(frozen=True)
class BundleChecks:
    """What a bundle must satisfy to be opened."""

    panel: ClassVar[str] = "Checks of the bundle"

    expect_digest: Annotated[
        str | None,
        typer.Option(
            help="Reject a bundle with another digest.",
            metavar="SHA256",
            callback=lambda text: None if text is None else parse_digest(text),
        ),
    ] = None
    limits: LimitOption = None

    @property
    def allowed(self) -> Limits:
        """The limits, with those of `--limit` raised."""
        return Limits.of(self.limits or ())

    def open(self, reference: str | Path) -> Opened:
        """Open a bundle of either kind, without its networks."""
        return open_bundle(reference, self.expect_digest, self.allowed)


# Settings with an option of the same meaning in every command that trains.
OWN_OPTIONS = (
    *("weights", "epochs", "image_size", "resize", "batch_size", "learning_rate", "balance"),
    *("workers", "data_dir", "seed", "device"),
)
# What to type for a setting, where there is something shorter than `--set`.
OPTION_OF: Mapping[str, str] = {
    **{name: f"--{name.replace('_', '-')}" for name in OWN_OPTIONS},
    "learning_rate": "--lr",
    "dataset": "DATASET",
    "model_args": "--model-arg",
    "pretrained": "--pretrained",
    "freeze": "--freeze",
    "nested_classes": "--nested-classes",
    "skip_corrupt": "--skip-corrupt",
    "on_divergence": "--on-divergence",
    "proxy": "--proxy",
    "verify": "--verify",
    "extractor_dtype": "--extractor-dtype",
    "arch": "--arch",
    "policy": "--policy",
    "mode": "--mode",
    "include_validation": "--include-validation",
}


@dataclass(frozen=True)
class Settings:
    """Settings of a run that come from the command line."""

    panel: ClassVar[str] = "Settings (by default the recipe's)"

    recipe: Annotated[
        str | None,
        typer.Option(help="Recipe by name, or a TOML file.", metavar="NAME|FILE", autocompletion=completion.recipes),
    ] = None
    settings: SetOption = None
    model_arguments: Annotated[
        list[str] | None,
        typer.Option("--model-arg", help="Argument of the network's constructor; repeatable.", metavar="KEY=VALUE"),
    ] = None
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="Start from timm's pretrained weights, from the cache or the network.")
    ] = False
    weights: Annotated[
        str | None, typer.Option(help="Start from a safetensors file, such as another run's network.", metavar="FILE")
    ] = None
    freeze: Annotated[bool, typer.Option("--freeze", help="Train the classifier alone (needs weights).")] = False
    epochs: Annotated[int | None, typer.Option(help="Passes over the training split.")] = None
    image_size: Annotated[int | None, typer.Option(help="Side of the square network input, pixels.")] = None
    batch_size: Annotated[int | None, typer.Option(help="Images in a training batch.")] = None
    learning_rate: Annotated[
        float | None, typer.Option("--lr", help="Learning rate of the network, after warm-up.")
    ] = None
    resize: Annotated[
        str | None,
        typer.Option(help="How images become square: crop (keep the centre), pad or squash.", metavar="NAME"),
    ] = None
    balance: Annotated[
        str | None,
        typer.Option(help="Classes of unequal size: none, sampler (draw each equally often) or loss.", metavar="NAME"),
    ] = None
    workers: Annotated[
        int | None, typer.Option(help="Processes that decode images of data sets that do not fit in memory.")
    ] = None
    data_dir: DataDir = None
    seed: Annotated[int | None, typer.Option(help="Seed of everything but the splits.")] = None
    device: Device = None
    nested_classes: NestedClasses = False
    skip_corrupt: SkipCorrupt = False

    def flags(self) -> dict[str, Any]:
        """Settings that have an option of their own, by name; None where the option was not given."""
        switches = (
            "pretrained",
            "freeze",
            "nested_classes",
            "skip_corrupt",
        )  # off is no setting: it leaves the recipe's
        given = {name: getattr(self, name) for name in OWN_OPTIONS}
        return given | {name: getattr(self, name) or None for name in switches}

    def resolve(
        self,
        kind: type[Config],
        network: str | None,
        dataset: str | None,
        bundle_settings: Mapping[str, Any] | None = None,
        usual: Mapping[str, Any] | None = None,
        **flags: Any,
    ) -> tuple[Config, str]:
        """The configuration and the recipe's name, as `resolve.resolve`; `flags` are the command's own."""
        return resolve(
            kind,
            network,
            dataset,
            recipe=self.recipe,
            bundle_settings=bundle_settings,
            flags=self.flags() | flags,
            settings=self.settings,
            model_arguments=self.model_arguments,
            usual=usual,
        )

    def typed(self, **flags: Any) -> frozenset[str]:
        """Names of the settings that the user typed; `flags` are the command's own."""
        return frozenset(typed(self.flags() | flags, self.settings, self.model_arguments))


@dataclass(frozen=True)
class StageSettings(Settings):
    """Settings of a search, or of a training that may learn a policy."""

    fast: Annotated[
        bool,
        typer.Option("--fast", help=f"Take cheaper steps: {', '.join(f'{key}={FAST[key]}' for key in FAST)}."),
    ] = False
    on_divergence: Annotated[
        str | None, typer.Option(help="After a loss that is not finite: stop, or rollback to the last checkpoint.")
    ] = None

    def flags(self) -> dict[str, Any]:
        """Also what `--fast` stands for."""
        return super().flags() | {"on_divergence": self.on_divergence} | dict(FAST if self.fast else {})


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps its log and checkpoints."""

    panel: ClassVar[str] = "Run"

    run_dir: Annotated[
        Path | None,
        typer.Option(help="Folder for log and checkpoints.", metavar="DIR", show_default="a new one in runs"),
    ] = None
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the run folder's checkpoint.")] = False
    force: Force = False

    def folder(self, usual: str) -> Path:
        """The run's folder, by default the usual one below `runs`."""
        return self.run_dir or Path("runs") / usual

    def check_file(self, path: Path, flag: str) -> None:
        """Check that the run can write a file: `outputs.ensure_writable`."""
        outputs.ensure_writable(path, flag, force=self.force, resume=self.resume)

    def check_folder(self, folder: Path, comparison: bool = False) -> None:
        """Check that the run can write its folder: `outputs.ensure_run_folder`."""
        outputs.ensure_run_folder(folder, force=self.force, resume=self.resume, comparison=comparison)


@dataclass(frozen=True)
class Run(RunFolder):
    """How a search or a training runs."""

    loggers: Annotated[
        list[str] | None,
        typer.Option("--logger", help="Also log to tensorboard or wandb; repeatable.", metavar="NAME"),
    ] = None
    dry_run: DryRun = False
    quiet: Quiet = False

    def begin(self, folder: Path, out: Path | None, recipe: str) -> "tuple[run_progress.QuietReporter, Reporter]":
        """Check that the run can write, before torch is imported.

        Of several processes only rank 0 shows and writes.

        Returns:
            The display, and the display with the loggers.
        """
        first = rank_environment.rank() == 0
        reporter = run_progress.reporter(self.quiet or not first, recipe)
        writes = first and not self.dry_run
        listeners = run_progress.with_loggers(reporter, self.loggers if writes else None)
        if writes:
            if out is not None:
                self.check_file(out, "--out")
            self.check_folder(folder)
        return reporter, listeners
