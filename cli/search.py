"""`mapolicy search`: search a policy and write its bundle."""

import time
from collections.abc import Collection, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer

from ..bundle.findings import Findings, better_policy, levels_document, verification_document
from ..config import SearchConfig
from ..runtime import rank_environment
from . import clock, display, next_command, options, planned
from .data_folder import dataset_slug, with_fitting_batches
from .grouped import grouped
from .outputs import slug

if TYPE_CHECKING:
    from ..policy.policy_bundle import PolicyBundle
    from ..search import PlannedSearch

UNCHECKED = "Whether training with its policy helps was not checked; a comparison tells."


@grouped
def search(
    *,
    dataset: options.DatasetArgument = None,
    proxy: Annotated[
        str | None, typer.Option(help="timm name of the proxy network.", show_default="the recipe's, or a small one")
    ] = None,
    budget: planned.Budget = None,
    settings: options.StageSettings,
    extractor_dtype: options.ExtractorDtype = None,
    verify: options.Verify = None,
    out: Annotated[
        Path | None, typer.Option(help="The bundle.", metavar="FILE", show_default="artifacts/DATASET.safetensors")
    ] = None,
    run: options.Run,
    output: options.Output,
) -> None:
    """Search a policy with a proxy network and write it to a bundle.

    A data set without a recipe needs no option: settings are chosen from the images, the machine and the time.

    Example: mapolicy search folder:photos
    """
    started = clock.began()
    given: dict[str, Any] = {"extractor_dtype": extractor_dtype, "verify": verify}
    typed = settings.typed(**given, proxy=proxy)
    usual = {} if typed & {"pretrained", "weights"} else {"proxy": planned.UNDECIDED}
    config, recipe = settings.resolve(SearchConfig, proxy, dataset, usual=usual, **given)
    planner = planned.Planner.of(recipe, typed, budget, started)
    place = Place.of(config, out, run)
    if planner is None:
        reporter, listeners = run.begin(place.folder, place.out, recipe)  # before torch is imported

    from ..distributed import process_group
    from ..runtime.device import resolve_device
    from ..search import forecast_search, search_policy
    from ..training.dry_run import leaving_nothing

    plan: PlannedSearch | None = None
    chosen: dict[str, str] = {}
    files = leaving_nothing() if run.dry_run else nullcontext()
    with process_group(resolve_device(config.device), config.patience_seconds), files:
        if planner is not None:
            config = planner.choose(config)
            place = Place.of(config, out, run)
            kept = planned.of_run(settings, place.folder) if run.resume else None
            if kept is not None:
                config, recipe = kept.resolve(SearchConfig, proxy, dataset, **given)
            reporter, listeners = run.begin(place.folder, place.out, recipe)
            if kept is None:
                plan = planner.fit(config, reporter)
                config = plan.config
                planned.tell(plan, reporter, run)
        if plan is None:
            (config,), chosen = with_fitting_batches([config], [recipe], typed, learns=True)
            reporter.facts = {**chosen, **reporter.facts}
        splits = None if plan is None else plan.splits
        if run.dry_run:
            with display.note_if_long(f"building {config.proxy} and measuring its first iterations", run.quiet):
                expected = forecast_search(config, reporter, splits)
        else:
            deadline = None if plan is None else plan.deadline
            bundle = search_policy(config, listeners, place.folder, run.resume, run.force, place.out, splits, deadline)
    if rank_environment.rank() > 0:
        return
    if run.dry_run:
        lines, document = planned.shown(plan)
        display.print_forecast(expected, config.proxy, recipe, output.as_json, chosen | lines, document)
        return
    result = {**reporter.result, "command_seconds": time.monotonic() - started}
    own = planned.own_settings(bundle.manifest.run.iterations, typed)
    _tell(config, bundle, result, place, own, output)


@dataclass(frozen=True)
class Place:
    """Where a search writes its run and its bundle."""

    folder: Path
    out: Path

    @classmethod
    def of(cls, config: SearchConfig, out: Path | None, run: options.Run) -> Self:
        """The usual place for what the command line does not name."""
        name = dataset_slug(config.dataset, config.data_dir)
        folder = run.folder(f"search-{name}-{slug(config.proxy)}-seed{config.seed}")
        return cls(folder, out or Path("artifacts") / f"{name}.safetensors")


def _tell(
    config: SearchConfig,
    bundle: "PolicyBundle",
    result: Mapping[str, Any],
    place: Place,
    own: Collection[str],
    output: options.Output,
) -> None:
    """Say what was found, in sentences; then the file and what to type next; then the figures."""
    manifest, out, folder = bundle.manifest, place.out, place.folder
    log_levels = None if bundle.log_levels is None else bundle.log_levels.double().numpy()
    effects = None if bundle.sample_effects is None else bundle.sample_effects.table.double().numpy()
    check, settings_of_bundle = manifest.verification, manifest.data_settings()
    better = None if check is None else better_policy(check, bundle.strength)
    commands = {
        "next": next_command.after_search(config, out, settings_of_bundle, better, own),
        "whether it helps": next_command.whether_it_helps(config, out, settings_of_bundle, own),
    }
    if output.as_json:
        learned = {"levels": levels_document(manifest, log_levels, effects)}
        learned["verification"] = verification_document(manifest)
        document = {"bundle": str(out), "run": str(folder), **result, **learned, "next": commands["next"]}
        display.print_json(document)
        return
    findings = Findings.of(manifest, log_levels, effects)
    if not findings.verdict:
        print(f"The search is done. {UNCHECKED}\n")
    display.print_sentences(findings)
    display.print_figures({"bundle": f"{out}, {display.size(out.stat().st_size)}", **commands})
    print("\ndetails")
    display.print_check(findings)
    display.print_figures(_figures(config, result, folder))


def _figures(config: SearchConfig, result: Mapping[str, Any], folder: Path) -> dict[str, str]:
    missing = result.get("check_left_out")
    effect = display.effect_on_weights(result["effect_on_weights"]) if "effect_on_weights" in result else {}
    return {
        **({"not checked": f"{', '.join(missing)}, for lack of time"} if missing else {}),
        "digest": result["digest"],
        "proxy": f"{config.proxy}, {result['validation_top1']:.2f} % top-1 on the meta-validation split",
        **effect,
        "alpha": f"{result['alpha']:.4f}",
        "entropy of p_jk": f"{result['entropy']:.5f} of uniform",
        **({} if config.weighting == "equal" else display.spread_of_weights(result)),
        **display.signal_to_noise(result),
        "cost": display.ratio(result["cost_ratio"]),
        "time": display.whole_time(result["command_seconds"], result["seconds"]),
        "run folder": str(folder),
    }
