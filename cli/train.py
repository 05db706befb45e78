"""`mapolicy train`: train a network with a bundle's policy, or with a baseline."""

from pathlib import Path
from typing import Annotated

import typer

from ..bundle.load import SearchedFile
from ..config import POLICIES, SEARCHED_POLICIES, TrainConfig
from ..errors import UsageError
from ..runtime import rank_environment as launch
from . import display, options


def train(
    dataset: Annotated[str | None, typer.Argument(help="Data set; a bundle brings its own.")] = None,
    bundle: Annotated[str | None, typer.Option(help=f"The policy: {options.SOURCES}", metavar="FILE")] = None,
    arch: Annotated[str | None, typer.Option(help="timm name of the network to train.")] = None,
    policy: Annotated[str | None, typer.Option(help=f"{', '.join(POLICIES[:-1])} or {POLICIES[-1]}.")] = None,
    mode: Annotated[str | None, typer.Option(help="frozen or finetune.")] = None,
    include_validation: Annotated[
        bool, typer.Option("--include-validation", help="Train on the meta-validation images too.")
    ] = False,
    expect_digest: options.ExpectDigest = None,
    limits: options.BundleLimits = None,
    allow_dataset_mismatch: Annotated[
        bool,
        typer.Option(
            "--allow-dataset-mismatch",
            help="Use a bundle of other data: without its split, so that images it learned from may be tested on.",
        ),
    ] = False,
    recipe: options.Recipe = None,
    settings: options.Settings = None,
    model_arguments: options.ModelArguments = None,
    epochs: options.Epochs = None,
    fast: options.Fast = False,
    out: Annotated[Path | None, typer.Option(help="The refined bundle, with --mode finetune.", metavar="FILE")] = None,
    data_dir: options.DataDir = None,
    run_dir: options.RunDir = None,
    seed: options.Seed = None,
    device: options.Device = None,
    skip_corrupt: options.SkipCorrupt = False,
    on_divergence: options.OnDivergence = None,
    loggers: options.Loggers = None,
    dry_run: options.DryRun = False,
    resume: options.Resume = False,
    force: options.Force = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Train a network with a bundle's policy, frozen or learned further, or with a baseline policy.

    Example: mapolicy train --bundle artifacts/c100.safetensors --arch resnet18
    """
    flags = {
        "policy": policy,
        "mode": mode,
        "include_validation": include_validation or None,
        "epochs": epochs,
        "data_dir": data_dir,
        "seed": seed,
        "device": device,
        "skip_corrupt": skip_corrupt or None,
        "on_divergence": on_divergence,
    }
    opened, bundle_settings = None, {}
    if bundle is not None:
        # The format is checked before torch is imported, which takes seconds; the architecture after.
        opened = options.opened(bundle, expect_digest, limits)
        if isinstance(opened.policy, SearchedFile):
            bundle_settings = opened.policy.manifest.data_settings()
    config, recipe_source = options.resolve(
        TrainConfig, recipe, arch, dataset, bundle_settings, flags, settings, model_arguments, fast
    )
    if fast and config.mode != "finetune":
        raise UsageError("--fast", "only fine-tuning learns a policy", "add --mode finetune or leave --fast out")
    if config.policy in SEARCHED_POLICIES and opened is None:
        raise UsageError("--bundle", "a learned policy needs one", "give --bundle FILE, or --policy for a baseline")
    if allow_dataset_mismatch and config.mode == "finetune":
        why = "a fine-tuned bundle would name a data set that its policy was not learned on"
        raise UsageError("--allow-dataset-mismatch", why, "use --mode frozen, or search on this data set")
    if out is not None and config.mode != "finetune":
        raise UsageError("--out", "only fine-tuning makes a new bundle", "add --mode finetune or leave --out out")
    label = config.policy if config.policy != "learned" else config.mode
    default_run = f"train-{options.slug(config.dataset)}-{options.slug(config.arch)}-{label}-seed{config.seed}"
    run_dir = run_dir or Path("runs") / default_run
    first = launch.rank() == 0  # of several processes one tells and writes
    reporter = display.reporter(quiet or not first, recipe_source)
    listeners = display.with_loggers(reporter, None if dry_run or not first else loggers)
    if out is not None and first and not dry_run:
        options.claim(out, force, resume, "--out")
    if first and not dry_run:
        options.claim_run(run_dir, force, resume)

    from ..distributed import process_group
    from ..runtime.device import resolve_device
    from ..train import forecast_training, train_network

    if opened is not None and opened.fetched.origin != bundle:
        reporter.facts = {**reporter.facts, "bundle": opened.fetched.origin}  # what a branch's name stood for
    built = None if opened is None else options.built(opened)
    with process_group(resolve_device(config.device), config.patience_seconds):
        if dry_run:
            expected = forecast_training(config, built, reporter, allow_dataset_mismatch)
        else:
            result = train_network(config, built, listeners, run_dir, resume, force, allow_dataset_mismatch, out=out)
    if not first:
        return
    if dry_run:
        display.print_forecast(expected, config.arch, recipe_source, as_json)
        return
    refined = {}
    if out is not None and result.refined is not None:
        refined = {"refined_bundle": str(out), "refined_digest": result.refined.digest}

    document = {"run": str(run_dir), **reporter.result, **refined}
    if as_json:
        display.print_json(document)
        return
    validation = "trained on" if result.validation_top1 is None else f"{result.validation_top1:.2f} %"
    lines = {
        "network": config.arch,
        "policy": config.policy if config.policy != "learned" else f"{built.origin if built else ''}, {config.mode}",
        "test top-1": f"{result.test_top1:.2f} %",
        "test top-5": f"{result.test_top5:.2f} %",
        "meta-validation top-1": validation,
        "weights' spread": f"{result.weight_spread:.4f}",
        "cost": display.ratio(result.cost_ratio),
        "time": display.duration(reporter.result["seconds"]),
        "run folder": str(run_dir),
    }
    if result.digest is not None:
        lines["bundle's digest"] = result.digest
    if result.dataset_mismatch:
        lines["data set"] = f"not the bundle's: {'; '.join(result.dataset_mismatch)}"
    if refined:
        lines |= {"refined bundle": refined["refined_bundle"], "its digest": refined["refined_digest"]}
    display.print_figures(lines)
