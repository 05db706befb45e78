"""`mapolicy compare`: does a bundle's policy help, against which others, by how much, and how sure is that."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..bundle.load import SearchedFile
from ..bundle.manifest_base import parse_digest
from ..config import ZERO_COST_POLICIES, TrainConfig
from ..errors import EnvironmentFault, InputError, MapolicyError, TrainingError, UsageError
from ..runtime import rank_environment as launch
from ..runtime.files import write_atomically
from . import display, options

if TYPE_CHECKING:
    from ..compare.comparison import Comparison
    from ..compare.stats import Difference

DEFAULT_BASELINES = "none,uniform,trivialaugment,randaugment"
ERRORS = {kind.exit_code: kind for kind in (UsageError, InputError, TrainingError, EnvironmentFault)}


def compare(
    dataset: Annotated[str | None, typer.Argument(help="Data set; a bundle brings its own.")] = None,
    bundle: Annotated[
        list[str] | None,
        typer.Option(
            help=f"The policy: {options.SOURCES}; any number of searches of one data set, and of imported policies.",
            metavar="FILE",
        ),
    ] = None,
    arch: Annotated[
        list[str] | None, typer.Option(help="timm name of a network to train, any number of times.")
    ] = None,
    against: Annotated[
        str,
        typer.Option(
            help=f"Policies to compare with: {', '.join(ZERO_COST_POLICIES)}, sampler-only (p_jk, equal weights), "
            "weights-only (uniform draws, learned weights).",
            metavar="NAME,NAME",
        ),
    ] = DEFAULT_BASELINES,
    mode: Annotated[str, typer.Option(help="Of the learned policy: frozen, finetune or both.")] = "frozen",
    seeds: Annotated[int, typer.Option(help="So many, from --seed on.", min=1, max=10_000)] = 3,
    budget: Annotated[
        str, typer.Option(help="equal-epochs, or equal-time: the cheaper runs get more epochs.")
    ] = "equal-epochs",
    jobs: Annotated[int, typer.Option(help="Runs side by side, each in a process.", min=1, max=1024)] = 1,
    include_validation: Annotated[
        bool, typer.Option("--include-validation", help="Train on the meta-validation images too.")
    ] = False,
    expect_digest: Annotated[
        list[str] | None,
        typer.Option(
            help="Refuse a bundle with another digest; one for each --bundle.",
            metavar="SHA256",
            callback=lambda texts: [parse_digest(text) for text in texts or ()],
        ),
    ] = None,
    chart: Annotated[
        Path | None, typer.Option(help="Picture of the differences with their intervals.", metavar="FILE.png|FILE.svg")
    ] = None,
    limits: options.BundleLimits = None,
    recipe: options.Recipe = None,
    settings: options.Settings = None,
    model_arguments: options.ModelArguments = None,
    epochs: options.Epochs = None,
    data_dir: options.DataDir = None,
    run_dir: options.RunDir = None,
    seed: options.Seed = None,
    device: options.Device = None,
    skip_corrupt: options.SkipCorrupt = False,
    resume: options.Resume = False,
    force: options.Force = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Train networks with a bundle's policy and with others, over several seeds, and compare them pairwise.

    Example: mapolicy compare --bundle artifacts/c100.safetensors --arch wrn40_2 --seeds 5 --jobs 2
    """
    if launch.processes() > 1:
        raise UsageError("compare", "was started by a launcher of several processes", "start it alone, with --jobs")
    if not bundle:
        raise UsageError("--bundle", "there is nothing to compare without one", "give --bundle FILE")
    if not arch:
        raise UsageError("--arch", "no network was named", "name at least one")
    if expect_digest and len(expect_digest) != len(bundle):
        why = f"{len(expect_digest)} digests for {len(bundle)} bundles"
        raise UsageError("--expect-digest", why, "give one for each --bundle, in their order")
    if chart is not None and chart.suffix not in (".png", ".svg"):
        raise UsageError("--chart", f"{chart} is neither a .png nor a .svg", "give it such a name")
    if chart is not None and not set(_names(against)) & set(ZERO_COST_POLICIES):
        raise UsageError("--chart", "shows differences to a policy without a search", "add one to --against")
    flags = {
        "include_validation": include_validation or None,
        "epochs": epochs,
        "data_dir": data_dir,
        "seed": seed,
        "device": device,
        "skip_corrupt": skip_corrupt or None,
    }

    digests: Sequence[str | None] = expect_digest or [None] * len(bundle)
    files = [options.opened(reference, digest, limits) for reference, digest in zip(bundle, digests, strict=True)]
    searched = [file.policy for file in files if isinstance(file.policy, SearchedFile)]
    data_settings = searched[0].manifest.data_settings() if searched else {}
    resolved = [
        options.resolve(TrainConfig, recipe, name, dataset, data_settings, flags, settings, model_arguments)
        for name in arch
    ]
    configs = [config for config, _ in resolved]
    for name in ("policy", "mode", "seed"):
        if any(text.partition("=")[0] == name for text in settings or []):
            raise UsageError(f"--set {name}", "is what the comparison varies", f"use --{_OPTION_OF[name]}")
    first = configs[0]
    default_run = f"compare-{options.slug(first.dataset)}-{'-'.join(options.slug(name) for name in arch)}"
    run_dir = run_dir or Path("runs") / default_run
    options.claim_run(run_dir, force, resume)
    if chart is not None:
        options.claim(chart, force, resume, "--chart")

    from ..compare.comparison import compare_policies
    from ..compare.plot import chart as draw

    reporter = display.reporter(quiet)
    for name, (_, source) in zip(arch, resolved, strict=True):
        if not quiet:
            reporter.noted(f"{name}: settings from {source}")
    comparison = compare_policies(
        [options.built(file) for file in files],
        configs,
        run_dir,
        _names(against),
        _names(mode),
        seeds,
        budget,
        jobs,
        reporter,
        resume,
        force,
    )
    if chart is not None:
        write_atomically(chart, draw(comparison.summary, chart.suffix.removeprefix(".")))
    if as_json:
        display.print_json({"run": str(run_dir), **comparison.document()})
    else:
        _print(comparison, run_dir)
    if comparison.failed:
        run, failure = next(iter(comparison.failed.items()))
        others = f" and {len(comparison.failed) - 1} more" if len(comparison.failed) > 1 else ""
        kind = ERRORS.get(failure.exit_code, MapolicyError)
        raise kind(f"{run}{others}", f"{failure.what}: {failure.why}", failure.remedy)


