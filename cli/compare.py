"""`mapolicy compare`: whether a bundle's policy helps, against which others, by how much, and how certain that is."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from ..bundle.load import Opened
from ..bundle.manifest_base import PolicyFile, parse_digest
from ..config import TrainConfig
from ..errors import EnvironmentFault, InputError, MapolicyError, TrainingError, UsageError
from ..policy.import_policy import can_be_imported, import_policy
from ..registries import ZERO_COST_POLICIES, policy_names
from ..runtime import rank_environment
from ..runtime.files import write_atomically
from . import bundles, comparison_table, data_folder, display, options, run_progress
from .grouped import grouped
from .outputs import slug
from .resolve import USUAL_NETWORK

if TYPE_CHECKING:
    from ..compare.comparison import Comparison

DEFAULT_BASELINES = "none,uniform,trivialaugment,randaugment"
ERRORS = {kind.exit_code: kind for kind in (UsageError, InputError, TrainingError, EnvironmentFault)}
OPTION_OF = {"policy": "against", "mode": "mode", "seed": "seed"}  # settings that a comparison varies


@dataclass(frozen=True)
class Bundles:
    """The bundles whose policies are compared."""

    panel: ClassVar[str] = "Policy"

    bundle: Annotated[
        list[str] | None,
        typer.Option(
            help=f"The policy: {options.SOURCES}; repeatable, for searches of one data set and imported policies.",
            metavar="FILE",
        ),
    ] = None
    expect_digest: Annotated[
        list[str] | None,
        typer.Option(
            help="Reject a bundle with another digest; one for each --bundle.",
            metavar="SHA256",
            callback=lambda texts: [parse_digest(text) for text in texts or ()],
        ),
    ] = None
    limits: options.LimitOption = None

    def open(self, required: bool = True) -> list[Opened]:
        """Open all of them.

        Args:
            required: whether there has to be one.

        Raises:
            UsageError: there is none, or the number of digests is another.
        """
        if not self.bundle and not required and not self.expect_digest:
            return []
        if not self.bundle:
            raise UsageError("--bundle", "there is nothing to compare without one", "give --bundle FILE")
        digests: Sequence[str | None] = self.expect_digest or [None] * len(self.bundle)
        if len(digests) != len(self.bundle):
            why = f"{len(digests)} digests for {len(self.bundle)} bundles"
            raise UsageError("--expect-digest", why, "give one for each --bundle, in their order")
        return [
            options.BundleChecks(digest, self.limits).open(reference)
            for reference, digest in zip(self.bundle, digests, strict=True)
        ]


@dataclass(frozen=True)
class Plan:
    """What is compared, and how."""

    panel: ClassVar[str] = "Comparison"

    arch: Annotated[list[str] | None, typer.Option(help="timm name of a network to train; repeatable.")] = None
    against: Annotated[
        str,
        typer.Option(
            help=f"Policies to compare with: {', '.join(ZERO_COST_POLICIES)}, sampler-only (p_jk, equal weights), "
            "weights-only (uniform sampling, learned weights), a policy that `mapolicy import` takes, or its bundle.",
            metavar="NAME,NAME",
        ),
    ] = DEFAULT_BASELINES
    mode: Annotated[
        str,
        typer.Option(help="Modes of the learned policy: frozen, finetune, or frozen,finetune.", metavar="NAME,NAME"),
    ] = "frozen"
    seeds: Annotated[int, typer.Option(help="Number of seeds, from --seed on.", min=1, max=10_000)] = 3
    budget: Annotated[
        str, typer.Option(help="equal-epochs, or equal-time: cheaper policies train for more epochs.")
    ] = "equal-epochs"
    jobs: Annotated[int, typer.Option(help="Processes that train at the same time.", min=1, max=1024)] = 1
    include_validation: options.IncludeValidation = False
    chart: Annotated[
        Path | None,
        typer.Option(help="Also draw the differences and their intervals.", metavar="FILE.png|FILE.svg"),
    ] = None

    def check(self) -> None:
        """Check what needs no bundle.

        Raises:
            UsageError: no network was named, or the chart cannot be drawn.
        """
        if not self.arch:
            raise UsageError("--arch", "no network was named", f"name at least one, such as --arch {USUAL_NETWORK}")
        if self.chart is not None and self.chart.suffix not in (".png", ".svg"):
            raise UsageError("--chart", f"{self.chart} is neither a .png nor a .svg", "give it such a name")
        if self.chart is not None and not set(_names(self.against)) & set(ZERO_COST_POLICIES):
            raise UsageError("--chart", "shows differences to a policy without a search", "add one to --against")


@grouped
def compare(
    *,
    dataset: options.DatasetOfBundle = None,
    files: Bundles,
    plan: Plan,
    settings: options.Settings,
    run: options.RunFolder,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
    output: options.Output,
) -> None:
    """Compare a bundle's policy with others over several seeds.

    Networks are trained with each policy; differences are taken seed by seed.

    Example: mapolicy compare --bundle artifacts/c100.safetensors --arch wrn40_2 --seeds 5 --jobs 2
    """
    if rank_environment.processes() > 1:
        raise UsageError("compare", "was started by a launcher of several processes", "start it alone, with --jobs")
    plan.check()
    against, imported = _imported(_names(plan.against), files.limits)
    opened = files.open(required=not imported)
    configs, recipes = _configurations(dataset, opened, plan, settings)
    searched = next((each for each in opened if each.policy.has_network), None)
    configs = [data_folder.with_known_folder(config, searched, dataset is not None) for config in configs]
    name = data_folder.dataset_slug(configs[0].dataset, configs[0].data_dir)
    folder = run.folder(f"compare-{name}-{'-'.join(slug(name) for name in plan.arch or ())}")
    if not dry_run:
        run.check_folder(folder, comparison=True)
        if plan.chart is not None:
            run.check_file(plan.chart, "--chart")
    learns = "finetune" in _names(plan.mode)
    configs, chosen = data_folder.with_fitting_batches(configs, recipes, settings.typed(), learns)

    from ..compare.comparison import compare_policies, forecast_comparison
    from ..compare.plot import chart as draw

    reporter = run_progress.reporter(quiet)
    for config, recipe in zip(configs, [] if quiet else recipes, strict=False):
        reporter.on_note(f"{config.arch}: settings from {recipe}")
    for name, text in ({} if quiet else chosen).items():
        reporter.on_note(f"{name} {text}")
    built, modes = [*(bundles.build(each) for each in opened), *imported], _names(plan.mode)
    asked = (built, configs, folder, against, modes, plan.seeds, plan.budget, plan.jobs, reporter, run.resume)
    if dry_run:
        with display.note_if_long("building the networks and measuring a few iterations with each policy", quiet):
            expected = forecast_comparison(*asked)
        comparison_table.show_forecast(expected, output.as_json)
        return
    comparison = compare_policies(*asked, run.force)
    if plan.chart is not None:
        write_atomically(plan.chart, draw(comparison.titled_summary(), plan.chart.suffix.removeprefix(".")))
    if output.as_json:
        display.print_json({"run": str(folder), **comparison.document()})
    else:
        comparison_table.show(comparison, folder)
    _raise_failure(comparison)


def _configurations(
    dataset: str | None, opened: Sequence[Opened], plan: Plan, settings: options.Settings
) -> tuple[list[TrainConfig], list[str]]:
    """A configuration for each network, and the recipe that each comes from."""
    from_bundle = next((each.policy.data_settings() for each in opened if each.policy.has_network), {})
    validation = plan.include_validation or None
    found = [
        settings.resolve(TrainConfig, name, dataset, from_bundle, include_validation=validation)
        for name in plan.arch or ()
    ]
    varied = OPTION_OF.keys() & {text.partition("=")[0] for text in settings.settings or ()}
    for name in sorted(varied):
        raise UsageError(f"--set {name}", "is what the comparison varies", f"use --{OPTION_OF[name]}")
    return [config for config, _ in found], [recipe for _, recipe in found]


def _raise_failure(comparison: "Comparison") -> None:
    """Raise the first failed run's error; its exit code is the command's."""
    for run, failure in comparison.failed.items():
        others = f" and {len(comparison.failed) - 1} more" if len(comparison.failed) > 1 else ""
        kind = ERRORS.get(failure.exit_code, MapolicyError)
        raise kind(f"{run}{others}", f"{failure.what}: {failure.why}", failure.remedy)


def _names(text: str) -> list[str]:
    # The comma of randaugment:2,9 is part of the name.
    return [name.strip() for name in re.split(r",(?!\d)", text) if name.strip()]


def _imported(names: Sequence[str], limits: options.LimitOption) -> tuple[list[str], list[PolicyFile]]:
    """The names of policies that need no file; and the policies of the others, imported or from their bundles.

    Raises:
        UsageError, InputError: a file is no policy, or one that only `--bundle` takes.
    """
    left = [name for name in names if name in policy_names() or not can_be_imported(name)]
    found: list[PolicyFile] = []
    for name in names:
        if name in left:
            continue
        if not name.endswith(".safetensors"):
            found.append(replace(import_policy(name), origin=name))
            continue
        opened = options.BundleChecks(None, limits).open(name)
        if opened.policy.has_network:
            raise UsageError("--against", f"{name} is a searched bundle", "give it with --bundle")
        found.append(bundles.build(opened))
    return left, found
