"""`mapolicy search`: search a policy and write its bundle."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from ..config import SearchConfig
from ..runtime import rank_environment as launch
from . import display, options


def search(
    dataset: Annotated[str | None, typer.Argument(help="Data set: a name or folder:PATH.")] = None,
    proxy: Annotated[str | None, typer.Option(help="timm name of the network that searches.")] = None,
    recipe: options.Recipe = None,
    settings: options.Settings = None,
    model_arguments: options.ModelArguments = None,
    epochs: options.Epochs = None,
    fast: options.Fast = False,
    extractor_dtype: options.ExtractorDtype = None,
    out: Annotated[Path | None, typer.Option(help="The bundle.", metavar="FILE")] = None,
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
    """Search a policy with a proxy network and write it to a bundle.

    Example: mapolicy search cifar100 --proxy wrn28_10
    """
    flags = {
        "epochs": epochs,
        "data_dir": data_dir,
        "seed": seed,
        "device": device,
        "skip_corrupt": skip_corrupt or None,
        "on_divergence": on_divergence,
        "extractor_dtype": extractor_dtype,
    }
    config, source = options.resolve(SearchConfig, recipe, proxy, dataset, {}, flags, settings, model_arguments, fast)
    name = options.slug(config.dataset)
    out = out or Path("artifacts") / f"{name}.safetensors"
    run_dir = run_dir or Path("runs") / f"search-{name}-{options.slug(config.proxy)}-seed{config.seed}"
    first = launch.rank() == 0  # of several processes one tells and writes
    reporter = display.reporter(quiet or not first, source)
    listeners = display.with_loggers(reporter, None if dry_run or not first else loggers)
    if first and not dry_run:
        options.claim(out, force, resume, "--out")
        options.claim_run(run_dir, force, resume)

    from ..distributed import process_group
    from ..runtime.device import resolve_device
    from ..search import forecast_search, search_policy

    with process_group(resolve_device(config.device), config.patience_seconds):
        if dry_run:
            expected = forecast_search(config, reporter)
        else:
            bundle = search_policy(config, listeners, run_dir, resume, force, out)
    if not first:
        return
    if dry_run:
        display.print_forecast(expected, config.proxy, source, as_json)
        return

    result = reporter.result
    document = {"bundle": str(out), "run": str(run_dir), **result}
    if as_json:
        display.print_json(document)
        return
    # A bundle knows the name of a folder, not where it lies.
    typed = [config.dataset] if config.dataset.startswith("folder:") else []
    effect = display.effect_on_weights(result["effect_on_weights"]) if "effect_on_weights" in result else {}
    display.print_figures(
        {
            "bundle": str(out),
            "digest": bundle.digest,
            "proxy": f"{config.proxy}, {result['validation_top1']:.2f} % top-1 on the meta-validation split",
            **effect,
            "alpha": f"{result['alpha']:.4f}",
            "entropy of p_jk": f"{result['entropy']:.5f} of uniform",
            **display.with_interval(result, "weight_spread", "of 95 % of the last epoch's batches"),
            **display.weight_shares(result),
            **display.signal_to_noise(result),
            "cost": display.ratio(result["cost_ratio"]),
            "time": display.duration(result["seconds"]),
            "run folder": str(run_dir),
            "next": shlex.join(["mapolicy", "train", *typed, "--bundle", str(out), "--arch", "ARCH"]),
        }
    )