_OPTION_OF = {"policy": "against", "mode": "mode", "seed": "seed"}


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _print(comparison: "Comparison", run_dir: Path) -> None:
    """The summary as a table on stdout, and below it what it depends on."""
    from rich.console import Console
    from rich.table import Table

    table = Table("network", "policy")
    for name in ("epochs", "n", "test top-1 %", "to best rival", "to uniform", "seconds", "x plain step"):
        table.add_column(name, justify="right")
    for position, entry in enumerate(comparison.summary):
        if position and entry.arch != comparison.summary[position - 1].arch:
            table.add_section()
        table.add_row(
            entry.arch,
            entry.policy if entry.mode in (None, "frozen") else f"{entry.policy}, {entry.mode}",
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
    display.print_figures(_facts(comparison) | {"run folder": str(run_dir)})


def _difference(difference: "Difference | None") -> str:
    if difference is None:
        return "-"
    sure = "" if difference.half_width is None else f" ± {difference.half_width:.2f}"
    return f"{difference.mean:+.2f}{sure}"


def _facts(comparison: "Comparison") -> dict[str, str]:
    """What the table's figures mean, and what they were had with."""
    from ..compare.stats import LEVEL

    facts: dict[str, str] = {}
    units = {entry.unit for entry in comparison.summary if entry.policy != "proxy"}
    if "bundle" in units:
        facts["n"] = "bundles; each counts as the mean over its seeds"
    elif units:
        facts["n"] = "seeds, all on one split: the intervals say nothing about other splits and searches"
    facts["±"] = "after an accuracy the standard deviation; after a difference, which is paired, half of its "
    facts["±"] += f"{100 * LEVEL:.0f} % interval (Student's t): a smaller difference cannot be told from none"
    rivals = {entry.arch: entry.versus_rival.against for entry in comparison.summary if entry.versus_rival}
    if rivals:
        named = ", ".join(f"{policy} ({arch})" for arch, policy in rivals.items())
        facts["best rival"] = f"{named}: of those without a search, the best on the test split, which favours it"
    if any(entry.n == 1 for entry in comparison.summary):
        facts["n = 1"] = "no interval: the difference may be chance"
    if comparison.summary:
        worst = max(comparison.summary, key=lambda entry: entry.sampling_error)
        images = " or ".join(str(count) for count in sorted({row.test_images for row in comparison.rows}))
        facts["test split"] = (
            f"{images} images: one accuracy's standard error is up to {worst.sampling_error:.2f} points"
        )
    facts["budget"] = str(comparison.budget["kind"])
    if "pace" in comparison.budget:
        facts["budget"] += ": epochs by what an iteration took at the start; the dearest policy has those asked for"
    facts["bundles"] = "; ".join(
        f"{about['bundle']} ({about.get('proxy') or about['source']})" for about in comparison.bundles
    )
    for name in ("hardware", "versions"):
        facts[name] = ", ".join(f"{key} {value}" for key, value in getattr(comparison, name).items())
    facts |= {f"note {number}": text for number, text in enumerate(comparison.notes, 1)}
    facts |= {f"failed: {run}": f"{failure.what}: {failure.why}" for run, failure in comparison.failed.items()}
    return facts
